"""A prompt that was read, and folders of prompts, as text of at most 80 columns."""

from __future__ import annotations

import textwrap

import numpy as np
from jaxtyping import Float64

from jpt.recipes.prompts import Near, PromptReading
from jpt.types import PromptCard

COLUMNS = 80
_NEAR = 29  # of the pieces by cosine, and of those by product


def describe_reading(found: PromptReading) -> str:
    """Lays a reading out for a terminal."""
    read = np.arange(len(found.norms)) + found.first > 0
    mean, smallest, largest = found.vocabulary
    lines = wrap(describe_card(found.card, len(found.norms[read])))
    lines.append(f"norm of a row: mean {spread(found.norms[read])}")
    lines.append(
        f"norm of a vocabulary row: mean {short(mean)} ({short(smallest)} to {short(largest)}) over"
        f" {found.pieces} pieces"
    )
    if found.drift is not None:
        assert found.start_cosines is not None
        lines.append(f"drift of a row from its start: mean {spread(found.drift[read])}")
        lines.append(f"cosine of a row with its start: mean {spread(found.start_cosines[read])}")
    for note in found.notes:
        lines += wrap(f"note: {note}")
    lines.append(f" row   norm  drift  {'nearest by cosine':<{_NEAR}}  nearest by product")
    for place, norm in enumerate(found.norms):
        drift = "-" if found.drift is None else short(found.drift[place])
        lines.append(
            f"{found.first + place:4} {short(norm):>6} {drift:>6}"
            f"  {_pieces(found.by_cosine, place):<{_NEAR}}  {_pieces(found.by_product, place)}"
        )
    return "\n".join(line.rstrip() for line in lines)


def describe_card(card: PromptCard, rows: int) -> str:
    """Says where a prompt comes from."""
    parts = [f"{card.task} on {card.backbone}: {rows} rows"]
    seed = "" if card.seed is None else f", seed {card.seed}"
    parts.append(f"init {card.init}{seed}")
    if card.steps is not None:
        parts.append(f"{card.steps} steps")
    if card.score is not None:
        parts.append(f"{card.metric or 'score'} {card.score:.3f} on validation")
    if card.source is not None:
        parts.append(f"from {card.source}")
    return "; ".join(parts)


def wrap(text: str) -> list[str]:
    """Breaks a text into lines of at most 80 columns."""
    return textwrap.wrap(text, COLUMNS, subsequent_indent="  ")


def short(value: float) -> str:
    """Writes a number in at most six letters."""
    if not np.isfinite(value):
        return "-"
    text = f"{value:.3g}"
    return text if len(text) <= 6 else f"{value:.0e}"


def spread(values: Float64[np.ndarray, "N"]) -> str:
    """Writes mean, smallest and largest of some numbers."""
    return f"{short(values.mean())} ({short(values.min())} to {short(values.max())})"


def visible(text: str, width: int) -> str:
    """Makes a text safe for one place of a table: no control letters, cut to a width."""
    clean = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return clean if len(clean) <= width else clean[: width - 1] + "."


def _pieces(near: Near, place: int) -> str:
    """As many pieces as have room, each with its number."""
    told = ""
    for piece, value in zip(near.pieces[place], near.values[place].tolist(), strict=True):
        one = f"{visible(piece, 12)} {short(value)}"
        longer = f"{told}, {one}" if told else one
        if len(longer) > _NEAR:
            break
        told = longer
    return told
