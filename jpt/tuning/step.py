"""The jit-compiled train step, the same for everything that is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int, UInt32

from jpt.parallel import replicated
from jpt.tuning.losses import step_key


class TrainState(NamedTuple):
    """Everything that a train step updates."""

    step: Int[Array, ""]  # number of finished steps
    params: Any  # pytree in float32: a prompt [P, D], the weights of a projector, ...
    opt_state: Any  # of optax


class StepMetrics(NamedTuple):
    """Metrics of a train step, left on the device."""

    loss: Float[Array, ""]  # mean cross-entropy
    accuracy: Float[Array, ""] | None  # share of correct labels; of correct tokens if generative
    gradient_norm: Float[Array, ""]  # before clipping


Loss = Callable[[Any, Any, Any, Array], tuple[Array, Array | None]]
"""``loss(frozen, params, batch, key) -> (loss, accuracy)``; the key is a function of seed and step,
the accuracy may be None. Equal losses share compiled programs: a function, or a frozen dataclass
with ``__call__``."""

TrainStep = Callable[[Any, TrainState, Any], tuple[TrainState, StepMetrics]]
"""``step(frozen, state, batch) -> state, metrics``; the state is donated."""


def adamw(learning_rate: float | Float[Array, ""]) -> optax.GradientTransformation:
    """Return the paper's prompt optimizer: AdamW, eps 1e-6, no decay, constant learning rate."""
    return optax.adamw(learning_rate, b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.0)


@dataclass(frozen=True)
class Optimizer:
    """An optimizer before its learning rate, which is an argument of the compiled step."""

    make: Callable[[Any], optax.GradientTransformation] = adamw
    clip_norm: float | None = None

    def __call__(self, learning_rate: float | Float[Array, ""]) -> optax.GradientTransformation:
        """Return the optimizer."""
        inner = self.make(learning_rate)
        if self.clip_norm is None:
            return inner
        clip = optax.clip_by_global_norm(self.clip_norm)

        def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            clipped, _ = clip.update(gradient, optax.EmptyState())
            return inner.update(clipped, state, params)

        return optax.GradientTransformation(inner.init, update)


AnyOptimizer = Optimizer | optax.GradientTransformation


def init_state(params: Any, optimizer: AnyOptimizer = Optimizer()) -> TrainState:
    """Return the state before the first step."""
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    return TrainState(jnp.int32(0), params, _at_rate(optimizer, 1.0).init(params))


def _at_rate(
    optimizer: AnyOptimizer, learning_rate: float | Float[Array, ""]
) -> optax.GradientTransformation:
    return optimizer(learning_rate) if isinstance(optimizer, Optimizer) else optimizer


def optimizer_step(loss: Loss, optimizer: AnyOptimizer) -> Callable[..., Any]:
    """Return ``step(frozen, state, batch, learning_rate, seed)`` before `jit`."""

    def step(
        frozen: Any,
        state: TrainState,
        batch: Any,
        learning_rate: Float[Array, ""],
        seed: UInt32[Array, ""],
    ) -> tuple[TrainState, StepMetrics]:
        def loss_of(params: Any) -> tuple[Array, Array | None]:
            return loss(frozen, params, batch, step_key(seed, state.step))

        (value, accuracy), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        # optax raises a float to an int power, which strict promotion (on in tests) refuses.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = _at_rate(optimizer, learning_rate).update(
                gradient, state.opt_state, state.params
            )
        params = optax.apply_updates(state.params, updates)
        metrics = StepMetrics(value, accuracy, optax.tree.norm(gradient))
        return TrainState(state.step + 1, params, opt_state), metrics

    return step


@lru_cache(maxsize=64)
def compile_step(loss: Loss, optimizer: AnyOptimizer, mesh: Mesh | None = None) -> Any:
    """Return the compiled step of one run; learning rate and seed are its arguments."""
    shardings = {} if mesh is None else {"out_shardings": replicated(mesh)}
    return jax.jit(optimizer_step(loss, optimizer), donate_argnums=1, **shardings)


@lru_cache(maxsize=16)
def compile_steps(
    loss: Loss, optimizer: AnyOptimizer, shardings: tuple[NamedSharding, NamedSharding] | None
) -> Any:
    """Return the compiled step of several runs, with a leading axis on all but the weights."""
    # The weights, frozen[0], are shared: the matrix products of all runs become one product.
    vmapped = jax.vmap(optimizer_step(loss, optimizer), in_axes=((None, 0), 0, 0, 0, 0))
    given = {} if shardings is None else {"out_shardings": shardings}
    return jax.jit(vmapped, donate_argnums=1, **given)


@dataclass(frozen=True)
class BoundStep:
    """A compiled step with the learning rate and the seed of one run."""

    program: Any  # compiled step, shared by runs
    learning_rate: np.float32
    seed: np.uint32

    def __call__(
        self, frozen: Any, state: TrainState, batch: Any
    ) -> tuple[TrainState, StepMetrics]:
        """Run the step."""
        return self.program(frozen, state, batch, self.learning_rate, self.seed)

    def lower(self, *arguments: Any) -> jax.stages.Lowered:
        """Lower the step for arguments or their shapes."""
        return self.program.lower(*arguments, self.learning_rate, self.seed)


def bind_step(
    loss: Loss,
    optimizer: AnyOptimizer,
    learning_rate: float,
    seed: int = 0,
    mesh: Mesh | None = None,
) -> BoundStep:
    """Return the compiled step of a run, shared by all learning rates and seeds."""
    program = compile_step(loss, optimizer, mesh)
    return BoundStep(program, np.float32(learning_rate), np.uint32(seed))
