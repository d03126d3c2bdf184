"""Rows out of a file of JSON lines, each with the number of its line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jpt.errors import InputError


def read_json_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Reads one JSON object a line; empty lines are passed over.

    Args:
        file: a UTF-8 file, with or without a byte order mark.

    Yields:
        The number of the line, from 1, and the object on it.

    Raises:
        InputError: the file cannot be read, is not UTF-8, or a line holds no JSON object.
    """
    # Not splitlines: it would also break at line separators inside of texts.
    for number, line in enumerate(_read_text(file).split("\n"), start=1):
        if line and not line.isspace():
            yield number, _parse(line, file, number)


def _read_text(file: Path) -> str:
    try:
        data = file.read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{file}:{line}: not UTF-8 ({error.reason}); save the file as UTF-8"
        ) from None


def _parse(line: str, file: Path, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{file}:{number}: broken JSON ({error.msg} at column {error.colno}); "
            "each line must be one JSON object"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}:{number}: broken JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(
            f"{file}:{number}: a {type(value).__name__} stands there; "
            "each line must be one JSON object"
        )
    return value
