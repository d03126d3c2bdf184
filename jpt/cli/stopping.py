"""Ctrl-C and SIGTERM outside of a training loop, which has handlers of its own and saves first."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader
from types import FrameType

EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}
_WAIT_S = 0.01
# What is raised in these is reported and forgotten: jax's callback of the garbage collector, which
# runs half of the time while jax is loading, and the end of any object.
_FORGETFUL = ("_xla_gc_callback", "__del__")
# A library in C that is interrupted while it loads takes the process down with it.
_LOADING = ("create_module", "exec_module")


class Stopped(BaseException):
    """Ends a command, whatever it is doing.

    No ``Exception``, so that no library that tries something out takes it for its own, and no
    ``KeyboardInterrupt``, for which typer ends the process without a word.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"{name}: stopped; the same command goes on from what is written")
        self.exit_code = EXIT_CODES[signal.Signals(number)]


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raises `Stopped` at SIGTERM and Ctrl-C, as long as the block runs.

    Yields:
        Nothing.

    Example:
        >>> try:
        ...     with stop_on_signals():
        ...         signal.raise_signal(signal.SIGTERM)
        ... except Stopped as stopped:
        ...     print(stopped)
        SIGTERM: stopped; the same command goes on from what is written
    """
    before = {number: signal.signal(number, _stop) for number in EXIT_CODES}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    """Raises where that ends the command, else a moment later."""
    while frame is not None:
        if _must_not_raise(frame):
            again = threading.Timer(_WAIT_S, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
            return
        frame = frame.f_back
    raise Stopped(number)


def _must_not_raise(frame: FrameType) -> bool:
    name = frame.f_code.co_name
    if name in _LOADING:
        return isinstance(frame.f_locals.get("self"), ExtensionFileLoader)
    return name in _FORGETFUL
