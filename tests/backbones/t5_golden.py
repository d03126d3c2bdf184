"""The stored answers of torch transformers for T5, and how the tests ask for them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from jpt.backbones.output import Cache, ModelOutput
from jpt.backbones.t5 import T5
from jpt.backbones.t5_config import T5Config
from jpt.backbones.t5_weights import T5_WEIGHTS
from jpt.files.tensor_files import open_tensors
from jpt.types import Parameters
from tests.backbones.golden import FAST_COMPILE, FIXTURES

NAMES = ("t5_gated", "t5_gated_silu", "t5_one_layer", "t5_relu")


@dataclass(frozen=True, eq=False)
class T5Golden:
    """A small checkpoint and what torch says of one batch.

    Attributes:
        config: the shape, as the loader left it.
        params: the weights in float32.
        stored: inputs and answers by name, see ``make_t5_fixtures.py``.
    """

    config: T5Config
    params: Parameters
    stored: dict[str, np.ndarray]

    def model(self, dtype: jnp.dtype = jnp.float32, dropout_rate: float = 0.0) -> T5:
        """The module of this checkpoint."""
        return T5(self.config, dtype, dropout_rate)

    def input(self, name: str) -> jax.Array:
        """One stored input as a JAX array."""
        return jnp.asarray(self.stored[name])

    @property
    def batch(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Tokens, lengths and prompt."""
        return self.input("tokens"), self.input("lengths"), self.input("prompt")

    def is_read(self) -> np.ndarray:
        """Which of the encoder's positions are no padding [B, S]."""
        places = np.arange(self.stored["encoded"].shape[1])
        read = self.stored["lengths"] + self.stored["prompt"].shape[0]
        return places[None] < read[:, None]


@cache
def load_golden(name: str) -> T5Golden:
    """Reads a fixture as any checkpoint folder is read, once a session."""
    folder = FIXTURES / name
    config = T5Config.from_huggingface(json.loads((folder / "config.json").read_text()))
    source = open_tensors(folder / "model.safetensors")
    config, params = T5_WEIGHTS.load(source, config, jnp.float32, where=name)
    return T5Golden(config, params, load_file(folder / "golden.safetensors"))


@partial(
    jax.jit,
    static_argnums=0,
    static_argnames=("capture_neurons", "every_position", "neuron_stack"),
    compiler_options=FAST_COMPILE,
)
def read(
    model: T5,
    params: Parameters,
    tokens: jax.Array,
    lengths: jax.Array,
    prompt: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
    **options: object,
) -> ModelOutput:
    """Runs a model, compiled."""
    keys = None if dropout_key is None else {"dropout": dropout_key}
    return model.apply({"params": params}, tokens, lengths, prompt, rngs=keys, **options)


@partial(jax.jit, static_argnums=0, static_argnames="max_new", compiler_options=FAST_COMPILE)
def start(
    model: T5,
    params: Parameters,
    tokens: jax.Array,
    lengths: jax.Array,
    prompt: jax.Array | None,
    max_new: int,
) -> tuple[jax.Array, Cache]:
    """Begins to write, compiled."""
    variables = {"params": params}
    return model.apply(variables, tokens, lengths, prompt, max_new, method="start")


@partial(jax.jit, static_argnums=0, compiler_options=FAST_COMPILE)
def advance(
    model: T5, params: Parameters, last: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    """Writes on, compiled."""
    return model.apply({"params": params}, last, cache, method="advance")


def write(
    golden: T5Golden, params: Parameters, batch: tuple, forced: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Writes the forced tokens [B, N], the best where they are -1; gives scores and tokens."""
    model, count = golden.model(), forced.shape[1]
    logits, cache = start(model, params, *batch, max_new=count)
    scores, tokens = [logits], []
    for place in range(count):
        best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        tokens.append(jnp.where(forced[:, place] < 0, best, jnp.asarray(forced[:, place])))
        if place < count - 1:
            logits, cache = advance(model, params, tokens[-1], cache)
            scores.append(logits)
    return np.stack(jax.device_get(scores), axis=1), np.stack(jax.device_get(tokens), axis=1)
