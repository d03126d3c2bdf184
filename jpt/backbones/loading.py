"""Read configuration fields and load checkpoint tensors into sharded parameter trees."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jpt.errors import InputError, shorten, warn_data
from jpt.io.tensors import FLOATS, count_not_finite
from jpt.parallel import PartitionTable
from jpt.types import Parameters

# --- Fields of config.json

Fields = Mapping[str, Any]


def read_whole(fields: Fields, name: str, default: int | None = None, least: int = 1) -> int:
    """Return an integer field."""
    value = _value(fields, name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(
            f"config.json: expected {name} to be an integer of at least {least}, got {value!r}"
        )
    return value


def read_number(
    fields: Fields, name: str, default: float | None = None, *, allow_zero: bool = False
) -> float:
    """Return a numeric field as float."""
    value = _value(fields, name, default)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (0 < value < float("inf") or (allow_zero and value == 0)):
        least = "a number of at least 0" if allow_zero else "a number above 0"
        raise InputError(f"config.json: expected {name} to be {least}, got {value!r}")
    return float(value)


def read_flag(fields: Fields, name: str, default: bool) -> bool:
    """Return a boolean field."""
    value = fields.get(name, default)
    if not isinstance(value, bool):
        raise InputError(f"config.json: expected {name} to be true or false, got {value!r}")
    return value


def read_choice(fields: Fields, name: str, known: Iterable[str], default: str) -> str:
    """Return a field that names one of ``known``."""
    value = fields.get(name, default)
    if value not in list(known):
        raise InputError(f"config.json: expected {name} {', '.join(known)}, got {value!r}")
    return value


def _value(fields: Fields, name: str, default: Any) -> Any:
    if name not in fields and default is None:
        raise InputError(f"config.json has no field '{name}', which this model needs")
    return fields.get(name, default)


# --- Tensors to parameters

LAYER = "{layer}"
SHOWN = 4

Placer = Callable[[str, np.ndarray], jax.Array]
"""Function of path and values that puts a parameter on its devices."""


class TensorSource(Protocol):
    """Named tensors with shapes known before any data is read."""

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, np.dtype]

    def origin(self, name: str) -> str:
        """Return the file and name of a tensor, for messages."""
        ...

    def read(self, name: str) -> np.ndarray:
        """Return one tensor in its stored dtype."""
        ...


@dataclass(frozen=True)
class TensorRule:
    """Mapping from the tensors of a checkpoint to one parameter."""

    # Path of the parameter. ``layer/...`` is read for every layer and stored as ``layers/...``
    # [L-1, ...] and ``last_layer/...``; ``layers/...`` is stored as one stack [L, ...].
    path: str
    name: str  # of the tensor; may contain ``{layer}``
    shape: tuple[int, ...]  # of the tensor
    transpose: bool = False  # [out, in] in the file, [in, out] in the parameter
    aliases: tuple[str, ...] = ()  # alternative tensor names
    layers: int = 0  # number of layers; 0 for parameters outside the layers
    part: tuple[int, int] | None = None  # index and number of equal parts of a fused tensor

    def find(self, layer: int | None, known: Container[str]) -> str | None:
        """Return the first of the rule's names that is in ``known``."""
        for name in (self.name, *self.aliases):
            name = name.replace(LAYER, str(layer))
            if name in known:
                return name
        return None

    @property
    def numbers(self) -> Sequence[int | None]:
        """Layer numbers, or [None] outside the layers."""
        return range(self.layers) if self.layers else [None]

    @property
    def is_split(self) -> bool:
        """Whether the last layer is stored apart from the stack."""
        return "layer" in self.path.split("/")


