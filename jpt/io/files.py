"""Write files atomically, read JSON and tables with useful errors, find the cache folder."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import math
import os
import secrets
import shutil
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jpt.distributed import is_first
from jpt.errors import InputError

# --- Atomic writes
# A file is written under a temporary name (``.jpt-*.tmp``), synced and renamed, so an interrupted
# write leaves the old content. Of several processes only the first one writes.

_CAUSES = {
    errno.ENOSPC: "no space is left on the disk; free some or choose another path",
    errno.EDQUOT: "disk quota exceeded; free some space or choose another path",
    errno.EFBIG: "the file is larger than this disk or account allows; choose another path",
    errno.EACCES: "no write permission; change the permissions or choose another path",
    errno.EPERM: "no write permission; change the permissions or choose another path",
    errno.EROFS: "the disk is read-only; choose another path",
    errno.ENOTDIR: "a part of this path is a file, not a folder; choose another path",
    errno.ENOENT: "this folder accepts no new files; choose another path",
    errno.EISDIR: "it is a folder; give the name of a file",
    errno.ENAMETOOLONG: "the name is too long for this disk; choose a shorter one",
}


def write_error(path: str | Path, error: OSError) -> InputError:
    """Return the InputError for a failed write, with its cause and cure."""
    if error.errno == errno.ENOENT and not Path(path).parent.exists():
        cause = f"the folder {Path(path).parent} does not exist; create it first"
    else:
        cause = _CAUSES.get(error.errno or 0, error.strerror or str(error))
    return InputError(f"cannot write {path}: {cause}")


def make_folder(path: str | Path) -> Path:
    """Create a folder with its parents, if it does not exist."""
    folder = Path(path)
    if not is_first():
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(
            f"cannot create folder {folder}: a file has that name; choose another name"
        ) from None
    except OSError as error:
        raise write_error(folder, error) from None
    return folder


class OutFolder:
    """A folder for results: once it exists, it has to stay where it is."""

    # Else a long command would end in a new, incomplete folder of the same name.

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._descriptor: int | None = None
        self.check()

    def check(self) -> None:
        """Raise InputError if the folder was moved, deleted or replaced since it existed."""
        if self._descriptor is not None:
            if not is_at(self._descriptor, self.path):
                raise moved_error(self.path)
        elif is_first() and self.path.is_dir():
            with contextlib.suppress(OSError):  # no right to list the folder: no check
                self._descriptor = os.open(self.path, os.O_RDONLY)
                weakref.finalize(self, os.close, self._descriptor)

    def file(self, name: str = "") -> Path:
        """Return the path of a file in it, after `check`; create the folder if there was none."""
        if self._descriptor is None:
            make_folder(self.path)
        return self.run(name)

    def run(self, name: str) -> Path:
        """Return the path of a run folder in it, after `check`; the run creates it."""
        self.check()
        return self.path / name


def is_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file or folder still has its name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def moved_error(folder: Path, found: str | None = None) -> InputError:
    """Return the InputError for a folder that vanished while results were written into it."""
    found = found or ("another folder" if folder.is_dir() else "none")
    return InputError(
        f"{folder}: expected the folder that this run writes to, got {found}: it was moved, deleted"
        " or emptied meanwhile, and the result is not there; move it back and re-run to resume, or"
        " re-run to start anew"
    )


@contextlib.contextmanager
def atomic_file(path: str | Path, *, is_cache: bool = False) -> Iterator[BinaryIO]:
    """Open a file for writing; it takes its name when it is complete on disk."""
    if not (is_cache or is_first()):
        yield io.BytesIO()
        return
    target = _regular_target(path)
    temporary = target.parent / f".jpt-{secrets.token_hex(8)}.tmp"
    try:
        # Not tempfile: its files are readable by their owner alone, whatever the umask says.
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise write_error(path, error) from None
        raise
    _sync_folder(target.parent)


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that takes its name when it is complete."""
    target = Path(os.path.realpath(path))
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"cannot write {path}: it exists and is not empty; choose another folder")
    temporary = target.parent / f".jpt-{secrets.token_hex(8)}.tmp"
    try:
        temporary.mkdir()
        yield temporary
        _sync_folder(temporary)
        os.replace(temporary, target)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise write_error(path, error) from None
        raise
    _sync_folder(target.parent)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file atomically."""
    with atomic_file(path) as file:
        file.write(data)


def write_text(path: str | Path, text: str) -> None:
    """Write text as UTF-8 atomically, line ends unchanged."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file atomically; NumPy numbers are converted, NaN is an error."""
    try:
        text = json.dumps(
            value, indent=2, ensure_ascii=False, allow_nan=False, default=_plain_value
        )
    except ValueError:
        where = _first_not_finite(value, "")
        raise InputError(
            f"cannot write {path}: {where or 'a value'} is NaN or infinite, which JSON has not"
        ) from None
    write_text(path, text + "\n")


