"""The GGUF container: magic, counts, metadata of typed values, the table of tensors, the values.

Read here and not by the gguf package, whose reader believes every count of the file: a damaged one
makes it loop for hours, raise whatever NumPy raises, or hand out tensors that lie over each other.
The checks are those of the format: all counts within the file, every tensor as long as its shape
says, aligned, one after the other, nothing behind the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jpt.errors import InputError
from jpt.files.gguf_reader import HeaderReader
from jpt.files.gguf_values import KINDS, GgufTensor
from jpt.files.reading import file_size_bytes, read_error

MAGIC = b"GGUF"

_USUAL_ALIGNMENT = 32
_LARGEST_ALIGNMENT = 2**16
_LARGEST_AXES = 4  # of the format's own library
_LEAST_FIELD_BYTES = 13  # a key's length, the type, the smallest value
_LEAST_TENSOR_BYTES = 32  # a name's length, the number of axes, one axis, the type, the place
_TEXT, _LIST, _FLAG = 8, 9, 7
_NUMBERS = {
    number: np.dtype(code)
    for number, code in {
        0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4",
        _FLAG: "?", 10: "<u8", 11: "<i8", 12: "<f8",
    }.items()
}  # fmt: skip
_OTHER_FILES = {
    b"PK\x03\x04": "it is a zip archive or a file of torch.save",
    b"\x80": "it is a pickle or a file of torch.save",
    b"version ": "it is a Git LFS pointer; run `git lfs pull`",
    b"ggml": "it is of GGML, which came before GGUF; convert it with llama.cpp",
    b"ggjt": "it is of GGJT, which came before GGUF; convert it with llama.cpp",
    b"lmgg": "it is of GGML, which came before GGUF; convert it with llama.cpp",
    b"tjgg": "it is of GGJT, which came before GGUF; convert it with llama.cpp",
}


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file holds, without its tensors' values."""

    path: Path  # the file
    # numbers, flags, texts, lists of texts and arrays of numbers by key
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]  # the tensors by the names that the file gives them


def read_gguf_header(path: str | Path) -> GgufHeader:
    """Reads metadata and table of tensors of a GGUF file of version 2 or 3."""
    file = Path(path)
    size_bytes = file_size_bytes(file)
    try:
        with open(file, "rb", buffering=2**17) as stream:
            return _read(HeaderReader(file, stream, size_bytes))
    except OSError as error:
        raise read_error(file, error) from None


