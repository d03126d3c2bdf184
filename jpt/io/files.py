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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jpt.distributed import is_first
from jpt.errors import InputError

# --- Writes that are whole or not there: a temporary name beside the target, then a rename
# Whatever interrupts a write (an error, a signal, a full disk), the target keeps its old content
# and no temporary file stays behind; only a killed process or a power cut can leave one, and its
# name (``.jpt-*.tmp``) says what it is. The bytes reach the disk before the rename does. Of several
# processes that compute together the first one alone writes; for the others a write does nothing.

_CAUSES = {
    errno.ENOSPC: "no space is left on the disk; free some or choose another place",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another place",
    errno.EFBIG: "the file is larger than this disk or account allows; choose another place",
    errno.EACCES: "no permission to write there; choose another place or change its rights",
    errno.EPERM: "no permission to write there; choose another place or change its rights",
    errno.EROFS: "the disk is read-only; choose another place",
    errno.ENOTDIR: "a part of this path is a file, not a folder; choose another place",
    errno.ENOENT: "the system takes no new files in this folder; choose another place",
    errno.EISDIR: "this is a folder, not a file; give the name of a file",
    errno.ENAMETOOLONG: "the name is too long for this disk; choose a shorter one",
}


def write_error(path: str | Path, error: OSError) -> InputError:
    """Turns what the operating system said about a write into one line with the cure."""
    if error.errno == errno.ENOENT and not Path(path).parent.exists():
        cause = f"the folder {Path(path).parent} does not exist; create it first"
    else:
        cause = _CAUSES.get(error.errno or 0, error.strerror or str(error))
    return InputError(f"cannot write {path}: {cause}")


def make_folder(path: str | Path) -> Path:
    """Creates a folder with its parents, or accepts the one that is there."""
    # Of several processes the first one alone does.
    folder = Path(path)
    if not is_first():
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(
            f"cannot create the folder {folder}: a file has that name; choose another"
        ) from None
    except OSError as error:
        raise write_error(folder, error) from None
    return folder


@contextlib.contextmanager
def atomic_file(path: str | Path, *, is_cache: bool = False) -> Iterator[BinaryIO]:
    """Opens a file for writing that takes its name only when all of it is on the disk."""
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
    """Fills a folder under a temporary name and gives it its own name when all is there."""
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
    """Writes a file in one step (see `atomic_file`)."""
    with atomic_file(path) as file:
        file.write(data)


def write_text(path: str | Path, text: str) -> None:
    """Writes text as UTF-8 in one step, line ends as they are (see `atomic_file`)."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Writes a JSON file in one step; NumPy numbers become numbers, NaN is refused."""
    try:
        text = json.dumps(
            value, indent=2, ensure_ascii=False, allow_nan=False, default=_plain_value
        )
    except ValueError:
        where = _first_not_finite(value, "")
        raise InputError(
            f"cannot write {path}: {where or 'a value'} is NaN or infinite, which JSON cannot hold"
        ) from None
    write_text(path, text + "\n")


def _regular_target(path: str | Path) -> Path:
    """The file behind a name and its links; what a rename must not replace is refused."""
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
    raise TypeError(f"{type(value).__name__} does not belong into JSON")