def load_parameters(
    source: TensorSource,
    rules: Iterable[TensorRule],
    ignored: Iterable[str] = (),
    dtype: jnp.dtype = jnp.float32,
    where: str = "the checkpoint",
    place: Placer | None = None,
) -> Parameters:
    """Load the parameters of all rules; raise InputError for tensors that cannot be theirs."""
    # One parameter at a time goes to its devices, so peak host memory is one extra parameter.
    rules = list(rules)
    _check(source, rules, ignored, where)
    # jnp.asarray would copy twice.
    place = place or (lambda path, values: jax.device_put(values))
    params: Parameters = {}
    for rule in rules:
        for path, numbers in _parameters(rule):
            values = _read(source, rule, numbers, np.dtype(dtype))
            # Blocking frees the host copy before the next one is made.
            _store(params, path, jax.block_until_ready(place(path, values)))
            del values
    return params


def write_parameters(params: Parameters, rules: Iterable[TensorRule]) -> dict[str, np.ndarray]:
    """Return the checkpoint tensors of a parameter tree; the inverse of `load_parameters`."""
    flat = {
        "/".join(key.key for key in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    parts: dict[str, dict[int, np.ndarray]] = {}
    for rule in rules:
        for path, numbers in _parameters(rule):
            is_stack = isinstance(numbers, range)
            for index, layer in enumerate(numbers if is_stack else [numbers]):
                tensor = flat[path][index] if is_stack else flat[path]
                name = rule.name.replace(LAYER, str(layer))
                number = rule.part[0] if rule.part else 0
                parts.setdefault(name, {})[number] = _transpose(tensor, rule)
    return {
        name: np.concatenate([fused[number] for number in sorted(fused)], axis=-1)
        if len(fused) > 1
        else fused[0]
        for name, fused in parts.items()
    }


def _parameters(rule: TensorRule) -> list[tuple[str, range | int | None]]:
    """Return the path of each parameter of a rule and the layers (or the layer) it contains."""
    if not rule.layers:
        return [(rule.path, None)]
    if not rule.is_split:
        return [(rule.path, range(rule.layers))]
    folders, last = rule.path.split("/"), rule.layers - 1
    index = folders.index("layer")

    def path(folder: str) -> str:
        return "/".join([*folders[:index], folder, *folders[index + 1 :]])

    lower = [(path("layers"), range(last))] if last else []
    return [*lower, (path("last_layer"), last)]


def _transpose(tensor: np.ndarray, rule: TensorRule) -> np.ndarray:
    return np.ascontiguousarray(tensor.T) if rule.transpose else tensor


def _read(
    source: TensorSource, rule: TensorRule, numbers: range | int | None, dtype: np.dtype
) -> np.ndarray:
    """Read one parameter; the tensors of several layers are stacked."""
    if not isinstance(numbers, range):
        return np.ascontiguousarray(_read_one(source, rule, numbers, dtype))
    stack: np.ndarray | None = None
    for index, layer in enumerate(numbers):
        tensor = _read_one(source, rule, layer, dtype)
        if stack is None:
            stack = np.empty((len(numbers), *tensor.shape), dtype)
        stack[index] = tensor
    assert stack is not None, "rules have at least one layer"
    return stack


def _read_one(
    source: TensorSource, rule: TensorRule, layer: int | None, dtype: np.dtype
) -> np.ndarray:
    name = rule.find(layer, source.shapes)
    assert name is not None, "_check found it"
    with np.errstate(over="ignore", invalid="ignore"):  # what exceeds the dtype is infinite
        tensor = source.read(name).astype(dtype, copy=False)
    if count := count_not_finite(tensor):
        raise InputError(
            f"{source.origin(name)}: expected finite weights in {dtype}, got NaN or infinity in "
            f"{count} of {tensor.size} values; download or convert the model again"
        )
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
    """Raise InputError for tensors of wrong names, shapes or types before any data is read."""
    used, missing, misshaped = set(), {}, {}
    shapes, dtypes = source.shapes, source.dtypes
    for rule in rules:
        for layer in rule.numbers:
            name = rule.find(layer, shapes)
            if name is None:
                missing[rule.name.replace(LAYER, str(layer))] = None
                continue
            used.add(name)
            if dtypes[name].type not in FLOATS:  # e.g. quantised, without their scales
                raise InputError(
                    f"{source.origin(name)}: expected weights in float32, bfloat16, float16 or "
                    f"float64, got {dtypes[name]}; use the unquantised weights of the model"
                )
            if tuple(shapes[name]) != rule.shape:
                found, expected = list(shapes[name]), list(rule.shape)
                misshaped[f"{name} is {found}, expected {expected}"] = None
    pattern = re.compile("|".join(ignored) or r"(?!)")
    unexpected = [n for n in shapes if n not in used and not pattern.fullmatch(n)]
    problems = [
        f"{what}: {shorten(list(names), SHOWN)}"
        for what, names in (
            ("missing", missing),
            ("misshaped", misshaped),
            ("unexpected", unexpected),
        )
        if names
    ]
    if problems:
        raise InputError(f"{where} does not match its config.json; {'; '.join(problems)}")


# --- Checkpoint formats of model families

Split = tuple[tuple[str, tuple[str | None, ...]], ...]


def _as_it_is(source: TensorSource, config: Any, where: str) -> Any:
    del source, where
    return config


def _no_check(source: TensorSource, where: str) -> None:
    pass


@dataclass(frozen=True)
class Weights:
    """Checkpoint format and partition table of a model family."""

    untied_rules: Callable[[Any], list[TensorRule]]  # of a config: word table first, head last
    ignored: tuple[str, ...]  # regular expressions of unused tensor names
    partition: PartitionTable  # mesh axes of each parameter path
    # ``resolve(source, config, where)``: the config after a look at the names in the file
    resolve: Callable[[TensorSource, Any, str], Any] = _as_it_is
    check: Callable[[TensorSource, str], None] = _no_check  # further check of the loaded file

    def rules(self, config: Any) -> list[TensorRule]:
        """Return the loading rules of a config."""
        words, *others, head = self.untied_rules(config)
        if not config.tied_head:
            return [words, *others, head]
        # A file may have the table under either name.
        return [dataclasses.replace(words, aliases=(*words.aliases, head.name)), *others]

    def load(
        self,
        source: TensorSource,
        config: Any,
        dtype: jnp.dtype,
        where: str,
        place: Placer | None = None,
    ) -> tuple[Any, Parameters]:
        """Return the resolved config and the parameters of a checkpoint."""
        words, *_, head = self.untied_rules(config)
        resolved = self.resolve(source, config, where)
        if config.tied_head and differs(source, head.name, words.find(None, source.shapes)):
            resolved = dataclasses.replace(resolved, tied_head=False)
        ignored = (*self.ignored, re.escape(head.name))
        params = load_parameters(source, self.rules(resolved), ignored, dtype, where, place)
        self.check(source, where)
        if resolved != config:
            warn_data(
                f"{where}: the config ties the head to the word embeddings, but the file has a "
                "head with other values; the file's head is used, as in transformers 5 (set "
                "tie_word_embeddings to false to omit this warning)"
            )
        return resolved, params

    def write(self, params: Parameters, config: Any) -> dict[str, np.ndarray]:
        """Return the tensors of a Hugging Face checkpoint."""
        return write_parameters(params, self.rules(config))


def split_layers(split: Split) -> tuple[tuple[str, PartitionSpec], ...]:
    """Return partition rules of the last layer and of the stack, which has a leading layer axis."""
    return (
        *((rf"last_layer/{path}", PartitionSpec(*axes)) for path, axes in split),
        *((rf"layers/{path}", PartitionSpec(None, *axes)) for path, axes in split),
    )


def differs(source: TensorSource, copy: str, original: str | None) -> bool:
    """Return whether a file has both tensors with different values."""
    if copy not in source.shapes or original not in source.shapes:
        return False
    return not np.array_equal(source.read(copy), source.read(original))
