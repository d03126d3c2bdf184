"""Read configurations and load checkpoint tensors into the parameter tree, sharded."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jpt.errors import InputError
from jpt.parallel import PartitionTable
from jpt.types import Parameters

# --- Reads single fields of a Hugging Face config, and says in one line what is wrong with one

Fields = Mapping[str, Any]


def read_whole(fields: Fields, name: str, default: int | None = None, least: int = 1) -> int:
    """Reads a field that counts something."""
    value = _value(fields, name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(
            f"config.json: {name} is {value!r}; a whole number of at least {least} is expected"
        )
    return value


def read_number(
    fields: Fields, name: str, default: float | None = None, *, allow_zero: bool = False
) -> float:
    """Reads a field that measures something, such as a rate or a factor."""
    value = _value(fields, name, default)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (0 < value < float("inf") or (allow_zero and value == 0)):
        least = "a number of at least 0" if allow_zero else "a number above 0"
        raise InputError(f"config.json: {name} is {value!r}; {least} is expected")
    return float(value)


def read_flag(fields: Fields, name: str, default: bool) -> bool:
    """Reads a field that is true or false."""
    value = fields.get(name, default)
    if not isinstance(value, bool):
        raise InputError(f"config.json: {name} is {value!r}; true or false is expected")
    return value


def read_choice(fields: Fields, name: str, known: Iterable[str], default: str) -> str:
    """Reads a field that names one of several things."""
    value = fields.get(name, default)
    if value not in list(known):
        raise InputError(f"config.json: {name} is {value!r}; known are {', '.join(known)}")
    return value


def _value(fields: Fields, name: str, default: Any) -> Any:
    if name not in fields and default is None:
        raise InputError(f"config.json has no field '{name}', which this model needs")
    return fields.get(name, default)


# --- From named tensors in files to a parameter tree: strict, tensor by tensor, in one dtype

LAYER = "{layer}"
SHOWN = 4

Placer = Callable[[str, np.ndarray], jax.Array]
"""Puts a parameter on its devices, given its path and its values."""


class TensorSource(Protocol):
    """Named tensors whose shapes are known before their data is read."""

    shapes: Mapping[str, tuple[int, ...]]

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor in its stored dtype."""
        ...


@dataclass(frozen=True)
class TensorRule:
    """Where one parameter comes from."""

    # the parameter. What has a folder ``layer``, for instance ``"layer/query/kernel"``, is read
    # once a layer and kept as ``layers`` [L-1, ...] and ``last_layer``; what has a folder
    # ``layers`` is kept as one stack [L, ...]
    path: str
    name: str  # the tensor in the file, ``{layer}`` standing for the layer's number
    shape: tuple[int, ...]  # the tensor's shape in the file
    transpose: bool = False  # whether the file has it as [out, in] while we multiply by [in, out]
    aliases: tuple[str, ...] = ()  # other names that real files use for it
    layers: int = 0  # how many layers it stands for; 0 for what stands once
    # which of how many equal parts along the last axis, as we multiply by it, of a tensor that
    # holds several parameters
    part: tuple[int, int] | None = None

    def find(self, layer: int | None, known: Container[str]) -> str | None:
        """Gives the first of the rule's names that the file has."""
        for name in (self.name, *self.aliases):
            name = name.replace(LAYER, str(layer))
            if name in known:
                return name
        return None

    @property
    def numbers(self) -> Sequence[int | None]:
        """The layers that it is read for; one None for what stands once."""
        return range(self.layers) if self.layers else [None]

    @property
    def is_split(self) -> bool:
        """Whether the last layer is kept apart from the others."""
        return "layer" in self.path.split("/")


def load_parameters(
    source: TensorSource,
    rules: Iterable[TensorRule],
    ignored: Iterable[str] = (),
    dtype: jnp.dtype = jnp.float32,
    where: str = "the checkpoint",
    place: Placer | None = None,
) -> Parameters:
    """Reads every parameter that the rules name, and insists that the file holds nothing else."""
    # Tensors are read one by one into the stack of their parameter, and a finished parameter goes
    # to its devices at once: never more than one parameter is held twice.
    rules = list(rules)
    _check(source, rules, ignored, where)
    # Not jnp.asarray: that copies twice on its way.
    place = place or (lambda path, values: jax.device_put(values))
    params: Parameters = {}
    for rule in rules:
        for path, numbers in _parameters(rule):
            values = _read(source, rule, numbers, np.dtype(dtype))
            # Waiting lets the copy on the host go before the next one is made.
            _store(params, path, jax.block_until_ready(place(path, values)))
            del values
    return params


