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

# --- The safetensors container: a JSON header with names, types and places, then the bytes
# Read here and not by the safetensors package for two reasons: its NumPy reader hands bfloat16 out
# differently from version to version, and it maps the file, so that a file cut short later kills
# the process. The checks are those of the format's description: the header within the file, every
# tensor as long as its shape says, one after the other, nothing behind the last.

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
    """Writes a safetensors file in one step (see `jpt.io.files`)."""
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


def read_header(path: str | Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
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


def _tensor(file: Path, name: str, entry: Any, data_start: int) -> LazyTensor:
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
    return LazyTensor(file, data_start + places[0], tuple(shape), dtype)


def _check_places(
    file: Path, tensors: Mapping[str, LazyTensor], data_start: int, size_bytes: int
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


def _span(tensor: LazyTensor) -> tuple[int, int]:
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


# --- Folders and files of weights, whatever their container: shapes first, then tensor by tensor
# A folder of Hugging Face's kind holds ``model.safetensors``, or shards of it with an index, or the
# older ``pytorch_model.bin``, whole or in shards. Where there are several, safetensors is taken.

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""The names looked for in a folder, the first that is there is read."""


@dataclass(frozen=True)
class TensorSource:
    """The tensors of a file or of all shards of a folder."""

    path: Path  # what was opened: the file, or the index of the shards
    tensors: Mapping[str, LazyTensor]  # where each tensor lies
    metadata: Mapping[str, str]  # the texts of a single safetensors file; empty for the others

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor, known without reading its values."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        """The stored type of each tensor."""
        return {name: tensor.dtype for name, tensor in self.tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor into a new array of its stored type."""
        if name not in self.tensors:
            nearest = difflib.get_close_matches(name, self.tensors, n=3) or list(self.tensors)[:3]
            raise InputError(
                f"{self.path} has {len(self.tensors)} tensors and none named {name!r}; the"
                f" nearest are {', '.join(nearest) or 'none'}"
            )
        return self.tensors[name].read()

    def origin(self, name: str) -> str:
        """Where a tensor comes from, for messages."""
        tensor = self.tensors.get(name)
        return f"{tensor.path if tensor else self.path}: {name}"


def open_tensors(path: str | Path) -> TensorSource:
    """Opens weights without reading their values."""
    place = Path(path)
    try:
        place = _weight_file(place) if place.is_dir() else place
    except OSError as error:
        raise read_error(path, error) from None
    if place.name.endswith(".index.json"):
        return _open_shards(place)
    tensors, metadata = _open_file(place)
    return TensorSource(place, tensors, metadata)


def _weight_file(folder: Path) -> Path:
    """The first of the known names in a folder."""
    for name in WEIGHT_FILES:
        if (folder / name).exists():
            return folder / name
    found = sorted(entry.name for entry in folder.iterdir())
    shown = f"{', '.join(found[:8])}{', ...' if len(found) > 8 else ''}" if found else "nothing"
    raise InputError(
        f"{folder} holds no weights: looked for {', '.join(WEIGHT_FILES)}, found {shown};"
        " download the safetensors files of the model"
    )


def _open_file(file: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    size_bytes = file_size_bytes(file)
    start = read_bytes(file, size_bytes=16)
    if start.startswith(b"version https://"):
        raise InputError(
            f"{file} is a Git LFS pointer of {size_bytes} bytes, not the weights themselves;"
            " run `git lfs pull`"
        )
    if start.startswith((ZIP_START, PICKLE_START)) and start[8:9] != b"{":
        return read_torch_tensors(file), {}
    if start[8:9] == b"{" or file.suffix == ".safetensors":
        return read_header(file)
    raise InputError(
        f"{file} begins with {start[:8]!r}: neither safetensors nor a file of torch.save; give one"
    )


def _open_shards(index: Path) -> TensorSource:
    """Opens the shards that an index names, each tensor from the shard it is said to be in."""
    files = _weight_map(index)
    shards = sorted(set(files.values()))
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(shards)} shards of {index} are missing, the first is"
            f" {missing[0]}; download them"
        )
    held = {name: _open_file(index.parent / name)[0] for name in shards}
    for tensor, file in files.items():
        if tensor not in held[file]:
            raise InputError(
                f"{index} says that {tensor!r} is in {file}, which holds {len(held[file])} other"
                " tensors; index and shards are of different downloads: download them again"
            )
    return TensorSource(index, {name: held[file][name] for name, file in files.items()}, {})


def _weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor, checked to lie beside the index."""
    content: Any = read_json(index)
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files:
        raise InputError(f"{index} has no 'weight_map' of tensors to files; download it again")
    for file in files.values():
        if not isinstance(file, str) or not file or Path(file).name != file:
            raise InputError(f"{index} names the shard {file!r}; a file beside it was expected")
    return files
