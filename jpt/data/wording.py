"""How messages show what stands in files of others: short, in one line, whatever it is."""

from __future__ import annotations

import difflib
from collections.abc import Collection

MOST_NAMES, MOST_LETTERS = 12, 60
"""What a message shows of names and values: they may be a whole text where a header is missing."""


def show(value: object) -> str:
    """Shows a value in one short line, whatever it is."""
    try:
        text = " ".join(repr(value[:200] if isinstance(value, str) else value).split())
    except Exception:  # absurd numbers, absurd nesting, classes of others
        text = f"of type {type(value).__name__}"
    return text if len(text) <= MOST_LETTERS else text[:MOST_LETTERS] + "..."


def list_names(names: Collection[object]) -> str:
    """Lists names in one line, of many only the first."""
    shown = [_plain(name) for name in list(names)[:MOST_NAMES]]
    more = len(names) - len(shown)
    return ", ".join([*shown, f"{more} more"] if more else shown)


def _plain(name: object) -> str:
    """A name as it is, or as a quoted text where it would not be seen for what it is."""
    text = str(name)
    if text and text == text.strip() and text.isprintable() and len(text) <= MOST_LETTERS:
        return text
    return show(text)


def nearest_names(name: object, known: Collection[object]) -> str:
    """Names what may have been meant, also where only the case differs."""
    if not isinstance(name, str):
        return ""
    by_form = {str(other).strip().lower(): str(other) for other in known}
    near = difflib.get_close_matches(name.strip().lower()[:MOST_LETTERS], by_form, n=2)
    return f"; did you mean {' or '.join(show(by_form[form]) for form in near)}?" if near else ""
