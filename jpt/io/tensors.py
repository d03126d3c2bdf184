"""Open safetensors and torch checkpoints as lazily read tensors."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save

from jpt.errors import InputError
from jpt.io.files import (
    LazyTensor,
    file_size_bytes,
    parse_json,
    read_bytes,
    read_error,
    read_json,
    write_bytes,
)
from jpt.io.torch_pickle import PICKLE_START, ZIP_START, read_torch_tensors

# --- Safetensors: a JSON header with names, types and offsets, then the bytes
# Not read with the safetensors package: its NumPy reader returns bfloat16 differently from version
# to version, and it maps the file, so that a truncation later crashes the process. Checked as the
# format demands: tensors as long as their shape, contiguous, and ending with the file.

_LARGEST_HEADER_BYTES = 100_000_000  # the limit of the format's own reader
_LENGTH_BYTES = 8  # of the header's length, which precedes it
_OTHER_FILES = {
    b"PK\x03\x04": "it is a zip archive or a torch.save file",
    b"\x80": "it is a pickle or a torch.save file",
    b"\x93NUMPY": "it is a NumPy array",
    b"version ": "it is a Git LFS pointer; run `git lfs pull`",
}
FLOATS = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)
"""Types of weights; quantised ones need the scales of another tensor."""

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


_CHUNK_VALUES = 2**18  # checked at a time, so that the flags of a large tensor take no memory


def count_not_finite(values: np.ndarray) -> int:
    """Return how many values of a contiguous array are NaN or infinite."""
    flat, count = values.reshape(-1), 0
    for first in range(0, flat.size, _CHUNK_VALUES):
        chunk = flat[first : first + _CHUNK_VALUES]
        if chunk.dtype == ml_dtypes.bfloat16:  # whose own isfinite takes 20 times as long
            count += int(((chunk.view(np.uint16) & 0x7F80) == 0x7F80).sum())
        else:
            count += chunk.size - int(np.isfinite(chunk).sum())
    return count


def write_safetensors(
    path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file atomically."""
    # The package stores an array's memory as it is; a transposed one would be wrong.
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    data = save(arrays, metadata=dict(metadata) if metadata else None)
    write_bytes(path, _in_order(data) if metadata and len(metadata) > 1 else data)


