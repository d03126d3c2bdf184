"""Small checkpoints with stored outputs of torch, and compiled calls of their models."""

import json
from dataclasses import dataclass
from functools import cache, cached_property, partial
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
from jpt.parallel import batch_sharding, parameter_shardings, place, replicated
from jpt.types import Parameters
from tests.helpers.running import FAST_COMPILE

FIXTURES = Path(__file__).parents[1] / "backbones" / "fixtures"
ENCODERS = ("bert_one_layer", "bert_tied", "bert_untied", "roberta_tied", "roberta_untied")
T5S = ("t5_gated", "t5_gated_silu", "t5_one_layer", "t5_relu")
DECODERS = ("gpt2_tied", "gpt2_untied", "llama_grouped", "llama_plain")
DECODERS = (*DECODERS, "qwen2_tied", "qwen2_untied")
EQUAL = 1e-5  # relative difference that counts as equal in float32

Batch = tuple[jax.Array, jax.Array, jax.Array]


@dataclass(frozen=True, eq=False)
class Golden:
    family: Family
    fields: dict[str, Any]  # config.json
    config: Any  # as the loader resolved it
    params: Parameters  # in float32
    stored: dict[str, np.ndarray]  # inputs and outputs, see make_*_fixtures.py

    def module(self, dtype: jnp.dtype = jnp.float32, dropout_rate: float = 0.0) -> nn.Module:
        mask = int(self.stored["mask_id"][0]) if "mask_id" in self.stored else None
        ids = SpecialIds(cls=None, sep=None, mask=mask, pad=None, unk=None)
        return self.family.module(self.config, ids, dtype, dropout_rate, "dots")

    def input(self, name: str) -> jax.Array:
        return jnp.asarray(self.stored[name])

    @property
    def batch(self) -> Batch:
        return self.input("tokens"), self.input("lengths"), self.input("prompt")

    def is_text(self, front: int = 0) -> np.ndarray:
        """Return which positions [B, front + T] are not padding."""
        positions = np.arange(front + self.stored["tokens"].shape[1])
        return positions[None] < self.stored["lengths"][:, None] + front

    def rows_of_prompts(self) -> jax.Array:
        """Return a different prompt for each row of the batch [B, P, D]."""
        shape = (self.stored["lengths"].shape[0], *self.stored["prompt"].shape)
        return 0.9 * jax.random.normal(jax.random.key(5), shape, jnp.float32)

    def at_answer(self, values: jax.typing.ArrayLike) -> Any:
        """Return values [..., B, S, X] at the answer: the last text token in decoders, else 0."""
        rows = np.arange(len(self.stored["lengths"]))
        is_decoder = self.family.layout == "decoder"
        return values[..., rows, self.stored["lengths"] - 1 if is_decoder else 0 * rows, :]

    def with_other_padding(self) -> jax.Array:
        tokens = self.input("tokens")
        wide = jnp.full((tokens.shape[0], tokens.shape[1] + 4), 13)
        wide = wide.at[:, : tokens.shape[1]].set(tokens)
        is_text = jnp.arange(wide.shape[1])[None] < self.input("lengths")[:, None]
        return jnp.where(is_text, wide, 17)

    def split(self, mesh: Mesh, dtype: jnp.dtype = jnp.float32) -> Parameters:
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), self.params)
        return place(params, parameter_shardings(params, self.family.weights.partition, mesh)[0])


def read_fields(folder: Path) -> tuple[Family, dict[str, Any]]:
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return find_family(fields, str(folder)), fields


def read_folder(folder: Path, stored: dict[str, np.ndarray]) -> Golden:
    family, fields = read_fields(folder)
    config, dtype = family.config(fields), jnp.dtype("float32")
    config, params = family.weights.load(open_tensors(folder), config, dtype, str(folder))
    return Golden(family, fields, config, params, stored)


@cache
def load_golden(name: str) -> Golden:
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
    keys = None if dropout_key is None else {"dropout": dropout_key}
    return module.apply({"params": params}, tokens, lengths, prompt, rngs=keys, **options)


def ask(golden: Golden, *inputs: object, **options: object) -> ModelOutput:
    return read(golden.module(), golden.params, *inputs, **options)


def answers_and_gradient(
    module: nn.Module, params: Parameters, batch: Batch, label_ids: jax.Array, labels: jax.Array
) -> dict[str, jax.Array]:
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
    scores = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(scores, labels[..., None], axis=-1).mean()


learn = jax.jit(answers_and_gradient, static_argnums=0, compiler_options=FAST_COMPILE)


@partial(jax.jit, static_argnums=0, static_argnames="every_position", compiler_options=FAST_COMPILE)
def slope(
    module: nn.Module,
    params: Parameters,
    tokens: jax.Array,
    lengths: jax.Array,
    prompt: jax.Array,
    every_position: bool = False,
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """A loss over the vocabulary, the logits, and the gradient of the prompt."""

    def loss(prompt: jax.Array) -> tuple[jax.Array, jax.Array]:
        options = {"every_position": every_position}
        logits = module.apply({"params": params}, tokens, lengths, prompt, **options).logits
        answer = logits[:, 0] if every_position else logits
        return jax.nn.logsumexp(answer, axis=-1).mean() - answer[:, 7].mean(), logits

    return jax.value_and_grad(loss, has_aux=True)(prompt)


def learn_batch(
    golden: Golden, dtype: jnp.dtype = jnp.float32, mesh: Mesh | None = None
) -> dict[str, np.ndarray]:
    """Return `answers_and_gradient` of the stored batch, on one device or sharded over a mesh."""
    names = ("tokens", "lengths", "prompt", "label_ids", "labels")
    inputs, params = {name: golden.input(name) for name in names}, golden.params
    if mesh is not None:
        rows, whole = batch_sharding(mesh, len(inputs["tokens"])), replicated(mesh)
        shardings = {"tokens": rows, "lengths": rows, "labels": rows}
        inputs = {name: place(each, shardings.get(name, whole)) for name, each in inputs.items()}
        params = golden.split(mesh)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    tokens, lengths, prompt, *labels = inputs.values()
    return jax.device_get(learn(golden.module(dtype), params, (tokens, lengths, prompt), *labels))


@partial(jax.jit, static_argnames=("module", "max_new"), compiler_options=FAST_COMPILE)
def start(
    module: nn.Module,
    params: Parameters,
    tokens: jax.Array,
    lengths: jax.Array,
    prompt: jax.Array | None,
    max_new: int,
) -> tuple[jax.Array, Cache]:
    variables = {"params": params}
    return module.apply(variables, tokens, lengths, prompt, max_new, method="start")


@partial(jax.jit, static_argnums=0, compiler_options=FAST_COMPILE)
def advance(
    module: nn.Module, params: Parameters, last: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    return module.apply({"params": params}, last, cache, method="advance")


def write(
    golden: Golden, params: Parameters, batch: Batch, forced: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
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
    """Return the largest difference over the largest magnitude."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    assert np.abs(expected).max() > 0, "nothing to compare with"
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@dataclass(frozen=True)
class Dictionary:
    tensors: dict[str, np.ndarray]

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @cached_property
    def dtypes(self) -> dict[str, np.dtype]:
        return {name: tensor.dtype for name, tensor in self.tensors.items()}

    def origin(self, name: str) -> str:
        return f"the folder x: {name}"

    def read(self, name: str) -> np.ndarray:
        return self.tensors[name]
