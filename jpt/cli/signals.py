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
# Python only reports what is raised in these: jax's callback of the garbage collector, which takes
# half of the time while jax is loading, and finalizers.
_SWALLOWING = ("_xla_gc_callback", "__del__", "cb")  # the last one of importlib's locks
# An extension module that is interrupted while it loads crashes the process.
_LOADING = ("create_module", "exec_module")


class Stopped(BaseException):
    """Ends a command at any point."""

    # Not an ``Exception``, which libraries catch, and not a ``KeyboardInterrupt``, for which typer
    # ends the process without a message.

    def __init__(self, number: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"{name}: stopped; re-run the command to resume")
        self.exit_code = EXIT_CODES[signal.Signals(number)]


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise `Stopped` at SIGTERM and Ctrl-C inside the block."""
    # C code may clear what a handler raises, as jax's does while it loads: the signal is sent again
    # until it ends the block.
    stop = _Stop()
    before = {number: signal.signal(number, stop) for number in EXIT_CODES}
    try:
        yield
    finally:
        stop.end()
        for number, handler in before.items():
            signal.signal(number, handler)


class _Stop:
    """Handler that raises where that ends the command, and again if it was swallowed."""

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
        """Send no more signals."""
        with self._sending:
            self._ended.set()

    def _send_again(self, number: int, wait_s: float) -> None:
        """Send the signal to this handler, or to that of a training loop started since."""
        self._ended.wait(wait_s)
        with self._sending:
            self._is_waiting = False
            if not self._ended.is_set():
                signal.pthread_kill(threading.main_thread().ident or 0, number)


def _is_ending() -> bool:
    """Return whether a `Stopped` is propagating through a ``finally`` or ``__exit__``."""
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
        if loads or name in _SWALLOWING:
            return True
        frame = frame.f_back
    return False
