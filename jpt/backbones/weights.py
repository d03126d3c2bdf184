"""The checkpoints of a family: what their tensors are called, what is extra, how all is split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jpt.backbones.loading import (
    Placer,
    TensorRule,
    TensorSource,
    load_parameters,
    write_parameters,
)
from jpt.mesh import PartitionTable
from jpt.types import Parameters

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
    settle: Callable[[TensorSource, Any, str], Any]
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
        config = self.settle(source, config, where)
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
