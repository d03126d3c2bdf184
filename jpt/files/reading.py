"""Reading files that others wrote: what is missing, forbidden or not JSON is told in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jpt.errors import InputError


def read_error(path: str | Path, error: OSError) -> InputError:
    """Turns what the operating system said about a read into one line with the cure.

    Args:
        path: what should have been read.
        error: what was raised.

    Returns:
        The error, to be raised by the caller.

    Example:
        >>> read_error("a.json", FileNotFoundError(2, "")).args[0]
        'cannot read a.json: there is no such file; check the path'
    """
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
    """Reads a file or a piece of it.

    Args:
        path: the file.
        offset_bytes: where the piece begins.
        size_bytes: the largest length of the piece; -1 for all that follows.

    Returns:
        The bytes, fewer than asked for where the file ends before.

    Raises:
        InputError: there is no such file or it cannot be read.

    Example:
        >>> len(read_bytes(__file__, size_bytes=5))
        5
    """
    try:
        with open(path, "rb") as file:
            file.seek(offset_bytes)
            return file.read(size_bytes)
    except OSError as error:
        raise read_error(path, error) from None


def file_size_bytes(path: str | Path) -> int:
    """The size of a file that is there and is a regular file.

    Args:
        path: the file.

    Returns:
        Its size in bytes.

    Raises:
        InputError: there is no such file, or it is a folder, a pipe or a device.

    Example:
        >>> file_size_bytes(__file__) > 1000
        True
    """
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
    """Parses JSON that others wrote.

    Args:
        data: UTF-8 text.
        name: what the text is, for messages.

    Returns:
        The value.

    Raises:
        InputError: it is not JSON; line and column are named.

    Example:
        >>> parse_json(b'{"steps": 3}', "config.json")
        {'steps': 3}
    """
    try:
        return json.loads(data.decode("utf-8"))
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise InputError(f"{name} is not JSON ({place}); repair it or copy it again") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, absurd numbers, absurd nesting
        reason = type(error).__name__
        raise InputError(f"{name} is not JSON ({reason}); repair it or copy it again") from None


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Args:
        path: the file.

    Returns:
        The value.

    Raises:
        InputError: it is missing, cannot be read or is not JSON.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.json"
        >>> _ = target.write_text("[1, 2]")
        >>> read_json(target)
        [1, 2]
    """
    file_size_bytes(path)  # refuses pipes and devices, which could hold a reader for ever
    return parse_json(read_bytes(path), path)