def _regular_target(path: str | Path) -> Path:
    """Return the file behind a name and its links; raise if a rename must not replace it."""
    target = Path(os.path.realpath(path))
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "")
        if target.exists() and not target.is_file():  # a rename would replace /dev/null itself
            raise InputError(f"cannot write {path}: not a regular file; give the name of a file")
    except OSError as error:
        raise write_error(path, error) from None
    return target


def _plain_value(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not a JSON type")


def _first_not_finite(value: Any, where: str) -> str | None:
    """Return the path of the first non-finite number, as ``scores[2]``."""
    if isinstance(value, dict):
        items = [(item, f"{where}.{key}" if where else str(key)) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(item, f"{where}[{index}]") for index, item in enumerate(value)]
    else:
        number = isinstance(value, float | np.floating)
        return where if number and not math.isfinite(value) else None
    return next(filter(None, (_first_not_finite(*item) for item in items)), None)


def _sync_folder(folder: Path) -> None:
    """Sync a folder, so that a rename survives a power cut; not all file systems can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- Reading


def read_error(path: str | Path, error: OSError) -> InputError:
    """Return the InputError for a failed read, with its cause and cure."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        cause = "there is no such file; check the path"
    elif isinstance(error, PermissionError):
        cause = "no read permission; change the permissions"
    elif isinstance(error, IsADirectoryError):
        cause = "it is a folder; give the name of a file"
    else:
        cause = error.strerror or str(error)
    return InputError(f"cannot read {path}: {cause}")


def read_bytes(path: str | Path, offset_bytes: int = 0, size_bytes: int = -1) -> bytes:
    """Read a file or a part of it."""
    try:
        with open(path, "rb") as file:
            file.seek(offset_bytes)
            return file.read(size_bytes)
    except OSError as error:
        raise read_error(path, error) from None


def file_size_bytes(path: str | Path) -> int:
    """Return the size of a regular file; raise InputError for anything else."""
    file = Path(path)
    try:
        size = file.stat().st_size
    except OSError as error:
        raise read_error(path, error) from None
    if file.is_dir():
        raise read_error(path, IsADirectoryError())
    if not file.is_file():
        raise InputError(f"cannot read {path}: not a regular file; give the name of a file")
    return size


class _RepeatedKey(ValueError):
    pass


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Python would keep the last value in silence.
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            values = f"{repr(table[key])[:40]} and {repr(value)[:40]}"
            raise _RepeatedKey(f"key {key[:60]!r} is given twice, as {values}; keep one of them")
        table[key] = value
    return table


load_json = json.JSONDecoder(object_pairs_hook=_unique_keys).decode
"""Parse JSON; raise ValueError if it is broken, or an object has a key twice."""


def parse_json(
    data: bytes | str, name: str | Path, line: int = 1, cure: str = "repair it or copy it again"
) -> Any:
    """Parse JSON that begins in a line of a file; raise InputError if it is broken."""
    try:
        return load_json(data if isinstance(data, str) else data.decode("utf-8"))
    except json.JSONDecodeError as error:
        reason = f"line {line + error.lineno - 1}, column {error.colno}: {error.msg}"
    except _RepeatedKey as error:
        raise InputError(f"{name}: {error}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, absurd numbers, absurd nesting
        reason = type(error).__name__
    raise InputError(f"{name} is not JSON ({reason}); {cure}")


def read_json(path: str | Path) -> Any:
    """Read a JSON file."""
    file_size_bytes(path)  # rejects pipes and devices, which could block forever
    return parse_json(read_bytes(path), path)


# --- Lazily read tensors


@dataclass(frozen=True)
class LazyTensor:
    """Location of a little-endian tensor in a file; its values are read on request."""

    path: Path
    offset_bytes: int  # of its first element
    shape: tuple[int, ...]
    dtype: np.dtype
    strides: tuple[int, ...] | None = None  # in elements; None if contiguous

    @property
    def size_bytes(self) -> int:
        """Size of the values in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def extent_bytes(self) -> int:
        """Size of the file region that holds it, gaps of its strides included."""
        if 0 in self.shape:
            return 0
        if self.strides is None:
            return self.size_bytes
        steps = zip(self.shape, self.strides, strict=True)
        return (1 + sum((length - 1) * stride for length, stride in steps)) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Read the values into a new array of the stored type."""
        # No memory map: the process would crash if the file were truncated later.
        try:
            raw = np.fromfile(self.path, np.uint8, self.extent_bytes, offset=self.offset_bytes)
        except OSError as error:
            raise read_error(self.path, error) from None
        if raw.size < self.extent_bytes:
            raise InputError(
                f"{self.path}: expected {self.extent_bytes} bytes of a tensor, got {raw.size}; the"
                " file has changed since it was opened: copy it again"
            )
        if raw.size == 0:
            return np.zeros(self.shape, self.dtype)
        flat = raw.view(self.dtype)
        if self.strides is None:
            return flat.reshape(self.shape)
        steps = [stride * self.dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, steps, writeable=False).copy()


# --- CSV tables


def write_table(path: str | Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table atomically; floats round-trip, NaN becomes an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_plain(value) for value in row])
    write_text(path, text.getvalue())


def read_table(path: str | Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read a table as a dictionary per line; raise InputError if a column is missing."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
        lines = list(csv.reader(io.StringIO(text), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV table ({error}); write it again") from None
    header = lines[0] if lines else []
    missing = [column for column in columns if column not in header]
    if missing or len(set(header)) < len(header):
        fault = f"lacks {', '.join(missing)}" if missing else "names a column twice"
        raise InputError(
            f"{path}: the header ({','.join(header)[:200]}) {fault}; expected {','.join(columns)}"
        )
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(header):
            raise InputError(
                f"{path}, line {number}: expected {len(header)} values, got {len(line)}"
                f" ({','.join(header)[:200]}); is the file truncated?"
            )
    return [dict(zip(header, line, strict=True)) for line in lines[1:]]


def read_number(path: str | Path, line: int, row: Mapping[str, str], column: str) -> float:
    """Parse a number of a table; an empty cell is NaN."""
    text = row[column].strip()
    if not text:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.inf
    if math.isinf(value):
        raise InputError(f"{path}, line {line}: {column} is '{text}'; expected a number")
    return value


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(value)
    return value


# --- Cache folder: ``JPT_CACHE``, by default ``~/.cache/jpt``; empty disables all caches


def user_cache(part: str) -> Path | None:
    """Return the cache folder of one kind of files, or None if caches are disabled."""
    named = os.environ.get("JPT_CACHE")
    if named is not None:
        return Path(named).absolute() / part if named else None
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home).absolute() / "jpt" / part


def make_room(files: Iterable[Path], most_bytes: int) -> None:
    """Remove the oldest files until the rest fits."""
    aged = sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)
    kept = 0
    for file in aged:
        kept += file.stat().st_size
        if kept > most_bytes:
            file.unlink(missing_ok=True)
