"""The safetensors container: a JSON header with names, types and places, then the bytes.

Read here and not by the safetensors package for two reasons: its NumPy reader hands bfloat16 out
differently from version to version, and it maps the file, so that a file cut short later kills the
process. The checks are those of the format's description: the header within the file, every
tensor as long as its shape says, one after the other, nothing behind the last.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save

from jpt.errors import InputError
from jpt.files.atomic import write_bytes
from jpt.files.reading import file_size_bytes, parse_json, read_bytes
from jpt.files.stored import StoredTensor

_LARGEST_HEADER_BYTES = 100_000_000  # the limit of the format's own reader
_LENGTH_BYTES = 8  # the header's length stands before it
_OTHER_FILES = {
    b"PK\x03\x04": "it is a zip archive or a file of torch.save",
    b"\x80": "it is a pickle or a file of torch.save",
    b"\x93NUMPY": "it is a NumPy array",
    b"version ": "it is a Git LFS pointer; run `git lfs pull`",
}
_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


def write_safetensors(
    path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file in one step (see `jpt.files.atomic`)."""
    # The package stores an array's memory as it lies, so a transposed one would come out wrong.
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    data = save(arrays, metadata=dict(metadata) if metadata else None)
    write_bytes(path, _in_order(data) if metadata and len(metadata) > 1 else data)


def _in_order(data: bytes) -> bytes:
    """Sorts the texts, which the package leaves in any order: equal content gives equal bytes."""
    start = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    header = json.loads(data[_LENGTH_BYTES:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # values begin at a multiple of eight
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + data[start:]


def read_header(path: str | Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Reads what a safetensors file holds, without its values."""
    file = Path(path)
    size_bytes = file_size_bytes(file)
    header, data_start = _parse_header(file, size_bytes)
    metadata = header.pop("__metadata__", {})
    if not _is_text_table(metadata):
        raise _broken(file, "its metadata is no table of texts")
    tensors = {name: _tensor(file, name, entry, data_start) for name, entry in header.items()}
    _check_places(file, tensors, data_start, size_bytes)
    return tensors, metadata


def _parse_header(file: Path, size_bytes: int) -> tuple[dict[str, Any], int]:
    """The header, and where the values begin."""
    start = read_bytes(file, size_bytes=_LENGTH_BYTES)
    length = int.from_bytes(start, "little")
    limit = size_bytes - _LENGTH_BYTES
    if limit < 2:
        raise _broken(file, f"it has only {size_bytes} bytes")
    if length > min(limit, _LARGEST_HEADER_BYTES):
        for other, kind in _OTHER_FILES.items():
            if start.startswith(other):
                raise InputError(f"{file} is not a safetensors file: {kind}")
        raise _broken(file, f"its header should have {length} bytes, the file has {size_bytes}")
    data = read_bytes(file, _LENGTH_BYTES, length)
    try:
        header = parse_json(data, file)
    except InputError:
        raise _broken(file, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise _broken(file, "its header is no table")
    return header, _LENGTH_BYTES + length


def _tensor(file: Path, name: str, entry: Any, data_start: int) -> StoredTensor:
    """One line of the header, checked on its own."""
    entry = entry if isinstance(entry, dict) else {}
    shape, places = entry.get("shape"), entry.get("data_offsets")
    if not (_are_sizes(shape) and _are_sizes(places) and len(places) == 2):
        raise _broken(file, f"tensor {name!r} has no proper shape and place")
    dtype = _DTYPES.get(str(entry.get("dtype")))
    if dtype is None:
        raise InputError(
            f"{file}: tensor {name!r} has the type {entry.get('dtype')!r}, known are"
            f" {', '.join(_DTYPES)}; convert the file to one of them"
        )
    size_bytes = math.prod(shape) * dtype.itemsize
    if places[1] - places[0] != size_bytes:
        raise _broken(
            file,
            f"tensor {name!r} {shape} needs {size_bytes} bytes and has {places[1]}-{places[0]}",
        )
    return StoredTensor(file, data_start + places[0], tuple(shape), dtype)


def _check_places(
    file: Path, tensors: Mapping[str, StoredTensor], data_start: int, size_bytes: int
) -> None:
    """Holds the tensors to lying one after the other up to the end of the file."""
    end = data_start
    for name, tensor in sorted(tensors.items(), key=lambda item: _span(item[1])):
        if tensor.offset_bytes != end:
            raise _broken(file, f"tensor {name!r} leaves a gap or lies over another one")
        end += tensor.size_bytes
    if end > size_bytes:
        raise _broken(file, f"it ends after {size_bytes} of {end} bytes")
    if end < size_bytes:
        raise _broken(file, f"it should end after {end} bytes and has {size_bytes}")


def _span(tensor: StoredTensor) -> tuple[int, int]:
    return tensor.offset_bytes, tensor.size_bytes


def _are_sizes(value: Any) -> bool:
    """Whether a value of the header is a short list of numbers from 0 on."""
    return (
        isinstance(value, list)
        and len(value) <= 32
        and all(type(item) is int and 0 <= item < 2**62 for item in value)
    )


def _is_text_table(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _broken(file: Path, reason: str) -> InputError:
    return InputError(
        f"{file} is not a whole safetensors file: {reason[:200]}; download or copy it again"
    )
