"""The stored answers of torch transformers, and how the tests ask for them and compare."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from safetensors.numpy import load_file

from jpt.backbones.layers import Cache, ModelOutput
from jpt.backbones.registry import Family, find_family
from jpt.io.tensors import open_tensors
from jpt.io.tokenizer import SpecialIds
from jpt.parallel import parameter_shardings, place
from jpt.types import Parameters
from tests.plain_programs import FAST_COMPILE

FIXTURES = Path(__file__).parent / "fixtures"
ENCODERS = ("bert_one_layer", "bert_tied", "bert_untied", "roberta_tied", "roberta_untied")
T5S = ("t5_gated", "t5_gated_silu", "t5_one_layer", "t5_relu")
DECODERS = (
    "gpt2_tied",
    "gpt2_untied",
    "llama_grouped",
    "llama_plain",
    "qwen2_tied",
    "qwen2_untied",
)

Batch = tuple[jax.Array, jax.Array, jax.Array]


@dataclass(frozen=True, eq=False)
class Golden:
    """A small checkpoint and what torch says of one batch.

    Attributes:
        family: what it is a model of.
        fields: its ``config.json``.
        config: the shape, as the loader left it.
        params: the weights in float32.
        stored: inputs and answers by name, see the scripts ``make_*_fixtures.py``.
    """

    family: Family
    fields: dict[str, Any]
    config: Any
    params: Parameters
    stored: dict[str, np.ndarray]

    def module(self, dtype: jnp.dtype = jnp.float32, dropout_rate: float = 0.0) -> nn.Module:
        """The module of this checkpoint."""
        mask = int(self.stored["mask_id"][0]) if "mask_id" in self.stored else None
        ids = SpecialIds(cls=None, sep=None, mask=mask, pad=None, unk=None)
        return self.family.module(self.config, ids, dtype, dropout_rate, "dots")

    def input(self, name: str) -> jax.Array:
        """One stored input as a JAX array."""
        return jnp.asarray(self.stored[name])

    @property
    def batch(self) -> Batch:
        """Tokens, lengths and prompt."""
        return self.input("tokens"), self.input("lengths"), self.input("prompt")

    def is_text(self, front: int = 0) -> np.ndarray:
        """Which places are no padding [B, front + T], ``front`` of them before the text."""
        places = np.arange(front + self.stored["tokens"].shape[1])
        return places[None] < self.stored["lengths"][:, None] + front

    def rows_of_prompts(self) -> jax.Array:
        """A prompt of its own for each row of the batch."""
        shape = (self.stored["lengths"].shape[0], *self.stored["prompt"].shape)
        return 0.9 * jax.random.normal(jax.random.key(5), shape, jnp.float32)

    def split(self, mesh: Mesh, dtype: jnp.dtype = jnp.float32) -> Parameters:
        """The weights as their family's table splits them over the devices of a mesh."""
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), self.params)
        return place(params, parameter_shardings(params, self.family.weights.partition, mesh)[0])


def read_folder(folder: Path, stored: dict[str, np.ndarray]) -> Golden:
    """Reads a checkpoint folder as any is read; ``stored`` is what is known of it."""
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    family = find_family(fields, str(folder))
    config, dtype = family.config(fields), jnp.dtype("float32")
    config, params = family.weights.load(open_tensors(folder), config, dtype, str(folder))
    return Golden(family, fields, config, params, stored)


@cache
def load_golden(name: str) -> Golden:
    """Reads a fixture, once a session."""
    return read_folder(FIXTURES / name, load_file(FIXTURES / name / "golden.safetensors"))


@partial(
    jax.jit,
    static_argnums=0,
    static_argnames=("capture_neurons", "every_position", "first_position", "neuron_stack"),
    compiler_options=FAST_COMPILE,
)
def read(
    module: nn.Module,
    params: Parameters,
    tokens: jax.Array,
    lengths: jax.Array,
    prompt: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
    **options: object,
) -> ModelOutput:
    """Runs a model, compiled."""
    keys = None if dropout_key is None else {"dropout": dropout_key}
    return module.apply({"params": params}, tokens, lengths, prompt, rngs=keys, **options)


def ask(golden: Golden, *inputs: object, **options: object) -> ModelOutput:
    """Reads inputs with the model of a fixture."""
    return read(golden.module(), golden.params, *inputs, **options)


def answers_and_gradient(
    module: nn.Module, params: Parameters, batch: Batch, label_ids: jax.Array, labels: jax.Array
) -> dict[str, jax.Array]:
    """What a train step over labels and the analysis ask for, at the answer's position only."""
    tokens, lengths, prompt = batch

    def loss(prompt: jax.Array) -> tuple[jax.Array, ModelOutput]:
        options = {"label_ids": label_ids, "capture_neurons": True}
        output = module.apply({"params": params}, tokens, lengths, prompt, **options)
        return cross_entropy(output.logits, labels), output

    (value, output), gradient = jax.value_and_grad(loss, has_aux=True)(prompt)
    return {
        "logits": output.logits,
        "loss": value[None],
        "prompt_gradient": gradient,
        "answer_hidden": output.hidden,
        "answer_neurons": output.neurons,
    }


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The loss of torch."""
    scores = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(scores, labels[..., None], axis=-1).mean()


learn = jax.jit(answers_and_gradient, static_argnums=0, compiler_options=FAST_COMPILE)


@partial(jax.jit, static_argnames=("module", "max_new"), compiler_options=FAST_COMPILE)
def start(
    module: nn.Module,
    params: Parameters,
    tokens: jax.Array,
    lengths: jax.Array,
    prompt: jax.Array | None,
    max_new: int,
) -> tuple[jax.Array, Cache]:
    """Begins to write, compiled."""
    variables = {"params": params}
    return module.apply(variables, tokens, lengths, prompt, max_new, method="start")


@partial(jax.jit, static_argnums=0, compiler_options=FAST_COMPILE)
def advance(
    module: nn.Module, params: Parameters, last: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    """Writes on, compiled."""
    return module.apply({"params": params}, last, cache, method="advance")


def write(
    golden: Golden, params: Parameters, batch: Batch, forced: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Writes the forced tokens [B, N], the best where they are -1; gives scores and tokens."""
    module, count = golden.module(), forced.shape[1]
    logits, cache = start(module, params, *batch, max_new=count)
    scores, tokens = [logits], []
    for step in range(count):
        best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        tokens.append(jnp.where(forced[:, step] < 0, best, jnp.asarray(forced[:, step])))
        if step < count - 1:
            logits, cache = advance(module, params, tokens[-1], cache)
            scores.append(logits)
    return np.stack(jax.device_get(scores), axis=1), np.stack(jax.device_get(tokens), axis=1)


def difference(found: jax.typing.ArrayLike, expected: jax.typing.ArrayLike) -> float:
    """The largest difference over the largest magnitude."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    assert np.abs(expected).max() > 0, "nothing to compare with"
    return float(np.abs(found - expected).max() / np.abs(expected).max())