def write_parameters(params: Parameters, rules: Iterable[TensorRule]) -> dict[str, np.ndarray]:
    """Turns a parameter tree back into the named tensors of a file."""
    flat = {
        "/".join(key.key for key in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    parts: dict[str, dict[int, np.ndarray]] = {}
    for rule in rules:
        for path, numbers in _parameters(rule):
            is_stack = isinstance(numbers, range)
            for place, layer in enumerate(numbers if is_stack else [numbers]):
                tensor = flat[path][place] if is_stack else flat[path]
                name = rule.name.replace(LAYER, str(layer))
                number = rule.part[0] if rule.part else 0
                parts.setdefault(name, {})[number] = _turn(tensor, rule)
    # What a file holds as one tensor is put together along the axis it was cut.
    return {
        name: np.concatenate([held[number] for number in sorted(held)], axis=-1)
        if len(held) > 1
        else held[0]
        for name, held in parts.items()
    }


def _parameters(rule: TensorRule) -> list[tuple[str, range | int | None]]:
    """The parameters of a rule: the path of each, and the layers (or the layer) it holds."""
    if not rule.layers:
        return [(rule.path, None)]
    if not rule.is_split:
        return [(rule.path, range(rule.layers))]
    folders, last = rule.path.split("/"), rule.layers - 1
    place = folders.index("layer")

    def path(folder: str) -> str:
        return "/".join([*folders[:place], folder, *folders[place + 1 :]])

    lower = [(path("layers"), range(last))] if last else []
    return [*lower, (path("last_layer"), last)]


def _turn(tensor: np.ndarray, rule: TensorRule) -> np.ndarray:
    return np.ascontiguousarray(tensor.T) if rule.transpose else tensor


def _read(
    source: TensorSource, rule: TensorRule, numbers: range | int | None, dtype: np.dtype
) -> np.ndarray:
    """Reads one parameter: a tensor, or those of several layers into one stack."""
    if not isinstance(numbers, range):
        return np.ascontiguousarray(_read_one(source, rule, numbers), dtype)
    stack: np.ndarray | None = None
    for place, layer in enumerate(numbers):
        tensor = _read_one(source, rule, layer)
        if stack is None:
            stack = np.empty((len(numbers), *tensor.shape), dtype)
        stack[place] = tensor
    assert stack is not None, "a stack has a layer"
    return stack


def _read_one(source: TensorSource, rule: TensorRule, layer: int | None) -> np.ndarray:
    name = rule.find(layer, source.shapes)
    assert name is not None, "checked before"
    tensor = source.read(name)
    tensor = tensor.T if rule.transpose else tensor
    if rule.part is None:
        return tensor
    number, count = rule.part
    width = tensor.shape[-1] // count
    return tensor[..., number * width : (number + 1) * width]


def _store(params: Parameters, path: str, value: jax.Array) -> None:
    *folders, leaf = path.split("/")
    for folder in folders:
        params = params.setdefault(folder, {})
    params[leaf] = value


def _check(
    source: TensorSource, rules: list[TensorRule], ignored: Iterable[str], where: str
) -> None:
    """Raises for missing, misshaped and unexpected tensors before any data is read."""
    used, missing, misshaped = set(), {}, {}
    shapes = source.shapes
    for rule in rules:
        for layer in rule.numbers:
            name = rule.find(layer, shapes)
            if name is None:
                missing[rule.name.replace(LAYER, str(layer))] = None
                continue
            used.add(name)
            if tuple(shapes[name]) != rule.shape:
                came, expected = list(shapes[name]), list(rule.shape)
                misshaped[f"{name} is {came}, expected {expected}"] = None
    pattern = re.compile("|".join(ignored) or r"(?!)")
    unexpected = [n for n in shapes if n not in used and not pattern.fullmatch(n)]
    problems = [
        f"{what}: {_shown(list(names))}"
        for what, names in (
            ("missing", missing),
            ("misshaped", misshaped),
            ("unexpected", unexpected),
        )
        if names
    ]
    if problems:
        raise InputError(f"{where} does not fit its config.json; {'; '.join(problems)}")


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


# --- The checkpoints of a family: what their tensors are called, what is extra, how all is split

Split = tuple[tuple[str, tuple[str | None, ...]], ...]


def _nothing_more(source: TensorSource, where: str) -> None:
    """What a family without a further check of its files has."""


@dataclass(frozen=True)
class Weights:
    """How a family's parameters stand in files and lie on a mesh."""

    rules: Callable[[Any], list[TensorRule]]  # names the tensor of every parameter of a shape
    # regular expressions of names that real files of a shape have and nobody needs
    ignored: Callable[[Any], tuple[str, ...]]
    # finishes a shape by what the file holds, such as a head of its own: ``settle(source, config,
    # where)``
    resolve: Callable[[TensorSource, Any, str], Any]
    partition: PartitionTable  # from parameter path to axes of the mesh
    # raises for what the rules cannot see, once every tensor is known to be there
    check: Callable[[TensorSource, str], None] = _nothing_more

    def load(
        self,
        source: TensorSource,
        config: Any,
        dtype: jnp.dtype,
        where: str,
        place: Placer | None = None,
    ) -> tuple[Any, Parameters]:
        """Reads a model's parameters from a checkpoint."""
        config = self.resolve(source, config, where)
        rules, ignored = self.rules(config), self.ignored(config)
        params = load_parameters(source, rules, ignored, dtype, where, place)
        self.check(source, where)
        return config, params

    def write(self, params: Parameters, config: Any) -> dict[str, np.ndarray]:
        """Names a model's parameters as a Hugging Face checkpoint does."""
        return write_parameters(params, self.rules(config))


def split_layers(split: Split) -> tuple[tuple[str, PartitionSpec], ...]:
    """Says how a layer is split, alone and in the stack, which has one axis more in front."""
    return (
        *((rf"last_layer/{path}", PartitionSpec(*axes)) for path, axes in split),
        *((rf"layers/{path}", PartitionSpec(None, *axes)) for path, axes in split),
    )


def differs(source: TensorSource, copy: str, own: str | None) -> bool:
    """Tells whether a file holds a tensor that is no copy of another one it holds."""
    if copy not in source.shapes or own not in source.shapes:
        return False
    return not np.array_equal(source.read(copy), source.read(own))
