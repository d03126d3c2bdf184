"""Text files that others wrote: UTF-8, or an error that names the line."""

from __future__ import annotations

from pathlib import Path

from jpt.errors import InputError
from jpt.files.reading import file_size_bytes, read_bytes


def read_text(file: Path) -> str:
    """Reads a whole text file; the ends of its lines stay as they are."""
    file_size_bytes(file)  # refuses pipes and devices, which could hold a reader for ever
    data = read_bytes(file)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # error.object, not data: behind a byte order mark the place counts from the mark's end.
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{file}:{line}: not UTF-8 ({error.reason}); save the file as UTF-8"
        ) from None