def _read(reader: HeaderReader) -> GgufHeader:
    """The parts of the header, one after the other."""
    _check_version(reader)
    tensor_count = reader.count("tensors", _LEAST_TENSOR_BYTES)
    metadata: dict[str, Any] = {}
    for _ in range(reader.count("fields", _LEAST_FIELD_BYTES)):
        key = reader.text("the name of a field")
        if not key or key in metadata:
            raise reader.broken(
                f"the field {key!r} is there twice" if key else "a field has no name"
            )
        metadata[key] = _value(reader, key)
    lines = [_tensor_line(reader) for _ in range(tensor_count)]
    alignment = _alignment(reader, metadata)
    start = -(-reader.place_bytes // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, kind, offset in lines:
        if name in tensors:
            raise reader.broken(f"tensor {name!r} is there twice")
        tensors[name] = GgufTensor(
            path=reader.file,
            offset_bytes=start + offset,
            shape=shape,
            dtype=KINDS[kind].dtype,
            kind=kind,
        )
    _check_places(reader, tensors, start, alignment)
    return GgufHeader(reader.file, metadata, tensors)


def _check_version(reader: HeaderReader) -> None:
    """Magic, byte order and version."""
    if reader.size_bytes < 24:
        raise reader.broken(f"it has only {reader.size_bytes} bytes")
    start = reader.take(8)
    if not start.startswith(MAGIC):
        for other, kind in _OTHER_FILES.items():
            if start.startswith(other):
                raise InputError(f"{reader.file} is not a GGUF file: {kind}")
        raise InputError(
            f"{reader.file} begins with {start[:4]!r}, not with {MAGIC!r}: give a GGUF file"
        )
    version = int.from_bytes(start[4:], "little")
    if version in (2, 3):
        return
    if version == 1:
        raise InputError(
            f"{reader.file} is of version 1 of GGUF, read are 2 and 3; convert the model again"
        )
    if int.from_bytes(start[4:], "big") in (1, 2, 3):
        raise InputError(
            f"{reader.file} is big-endian; turn it around with"
            f" `gguf-convert-endian {reader.file.name} little`"
        )
    raise InputError(
        f"{reader.file} is of version {version} of GGUF, read are 2 and 3; convert the model again"
    )


def _value(reader: HeaderReader, key: str) -> Any:
    """One value of the metadata."""
    kind = reader.whole("I")
    if kind == _TEXT:
        return reader.text(f"the field {key!r}")
    if kind in _NUMBERS:
        return _numbers(reader, kind, 1).item()
    if kind != _LIST:
        raise reader.broken(f"the field {key!r} is of the unknown type {kind}")
    kind = reader.whole("I")
    if kind == _TEXT:
        what = f"an entry of {key!r}"
        return [reader.text(what) for _ in range(reader.count(f"entries of {key!r}", 8))]
    if kind in _NUMBERS:
        count = reader.count(f"entries of {key!r}", _NUMBERS[kind].itemsize)
        return _numbers(reader, kind, count)
    raise reader.broken(f"the field {key!r} lists values of the unknown type {kind}")


def _numbers(reader: HeaderReader, kind: int, count: int) -> np.ndarray:
    data = np.frombuffer(reader.take(count * _NUMBERS[kind].itemsize), np.uint8)
    # A flag that is neither 0 nor 1 would be a bool that equals neither False nor True.
    return data != 0 if kind == _FLAG else data.view(_NUMBERS[kind])


def _tensor_line(reader: HeaderReader) -> tuple[str, tuple[int, ...], str, int]:
    """One line of the table: name, shape with the longest steps first, type, place."""
    name = reader.text("the name of a tensor")
    axes = reader.whole("I")
    if not name or not 1 <= axes <= _LARGEST_AXES:
        raise reader.broken(f"tensor {name!r} has {axes} axes")
    shape = tuple(reader.whole("Q") for _ in range(axes))[::-1]
    number, offset = reader.whole("I"), reader.whole("Q")
    kind = next((name for name, kind in KINDS.items() if kind.number == number), None)
    if kind is None:
        raise InputError(
            f"{reader.file}: tensor {name[:80]!r} has the type number {number}, known are"
            f" {', '.join(KINDS)}; quantise the model to one of them"
        )
    block = KINDS[kind].block
    if not all(0 < length < 2**40 for length in shape) or shape[-1] % block:
        raise reader.broken(f"tensor {name!r} {list(shape)} is not made of blocks of {block}")
    return name, shape, kind, offset


def _alignment(reader: HeaderReader, metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get("general.alignment", _USUAL_ALIGNMENT)
    whole = type(alignment) is int and 0 < alignment <= _LARGEST_ALIGNMENT
    if not whole or alignment & (alignment - 1):
        raise reader.broken(f"general.alignment is {alignment!r}; a power of two was expected")
    return alignment


def _check_places(
    reader: HeaderReader, tensors: Mapping[str, GgufTensor], start: int, alignment: int
) -> None:
    """Holds the tensors to lying one after the other, aligned, up to the end of the file."""
    end = start
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset_bytes):
        if tensor.offset_bytes != -(-end // alignment) * alignment:
            raise reader.broken(f"tensor {name!r} leaves a gap or lies over another one")
        end = tensor.offset_bytes + tensor.extent_bytes
    if end > reader.size_bytes:
        raise reader.broken(f"it ends after {reader.size_bytes} of {end} bytes")
    if tensors and reader.size_bytes > -(-end // alignment) * alignment:
        raise reader.broken(f"it should end after {end} bytes and has {reader.size_bytes}")
