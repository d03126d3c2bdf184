"""Reading files that others wrote: what is missing, forbidden or not JSON is told in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jpt.errors import InputError


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
