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
    """How a family's parameters stand in files and lie on a mesh.

    Attributes:
        rules: names the tensor of every parameter of a shape.
        ignored: regular expressions of names that real files of a shape have and nobody needs.
        settle: finishes a shape by what the file holds, such as a head of its own:
            ``settle(source, config, where)``.
        partition: from parameter path to axes of the mesh.
        check: raises for what the rules cannot see, once every tensor is known to be there.
    """

    rules: Callable[[Any], list[TensorRule]]
    ignored: Callable[[Any], tuple[str, ...]]
    settle: Callable[[TensorSource, Any, str], Any]
    partition: PartitionTable
    check: Callable[[TensorSource, str], None] = _nothing_more

    def load(
        self,
        source: TensorSource,
        config: Any,
        dtype: jnp.dtype,
        where: str,
        place: Placer | None = None,
    ) -> tuple[Any, Parameters]:
        """Reads a model's parameters from a checkpoint.

        Args:
            source: the checkpoint's tensors.
            config: shape of the model.
            dtype: of the parameters.
            where: what to call the checkpoint in messages.
            place: puts a parameter on its devices.

        Returns:
            The shape, its head untied where the checkpoint has one of its own (as in transformers
            5), and the parameters.

        Raises:
            InputError: for missing, misshaped or unexpected tensors, and what else cannot be.
        """
        config = self.settle(source, config, where)
        rules, ignored = self.rules(config), self.ignored(config)
        params = load_parameters(source, rules, ignored, dtype, where, place)
        self.check(source, where)
        return config, params

    def write(self, params: Parameters, config: Any) -> dict[str, np.ndarray]:
        """Names a model's parameters as a Hugging Face checkpoint does.

        Args:
            params: the parameters.
            config: shape of the model.

        Returns:
            Tensors by name.
        """
        return write_parameters(params, self.rules(config))


def split_layers(split: Split) -> tuple[tuple[str, PartitionSpec], ...]:
    """Says how a layer is split, alone and in the stack, which has one axis more in front.

    Args:
        split: pairs of a regular expression over the path within a layer, and its axes.

    Returns:
        Rows of a partition table.

    Example:
        >>> [pattern for pattern, _ in split_layers((("query/kernel", (None, "model")),))]
        ['last_layer/query/kernel', 'layers/query/kernel']
    """
    return (
        *((rf"last_layer/{path}", PartitionSpec(*axes)) for path, axes in split),
        *((rf"layers/{path}", PartitionSpec(None, *axes)) for path, axes in split),
    )


def differs(source: TensorSource, copy: str, own: str | None) -> bool:
    """Tells whether a file holds a tensor that is no copy of another one it holds.

    Args:
        source: the checkpoint's tensors.
        copy: what may be a copy.
        own: of what; None or a name that is not there makes the answer no.

    Returns:
        Whether both are there and differ.
    """
    if copy not in source.shapes or own not in source.shapes:
        return False
    return not np.array_equal(source.read(copy), source.read(own))
