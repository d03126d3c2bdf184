"""The error that users see, and the wording that several rooms share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Says in one line what came, what was expected, and the cure.

    The command line prints the message to stderr and exits with code 2; in Python it is a
    ``ValueError`` like any other.

    Example:
        >>> raise InputError("steps is -1; give a positive number, for instance --steps 200")
        Traceback (most recent call last):
        ...
        jpt.errors.InputError: steps is -1; give a positive number, for instance --steps 200
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Builds the error for a name that nothing has, with the nearest names that exist.

    Args:
        kind: what the name should have named, for instance ``"task"``.
        name: what came.
        known: the names that exist.

    Returns:
        The error, to be raised by the caller.

    Example:
        >>> unknown_name("task", "sst", ["sst2", "imdb"]).args[0]
        "unknown task 'sst'; did you mean sst2? (known: imdb, sst2)"
    """
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
    return InputError(f"unknown {kind} '{name}'{hint} (known: {', '.join(known)})")


class DivergedError(RuntimeError):
    """Says that a loss became infinite or not a number, between which steps, and what to try."""


class StoppedError(RuntimeError):
    """Says that a signal ended a run early; its state is saved and the same command goes on.

    Args:
        message: one line for the user.
        exit_code: 75 after SIGTERM (try again later), 130 after Ctrl-C.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
