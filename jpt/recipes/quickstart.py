"""Run a whole study on built-in tasks and a built-in model."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jpt.backbones.registry import Backbone, load_backbone
from jpt.config import MASK_COMMON, MASK_IN_TASK, MASK_RANDOM
from jpt.distributed import on_first
from jpt.errors import InputError
from jpt.indicators.correlation import study_indicators
from jpt.neurons.masking import RECORD as MASKS
from jpt.neurons.masking import mask_neurons
from jpt.neurons.probe import activated_neurons
from jpt.parallel import make_mesh
from jpt.report.report import PAGE, summarize, write_report
from jpt.results.prompt_table import short_task
from jpt.tasks.catalog import load_task
from jpt.transfer.zero_shot import RECORD, TRANSFER, transfer_matrix
from jpt.tuning.logging import peak_memory_mb
from jpt.tuning.run_dir import RunFolder
from jpt.tuning.tune import tune

FOLDER = "jpt-quickstart"
BACKBONE = "builtin/bert-small"
TASKS = (
    "builtin/rotten_tomatoes",
    "builtin/imdb_ending",
    "builtin/imdb_opening",
    "builtin/imdb_closing",
    "builtin/imdb_first_person",
    "builtin/imdb_number",
)
"""Three task types with short texts; whole IMDB reviews would take three times as long."""

PROMPTS, NEURONS = "prompts", "neurons.npz"
# Without the kind "other", which would take twice as long as the matrix.
MASKED = (MASK_IN_TASK, MASK_RANDOM, MASK_COMMON)


@dataclass(frozen=True)
class QuickstartResult:
    """Result of `quickstart`.

    Attributes:
        folder: Folder of the study: prompts, tables and the report.
        report: HTML page.
        record: Findings, time and memory, as in ``result.json``.
    """

    folder: Path
    report: Path
    record: dict[str, Any]

    def describe(self) -> str:
        """Return findings, time, memory and the path of the page as text."""
        lines = list(self.record["findings"])
        elapsed_s, memory_mb = self.record["elapsed_s"], self.record["peak_memory_mb"]
        lines.append(f"{elapsed_s:.0f} s, peak memory {memory_mb} MB")
        lines.append(f"report: {self.report}")
        return "\n".join(lines)


class _Steps:
    """Progress lines on stderr with an estimate of the remaining time."""

    def __init__(self, costs: Sequence[float], shown: bool) -> None:
        self._costs, self._shown = list(costs), shown
        self._number, self._done, self._spent_s = 0, 0.0, 0.0
        self._started_s = time.monotonic()

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Report a step, and count its time for the estimate of the others."""
        cost = self._costs[self._number]
        self._number += 1
        left = ""
        if self._done:
            rest_s = self._spent_s / self._done * sum(self._costs[self._number - 1 :])
            left = f" · about {_clock(rest_s)} left"
        if self._shown:
            elapsed = _clock(time.monotonic() - self._started_s)
            print(
                f"[{self._number}/{len(self._costs)}] {title} · {elapsed} elapsed{left}",
                file=sys.stderr,
                flush=True,
            )
        before_s = time.monotonic()
        yield
        spent_s = time.monotonic() - before_s
        if spent_s > 1:  # else finished by an earlier call
            self._done += cost
            self._spent_s += spent_s


def quickstart(
    out: str | Path = FOLDER,
    *,
    backbone: str = BACKBONE,
    tasks: Sequence[str] = TASKS,
    steps: int | None = None,
    seed: int = 0,
    mesh: str | None = None,
    progress: bool = False,
) -> QuickstartResult:
    """Run a whole study: tune prompts, transfer them, mask neurons, compare, write a report.

    Args:
        out: Folder of the study; re-run to resume. A finished study returns at once.
        backbone: Built-in name, folder of weights or hub id.
        tasks: Names or folders of at least two tasks.
        steps: Optimizer steps per prompt; defaults to the backbone's own value.
        seed: Random seed (prompt initialisation, data order).
        mesh: Devices per mesh axis.
        progress: Show progress on stderr.

    Returns:
        A `QuickstartResult` with the findings and the page.

    Raises:
        InputError: There are fewer than two tasks or two of one name, or the folder is of another
            study.
        StoppedError: SIGTERM or Ctrl-C was received; re-run to resume.

    Example:
        >>> tasks = ["builtin/imdb_number", "builtin/imdb_negation"]
        >>> found = quickstart("study", tasks=tasks, steps=1)  # doctest: +SKIP
        >>> found.report.name  # doctest: +SKIP
        'report.html'
    """
    started_s = time.monotonic()
    names = _names(tasks)
    config = {
        "study": "quickstart",
        "backbone": str(backbone),
        "tasks": list(names.values()),
        "steps": steps,
        "seed": seed,
    }
    run = RunFolder(Path(out), config)
    page = run.path / PAGE
    if run.result is not None:
        return QuickstartResult(run.path, page, run.result)
    model = load_backbone(backbone, mesh=make_mesh(mesh))
    study = _Study(run.path, model, names, steps, seed, mesh, progress)
    with run.lock():
        study.run(run.check)
        record = {
            "findings": on_first(lambda: summarize(run.path)),
            "elapsed_s": round(time.monotonic() - started_s, 1),
            "peak_memory_mb": peak_memory_mb(),
            "report": str(page),
        }
        record = run.finish(record)
    return QuickstartResult(run.path, page, record)


