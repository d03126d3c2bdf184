"""From named tensors in files to a parameter tree: strict, tensor by tensor, in one dtype."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jpt.errors import InputError
from jpt.types import Parameters

LAYER = "{layer}"
SHOWN = 4


class TensorSource(Protocol):
    """Named tensors whose shapes are known before their data is read."""

    shapes: Mapping[str, tuple[int, ...]]

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor in its stored dtype."""
        ...


@dataclass(frozen=True)
class TensorRule:
    """Where one parameter comes from.

    Attributes:
        path: the parameter, for instance ``"layer/query/kernel"``; what starts with ``layer/`` is
            read once a layer and stacked into ``layers`` and ``last_layer``.
        name: the tensor in the file, ``{layer}`` standing for the layer's number.
        shape: the tensor's shape in the file.
        transpose: whether the file has it as [out, in] while we multiply by [in, out].
        aliases: other names that real files use for it.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    transpose: bool = False
    aliases: tuple[str, ...] = ()

    def find(self, layer: int | None, known: Iterable[str]) -> str | None:
        """Gives the first of the rule's names that the file has."""
        for name in (self.name, *self.aliases):
            name = name.replace(LAYER, str(layer))
            if name in known:
                return name
        return None


def load_parameters(
    source: TensorSource,
    rules: Iterable[TensorRule],
    layers: int,
    ignored: Iterable[str] = (),
    dtype: jnp.dtype = jnp.float32,
    where: str = "the checkpoint",
) -> Parameters:
    """Reads every parameter that the rules name, and insists that the file holds nothing else.

    Args:
        source: the tensors.
        rules: one for each parameter.
        layers: L.
        ignored: regular expressions of names that real files have and nobody needs.
        dtype: of the parameters.
        where: what to call the source in messages.

    Returns:
        The nested parameters; only one stacked parameter is held twice at a time.

    Raises:
        InputError: naming the tensors that are missing, misshaped or unexpected.

    Example:
        >>> from types import SimpleNamespace as Source
        >>> source = Source(shapes={"w": (2,)}, read=lambda name: np.ones(2))
        >>> load_parameters(source, [TensorRule("head/bias", "w", (2,))], layers=1)
        {'head': {'bias': Array([1., 1.], dtype=float32)}}
    """
    rules = list(rules)
    _check(source, rules, layers, ignored, where)
    params: Parameters = {}
    for rule in rules:
        if not rule.path.startswith("layer/"):
            _store(params, rule.path, jnp.asarray(_read(source, rule, None), dtype))
            continue
        rest = rule.path.removeprefix("layer/")
        _store(params, f"last_layer/{rest}", jnp.asarray(_read(source, rule, layers - 1), dtype))
        if layers > 1:
            lower = [_read(source, rule, layer).astype(dtype) for layer in range(layers - 1)]
            _store(params, f"layers/{rest}", jnp.asarray(np.stack(lower)))
    return params


def write_parameters(
    params: Parameters, rules: Iterable[TensorRule], layers: int
) -> dict[str, np.ndarray]:
    """Turns a parameter tree back into the named tensors of a file.

    Args:
        params: the nested parameters.
        rules: as for loading.
        layers: L.

    Returns:
        Tensors by the names that the rules give first.

    Example:
        >>> params = {"head": {"bias": jnp.ones(2)}}
        >>> list(write_parameters(params, [TensorRule("head/bias", "w", (2,))], layers=1))
        ['w']
    """
    tensors: dict[str, np.ndarray] = {}
    flat = {
        "/".join(key.key for key in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    for rule in rules:
        rest = rule.path.removeprefix("layer/")
        if rest == rule.path:
            tensors[rule.name] = _turn(flat[rule.path], rule)
            continue
        for layer in range(layers):
            last = layer == layers - 1
            tensor = flat[f"last_layer/{rest}"] if last else flat[f"layers/{rest}"][layer]
            tensors[rule.name.replace(LAYER, str(layer))] = _turn(tensor, rule)
    return tensors


def _turn(tensor: np.ndarray, rule: TensorRule) -> np.ndarray:
    return np.ascontiguousarray(tensor.T) if rule.transpose else tensor


def _read(source: TensorSource, rule: TensorRule, layer: int | None) -> np.ndarray:
    name = rule.find(layer, source.shapes)
    assert name is not None, "checked before"
    return _turn(source.read(name), rule)


def _store(params: Parameters, path: str, value: jax.Array) -> None:
    *folders, leaf = path.split("/")
    for folder in folders:
        params = params.setdefault(folder, {})
    params[leaf] = value


def _check(
    source: TensorSource,
    rules: list[TensorRule],
    layers: int,
    ignored: Iterable[str],
    where: str,
) -> None:
    """Raises for missing, misshaped and unexpected tensors before any data is read."""
    used, missing, misshaped = set(), [], []
    for rule in rules:
        for layer in range(layers) if rule.path.startswith("layer/") else [None]:
            name = rule.find(layer, source.shapes)
            if name is None:
                missing.append(rule.name.replace(LAYER, str(layer)))
                continue
            used.add(name)
            if tuple(source.shapes[name]) != rule.shape:
                came, expected = list(source.shapes[name]), list(rule.shape)
                misshaped.append(f"{name} is {came}, expected {expected}")
    pattern = re.compile("|".join(ignored) or r"(?!)")
    unexpected = [n for n in source.shapes if n not in used and not pattern.fullmatch(n)]
    problems = [
        f"{what}: {_shown(names)}"
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
