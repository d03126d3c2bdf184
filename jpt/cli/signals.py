"""Stop cleanly on SIGTERM and Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader
from types import FrameType

EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}
_WAIT_S = 0.01
_REPEAT_S = 0.25
# What is raised in these is reported and forgotten: jax's callback of the garbage collector, which
# runs half of the time while jax is loading, and the end of any object.
_FORGETFUL = ("_xla_gc_callback", "__del__")
# A library in C that is interrupted while it loads takes the process down with it.
_LOADING = ("create_module", "exec_module")


class Stopped(BaseException):
    """Ends a command, whatever it is doing."""

    # No ``Exception``, so that no library that tries something out takes it for its own, and no
    # ``KeyboardInterrupt``, for which typer ends the process without a word.

    def __init__(self, number: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"{name}: stopped; the same command goes on from what is written")
        self.exit_code = EXIT_CODES[signal.Signals(number)]


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raises `Stopped` at SIGTERM and Ctrl-C, as long as the block runs."""
    # Code in C may clear what a handler raises, and some of jax's does while it loads: the signal
    # is raised anew until it ends the block.
    stop = _Stop()
    before = {number: signal.signal(number, stop) for number in EXIT_CODES}
    try:
        yield
    finally:
        stop.end()
        for number, handler in before.items():
            signal.signal(number, handler)


class _Stop:
    """The handler: raises where that ends the command, and again where it was swallowed."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._sending = threading.Lock()
        self._is_waiting = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._ended.is_set():
            return
        late = _is_ending() or _must_not_raise(frame)
        if not self._is_waiting:
            self._is_waiting = True
            wait_s = _WAIT_S if late else _REPEAT_S
            threading.Thread(target=self._send_again, args=(number, wait_s), daemon=True).start()
        if not late:
            raise Stopped(number)

    def end(self) -> None:
        """No signal is sent after this."""
        with self._sending:
            self._ended.set()

    def _send_again(self, number: int, wait_s: float) -> None:
        """The handler hears it, or that of a training loop which has begun since."""
        self._ended.wait(wait_s)
        with self._sending:
            self._is_waiting = False
            if not self._ended.is_set():
                signal.pthread_kill(threading.main_thread().ident or 0, number)


def _is_ending() -> bool:
    """Whether a `Stopped` is on its way: a ``finally`` or the exit of a context runs."""
    error = sys.exc_info()[1]
    while error is not None:
        if isinstance(error, Stopped):
            return True
        error = error.__context__
    return False


def _must_not_raise(frame: FrameType | None) -> bool:
    while frame is not None:
        name = frame.f_code.co_name
        loads = name in _LOADING and isinstance(frame.f_locals.get("self"), ExtensionFileLoader)
        if loads or name in _FORGETFUL:
            return True
        frame = frame.f_back
    return False
