"""Numbers as people read them: few digits, units, a dash for what is not known."""

from __future__ import annotations

import math

UNKNOWN = "–"


def decimal(value: float, digits: int, sign: bool = False) -> str:
    """Writes a number with a fixed count of decimals.

    Args:
        value: the number; NaN for not known.
        digits: after the point.
        sign: whether a plus is written.

    Returns:
        The text.

    Example:
        >>> decimal(0.7168, 2), decimal(-0.001, 2, sign=True), decimal(float("nan"), 2)
        ('0.72', '+0.00', '–')
    """
    if not math.isfinite(value):
        return UNKNOWN
    rounded = round(float(value), digits) + 0.0  # adding 0 turns -0.0 into 0.0
    return f"{rounded:{'+' if sign else ''}.{digits}f}"


def percent(value: float, digits: int = 0) -> str:
    """Writes a fraction in percent.

    Args:
        value: the fraction; NaN for not known.
        digits: after the point.

    Returns:
        The text.

    Example:
        >>> percent(0.7168), percent(0.7168, 1)
        ('72%', '71.7%')
    """
    return UNKNOWN if not math.isfinite(value) else f"{100 * value:.{digits}f}%"


def significant(value: float) -> str:
    """Writes a number with four digits that count.

    Args:
        value: the number; NaN for not known.

    Returns:
        The text.

    Example:
        >>> significant(0.0109344), significant(1.0)
        ('0.01093', '1')
    """
    return f"{value:.4g}" if math.isfinite(value) else UNKNOWN


def duration(elapsed_s: float) -> str:
    """Writes how long something took.

    Args:
        elapsed_s: in seconds; NaN for not known.

    Returns:
        The text, in seconds, or in minutes from two minutes on, or in hours from two hours on.

    Example:
        >>> duration(74.71), duration(300), duration(9000)
        ('75 s', '5 min 0 s', '2 h 30 min')
    """
    if not math.isfinite(elapsed_s):
        return UNKNOWN
    seconds = round(elapsed_s)
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def counted(number: int, noun: str) -> str:
    """Writes a number with its noun.

    Args:
        number: how many.
        noun: in the singular.

    Returns:
        The text.

    Example:
        >>> counted(1, "prompt"), counted(6, "task")
        ('1 prompt', '6 tasks')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
