"""DOC"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import Mesh, PartitionSpec
from safetensors.numpy import load_file

from jpt.backbones.layers import Cache, ModelOutput
from jpt.backbones.registry import Family, find_family
from jpt.errors import InputError
from jpt.io.tensors import open_tensors
from jpt.io.tokenizer import SpecialIds
from jpt.parallel import parameter_shardings, place
from jpt.types import Parameters
from tests.helpers.running import FAST_COMPILE

# --- golden

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


# --- checkpoints

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Dictionary:
    """A checkpoint that lies in memory."""

    tensors: Tensors

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def read(self, name: str) -> np.ndarray:
        return self.tensors[name]


class Unread(Dictionary):
    """A checkpoint whose tensors nobody may read."""

    def read(self, name: str) -> np.ndarray:
        raise AssertionError(f"{name} was read")


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def stored(name: str) -> Tensors:
    return load_file(FIXTURES / name / "model.safetensors")


def with_extras(name: str, extras: Mapping[str, str | np.ndarray], chosen: str) -> Tensors:
    """A fixture's tensors and the chosen extra (or "all"); a name stands for a copy of it."""
    tensors = stored(name)
    for key, value in extras.items():
        if chosen in (key, "all"):
            tensors[key] = tensors[value] if isinstance(value, str) else np.asarray(value)
    return tensors


def shape_of(name: str, **changes: object) -> tuple[Family, Any]:
    """The family of a fixture and its shape, fields of its config.json changed."""
    fields = json.loads((FIXTURES / name / "config.json").read_text(encoding="utf-8"))
    family = find_family(fields, name)
    return family, family.config({**fields, **changes})


def load(
    name: str, tensors: Tensors, dtype: jnp.dtype = jnp.float32, **changes: object
) -> tuple[Any, Parameters]:
    """Loads tensors as those of a fixture."""
    family, config = shape_of(name, **changes)
    return family.weights.load(Dictionary(tensors), config, dtype, where="the folder x")


def refusal(name: str, tensors: Tensors, **changes: object) -> str:
    """What is said of tensors that are refused."""
    with pytest.raises(InputError) as error:
        load(name, tensors, **changes)
    message = str(error.value)
    assert "\n" not in message and "the folder x" in message
    return message


def flat(params: Parameters) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}


def assert_same(found: Parameters, expected: Parameters) -> None:
    found, expected = flat(found), flat(expected)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        assert found[path].dtype == leaf.dtype
        assert np.array_equal(found[path], leaf), path


def assert_refused_unread(name: str, more: Tensors) -> None:
    """Nothing is read before everything fits."""
    family, config = shape_of(name)
    source = Unread({**stored(name), **more, "extra": numbers(1)})
    with pytest.raises(InputError, match="extra"):
        family.weights.load(source, config, jnp.float32, where="x")


def assert_written_again(name: str, unused: Collection[str] = ()) -> None:
    """What is written is the file, but for what nobody uses, and loads as the same model."""
    golden = load_golden(name)
    written = golden.family.weights.write(golden.params, golden.config)
    config, params = load(name, written)
    assert config == golden.config
    assert_same(params, golden.params)
    expected = {key: value for key, value in stored(name).items() if key not in unused}
    assert written.keys() == expected.keys()
    assert all(np.array_equal(written[key], value) for key, value in expected.items())


def assert_cast(name: str, kind: np.dtype) -> None:
    """A file of another precision is cast."""
    tensors = {key: value.astype(kind) for key, value in stored(name).items()}
    expected = load(name, {key: value.astype(np.float32) for key, value in tensors.items()})[1]
    assert_same(load(name, tensors)[1], expected)
    halves = load(name, tensors, jnp.bfloat16)[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(halves)} == {jnp.dtype(jnp.bfloat16)}
    assert_same(halves, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), expected))


def assert_placed_one_by_one(name: str) -> None:
    """Every parameter goes to its devices once, by its path."""
    placed: list[str] = []

    def place(path: str, values: np.ndarray) -> jax.Array:
        placed.append(path)
        return jnp.asarray(values)

    family, config = shape_of(name)
    _, params = family.weights.load(Dictionary(stored(name)), config, jnp.float32, "x", place)
    assert sorted(placed) == sorted(flat(params))


def split_of(name: str) -> list[tuple[str, np.ndarray, PartitionSpec]]:
    """Path, values and split of every parameter: the table names each once, no layer is cut off."""
    golden, found = load_golden(name), []
    for path, leaf in flat(golden.params).items():
        table = golden.family.weights.partition
        specs = [spec for pattern, spec in table if re.fullmatch(pattern, path)]
        assert len(specs) == 1, path
        assert len(specs[0]) <= leaf.ndim, path
        assert "/layers/" not in f"/{path}" or specs[0][0] is None, "layers are not split"
        found.append((path, leaf, specs[0]))
    return found


def assert_no_idle_rule(names: Collection[str]) -> None:
    """Every rule of the table splits a parameter of one of these fixtures of a family."""
    (table,) = {load_golden(name).family.weights.partition for name in names}
    paths = {path for name in names for path in flat(load_golden(name).params)}
    idle = [p for p, _ in table if not any(re.fullmatch(p, path) for path in paths)]
    assert idle == []