def _in_order(data: bytes) -> bytes:
    """Sort the metadata, which the package does not, so that equal content gives equal bytes."""
    start = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    header = json.loads(data[_LENGTH_BYTES:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # values begin at a multiple of eight
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + data[start:]


def read_header(path: str | Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Return the tensors of a safetensors file, without their values, and its metadata."""
    file = Path(path)
    size_bytes = file_size_bytes(file)
    header, data_start = _parse_header(file, size_bytes)
    metadata = header.pop("__metadata__", {})
    if not _is_text_table(metadata):
        raise _broken(file, "its metadata is not a table of texts")
    tensors = {name: _tensor(file, name, entry, data_start) for name, entry in header.items()}
    _check_extents(file, tensors, data_start, size_bytes)
    return tensors, metadata


def _parse_header(file: Path, size_bytes: int) -> tuple[dict[str, Any], int]:
    """Return the header, and the offset of the values."""
    start = read_bytes(file, size_bytes=_LENGTH_BYTES)
    length = int.from_bytes(start, "little")
    limit = size_bytes - _LENGTH_BYTES
    if limit < 2:
        raise _broken(file, f"it has only {size_bytes} bytes")
    if length > min(limit, _LARGEST_HEADER_BYTES):
        for other, kind in _OTHER_FILES.items():
            if start.startswith(other):
                raise InputError(f"{file} is not a safetensors file: {kind}")
        raise _broken(file, f"expected a header of {length} bytes, the file has {size_bytes}")
    data = read_bytes(file, _LENGTH_BYTES, length)
    try:
        header = parse_json(data, file)
    except InputError:
        raise _broken(file, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise _broken(file, "its header is not a table")
    return header, _LENGTH_BYTES + length


def _tensor(file: Path, name: str, entry: Any, data_start: int) -> LazyTensor:
    """Check one entry of the header."""
    entry = entry if isinstance(entry, dict) else {}
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not (_are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2):
        raise _broken(file, f"tensor {name!r} has no valid shape and offsets")
    dtype = _DTYPES.get(str(entry.get("dtype")))
    if dtype is None:
        raise InputError(
            f"{file}: tensor {name!r} has the unsupported type {entry.get('dtype')!r}; convert"
            " the weights to F32, BF16, F16 or F64"
        )
    size_bytes = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != size_bytes:
        raise _broken(
            file,
            f"tensor {name!r} {shape} needs {size_bytes} bytes, got {offsets[1]}-{offsets[0]}",
        )
    return LazyTensor(file, data_start + offsets[0], tuple(shape), dtype)


def _check_extents(
    file: Path, tensors: Mapping[str, LazyTensor], data_start: int, size_bytes: int
) -> None:
    """Raise InputError unless the tensors are contiguous and end with the file."""
    end = data_start
    for name, tensor in sorted(tensors.items(), key=lambda item: _span(item[1])):
        if tensor.offset_bytes != end:
            raise _broken(file, f"tensor {name!r} leaves a gap or overlaps another one")
        end += tensor.size_bytes
    if end > size_bytes:
        raise _broken(file, f"it ends after {size_bytes} of {end} bytes")
    if end < size_bytes:
        raise _broken(file, f"expected {end} bytes, got {size_bytes}")


def _span(tensor: LazyTensor) -> tuple[int, int]:
    return tensor.offset_bytes, tensor.size_bytes


def _are_sizes(value: Any) -> bool:
    """Return whether a value is a short list of non-negative numbers."""
    return (
        isinstance(value, list)
        and len(value) <= 32
        and all(type(item) is int and 0 <= item < 2**62 for item in value)
    )


def _is_text_table(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _broken(file: Path, reason: str) -> InputError:
    return InputError(
        f"{file} is not a complete safetensors file: {reason[:200]}; download or copy it again"
    )


# --- Weights in a file or a Hugging Face folder, whole or in shards

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""File names in a folder; the first that exists is read."""


@dataclass(frozen=True)
class TensorSource:
    """Tensors of a file or of all shards of a folder."""

    path: Path  # the file, or the index of the shards
    tensors: Mapping[str, LazyTensor]
    metadata: Mapping[str, str]  # of a single safetensors file, else empty

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        """Stored type of each tensor."""
        return {name: tensor.dtype for name, tensor in self.tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """Read one tensor into a new array of its stored type."""
        if name not in self.tensors:
            nearest = difflib.get_close_matches(name, self.tensors, n=3) or list(self.tensors)[:3]
            raise InputError(
                f"{self.path} has {len(self.tensors)} tensors and none named {name!r}; the"
                f" nearest are {', '.join(nearest) or 'none'}"
            )
        return self.tensors[name].read()

    def origin(self, name: str) -> str:
        """Return the file and name of a tensor, for messages."""
        tensor = self.tensors.get(name)
        stored = getattr(tensor, "name", "") or name  # GGUF has its own names
        shown = name if stored == name else f"{name} ({stored})"
        return f"{tensor.path if tensor else self.path}: {shown}"


def open_tensors(path: str | Path) -> TensorSource:
    """Open weights without reading their values."""
    file = Path(path)
    try:
        file = _weight_file(file) if file.is_dir() else file
    except OSError as error:
        raise read_error(path, error) from None
    if file.name.endswith(".index.json"):
        return _open_shards(file)
    tensors, metadata = _open_file(file)
    return TensorSource(file, tensors, metadata)


def _weight_file(folder: Path) -> Path:
    for name in WEIGHT_FILES:
        if (folder / name).exists():
            return folder / name
    found = sorted(entry.name for entry in folder.iterdir())
    shown = f"{', '.join(found[:8])}{', ...' if len(found) > 8 else ''}" if found else "nothing"
    raise InputError(
        f"{folder} has no weights: expected one of {', '.join(WEIGHT_FILES)}, found {shown};"
        " download the safetensors files of the model"
    )


def _open_file(file: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    size_bytes = file_size_bytes(file)
    start = read_bytes(file, size_bytes=16)
    if start.startswith(b"version https://"):
        raise InputError(
            f"{file} is a Git LFS pointer of {size_bytes} bytes, not the weights;"
            " run `git lfs pull`"
        )
    if start.startswith((ZIP_START, PICKLE_START)) and start[8:9] != b"{":
        return read_torch_tensors(file), {}
    if start[8:9] == b"{" or file.suffix == ".safetensors":
        return read_header(file)
    raise InputError(
        f"{file}: expected a safetensors or torch.save file, got one that starts with {start[:8]!r}"
    )


def _open_shards(index: Path) -> TensorSource:
    """Open the shards of an index."""
    files = _weight_map(index)
    shards = sorted(set(files.values()))
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(shards)} shards of {index} are missing, the first is"
            f" {missing[0]}; download them"
        )
    opened = {name: _open_file(index.parent / name)[0] for name in shards}
    for tensor, file in files.items():
        if tensor not in opened[file]:
            raise InputError(
                f"{index}: expected {tensor!r} in {file}, got {len(opened[file])} other tensors; "
                "index and shards do not match: download them again"
            )
    return TensorSource(index, {name: opened[file][name] for name, file in files.items()}, {})


def _weight_map(index: Path) -> dict[str, str]:
    """Return the file of each tensor; it must be in the folder of the index."""
    content: Any = read_json(index)
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files:
        raise InputError(f"{index} has no 'weight_map' of tensors to files; download it again")
    for file in files.values():
        if not isinstance(file, str) or not file or Path(file).name != file:
            raise InputError(f"{index}: expected a shard in the same folder, got {file!r}")
    return files
