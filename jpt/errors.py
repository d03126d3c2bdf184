"""Errors that users see, and wording that several rooms share."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable, Sequence

RENAMED = {"first_piece": "first_token", "own": "in_task", "sureness": "mutual_information"}
"""Option values of earlier versions and their names today."""


class InputError(ValueError):
    """Invalid input: one line with what was expected, what came, and how to fix it.

    The command line prints the message to stderr and exits with code 2; in Python it is a
    ``ValueError`` like any other.

    Example:
        >>> raise InputError("steps is -1; give a positive number, for instance --steps 200")
        Traceback (most recent call last):
        ...
        jpt.errors.InputError: steps is -1; give a positive number, for instance --steps 200
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Return the error for an unknown name, with the nearest known ones.

    Args:
        kind: What the name should have named, for instance ``"task"``.
        name: The unknown name.
        known: The known names.

    Returns:
        The error, for the caller to raise.

    Example:
        >>> unknown_name("task", "sst", ["sst2", "imdb"]).args[0]
        "unknown task 'sst'; did you mean sst2? (known: imdb, sst2)"
    """
    known = sorted(known)
    hint = renamed_to(name, known)
    nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if nearest and not hint:
        hint = f"; did you mean {' or '.join(nearest)}?"
    return InputError(f"unknown {kind} '{name}'{hint} (known: {', '.join(known)})")


def renamed_to(value: object, known: Iterable[str]) -> str:
    """Return a hint at the name that replaced an option value, or nothing."""
    new = RENAMED.get(value) if isinstance(value, str) else None
    return f", which is now called {new}" if new in known else ""


def shorten(names: Sequence[str], most: int = 8) -> str:
    """Join names, at most ``most`` of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class DataWarning(UserWarning):
    """Rows or weights that may not mean what they seem to: one line, with counts of rows.

    The command line prints it to stderr, once; in Python it is a warning like any other.

    Example:
        >>> issubclass(DataWarning, UserWarning)
        True
    """


def warn_data(message: str) -> None:
    """Warn of rows, at the line of the caller outside of jpt."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("jpt."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, DataWarning, stacklevel=level)


class DivergedError(RuntimeError):
    """Non-finite loss; the message names the steps between which it occurred and what to try."""


class StoppedError(RuntimeError):
    """Run stopped early by a signal; its state is saved, and the same command resumes it.

    Args:
        message: One line for the user.
        exit_code: 75 after SIGTERM (try again later), 130 after Ctrl-C.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
