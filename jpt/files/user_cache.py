"""Where things are kept that can always be made anew: the user's cache folder.

The folder is ``JPT_CACHE``, by default ``jpt`` in the user's cache folder; an empty ``JPT_CACHE``
keeps nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


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
