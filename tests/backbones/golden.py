"""The stored answers of torch transformers, and how the tests compare with them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from jpt.backbones.encoder import Encoder
from jpt.backbones.encoder_config import EncoderConfig
from jpt.backbones.encoder_weights import load_encoder
from jpt.backbones.output import ModelOutput
from jpt.files.tensor_files import open_tensors
from jpt.types import Parameters

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = ("bert_one_layer", "bert_tied", "bert_untied", "roberta_tied", "roberta_untied")

# Compiling is nearly all the work of these tests; plainer code takes a quarter of the time.
FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


@dataclass(frozen=True, eq=False)
class Golden:
    """A small checkpoint and what torch says of one batch.

    Attributes:
        config: the shape, as the loader left it.
        params: the weights in float32.
        stored: inputs and answers by name, see ``make_encoder_fixtures.py``.
    """

    config: EncoderConfig
    params: Parameters
    stored: dict[str, np.ndarray]

    def encoder(self, dtype: jnp.dtype = jnp.float32, dropout_rate: float = 0.0) -> Encoder:
        """The module of this checkpoint."""
        return Encoder(self.config, int(self.stored["mask_id"][0]), dtype, dropout_rate)

    def input(self, name: str) -> jax.Array:
        """One stored input as a JAX array."""
        return jnp.asarray(self.stored[name])


@partial(
    jax.jit,
    static_argnums=0,
    static_argnames=("capture_neurons", "every_position", "first_position"),
    compiler_options=FAST_COMPILE,
)
def read(
    encoder: Encoder,
    params: Parameters,
    tokens: jax.Array,
    lengths: jax.Array,
    prompt: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
    **options: object,
) -> ModelOutput:
    """Runs an encoder, compiled."""
    keys = None if dropout_key is None else {"dropout": dropout_key}
    return encoder.apply({"params": params}, tokens, lengths, prompt, rngs=keys, **options)


@cache
def load_golden(name: str) -> Golden:
    """Reads a fixture as any checkpoint folder is read, once a session."""
    folder = FIXTURES / name
    config = EncoderConfig.from_huggingface(json.loads((folder / "config.json").read_text()))
    source = open_tensors(folder / "model.safetensors")
    config, params = load_encoder(source, config, jnp.float32, where=name)
    return Golden(config, params, load_file(folder / "golden.safetensors"))


def difference(found: jax.typing.ArrayLike, expected: jax.typing.ArrayLike) -> float:
    """The largest difference over the largest magnitude."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    assert np.abs(expected).max() > 0, "nothing to compare with"
    return float(np.abs(found - expected).max() / np.abs(expected).max())