def _first_not_finite(value: Any, where: str) -> str | None:
    """The place of the first number that JSON cannot hold, as ``scores[2]``."""
    if isinstance(value, dict):
        places = [(item, f"{where}.{key}" if where else str(key)) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        places = [(item, f"{where}[{index}]") for index, item in enumerate(value)]
    else:
        number = isinstance(value, float | np.floating)
        return where if number and not math.isfinite(value) else None
    return next(filter(None, (_first_not_finite(*place) for place in places)), None)


def _sync_folder(folder: Path) -> None:
    """Makes a rename last through a power cut, where the file system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- Reading files that others wrote: what is missing, forbidden or not JSON is told in one line


def read_error(path: str | Path, error: OSError) -> InputError:
    """Turns what the operating system said about a read into one line with the cure."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        cause = "there is no such file; check the path"
    elif isinstance(error, PermissionError):
        cause = "no permission to read it; change its rights"
    elif isinstance(error, IsADirectoryError):
        cause = "it is a folder; give the name of a file"
    else:
        cause = error.strerror or str(error)
    return InputError(f"cannot read {path}: {cause}")


def read_bytes(path: str | Path, offset_bytes: int = 0, size_bytes: int = -1) -> bytes:
    """Reads a file or a piece of it."""
    try:
        with open(path, "rb") as file:
            file.seek(offset_bytes)
            return file.read(size_bytes)
    except OSError as error:
        raise read_error(path, error) from None


def file_size_bytes(path: str | Path) -> int:
    """The size of a file that is there and is a regular file."""
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


def parse_json(data: bytes, name: str | Path) -> Any:
    """Parses JSON that others wrote."""
    try:
        return json.loads(data.decode("utf-8"))
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise InputError(f"{name} is not JSON ({place}); repair it or copy it again") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, absurd numbers, absurd nesting
        reason = type(error).__name__
        raise InputError(f"{name} is not JSON ({reason}); repair it or copy it again") from None


def read_json(path: str | Path) -> Any:
    """Reads a JSON file."""
    file_size_bytes(path)  # refuses pipes and devices, which could hold a reader for ever
    return parse_json(read_bytes(path), path)


# --- A tensor that lies in a file: its shape is known, its values are read when they are wanted


@dataclass(frozen=True)
class LazyTensor:
    """Where in a file a tensor lies; little-endian, as all writers of such files are."""

    path: Path  # the file
    offset_bytes: int  # where its first element begins
    shape: tuple[int, ...]  # its axes
    dtype: np.dtype  # the stored type
    # the steps along the axes, in elements; None for rows one after the other
    strides: tuple[int, ...] | None = None

    @property
    def size_bytes(self) -> int:
        """The size of its values in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def extent_bytes(self) -> int:
        """The size of the piece of the file that holds it, gaps of its strides included."""
        if 0 in self.shape:
            return 0
        if self.strides is None:
            return self.size_bytes
        steps = zip(self.shape, self.strides, strict=True)
        return (1 + sum((length - 1) * stride for length, stride in steps)) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Reads the values into a new array of the stored type."""
        # A plain read, no memory map: a map of a file that is later cut short kills the process.
        try:
            raw = np.fromfile(self.path, np.uint8, self.extent_bytes, offset=self.offset_bytes)
        except OSError as error:
            raise read_error(self.path, error) from None
        if raw.size < self.extent_bytes:
            raise InputError(
                f"{self.path} ends after {raw.size} of the {self.extent_bytes} bytes of a tensor;"
                " the file has changed since it was opened: copy it again"
            )
        if raw.size == 0:
            return np.zeros(self.shape, self.dtype)
        flat = raw.view(self.dtype)
        if self.strides is None:
            return flat.reshape(self.shape)
        steps = [stride * self.dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, steps, writeable=False).copy()


# --- CSV tables: written in one step, read with every fault named by file, line and column


def write_table(path: str | Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a table; floats keep every digit they need to be read back equal, NaN stays empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_plain(value) for value in row])
    write_text(path, text.getvalue())


def read_table(path: str | Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Reads a table."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
        lines = list(csv.reader(io.StringIO(text), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no CSV table ({error}); a header and lines expected") from None
    header = lines[0] if lines else []
    missing = [column for column in columns if column not in header]
    if missing or len(set(header)) < len(header):
        fault = f"lacks {', '.join(missing)}" if missing else "names a column twice"
        raise InputError(
            f"{path}: the header ({','.join(header)[:200]}) {fault}; {','.join(columns)} expected"
        )
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(header):
            raise InputError(
                f"{path}, line {number}: {len(line)} values for {len(header)} columns"
                f" ({','.join(header)[:200]}); is the file cut short?"
            )
    return [dict(zip(header, line, strict=True)) for line in lines[1:]]


def read_number(path: str | Path, line: int, row: Mapping[str, str], column: str) -> float:
    """Reads one number of a table; an empty place is NaN."""
    text = row[column].strip()
    if not text:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.inf
    if math.isinf(value):
        raise InputError(f"{path}, line {line}: {column} is '{text}'; a number expected")
    return value


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(value)
    return value


# --- Where things are kept that can always be made anew: the user's cache folder
# The folder is ``JPT_CACHE``, by default ``jpt`` in the user's cache folder; an empty ``JPT_CACHE``
# keeps nothing.


def user_cache(part: str) -> Path | None:
    """Says where one kind of thing is kept."""
    named = os.environ.get("JPT_CACHE")
    if named is not None:
        return Path(named).absolute() / part if named else None
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home).absolute() / "jpt" / part


def make_room(files: Iterable[Path], most_bytes: int) -> None:
    """Removes the oldest files until the rest is small enough."""
    aged = sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)
    held = 0
    for file in aged:
        held += file.stat().st_size
        if held > most_bytes:
            file.unlink(missing_ok=True)
