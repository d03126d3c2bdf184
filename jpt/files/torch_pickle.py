"""Files of torch.save, read without torch and without running code.

Two forms. Since torch 1.6 a zip archive, nothing in it compressed: NAME/data.pkl holds the object
with references to storages, NAME/data/KEY the bytes of each. Before 1.6 a stream: three pickles
(magic number, version, machine), the object, a pickle with the keys of the storages, and each
storage as its number of elements (8 bytes) and its bytes. In both a tensor is a call of
``torch._utils._rebuild_tensor_v2`` with a storage, an offset, a shape and strides.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

from jpt.errors import InputError
from jpt.files.pickle_reader import BrokenPickle, ForbiddenName, read_pickle
from jpt.files.reading import file_size_bytes, read_bytes
from jpt.files.stored import StoredTensor
from jpt.files.torch_values import NAMES, Storage, Tensor, read_storage

ZIP_START = b"PK\x03\x04"
PICKLE_START = b"\x80"
_MAGIC = 0x1950A86A20F9469CFC6C
_LARGEST_PICKLE_BYTES = 64 * 2**20  # the pickle has no values in it: 20,000 tensors take 6 MB
_MOST_ENTRIES = 1_000_000
_DEEPEST_NESTING = 32
_LARGEST_COPIES = 16  # how often all tensors together may hold the bytes of the file


def read_torch_tensors(path: str | Path) -> dict[str, StoredTensor]:
    """Reads which tensors a torch file holds, without their values."""
    content = _read_content(Path(path))
    if isinstance(content, dict):
        for wrapper in ("state_dict", "model", "module"):
            if isinstance(content.get(wrapper), dict):
                content = content[wrapper]
                break
    tensors: dict[str, StoredTensor] = {}
    _flatten(Path(path), content, "", tensors, [0])
    if not tensors:
        raise InputError(f"{path} holds no named tensors; give the file of a state_dict")
    return tensors


def read_torch_object(path: str | Path) -> Any:
    """Reads the object of a torch file with its values."""
    file = Path(path)
    budget_bytes = _LARGEST_COPIES * file_size_bytes(file)
    return _with_values(file, _read_content(file), budget_bytes)


def _read_content(file: Path) -> Any:
    """The object of the file with a `StoredTensor` for each tensor."""
    file_size_bytes(file)
    start = read_bytes(file, size_bytes=len(ZIP_START))
    try:
        if start == ZIP_START:
            return _read_zip(file)
        if start.startswith(PICKLE_START):
            return _read_stream(file)
    except ForbiddenName as error:
        raise InputError(
            f"{file} is refused: it asks for '{error}', and only plain tensors are read; nothing"
            " of it was run. Save its tensors again as a state_dict or as safetensors"
        ) from None
    except (BrokenPickle, zipfile.BadZipFile, struct.error) as error:
        raise _broken(file, str(error)) from None
    raise _broken(file, f"it begins with {start!r}")


def _read_zip(file: Path) -> Any:
    """The form since torch 1.6."""
    records = _zip_records(file)
    folders = [name.removesuffix("data.pkl") for name in records if name.endswith("/data.pkl")]
    if not folders:
        raise InputError(f"{file} is a zip archive without data.pkl: not a file of torch.save")
    folder = min(folders, key=len)
    if folder + "constants.pkl" in records:
        raise InputError(f"{file} is a TorchScript program; save the state_dict of its model")
    if folder + "byteorder" in records:
        offset_bytes, size_bytes = records[folder + "byteorder"]
        if read_bytes(file, offset_bytes, min(size_bytes, 16)) != b"little":
            raise InputError(f"{file} was written on a big-endian machine; save it on another")

    def place(storage: Storage) -> int:
        offset_bytes, size_bytes = records.get(f"{folder}data/{storage.key}", (0, -1))
        if storage.count * storage.dtype.itemsize > size_bytes:
            raise BrokenPickle(f"storage {storage.key!r} has {size_bytes} bytes")
        return offset_bytes

    offset_bytes, size_bytes = records[folder + "data.pkl"]
    if size_bytes > _LARGEST_PICKLE_BYTES:
        raise BrokenPickle(f"its pickle has {size_bytes} bytes")
    stream = BytesIO(read_bytes(file, offset_bytes, size_bytes))
    return _placed(file, _read_object(stream), place)


def _zip_records(file: Path) -> dict[str, tuple[int, int]]:
    """Where the content of each entry of the archive lies: offset and size in bytes."""
    size_bytes = file.stat().st_size
    records = {}
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (ValueError, OverflowError, NotImplementedError, EOFError, OSError) as error:
        raise BrokenPickle(str(error) or type(error).__name__) from None
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise BrokenPickle(f"entry {entry.filename!r} is compressed or encrypted")
        # The name and the extra field before the content are longer than the directory says:
        # torch fills them up so that the content begins at a multiple of 64 bytes.
        start = read_bytes(file, entry.header_offset, 30)
        if len(start) < 30 or not start.startswith(ZIP_START):
            raise BrokenPickle(f"entry {entry.filename!r} is not where it should be")
        offset_bytes = entry.header_offset + 30 + sum(struct.unpack("<HH", start[26:30]))
        if offset_bytes + entry.file_size > size_bytes:
            raise BrokenPickle(f"entry {entry.filename!r} goes beyond its end")
        records[entry.filename] = (offset_bytes, entry.file_size)
    return records


def _read_stream(file: Path) -> Any:
    """The form before torch 1.6."""
    size_bytes = min(file.stat().st_size, _LARGEST_PICKLE_BYTES)
    head = BytesIO(read_bytes(file, size_bytes=size_bytes))
    if read_pickle(head, NAMES) != _MAGIC:
        raise InputError(
            f"{file} is a pickle, but not one of torch.save; save it with torch.save or safetensors"
        )
    read_pickle(head, {})  # the version of the form, 1001 in all files
    machine = read_pickle(head, {})
    if not (isinstance(machine, dict) and machine.get("little_endian", True)):
        raise InputError(f"{file} was written on a big-endian machine; save it on another")
    storages: dict[str, Storage] = {}
    content = _read_object(head, storages)
    keys = read_pickle(head, {})
    if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise BrokenPickle("the list of its storages is none")
    places = _stream_places(file, head.tell(), keys, storages)

    def place(storage: Storage) -> int:
        if storage.key not in places:
            raise BrokenPickle(f"storage {storage.key!r} is missing")
        return places[storage.key]

    return _placed(file, content, place)


def _stream_places(
    file: Path, offset_bytes: int, keys: list[str], storages: Mapping[str, Storage]
) -> dict[str, int]:
    """Walks over the storages behind the pickles: where the bytes of each begin."""
    size_bytes = file.stat().st_size
    places = {}
    for key in keys:
        count = int.from_bytes(read_bytes(file, offset_bytes, 8), "little")
        storage = storages.get(key)
        if storage is None or storage.count != count or key in places:
            raise BrokenPickle(f"storage {key!r} has {count} elements, which nothing asks for")
        places[key] = offset_bytes + 8
        offset_bytes += 8 + count * storage.dtype.itemsize
        if offset_bytes > size_bytes:
            raise BrokenPickle(f"it ends within storage {key!r}")
    return places


def _read_object(stream: BytesIO, storages: dict[str, Storage] | None = None) -> Any:
    """The pickle of the object; notes the storages that it asks for."""

    def load_storage(reference: Any) -> Storage:
        storage = read_storage(reference)
        if storages is not None:
            known = storages.setdefault(storage.key, replace(storage, first=0))
            if known.dtype != storage.dtype:
                raise BrokenPickle(f"storage {storage.key!r} has two types")
        return storage

    return read_pickle(stream, NAMES, load_storage)


def _placed(file: Path, content: Any, place: Callable[[Storage], int]) -> Any:
    """Puts a `StoredTensor` in the place of each tensor, in dictionaries and lists as well."""
    size_bytes = file.stat().st_size
    done: dict[int, tuple[Any, int]] = {}

    def visit(value: Any, depth: int) -> tuple[Any, int]:
        """The value and how deep it is nested; what stands in two places is visited once."""
        if depth <= _DEEPEST_NESTING and id(value) not in done:
            done[id(value)] = convert(value, depth + 1)
        if depth + done.get(id(value), (None, 0))[1] > _DEEPEST_NESTING:
            raise BrokenPickle(f"it is nested more than {_DEEPEST_NESTING} deep")
        return done[id(value)]

    def convert(value: Any, depth: int) -> tuple[Any, int]:
        if isinstance(value, dict | list | tuple):
            values = value.values() if isinstance(value, dict) else value
            items = [visit(item, depth) for item in values]
            nesting = 1 + max((nesting for _, nesting in items), default=0)
            results = [result for result, _ in items]
            if isinstance(value, dict):
                return dict(zip(value, results, strict=True)), nesting
            return type(value)(results), nesting
        return (stored(value) if isinstance(value, Tensor) else value), 0

    def stored(tensor: Tensor) -> StoredTensor:
        dtype = tensor.storage.dtype
        if math.prod(tensor.shape) * dtype.itemsize > size_bytes:
            raise BrokenPickle(f"a tensor of shape {tensor.shape} is larger than the file")
        offset_bytes = place(tensor.storage) + tensor.first * dtype.itemsize
        strides = None if _is_plain(tensor) else tensor.strides
        return StoredTensor(file, offset_bytes, tensor.shape, dtype, strides)

    return visit(content, 0)[0]


def _is_plain(tensor: Tensor) -> bool:
    """Whether the elements lie one after the other; axes of length 1 may have any stride."""
    expected = 1
    for length, stride in zip(tensor.shape[::-1], tensor.strides[::-1], strict=True):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True


def _flatten(
    file: Path, value: Any, name: str, tensors: dict[str, StoredTensor], visited: list[int]
) -> None:
    """Collects the tensors of nested dictionaries and lists; leaves out what is no tensor."""
    visited[0] += 1
    if visited[0] > _MOST_ENTRIES:
        raise _broken(file, f"it has more than {_MOST_ENTRIES} entries")
    if isinstance(value, StoredTensor) and name:
        if name in tensors:
            raise _broken(file, f"two tensors are named {name!r}")
        tensors[name] = value
    elif isinstance(value, dict | list | tuple):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in entries:
            _flatten(file, item, f"{name}.{key}" if name else str(key), tensors, visited)


def _with_values(file: Path, content: Any, budget_bytes: int) -> Any:
    """Reads the tensors of the object, one that stands in two places once."""
    done: dict[int, Any] = {}

    def visit(value: Any) -> Any:
        if id(value) not in done:
            done[id(value)] = convert(value)
        return done[id(value)]

    def convert(value: Any) -> Any:
        nonlocal budget_bytes
        if isinstance(value, dict):
            return {key: visit(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)([visit(item) for item in value])
        if not isinstance(value, StoredTensor):
            return value
        budget_bytes -= value.size_bytes
        if budget_bytes < 0:
            raise _broken(file, "its tensors are far larger than the file")
        return value.read()

    return visit(content)


def _broken(file: Path, reason: str) -> InputError:
    return InputError(
        f"{file} is not a whole torch file ({reason[:200]}); download or copy it again, or save"
        " its tensors as safetensors"
    )
