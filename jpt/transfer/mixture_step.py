"""One step of learning a softmax mixture of frozen prompts: a pure function, compiled once."""

from __future__ import annotations

from functools import lru_cache

import jax
import optax
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jpt.mesh import replicated
from jpt.tuning.losses import Answer, answer_loss
from jpt.tuning.step import StepMetrics, TrainStep, TuneState, prompt_optimizer
from jpt.types import Batch, Parameters


def mix(bank: Float[Array, "K P D"], logits: Float[Array, "K R"]) -> Float[Array, "P D"]:
    """Mixes the prompts of a bank by the softmax of logits."""
    return (jax.nn.softmax(logits, axis=0)[:, :, None] * bank).sum(0)


def mixture_loss(
    module: nn.Module,
    params: Parameters,
    bank: Float[Array, "K P D"],
    logits: Float[Array, "K R"],
    batch: Batch,
    answer: Answer,
    objective: str = "labels",
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Gives the loss of a batch behind the mixture, and the share of right answers."""
    return answer_loss(module, params, mix(bank, logits), batch, answer, objective)


@lru_cache(maxsize=16)
def mixture_step(
    module: nn.Module,
    learning_rate: float,
    objective: str,
    mesh: Mesh | None = None,
    clip_norm: float | None = None,
) -> TrainStep:
    """Gives the compiled step; what is trained is the logits, in the place of a prompt."""
    optimizer = prompt_optimizer(learning_rate, clip_norm)

    def loss_of(
        logits: Array, params: Parameters, batch: Batch, answer: Answer
    ) -> tuple[Array, Array]:
        frozen = (module, params["backbone"], params["bank"])
        return mixture_loss(*frozen, logits, batch, answer, objective)

    def step(
        params: Parameters, state: TuneState, batch: Batch, answer: Answer
    ) -> tuple[TuneState, StepMetrics]:
        (loss, accuracy), gradient = jax.value_and_grad(loss_of, has_aux=True)(
            state.prompt, params, batch, answer
        )
        # optax raises a float to an int power, which strict promotion (on in tests) refuses.
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.prompt)
        logits = optax.apply_updates(state.prompt, updates)
        metrics = StepMetrics(loss, accuracy, optax.tree.norm(gradient))
        return TuneState(state.step + 1, logits, optimizer_state), metrics

    shardings = {} if mesh is None else {"out_shardings": replicated(mesh)}
    return jax.jit(step, donate_argnums=1, **shardings)
