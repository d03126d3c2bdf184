"""Checkpoints that lie in memory: a fixture's tensors, changed, and what loading makes of them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file

from jpt.backbones.registry import Family, find_family
from jpt.errors import InputError
from jpt.types import Parameters
from tests.backbones.golden import FIXTURES, load_golden

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
