"""Segments of a template: text with ``{field}`` where a row's field goes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from string import Formatter

from jpt.errors import InputError


@lru_cache(maxsize=256)
def _parse(segment: str) -> tuple[tuple[str, str | None], ...]:
    """Splits a segment into (literal text, field or None); nothing but plain names is allowed."""
    # ``str.format`` itself is not used: it would also follow attributes and indices.
    try:
        parts = list(Formatter().parse(segment))
    except ValueError as error:
        raise InputError(f"template {segment!r} is broken: {error}; write {{field}}") from None
    for _, name, form, conversion in parts:
        if name is not None and (not name.isidentifier() or form or conversion):
            raise InputError(
                f"template {segment!r} has {{{name}}}; only a plain field name can stand in "
                "braces (write {{ and }} for braces themselves)"
            )
    return tuple((literal, name) for literal, name, _, _ in parts)


def template_fields(segment: str) -> tuple[str, ...]:
    """Lists the fields that a segment names."""
    return tuple(name for _, name in _parse(segment) if name is not None)


def fill_segment(segment: str, row: Mapping[str, str]) -> str:
    """Puts the fields of a row into a segment and takes the blanks around it off."""
    parts = _parse(segment)
    return "".join(literal + ("" if name is None else row[name]) for literal, name in parts).strip()
