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
    """Lays a reading out for a terminal.

    Args:
        found: what was read.

    Returns:
        Card, norms and drift, then a line for each row of the prompt.

    Example:
        >>> from jpt.recipes.prompts import show_prompt
        >>> from jpt.types import Prompt
        >>> prompt = Prompt(np.eye(2, 128, dtype=np.float32), PromptCard("builtin/bert-small", "t"))
        >>> print(describe_reading(show_prompt(prompt)).splitlines()[1])
        norm of a row: mean 1 (1 to 1)
    """
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
    """Says where a prompt comes from.

    Args:
        card: of the prompt.
        rows: P.

    Returns:
        One sentence.

    Example:
        >>> describe_card(PromptCard("builtin/bert-small", "builtin/imdb", seed=0, steps=9), 20)
        'builtin/imdb on builtin/bert-small: 20 rows; init random, seed 0; 9 steps'
    """
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
    """Breaks a text into lines of at most 80 columns.

    Args:
        text: one paragraph.

    Returns:
        The lines; those after the first are set in.

    Example:
        >>> wrap("a short line")
        ['a short line']
    """
    return textwrap.wrap(text, COLUMNS, subsequent_indent="  ")


def short(value: float) -> str:
    """Writes a number in at most six letters.

    Args:
        value: any number.

    Returns:
        Three digits that count.

    Example:
        >>> [short(value) for value in (0.98765, 12.3456, 123456.0, float("nan"))]
        ['0.988', '12.3', '1e+05', '-']
    """
    if not np.isfinite(value):
        return "-"
    text = f"{value:.3g}"
    return text if len(text) <= 6 else f"{value:.0e}"


def spread(values: Float64[np.ndarray, "N"]) -> str:
    """Writes mean, smallest and largest of some numbers.

    Args:
        values: the numbers.

    Returns:
        For instance ``2 (1 to 3)``.

    Example:
        >>> spread(np.array([1.0, 3.0]))
        '2 (1 to 3)'
    """
    return f"{short(values.mean())} ({short(values.min())} to {short(values.max())})"


def visible(text: str, width: int) -> str:
    """Makes a text safe for one place of a table: no control letters, cut to a width.

    Args:
        text: for instance a piece of a vocabulary.
        width: in letters.

    Returns:
        The text; a cut one ends in a dot.

    Example:
        >>> visible("film", 9), visible("a\\nb", 9), visible("extraordinary", 9)
        ('film', 'a\\\\nb', 'extraord.')
    """
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
