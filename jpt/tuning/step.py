"""The jit-compiled train step: loss, gradient of the prompt, optimizer update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt32

from jpt.parallel import replicated
from jpt.tuning.losses import Answer, answer_loss, step_key
from jpt.types import Batch, Parameters


class TuneState(NamedTuple):
    """All that a step changes; a few hundred kilobytes."""

    step: Int[Array, ""]  # how many steps were done
    prompt: Float[Array, "P D"]  # the trainable rows, in float32
    optimizer: Any  # the optimizer's state of the prompt


class StepMetrics(NamedTuple):
    """What a step reports, left on the device until somebody reads it."""

    loss: Float[Array, ""]  # mean cross-entropy
    accuracy: Float[Array, ""]  # share of right answers; of written ones, of right tokens
    gradient_norm: Float[Array, ""]  # of the prompt, before it is clipped


TrainStep = Callable[[Parameters, TuneState, Batch, Answer], tuple[TuneState, StepMetrics]]


def prompt_optimizer(
    learning_rate: float | Float[Array, ""], clip_norm: float | None = None
) -> optax.GradientTransformation:
    """Builds the paper's optimizer: AdamW, eps 1e-6, no decay, a constant rate, no clipping."""
    adam = optax.adamw(learning_rate, b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.0)
    if clip_norm is None:
        return adam
    clip = optax.clip_by_global_norm(clip_norm)

    def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        clipped, _ = clip.update(gradient, optax.EmptyState())
        return adam.update(clipped, state, params)

    return optax.GradientTransformation(adam.init, update)


def init_state(prompt: Float[Array, "P D"], optimizer: optax.GradientTransformation) -> TuneState:
    """Builds the state before the first step."""
    prompt = jnp.asarray(prompt, jnp.float32)
    return TuneState(jnp.int32(0), prompt, optimizer.init(prompt))


def build_train_step(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    seed: int = 0,
    objective: str = "labels",
    mesh: Mesh | None = None,
) -> TrainStep:
    """Builds the compiled step: weights are an argument, the state is donated."""
    run = _plain_step(module, objective)

    def step(
        params: Parameters, state: TuneState, batch: Batch, answer: Answer
    ) -> tuple[TuneState, StepMetrics]:
        return run(params, state, batch, answer, optimizer, seed)

    return _compiled(step, mesh)


def _compiled(step: Callable[..., Any], mesh: Mesh | None) -> Any:
    shardings = {} if mesh is None else {"out_shardings": replicated(mesh)}
    return jax.jit(step, donate_argnums=1, **shardings)


def _plain_step(module: nn.Module, objective: str) -> Callable[..., tuple[TuneState, StepMetrics]]:
    """The step before it is compiled, with optimizer and seed as two arguments more."""
    has_dropout = bool(getattr(module, "dropout_rate", 0.0))

    def loss_of(
        prompt: Array, params: Parameters, batch: Batch, answer: Answer, key: Array | None
    ) -> tuple[Array, Array]:
        return answer_loss(module, params, prompt, batch, answer, objective, key)

    def step(
        params: Parameters,
        state: TuneState,
        batch: Batch,
        answer: Answer,
        optimizer: optax.GradientTransformation,
        seed: int | UInt32[Array, ""],
    ) -> tuple[TuneState, StepMetrics]:
        key = step_key(seed, state.step) if has_dropout else None
        (loss, accuracy), gradient = jax.value_and_grad(loss_of, has_aux=True)(
            state.prompt, params, batch, answer, key
        )
        # optax raises a float to an int power, which strict promotion (on in tests) refuses.
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.prompt)
        prompt = optax.apply_updates(state.prompt, updates)
        metrics = StepMetrics(loss, accuracy, optax.tree.norm(gradient))
        return TuneState(state.step + 1, prompt, optimizer_state), metrics

    return step


@dataclass(frozen=True)
class BoundStep:
    """A compiled step with the rate and the seed of one run, which are arguments of the program."""

    program: Any  # the compiled step, shared by runs of every rate and seed
    rate: np.float32  # the learning rate
    seed: np.uint32  # of dropout

    def __call__(
        self, params: Parameters, state: TuneState, batch: Batch, answer: Answer
    ) -> tuple[TuneState, StepMetrics]:
        """Does one step."""
        return self.program(params, state, batch, answer, self.rate, self.seed)

    def lower(self, *arguments: Any) -> jax.stages.Lowered:
        """Traces the step for arguments or their shapes."""
        return self.program.lower(*arguments, self.rate, self.seed)


def paper_step(
    module: nn.Module, objective: str, clip_norm: float | None
) -> Callable[..., tuple[TuneState, StepMetrics]]:
    """Builds the step of the paper's optimizer before it is compiled, for one run."""
    run = _plain_step(module, objective)

    def step(
        params: Parameters,
        state: TuneState,
        batch: Batch,
        answer: Answer,
        rate: Float[Array, ""],
        seed: UInt32[Array, ""],
    ) -> tuple[TuneState, StepMetrics]:
        return run(params, state, batch, answer, prompt_optimizer(rate, clip_norm), seed)

    return step


@lru_cache(maxsize=64)
def _paper_program(
    module: nn.Module, objective: str, mesh: Mesh | None, clip_norm: float | None
) -> Any:
    return _compiled(paper_step(module, objective, clip_norm), mesh)


def paper_train_step(
    module: nn.Module,
    learning_rate: float,
    seed: int,
    objective: str = "labels",
    mesh: Mesh | None = None,
    clip_norm: float | None = None,
) -> BoundStep:
    """Gives the compiled step of the paper's optimizer; runs of every rate and seed share it."""
    program = _paper_program(module, objective, mesh, clip_norm)
    return BoundStep(program, np.float32(learning_rate), np.uint32(seed))
