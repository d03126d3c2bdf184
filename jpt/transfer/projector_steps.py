"""One step of a projector's training, for both objectives: pure, compiled, its state donated."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jpt.mesh import replicated
from jpt.transfer.projector import Projector, distance_loss
from jpt.tuning.losses import Answer, answer_loss
from jpt.tuning.step import StepMetrics, TuneState, prompt_optimizer
from jpt.types import Batch, Parameters


class TaskBatch(NamedTuple):
    """Rows of one task with that task's own source prompt."""

    rows: Batch  # the batch; all of one task
    source: Float[Array, "Ps Ds"]  # the source model's prompt of that task
    answer: Answer  # the label words of that task


class Pairs(NamedTuple):
    """Prompts of the same tasks on both models, in one order of the tasks."""

    sources: Float[Array, "K Ps Ds"]  # prompts of the source model
    targets: Float[Array, "K P D"]  # the target model's own prompts


ProjectorStep = Callable[[Any, TuneState, Any, None], tuple[TuneState, StepMetrics]]
"""``step(frozen, state, batch, None)``; ``state.prompt`` holds the projector's weights."""


def start(params: Parameters, optimizer: optax.GradientTransformation) -> TuneState:
    """Builds the state before the first step."""
    return TuneState(jnp.int32(0), params, optimizer.init(params))


def projector_optimizer(objective: str, learning_rate: float) -> optax.GradientTransformation:
    """Gives the optimizer of an objective."""
    # Paper's code: AdamW with eps 1e-6 and no decay for tasks, Adam for the distance, both at a
    # constant rate. (There the rate of the config is ignored and 5e-3 built in; here it is used.)
    if objective == "task":
        return prompt_optimizer(learning_rate)
    return optax.adam(learning_rate)


@lru_cache(maxsize=16)
def task_step(
    module: nn.Module,
    projector: Projector,
    learning_rate: float,
    answer_objective: str = "labels",
    mesh: Mesh | None = None,
) -> ProjectorStep:
    """Gives the compiled step of the task objective."""
    # The projected prompt stands before the rows in the frozen target, and what the task's loss
    # says of it goes back into the projector alone. (In the paper's code for T5 it gets lost on the
    # way.)

    def loss_of(params: Parameters, frozen: Parameters, batch: TaskBatch) -> tuple[Array, Array]:
        prompt = projector.apply({"params": params}, batch.source)
        return answer_loss(module, frozen, prompt, batch.rows, batch.answer, answer_objective)

    return _compiled(loss_of, projector_optimizer("task", learning_rate), mesh)


@lru_cache(maxsize=16)
def distance_step(
    projector: Projector, learning_rate: float, mesh: Mesh | None = None
) -> ProjectorStep:
    """Gives the compiled step of the distance objective."""

    def loss_of(params: Parameters, pairs: Pairs, tasks: Int[Array, "B"]) -> tuple[Array, Array]:
        sources, targets = pairs.sources[tasks], pairs.targets[tasks]
        return distance_loss(projector, params, sources, targets), jnp.float32(0)

    return _compiled(loss_of, projector_optimizer("distance", learning_rate), mesh)


def _compiled(
    loss_of: Callable[[Parameters, Any, Any], tuple[Array, Array]],
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None,
) -> ProjectorStep:
    def step(
        frozen: Any, state: TuneState, batch: Any, answer: None = None
    ) -> tuple[TuneState, StepMetrics]:
        del answer  # the batch has its own
        (loss, accuracy), gradient = jax.value_and_grad(loss_of, has_aux=True)(
            state.prompt, frozen, batch
        )
        # optax raises a float to an int power, which strict promotion (on in tests) refuses.
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.prompt)
        params = optax.apply_updates(state.prompt, updates)
        metrics = StepMetrics(loss, accuracy, optax.tree.norm(gradient))
        return TuneState(state.step + 1, params, optimizer_state), metrics

    shardings = {} if mesh is None else {"out_shardings": replicated(mesh)}
    return jax.jit(step, donate_argnums=1, **shardings)
