"""Read torch checkpoints without torch and without running code from the file."""

from __future__ import annotations

import math
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jpt.errors import InputError
from jpt.io.files import LazyTensor, file_size_bytes, read_bytes

# --- Pickles of plain data
# Python's unpickler, restricted twice. Before it starts, every instruction is checked: none that
# creates objects of a class, and bounds on what it does not bound itself (memo indices, nesting,
# which its C code walks recursively, and keys, which can be chosen to collide). It then finds only
# the names of the caller's table; what they return has no attributes that a file could set.

_MOST_INSTRUCTIONS = 1_000_000  # a tensor takes about 35; bounds the time of a malicious file
_LONGEST_KEY = 4096
_DEEPEST_NESTING = 32

_PUTS, _GETS = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), ("GET", "BINGET", "LONG_BINGET")
_UPDATES = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD")  # of the first value they take
_KEYED = ("SETITEM", "SETITEMS", "DICT")
_ALLOWED = {
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "GLOBAL", "STACK_GLOBAL", "REDUCE"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT"),
    *("BINFLOAT", "FLOAT", "BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "EMPTY_DICT", "EMPTY_LIST"),
    *("EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "TUPLE", "LIST", "DICT", "BINPERSID"),
    *(*_PUTS, *_GETS, *_UPDATES),
}
_KEY = 0  # in place of a nesting: short text, bytes or a number of ordinary size


class BrokenPickle(ValueError):
    """Bytes that are not a pickle of plain data."""


class ForbiddenName(ValueError):
    """Name outside the table; the message is that name."""


class Callee:
    """Function that a pickle may call."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise BrokenPickle("it sets attributes of a function")


class _Dict(dict):
    """Dictionary without attributes: torch's ``_metadata`` of a state_dict is skipped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    def __init__(
        self,
        stream: BytesIO,
        names: Mapping[tuple[str, str], Any],
        load_persistent: Callable[[Any], Any] | None,
    ) -> None:
        super().__init__(stream, encoding="latin1")
        self._names, self._load = names, load_persistent

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._names:
            # Escaped and shortened, because the name is printed on a terminal.
            raise ForbiddenName(f"{module}.{name}"[:100].encode("unicode_escape").decode())
        return self._names[module, name]

    def persistent_load(self, reference: Any) -> Any:
        if self._load is None:
            raise BrokenPickle("it has an external reference")
        return self._load(reference)


def read_pickle(
    stream: BytesIO,
    names: Mapping[tuple[str, str], Any],
    load_persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Read one pickle of plain data from a stream."""
    start = stream.tell()
    try:
        _check_instructions(stream)
        end = stream.tell()
        stream.seek(start)
        value = _Unpickler(stream, names, load_persistent).load()
    except (BrokenPickle, ForbiddenName):
        raise
    except (
        *(pickle.UnpicklingError, ValueError, OverflowError, IndexError, KeyError, EOFError),
        *(TypeError, AttributeError),
    ) as error:
        reason = str(error).splitlines()[:1]
        raise BrokenPickle(*(reason or [type(error).__name__])) from None
    stream.seek(end)
    return value


def _check_instructions(stream: BytesIO) -> None:
    """Follow a pickle with the nesting of each value in place of the value."""
    stack, memo = _Stack([], []), {}
    for count, (code, argument, _) in enumerate(pickletools.genops(stream)):
        name = code.name
        if name not in _ALLOWED:
            raise BrokenPickle(f"instruction {name} is not allowed in plain data")
        if count >= _MOST_INSTRUCTIONS:
            raise BrokenPickle(f"it has more than {_MOST_INSTRUCTIONS} instructions")
        if name == "MARK":
            stack.marks.append(len(stack.values))
        elif name in _PUTS:
            index = len(memo) if argument is None else int(argument)
            if not 0 <= index < _MOST_INSTRUCTIONS:
                raise BrokenPickle(f"it has memo index {index}")
            memo[index] = stack.pop(1)[0]
            stack.values.append(memo[index])
        elif name in _GETS:
            if int(argument) not in memo:
                raise BrokenPickle(f"memo entry {argument} is missing")
            stack.values.append(memo[int(argument)])
        elif not code.stack_before:
            nesting = _KEY if is_plain_key(argument) else 1
            stack.values.extend([nesting] * len(code.stack_after))
        else:
            _apply(code, stack)


class _Stack(NamedTuple):
    values: list[int]  # nesting of each, or _KEY
    marks: list[int]  # numbers of values below each mark

    def pop(self, count: int) -> list[int]:
        first = len(self.values) - count
        if first < (self.marks[-1] if self.marks else 0):
            raise BrokenPickle("an instruction finds no value")
        taken = self.values[first:]
        del self.values[first:]
        return taken

    def pop_to_mark(self) -> list[int]:
        if not self.marks:
            raise BrokenPickle("an instruction finds no mark")
        count = len(self.values) - self.marks[-1]
        taken = self.pop(count)
        self.marks.pop()
        return taken


def _apply(code: pickletools.OpcodeInfo, stack: _Stack) -> None:
    """Replace what an instruction takes by what it leaves."""
    before, updated = code.stack_before, [0]
    if pickletools.markobject in before:
        taken = stack.pop_to_mark()
        updated += stack.pop(before.index(pickletools.markobject))
    else:
        taken = stack.pop(len(before))
        updated += [taken.pop(0)] if code.name in _UPDATES else []
    if code.name in _KEYED and (len(taken) % 2 or any(key != _KEY for key in taken[::2])):
        raise BrokenPickle("a dictionary has a key that is no text or number, or no value")
    nesting = max(*updated, 1 + max(taken, default=0))
    if nesting > _DEEPEST_NESTING:
        raise BrokenPickle(f"it is nested more than {_DEEPEST_NESTING} levels deep")
    stack.values.extend([nesting] * len(code.stack_after))


def is_plain_key(key: Any) -> bool:
    """Return whether a value is short text or a number of ordinary size."""
    if isinstance(key, str | bytes):
        return len(key) <= _LONGEST_KEY
    return isinstance(key, int) and abs(key) < 2**60


# --- Storages and tensors
# Checked when built: sizes are non-negative and small, a tensor lies within its storage.

_MOST_AXES = 32


class Storage(NamedTuple):
    """Elements that tensors are views of."""

    key: str  # name within the file
    dtype: np.dtype
    count: int  # of elements in the file
    first: int = 0  # first element of this view; 0 in files since torch 1.6


class Tensor(NamedTuple):
    """Tensor of the pickle, before its storage is located in the file."""

    storage: Storage
    first: int  # first element within the storage
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements


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
    """Return the storage of a persistent reference."""
    if not (isinstance(reference, tuple) and len(reference) in (5, 6)):
        raise BrokenPickle("it refers to something other than a storage")
    kind, name, key, _, count = reference[:5]
    if kind != "storage" or not isinstance(name, str) or not isinstance(key, str):
        raise BrokenPickle("it refers to something other than a storage")
    if (dtype := _STORAGE_DTYPES.get(name)) is None:
        raise BrokenPickle(f"it refers to a storage of type {name[:40]!r}")
    if len(reference) == 5 or reference[5] is None:
        return Storage(key, dtype, *_sizes((count,)))
    if not (isinstance(reference[5], tuple) and len(reference[5]) == 3):
        raise BrokenPickle("it refers to something other than a storage")
    count, first, length = _sizes((count, *reference[5][1:]))
    if first + length > count:
        raise BrokenPickle(f"a view exceeds storage {key!r}")
    return Storage(key, dtype, count, first)


def _sizes(values: Any) -> tuple[int, ...]:
    if not (isinstance(values, tuple) and len(values) <= _MOST_AXES):
        raise BrokenPickle("a shape is not a short tuple")
    if not all(type(value) is int and 0 <= value < 2**60 for value in values):
        raise BrokenPickle("a shape has a value that is not a size")
    return values


def _rebuild_tensor(storage: Any, first: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    shape, strides = _sizes(shape), _sizes(strides)
    (first,) = _sizes((first,))
    if not isinstance(storage, Storage) or len(shape) != len(strides):
        raise BrokenPickle("a tensor is invalid")
    last = sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if 0 not in shape and storage.first + first + last >= storage.count:
        raise BrokenPickle(f"a tensor of shape {shape} exceeds storage {storage.key!r}")
    return Tensor(storage, storage.first + first, shape, strides)


def _rebuild_parameter(tensor: Any, *_: Any) -> Any:
    """Return the tensor of a parameter, without requires_grad and hooks."""
    return tensor


def _ordered(pairs: Any = ()) -> dict[Any, Any]:
    """Return an OrderedDict's content: empty, or a list of pairs in files from Python 2."""
    if not isinstance(pairs, tuple | list):
        raise BrokenPickle("a dictionary has no pairs")
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        raise BrokenPickle("a dictionary has no pairs")
    if not all(is_plain_key(pair[0]) for pair in pairs):
        raise BrokenPickle("a dictionary has a key that is no text or number")
    return _Dict(pairs)


def _device(kind: Any, index: Any = None) -> str:
    if not isinstance(kind, str) or not (index is None or type(index) is int):
        raise BrokenPickle("a device is invalid")
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
    **{(module, name): name for module in ("torch", "torch.cuda") for name in _STORAGE_DTYPES},
    **{("torch", name): f"torch.{name}" for name in (*_TYPES, "bool")},
}
"""Every name that a torch file may import; none of them runs code of the file."""


# --- Files of torch.save
# Since torch 1.6 an uncompressed zip archive: NAME/data.pkl holds the object with references to
# storages, NAME/data/KEY the bytes of each. Before 1.6 a stream: three pickles (magic number,
# version, machine), the object, a pickle with the keys of the storages, and each storage as its
# number of elements (8 bytes) and its bytes. In both a tensor is a call of
# ``torch._utils._rebuild_tensor_v2`` with a storage, an offset, a shape and strides.

ZIP_START = b"PK\x03\x04"
PICKLE_START = b"\x80"
_MAGIC = 0x1950A86A20F9469CFC6C
_LARGEST_PICKLE_BYTES = 64 * 2**20  # without values; 20,000 tensors take 6 MB
_MOST_ENTRIES = 1_000_000
_LARGEST_COPIES = 16  # limit of the tensors' total size, in sizes of the file


def read_torch_tensors(path: str | Path) -> dict[str, LazyTensor]:
    """Return the named tensors of a torch file, without their values."""
    content = _read_content(Path(path))
    if isinstance(content, dict):
        for wrapper in ("state_dict", "model", "module"):
            if isinstance(content.get(wrapper), dict):
                content = content[wrapper]
                break
    tensors: dict[str, LazyTensor] = {}
    _flatten(Path(path), content, "", tensors, [0])
    if not tensors:
        raise InputError(f"{path} has no named tensors; give the file of a state_dict")
    return tensors


def read_torch_object(path: str | Path) -> Any:
    """Return the object of a torch file, with values."""
    file = Path(path)
    budget_bytes = _LARGEST_COPIES * file_size_bytes(file)
    return _with_values(file, _read_content(file), budget_bytes)


def _read_content(file: Path) -> Any:
    """Return the object of a file with a `LazyTensor` for each tensor."""
    file_size_bytes(file)
    start = read_bytes(file, size_bytes=len(ZIP_START))
    try:
        if start == ZIP_START:
            return _read_zip(file)
        if start.startswith(PICKLE_START):
            return _read_stream(file)
    except ForbiddenName as error:
        raise InputError(
            f"{file} is refused: it imports '{error}', but only plain tensors are read (no code of"
            " it was run); save its tensors again as a state_dict or safetensors"
        ) from None
    except (BrokenPickle, zipfile.BadZipFile, struct.error) as error:
        raise _broken(file, str(error)) from None
    raise _broken(file, f"it starts with {start!r}")


def _read_zip(file: Path) -> Any:
    """Read the format since torch 1.6."""
    records = _zip_records(file)
    folders = [name.removesuffix("data.pkl") for name in records if name.endswith("/data.pkl")]
    if not folders:
        raise InputError(f"{file} is a zip archive without data.pkl; give a torch.save file")
    folder = min(folders, key=len)
    if folder + "constants.pkl" in records:
        raise InputError(f"{file} is a TorchScript program; save the state_dict of its model")
    if folder + "byteorder" in records:
        offset_bytes, size_bytes = records[folder + "byteorder"]
        if read_bytes(file, offset_bytes, min(size_bytes, 16)) != b"little":
            raise InputError(f"{file} was written on a big-endian machine; save it on another")

    def locate(storage: Storage) -> int:
        offset_bytes, size_bytes = records.get(f"{folder}data/{storage.key}", (0, -1))
        if storage.count * storage.dtype.itemsize > size_bytes:
            raise BrokenPickle(f"storage {storage.key!r} has {size_bytes} bytes")
        return offset_bytes

    offset_bytes, size_bytes = records[folder + "data.pkl"]
    if size_bytes > _LARGEST_PICKLE_BYTES:
        raise BrokenPickle(f"its pickle has {size_bytes} bytes")
    stream = BytesIO(read_bytes(file, offset_bytes, size_bytes))
    return _with_lazy_tensors(file, _read_object(stream), locate)


def _zip_records(file: Path) -> dict[str, tuple[int, int]]:
    """Return the offset and size in bytes of each entry's content."""
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
        # The local header is longer than the directory says: torch pads it so that the content
        # starts at a multiple of 64 bytes.
        start = read_bytes(file, entry.header_offset, 30)
        if len(start) < 30 or not start.startswith(ZIP_START):
            raise BrokenPickle(f"entry {entry.filename!r} has no local header")
        offset_bytes = entry.header_offset + 30 + sum(struct.unpack("<HH", start[26:30]))
        if offset_bytes + entry.file_size > size_bytes:
            raise BrokenPickle(f"entry {entry.filename!r} exceeds the file")
        records[entry.filename] = (offset_bytes, entry.file_size)
    return records


def _read_stream(file: Path) -> Any:
    """Read the format before torch 1.6."""
    size_bytes = min(file.stat().st_size, _LARGEST_PICKLE_BYTES)
    head = BytesIO(read_bytes(file, size_bytes=size_bytes))
    if read_pickle(head, NAMES) != _MAGIC:
        raise InputError(
            f"{file} is a pickle, but not of torch.save; save it with torch.save or safetensors"
        )
    read_pickle(head, {})  # the format's version, always 1001
    machine = read_pickle(head, {})
    if not (isinstance(machine, dict) and machine.get("little_endian", True)):
        raise InputError(f"{file} was written on a big-endian machine; save it on another")
    storages: dict[str, Storage] = {}
    content = _read_object(head, storages)
    keys = read_pickle(head, {})
    if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise BrokenPickle("its list of storages is invalid")
    offsets = _stream_offsets(file, head.tell(), keys, storages)

    def locate(storage: Storage) -> int:
        if storage.key not in offsets:
            raise BrokenPickle(f"storage {storage.key!r} is missing")
        return offsets[storage.key]

    return _with_lazy_tensors(file, content, locate)


def _stream_offsets(
    file: Path, offset_bytes: int, keys: list[str], storages: Mapping[str, Storage]
) -> dict[str, int]:
    """Return the offset of each storage behind the pickles."""
    size_bytes = file.stat().st_size
    offsets = {}
    for key in keys:
        count = int.from_bytes(read_bytes(file, offset_bytes, 8), "little")
        storage = storages.get(key)
        if storage is None or storage.count != count or key in offsets:
            raise BrokenPickle(f"storage {key!r} of {count} elements is not referenced")
        offsets[key] = offset_bytes + 8
        offset_bytes += 8 + count * storage.dtype.itemsize
        if offset_bytes > size_bytes:
            raise BrokenPickle(f"it ends within storage {key!r}")
    return offsets


def _read_object(stream: BytesIO, storages: dict[str, Storage] | None = None) -> Any:
    """Read the pickle of the object; collect the storages that it references."""

    def load_storage(reference: Any) -> Storage:
        storage = read_storage(reference)
        if storages is not None:
            known = storages.setdefault(storage.key, storage._replace(first=0))
            if known.dtype != storage.dtype:
                raise BrokenPickle(f"storage {storage.key!r} has two types")
        return storage

    return read_pickle(stream, NAMES, load_storage)


def _with_lazy_tensors(file: Path, content: Any, locate: Callable[[Storage], int]) -> Any:
    """Replace each tensor by a `LazyTensor`, also within dictionaries and lists."""
    size_bytes = file.stat().st_size
    done: dict[int, tuple[Any, int]] = {}

    def visit(value: Any, depth: int) -> tuple[Any, int]:
        """Return the converted value and its depth; shared values are converted once."""
        if depth <= _DEEPEST_NESTING and id(value) not in done:
            done[id(value)] = convert(value, depth + 1)
        if depth + done.get(id(value), (None, 0))[1] > _DEEPEST_NESTING:
            raise BrokenPickle(f"it is nested more than {_DEEPEST_NESTING} levels deep")
        return done[id(value)]

    def convert(value: Any, depth: int) -> tuple[Any, int]:
        if isinstance(value, Tensor):
            return stored(value), 0
        if isinstance(value, dict | list | tuple):
            values = value.values() if isinstance(value, dict) else value
            items = [visit(item, depth) for item in values]
            nesting = 1 + max((nesting for _, nesting in items), default=0)
            results = [result for result, _ in items]
            if isinstance(value, dict):
                return dict(zip(value, results, strict=True)), nesting
            return type(value)(results), nesting
        return value, 0

    def stored(tensor: Tensor) -> LazyTensor:
        dtype = tensor.storage.dtype
        if math.prod(tensor.shape) * dtype.itemsize > size_bytes:
            raise BrokenPickle(f"a tensor of shape {tensor.shape} is larger than the file")
        offset_bytes = locate(tensor.storage) + tensor.first * dtype.itemsize
        strides = None if _is_contiguous(tensor) else tensor.strides
        return LazyTensor(file, offset_bytes, tensor.shape, dtype, strides)

    return visit(content, 0)[0]


def _is_contiguous(tensor: Tensor) -> bool:
    """Return whether the elements are contiguous; axes of length 1 may have any stride."""
    expected = 1
    for length, stride in zip(tensor.shape[::-1], tensor.strides[::-1], strict=True):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True


def _flatten(
    file: Path, value: Any, name: str, tensors: dict[str, LazyTensor], visited: list[int]
) -> None:
    """Collect the tensors of nested dictionaries and lists under dotted names."""
    visited[0] += 1
    if visited[0] > _MOST_ENTRIES:
        raise _broken(file, f"it has more than {_MOST_ENTRIES} entries")
    if isinstance(value, LazyTensor) and name:
        if name in tensors:
            raise _broken(file, f"two tensors are named {name!r}")
        tensors[name] = value
    elif isinstance(value, dict | list | tuple):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in entries:
            _flatten(file, item, f"{name}.{key}" if name else str(key), tensors, visited)


def _with_values(file: Path, content: Any, budget_bytes: int) -> Any:
    """Read the tensors of the object; shared ones are read once."""
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
        if not isinstance(value, LazyTensor):
            return value
        budget_bytes -= value.size_bytes
        if budget_bytes < 0:
            raise _broken(file, "its tensors are far larger than the file")
        return value.read()

    return visit(content)


def _broken(file: Path, reason: str) -> InputError:
    return InputError(
        f"{file} is not a complete torch file ({reason[:200]}); download or copy it again, or save"
        " its tensors as safetensors"
    )
