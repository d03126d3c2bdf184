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
    """Everything that a train step updates."""

    step: Int[Array, ""]  # number of finished steps
    prompt: Float[Array, "P D"]  # float32
    optimizer: Any  # optax state


class StepMetrics(NamedTuple):
    """Metrics of a train step, left on the device."""

    loss: Float[Array, ""]  # mean cross-entropy
    accuracy: Float[Array, ""]  # share of correct labels; of correct tokens if generative
    gradient_norm: Float[Array, ""]  # before clipping


TrainStep = Callable[[Parameters, TuneState, Batch, Answer], tuple[TuneState, StepMetrics]]


def prompt_optimizer(
    learning_rate: float | Float[Array, ""], clip_norm: float | None = None
) -> optax.GradientTransformation:
    """Return the paper's optimizer: AdamW, eps 1e-6, no decay, a constant learning rate."""
    adam = optax.adamw(learning_rate, b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.0)
    if clip_norm is None:
        return adam
    clip = optax.clip_by_global_norm(clip_norm)

    def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        clipped, _ = clip.update(gradient, optax.EmptyState())
        return adam.update(clipped, state, params)

    return optax.GradientTransformation(adam.init, update)


def init_state(prompt: Float[Array, "P D"], optimizer: optax.GradientTransformation) -> TuneState:
    """Return the state before the first step."""
    prompt = jnp.asarray(prompt, jnp.float32)
    return TuneState(jnp.int32(0), prompt, optimizer.init(prompt))


def build_train_step(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    seed: int = 0,
    objective: str = "labels",
    mesh: Mesh | None = None,
) -> TrainStep:
    """Return the compiled step; weights are an argument, the state is donated."""
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
    """Return the step before `jit`, with optimizer and seed as arguments."""
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
    """A compiled step with the learning rate and the seed of one run."""

    program: Any  # compiled step, shared by runs: learning rate and seed are its arguments
    learning_rate: np.float32
    seed: np.uint32  # of dropout

    def __call__(
        self, params: Parameters, state: TuneState, batch: Batch, answer: Answer
    ) -> tuple[TuneState, StepMetrics]:
        """Run the step."""
        return self.program(params, state, batch, answer, self.learning_rate, self.seed)

    def lower(self, *arguments: Any) -> jax.stages.Lowered:
        """Lower the step for arguments or their shapes."""
        return self.program.lower(*arguments, self.learning_rate, self.seed)


def paper_step(
    module: nn.Module, objective: str, clip_norm: float | None
) -> Callable[..., tuple[TuneState, StepMetrics]]:
    """Return the step of one run with the paper's optimizer, before `jit`."""
    run = _plain_step(module, objective)

    def step(
        params: Parameters,
        state: TuneState,
        batch: Batch,
        answer: Answer,
        learning_rate: Float[Array, ""],
        seed: UInt32[Array, ""],
    ) -> tuple[TuneState, StepMetrics]:
        return run(params, state, batch, answer, prompt_optimizer(learning_rate, clip_norm), seed)

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
    """Return the compiled step of the paper's optimizer, shared by all learning rates and seeds."""
    program = _paper_program(module, objective, mesh, clip_norm)
    return BoundStep(program, np.float32(learning_rate), np.uint32(seed))
