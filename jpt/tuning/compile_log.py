"""Which programs are compiled while a run goes on, how long that takes, and why."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"
FOUND = "/jax/compilation_cache/cache_hits"
WORTH_TELLING_S = 0.05
"""Quicker programs copy and convert; they are many and nobody waits for them."""


class Program(NamedTuple):
    """A program that was compiled, or read from the compile cache."""

    name: str  # of the function
    elapsed_s: float  # how long that took
    is_cached: bool  # whether it was read


class CompileLog:
    """Hears of every program that jax compiles while it is open, and says so in a line."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say or (lambda line: None)
        self._programs: list[Program] = []
        self._is_cached = False
        self._steps: set[tuple[int, ...]] = set()
        self._scored = False

    def __enter__(self) -> CompileLog:
        jax.monitoring.register_event_duration_secs_listener(self._took)
        jax.monitoring.register_event_listener(self._found)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        jax.monitoring.unregister_event_duration_listener(self._took)
        jax.monitoring.unregister_event_listener(self._found)

    def take(self) -> list[Program]:
        """Gives what was compiled since the last call."""
        taken, self._programs = self._programs, []
        return taken

    def stepped(self, batch: Any) -> None:
        """Says that a train step was compiled, if it was since the last call, and why."""
        sizes = _sizes(batch)
        if programs := self._slow():
            name = _name(sizes)
            what = f"the train step for {name}" if name else "the train step"
            self._tell(what, programs, self._why(sizes))
        self._steps.add(sizes)

    def scored(self) -> None:
        """Says how many programs scoring has compiled since the last call, if any."""
        if programs := self._slow():
            count = f"{len(programs)} program{'s' if len(programs) > 1 else ''}"
            why = "new sizes" if self._scored else "first scoring"
            self._tell(f"{count} to score validation", programs, why)
        self._scored = True

    def _why(self, sizes: tuple[int, ...]) -> str:
        if not self._steps:
            return "first step"
        if sizes in self._steps:
            return "sizes as before: arrays lie elsewhere"
        known = zip(*self._steps, strict=True)
        new = [
            name
            for name, size, sizes_before in zip(_NEW, sizes, known, strict=False)
            if size not in sizes_before
        ]
        return " and ".join(new) or "new pair of sizes"

    def _slow(self) -> list[Program]:
        return [program for program in self.take() if program.elapsed_s > WORTH_TELLING_S]

    def _tell(self, what: str, programs: list[Program], why: str) -> None:
        elapsed_s = sum(program.elapsed_s for program in programs)
        if all(program.is_cached for program in programs):
            self._say(f"read {what} from the compile cache in {elapsed_s:.1f} s ({why})")
        else:
            self._say(f"compiled {what} in {elapsed_s:.1f} s ({why})")

    def _found(self, event: str, **more: Any) -> None:
        if event == FOUND:
            self._is_cached = True

    def _took(self, event: str, elapsed_s: float, **more: Any) -> None:
        if event == COMPILED:
            self._programs.append(
                Program(str(more.get("fun_name", "")), elapsed_s, self._is_cached)
            )
            self._is_cached = False


_UNITS = ("rows", "tokens", "answer tokens")
_NEW = ("new number of rows", "new length", "new answer length", "new amount of text")


def _name(sizes: tuple[int, ...]) -> str:
    named = zip(sizes, _UNITS, strict=False)
    name = " of ".join(f"{size} {unit}" for size, unit in named if size)
    return f"{name} packed into {sizes[-1]}" if sizes and sizes[-1] else name


def _sizes(batch: Any) -> tuple[int, ...]:
    """Rows, tokens, answer tokens and packed places of a batch, where it is one of text."""
    batch = getattr(batch, "rows", batch)  # of a projector: the rows with their prompt
    sizes = tuple(getattr(getattr(batch, "tokens", None), "shape", ()))
    answers, places = getattr(batch, "answers", None), getattr(batch, "places", None)
    wide = 0 if answers is None else answers.shape[1]
    return (*sizes, wide, 0 if places is None else places.shape[-1]) if sizes else ()
