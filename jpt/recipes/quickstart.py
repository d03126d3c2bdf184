"""The whole study on the built-in tasks and a built-in model."""

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
from jpt.config import MASK_COMMON, MASK_IN_TASK
from jpt.config import MASK_RANDOM as DRAWN
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
"""Three types with short texts; whole IMDB reviews would take as long as three of them."""

PROMPTS, NEURONS = "prompts", "neurons.npz"
MASKED = (MASK_IN_TASK, DRAWN, MASK_COMMON)
"""Kinds of masks; those of every other task's neurons would take twice as long as the matrix."""


@dataclass(frozen=True)
class QuickstartResult:
    """Where the study lies and what it found.

    Attributes:
        folder: of the study: prompts, tables and the report.
        report: the page.
        record: seconds, memory and findings, as in ``result.json``.
    """

    folder: Path
    write_report: Path
    record: dict[str, Any]

    def describe(self) -> str:
        """Says what was found, how long it took and where the page is."""
        lines = list(self.record["findings"])
        elapsed_s, memory_mb = self.record["elapsed_s"], self.record["peak_memory_mb"]
        lines.append(f"{elapsed_s:.0f} s, at most {memory_mb} MB of memory")
        lines.append(f"report: {self.report}")
        return "\n".join(lines)


class _Steps:
    """Says on stderr which step of how many runs, and how long the rest may take."""

    def __init__(self, costs: Sequence[float], shown: bool) -> None:
        self._costs, self._shown = list(costs), shown
        self._number, self._done, self._spent_s = 0, 0.0, 0.0
        self._started_s = time.monotonic()

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Announces a step; when it returns its time counts for the estimate of the others."""
        cost = self._costs[self._number]
        self._number += 1
        left = ""
        if self._done:
            rest_s = self._spent_s / self._done * sum(self._costs[self._number - 1 :])
            left = f" · about {_clock(rest_s)} left"
        if self._shown:
            gone = _clock(time.monotonic() - self._started_s)
            print(
                f"[{self._number}/{len(self._costs)}] {title} · {gone} gone{left}",
                file=sys.stderr,
                flush=True,
            )
        before_s = time.monotonic()
        yield
        spent_s = time.monotonic() - before_s
        if spent_s > 1:  # a step that an earlier call had finished tells nothing
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
    """Carries the whole study out; a finished one returns at once, a broken one goes on.

    Args:
        out: folder of the study.
        backbone: a built-in name, a folder of weights or a hub id.
        tasks: names or folders of two tasks or more.
        steps: of each prompt's tuning; by default the backbone's own choice.
        seed: of the initial prompt and the order of the rows.
        mesh: devices by axis.
        progress: whether to say on stderr how far it is.

    Returns:
        Findings and the page.

    Raises:
        InputError: fewer than two tasks, two of one name, or a folder of another study.
        StoppedError: after SIGTERM or Ctrl-C; the same call goes on.

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
        study.carry_out()
    record = {
        "findings": on_first(lambda: summarize(run.path)),
        "elapsed_s": round(time.monotonic() - started_s, 1),
        "peak_memory_mb": peak_memory_mb(),
        "report": str(page),
    }
    run.finish(record)
    return QuickstartResult(run.path, page, record)


@dataclass(frozen=True)
class _Study:
    """The steps of the study; each leaves its result in the folder and is not done twice."""

    folder: Path
    backbone: Backbone
    names: dict[str, str]
    steps: int | None
    seed: int
    mesh: str | None
    progress: bool

    def carry_out(self) -> None:
        """Runs the steps one after the other."""
        planned = self._planned()
        clock = _Steps([cost for _, cost, _ in planned], self.progress)
        for title, _, work in planned:
            with clock.step(title):
                work()
                on_first(lambda: None)  # what the first process writes is read by all

    def _planned(self) -> list[tuple[str, float, Callable[[], object]]]:
        """Title, rough cost (that of tuning one prompt is 1) and work of each step."""
        tunings = [
            (f"tune a prompt for {task}", 1.0, partial(self._tune, name, task))
            for name, task in self.names.items()
        ]
        return [
            *tunings,
            ("use every prompt on every task", 0.3 * len(self.names), self._transfer),
            ("read the neurons that they activate", 0.1, self._read_neurons),
            ("silence chosen neurons", 0.16 * len(self.names), self._mask),
            ("compare prompts and neurons with the transfers", 0.05, self._compare),
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
        if self._has(RECORD):  # written last: where it is, the matrix is whole
            return
        targets = list(self.names.values())
        options = {"backbone": self.backbone, "seed": self.seed, "mesh": self.mesh}
        options["progress"] = self.progress
        transfer_matrix(self._prompts, targets, self.folder, **options)

    def _read_neurons(self) -> None:
        options = {"backbone": self.backbone, "mesh": self.mesh}
        activated_neurons(self._prompts, self.folder / NEURONS, **options)

    def _mask(self) -> None:
        # Written answers are not scored under masks.
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
        """Whether the first process finds a file of the study."""
        return on_first((self.folder / name).exists)


def _names(tasks: Sequence[str]) -> dict[str, str]:
    """Short name to name of each task, checked before anything runs."""
    if len(tasks) < 2:
        raise InputError(
            f"a study of transfer needs two tasks or more; {len(tasks)} came: name another"
        )
    names: dict[str, str] = {}
    for task in tasks:
        short = short_task(load_task(task).name)
        if short in names:
            raise InputError(f"two tasks are called {short}: {names[short]} and {task}")
        names[short] = str(task)
    return names


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
