"""Rows out of JSON: one object a line, each with the number of its line, or one list of objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jpt.data.text_files import read_text
from jpt.errors import InputError


def read_json_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Reads one JSON object a line; empty lines are passed over."""
    # Not splitlines: it would also break at line separators inside of texts.
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if line and not line.isspace():
            value = _parse(line, file, number, "each line must be one JSON object")
            if not isinstance(value, dict):
                raise InputError(
                    f"{file}:{number}: a {type(value).__name__} stands there; "
                    "each line must be one JSON object"
                )
            yield number, value


def read_json_list(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Reads a file that is one JSON list of objects."""
    text = read_text(file)
    if not text.lstrip().startswith("["):
        raise InputError(
            f"{file} is no JSON list; end its name in .jsonl if it has one JSON object a line"
        )
    for number, value in enumerate(_parse(text, file, 1, "repair it or copy it again"), start=1):
        if not isinstance(value, dict):
            raise InputError(
                f"{file}, row {number}: a {type(value).__name__} stands there; "
                "each row must be a JSON object"
            )
        yield number, value


def _parse(text: str, file: Path, first_line: int, cure: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise InputError(
            f"{file}:{line}: broken JSON ({error.msg} at column {error.colno}); {cure}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}:{first_line}: broken JSON ({error}); {cure}") from None
