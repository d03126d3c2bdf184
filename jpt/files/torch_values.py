"""What the pickle of a torch file may hold: storages and the tensors that are views of them.

Everything is checked when it is built: sizes are small numbers from 0 on, a tensor lies within its
storage. Nothing here reads a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from jpt.files.pickle_reader import BrokenPickle, Callee, plain_key

_MOST_AXES = 32


@dataclass(frozen=True)
class Storage:
    """A row of elements that tensors are views of."""

    key: str  # its name within the file
    dtype: np.dtype  # the type of its elements
    count: int  # how many elements the file holds of it
    first: int = 0  # where in it this view begins; in files since torch 1.6 always 0


@dataclass(frozen=True)
class Tensor:
    """A tensor of the pickle, before it is known where in the file its storage lies."""

    storage: Storage  # what it is a view of
    first: int  # its first element, counted from the storage's beginning
    shape: tuple[int, ...]  # its axes
    strides: tuple[int, ...]  # the steps along them, in elements


_STORAGE_DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}


def read_storage(reference: Any) -> Storage:
    """Reads a pickle's reference to a storage."""
    if not (isinstance(reference, tuple) and len(reference) in (5, 6)):
        raise BrokenPickle("it refers to something that is no storage")
    kind, dtype, key, _, count = reference[:5]
    if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(key, str):
        raise BrokenPickle("it refers to something that is no storage")
    if len(reference) == 5 or reference[5] is None:
        return Storage(key, dtype, *_sizes((count,)))
    if not (isinstance(reference[5], tuple) and len(reference[5]) == 3):
        raise BrokenPickle("it refers to something that is no storage")
    count, first, length = _sizes((count, *reference[5][1:]))
    if first + length > count:
        raise BrokenPickle(f"a view goes beyond storage {key!r}")
    return Storage(key, dtype, count, first)


def _sizes(values: Any) -> tuple[int, ...]:
    if not (isinstance(values, tuple) and len(values) <= _MOST_AXES):
        raise BrokenPickle("a shape is no short tuple")
    if not all(type(value) is int and 0 <= value < 2**60 for value in values):
        raise BrokenPickle("a shape has a value that is no size")
    return values


def _rebuild_tensor(storage: Any, first: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    shape, strides = _sizes(shape), _sizes(strides)
    (first,) = _sizes((first,))
    if not isinstance(storage, Storage) or len(shape) != len(strides):
        raise BrokenPickle("a tensor is none")
    last = sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if 0 not in shape and storage.first + first + last >= storage.count:
        raise BrokenPickle(f"a tensor of shape {shape} goes beyond storage {storage.key!r}")
    return Tensor(storage, storage.first + first, shape, strides)


def _rebuild_parameter(tensor: Any, *_: Any) -> Any:
    """A parameter is its tensor; whether it wants a gradient and its hooks are left out."""
    return tensor


def _ordered(pairs: Any = ()) -> dict[Any, Any]:
    """An OrderedDict: empty in files of today, with a list of pairs in those of Python 2."""
    if not isinstance(pairs, tuple | list):
        raise BrokenPickle("a dictionary has no pairs")
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        raise BrokenPickle("a dictionary has no pairs")
    return {plain_key(key): value for key, value in pairs}


def _device(kind: Any, index: Any = None) -> str:
    if not isinstance(kind, str) or not (index is None or type(index) is int):
        raise BrokenPickle("a device is none")
    return kind if index is None else f"{kind}:{_sizes((index,))[0]}"


_TYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8")

NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Callee(_ordered),
    ("torch._utils", "_rebuild_tensor"): Callee(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Callee(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): Callee(_rebuild_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): Callee(_rebuild_parameter),
    ("torch", "Size"): Callee(_sizes),
    ("torch", "device"): Callee(_device),
    **{("torch", name): dtype for name, dtype in _STORAGE_DTYPES.items()},
    **{("torch.cuda", name): dtype for name, dtype in _STORAGE_DTYPES.items()},
    **{("torch", name): f"torch.{name}" for name in (*_TYPES, "bool")},
}
"""All that a file of tensors may ask for, by module and name. Nothing in it runs code of a file."""
