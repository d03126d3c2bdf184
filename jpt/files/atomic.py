"""Writes that are whole or not there: a temporary name beside the target, then a rename.

Whatever interrupts a write (an error, a signal, a full disk), the target keeps its old content and
no temporary file stays behind; only a killed process or a power cut can leave one, and its name
(``.jpt-*.tmp``) says what it is. The bytes reach the disk before the rename does. Of several
processes that compute together the first one alone writes; for the others a write does nothing.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jpt.errors import InputError
from jpt.processes import is_first

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
