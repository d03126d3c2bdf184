"""What a person sees of a sweep: runs done and running, the best so far, the time left."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from tqdm import tqdm

from jpt.tuning.scoring import Score


class SweepProgress:
    """A bar over the steps of all runs, and a line for every run that ends."""

    def __init__(self, runs: int, done: int, shown: bool = True) -> None:
        self._runs, self._done, self._shown = runs, done, shown
        self._best: tuple[str, float] | None = None
        self._bar = tqdm(disable=True)

    def __enter__(self) -> SweepProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def planned(self, steps: int, banks: int) -> None:
        """Says what is left to do."""
        self._bar = tqdm(
            total=steps,
            disable=not self._shown,
            unit="step",
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.5,
        )
        self.say(f"{self._done} of {self._runs} done before; {steps} steps in {banks} banks left")

    def bank(self, runs: Sequence[str], places: int) -> None:
        """A bank begins, or goes on."""
        listed = ", ".join(runs[:4]) + (f" and {len(runs) - 4} more" if len(runs) > 4 else "")
        self.say(f"running, {places} at once: {listed}")

    def turned(self, steps: int, rows_per_s: float) -> None:
        """So many runs did a step."""
        best = "" if self._best is None else f"{self._best[1]:.3f} ({self._best[0]})"
        shown = {"done": f"{self._done}/{self._runs}", "rows/s": f"{rows_per_s:.0f}", "best": best}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(steps)

    def scored(self, run: str, score: Score) -> None:
        """A run was scored on validation."""
        if self._best is None or score.value > self._best[1]:
            self._best = (run, score.value)

    def ended(self, run: str, record: Mapping[str, Any]) -> None:
        """A run is finished, or has diverged."""
        self._done += 1
        said = record.get("diverged")
        if said is None:
            found = record["validation"][record["metric"]]
            said = f"validation {record['metric']} {found:.3f} at step {record['best_step']}"
        self.say(f"[{self._done}/{self._runs}] {run}: {said}")

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        if self._shown:
            self._bar.write(line, file=sys.stderr)
