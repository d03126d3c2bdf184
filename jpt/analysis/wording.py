"""Numbers as people read them: few digits, units, a dash for what is not known."""

from __future__ import annotations

import math

UNKNOWN = "–"


def decimal(value: float, digits: int, sign: bool = False) -> str:
    """Writes a number with a fixed count of decimals."""
    if not math.isfinite(value):
        return UNKNOWN
    rounded = round(float(value), digits) + 0.0  # adding 0 turns -0.0 into 0.0
    return f"{rounded:{'+' if sign else ''}.{digits}f}"


def percent(value: float, digits: int = 0) -> str:
    """Writes a fraction in percent."""
    return UNKNOWN if not math.isfinite(value) else f"{100 * value:.{digits}f}%"


def significant(value: float) -> str:
    """Writes a number with four digits that count."""
    return f"{value:.4g}" if math.isfinite(value) else UNKNOWN


def duration(elapsed_s: float) -> str:
    """Writes how long something took."""
    if not math.isfinite(elapsed_s):
        return UNKNOWN
    seconds = round(elapsed_s)
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def counted(number: int, noun: str) -> str:
    """Writes a number with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