@dataclass(frozen=True)
class _Study:
    """Steps of the study; each writes its result into the folder and is skipped if it is there."""

    folder: Path
    backbone: Backbone
    names: dict[str, str]
    steps: int | None
    seed: int
    mesh: str | None
    progress: bool

    def run(self, check_folder: Callable[[], None]) -> None:
        planned = self._planned()
        clock = _Steps([cost for _, cost, _ in planned], self.progress)
        for title, _, work in planned:
            check_folder()  # each step would create it anew
            with clock.step(title):
                work()
                on_first(lambda: None)  # barrier: all processes read what the first one writes

    def _planned(self) -> list[tuple[str, float, Callable[[], object]]]:
        """Return title, rough cost (tuning one prompt: 1) and function of each step."""
        tunings = [
            (f"tune a prompt for {task}", 1.0, partial(self._tune, name, task))
            for name, task in self.names.items()
        ]
        return [
            *tunings,
            ("score every prompt on every task", 0.3 * len(self.names), self._transfer),
            ("record activated neurons", 0.1, self._read_neurons),
            ("mask neurons", 0.16 * len(self.names), self._mask),
            ("correlate similarities with transfer", 0.05, self._compare),
            ("write the report", 0.1, lambda: on_first(lambda: str(write_report(self.folder)))),
        ]

    @property
    def _prompts(self) -> Path:
        return self.folder / PROMPTS

    def _tune(self, name: str, task: str) -> None:
        options = {"steps": self.steps, "seed": self.seed, "mesh": self.mesh}
        options["progress"] = self.progress
        tune(self.backbone, task, self._prompts / name, **options)

    def _transfer(self) -> None:
        if self._has(RECORD):  # written last
            return
        targets = list(self.names.values())
        options = {"backbone": self.backbone, "seed": self.seed, "mesh": self.mesh}
        options["progress"] = self.progress
        transfer_matrix(self._prompts, targets, self.folder, **options)

    def _read_neurons(self) -> None:
        options = {"backbone": self.backbone, "mesh": self.mesh}
        activated_neurons(self._prompts, self.folder / NEURONS, **options)

    def _mask(self) -> None:
        # Masking supports classification tasks only.
        tasks = [task for task in self.names.values() if not load_task(task).is_generative]
        if not tasks or self._has(MASKS):  # written last
            return
        options = {"backbone": self.backbone, "kinds": MASKED, "random_draws": 1}
        options["mesh"] = self.mesh
        options |= {"neurons": self.folder / NEURONS, "progress": self.progress}
        mask_neurons(self._prompts, tasks, self.folder, seed=self.seed, **options)

    def _compare(self) -> None:
        files = {"neurons": self.folder / NEURONS, "transfer": self.folder / TRANSFER}
        # Nothing is computed on devices here.
        on_first(lambda: study_indicators(self._prompts, self.folder, **files) and None)

    def _has(self, name: str) -> bool:
        """Return whether the first process finds a file of the study."""
        return on_first((self.folder / name).exists)


def _names(tasks: Sequence[str]) -> dict[str, str]:
    """Return the tasks by short name."""
    if len(tasks) < 2:
        raise InputError(
            f"tasks: expected at least 2, got {len(tasks)}; add tasks, for instance builtin/imdb"
        )
    names: dict[str, str] = {}
    for task in tasks:
        short = short_task(load_task(task).name)
        if short in names:
            raise InputError(f"two tasks are named {short}: {names[short]} and {task}; drop one")
        names[short] = str(task)
    return names


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
