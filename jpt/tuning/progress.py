"""What a person sees of a run: one line of facts, one bar; both on stderr."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from jpt.tuning.scoring import Score


class Progress:
    """A progress bar with loss, score on validation, speed and time left."""

    def __init__(self, steps: int, first: int = 0, shown: bool = True) -> None:
        self._fields: dict[str, str] = {}
        self._last_warning: str | None = None
        self._bar = tqdm(
            total=steps,
            initial=first,
            disable=not shown,
            unit="step",
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.5,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def stepped(self, loss: float, rows_per_s: float) -> None:
        """Shows that a step is done."""
        self._fields |= {"loss": f"{loss:.3f}", "rows/s": f"{rows_per_s:.0f}"}
        self._bar.set_postfix(self._fields, refresh=False)
        self._bar.update()

    def scored(self, score: Score) -> None:
        """Shows a score on validation, and says so when only one class was answered."""
        self._fields[score.metric] = f"{score.value:.3f}"
        if score.warning and score.warning != self._last_warning:
            self.say(f"warning: {score.warning}")
        self._last_warning = score.warning

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        if not self._bar.disable:
            self._bar.write(line, file=sys.stderr)


def peak_memory_mb() -> int:
    """Reads how much memory this process has held at most."""
    status = Path("/proc/self/status")
    if status.exists():
        # What the kernel says of resource usage also counts the process that started this one.
        lines = status.read_text(encoding="utf-8").splitlines()
        return round(
            next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 if sys.platform != "darwin" else 1024**2))
