"""Compile log, log sinks, loss curves and progress bars."""

from __future__ import annotations

import importlib
import math
import os
import resource
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import jax
import numpy as np
from tqdm import tqdm

from jpt.distributed import is_first
from jpt.errors import InputError, unknown_name
from jpt.io.files import make_folder, write_text
from jpt.types import Score

# --- Compile log

COMPILED = "/jax/core/compile/backend_compile_duration"
FOUND = "/jax/compilation_cache/cache_hits"
MIN_LOGGED_S = 0.05  # many small programs that copy and convert take less


class Program(NamedTuple):
    """A program that was compiled, or loaded from the compile cache."""

    name: str  # of the function
    elapsed_s: float
    is_cached: bool


class CompileLog:
    """Records what jax compiles while it is open, and prints a line for slow programs."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say or (lambda line: None)
        self._programs: list[Program] = []
        self._is_cached = False
        self._steps: set[tuple[int, ...]] = set()
        self._scored = False

    def __enter__(self) -> CompileLog:
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)
        jax.monitoring.register_event_listener(self._on_event)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        jax.monitoring.unregister_event_duration_listener(self._on_duration)
        jax.monitoring.unregister_event_listener(self._on_event)

    def take(self) -> list[Program]:
        """Return the programs compiled since the last call."""
        taken, self._programs = self._programs, []
        return taken

    def stepped(self, batch: Any) -> None:
        """Print whether the train step was compiled since the last call, and why."""
        sizes = _sizes(batch)
        if programs := self._slow():
            name = _name(sizes)
            what = f"the train step for {name}" if name else "the train step"
            self._print(what, programs, self._why(sizes))
        self._steps.add(sizes)

    def scored(self) -> None:
        """Print how many programs scoring has compiled since the last call, if any."""
        if programs := self._slow():
            count = f"{len(programs)} program{'s' if len(programs) > 1 else ''}"
            why = "new sizes" if self._scored else "first scoring"
            self._print(f"{count} to score validation", programs, why)
        self._scored = True

    def _why(self, sizes: tuple[int, ...]) -> str:
        if not self._steps:
            return "first step"
        if sizes in self._steps:
            return "same shapes, different sharding"
        known = zip(*self._steps, strict=True)
        new = [
            name
            for name, size, sizes_before in zip(_NEW, sizes, known, strict=False)
            if size not in sizes_before
        ]
        return " and ".join(new) or "new pair of sizes"

    def _slow(self) -> list[Program]:
        return [program for program in self.take() if program.elapsed_s > MIN_LOGGED_S]

    def _print(self, what: str, programs: list[Program], why: str) -> None:
        elapsed_s = sum(program.elapsed_s for program in programs)
        if all(program.is_cached for program in programs):
            self._say(f"loaded {what} from the compile cache in {elapsed_s:.1f} s ({why})")
        else:
            self._say(f"compiled {what} in {elapsed_s:.1f} s ({why})")

    def _on_event(self, event: str, **more: Any) -> None:
        if event == FOUND:
            self._is_cached = True

    def _on_duration(self, event: str, elapsed_s: float, **more: Any) -> None:
        if event == COMPILED:
            self._programs.append(
                Program(str(more.get("fun_name", "")), elapsed_s, self._is_cached)
            )
            self._is_cached = False


_UNITS = ("rows", "tokens", "answer tokens")
_NEW = ("new number of rows", "new length", "new answer length", "new packed length")


def _name(sizes: tuple[int, ...]) -> str:
    named = zip(sizes, _UNITS, strict=False)
    name = " of ".join(f"{size} {unit}" for size, unit in named if size)
    return f"{name} packed into {sizes[-1]}" if sizes and sizes[-1] else name


def _sizes(batch: Any) -> tuple[int, ...]:
    """Return rows, tokens, answer tokens and packed length of a batch of text, else ()."""
    batch = getattr(batch, "rows", batch)  # a projector's batch has rows and a source prompt
    sizes = tuple(getattr(getattr(batch, "tokens", None), "shape", ()))
    answers, packed_index = getattr(batch, "answers", None), getattr(batch, "packed_index", None)
    wide = 0 if answers is None else answers.shape[1]
    return (*sizes, wide, 0 if packed_index is None else packed_index.shape[-1]) if sizes else ()


# --- Log sinks: TensorBoard and Weights & Biases, in addition to `metrics.jsonl`
# Both packages are optional. A sink that fails during a run is closed; the run continues.

TENSORBOARD, WANDB = "tensorboard", "wandb"
_RUN_ID = "jpt_run_id.txt"
_MODULES = {
    TENSORBOARD: (
        "tensorboard.summary.writer.event_file_writer",
        "tensorboard.compat.proto.event_pb2",
        "tensorboard.compat.proto.summary_pb2",
    ),
    WANDB: ("wandb",),
}


class LogSink(Protocol):
    """A destination of log lines."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log the numbers of a step."""

    def close(self, is_finished: bool) -> None:
        """Write pending lines and close."""


def parse_sinks(log: str | Sequence[str] | None) -> tuple[str, ...]:
    """Parse the option `log`; raise InputError for an unknown sink or a missing package."""
    names = [] if log is None else log.split(",") if isinstance(log, str) else list(log)
    wanted = tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
    for name in wanted:
        if name not in _MODULES:
            raise unknown_name("log", name, _MODULES)
        try:
            for module in _MODULES[name]:
                importlib.import_module(module)
        except ImportError as error:
            raise InputError(
                f"--log {name} needs the package {name} ({error}); pip install {name}"
            ) from None
    return wanted


class LogSinks:
    """The log sinks of a run, maybe none; of several processes only the first one logs."""

    def __init__(
        self,
        names: Iterable[str],
        folder: Path | None,
        config: Mapping[str, Any],
        history: Iterable[Mapping[str, Any]] = (),
        say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
    ) -> None:
        self._say = say
        self._open: dict[str, LogSink] = {}
        lines = list(history)
        for name in names if is_first() else ():
            if name == TENSORBOARD:
                self._open[name] = _TensorBoard(folder, lines, say)
            else:
                self._open[name] = _WeightsAndBiases(folder, config, lines, say)

    def __enter__(self) -> LogSinks:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name, sink in list(self._open.items()):
            self._try(name, lambda sink=sink: sink.close(kind is None))

    def log(self, line: Mapping[str, Any]) -> None:
        """Log the numbers of a line."""
        numbers = _numbers(line)
        for name, sink in list(self._open.items()) if numbers else ():
            self._try(name, lambda sink=sink: sink.log(int(line["step"]), numbers))

    def _try(self, name: str, call: Callable[[], None]) -> None:
        # A full disk or an unreachable server must not end a run of hours.
        try:
            call()
        except Exception as error:
            del self._open[name]
            reason = " ".join(str(error).split())[:200]
            self._say(f"note: {name} failed ({reason}); the run continues, see metrics.jsonl")


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a line under names such as `train/loss`."""
    return {
        f"{line['split']}/{name}": float(value)
        for name, value in line.items()
        if name != "step" and type(value) in (int, float) and math.isfinite(value)
    }


class _TensorBoard:
    def __init__(
        self, folder: Path | None, history: Iterable[Mapping[str, Any]], say: Callable[[str], None]
    ) -> None:
        if folder is None:
            raise InputError("log 'tensorboard' writes into the run folder; set out")
        writer, self._events, self._summaries = map(importlib.import_module, _MODULES[TENSORBOARD])
        event_folder = make_folder(folder / TENSORBOARD)
        self._writer = writer.EventFileWriter(str(event_folder))
        # A resumed run has lost the steps after its checkpoint. SessionLog.START makes TensorBoard
        # drop older events from this step on; the whole log is written again.
        start = self._events.SessionLog(status=self._events.SessionLog.START)
        self._writer.add_event(self._events.Event(wall_time=time.time(), step=0, session_log=start))
        for line in history:
            self.log(int(line["step"]), _numbers(line))
        say(f"tensorboard --logdir {event_folder}")

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        values = [
            self._summaries.Summary.Value(tag=name, simple_value=number)
            for name, number in numbers.items()
        ]
        summary = self._summaries.Summary(value=values)
        self._writer.add_event(
            self._events.Event(wall_time=time.time(), step=step, summary=summary)
        )

    def close(self, is_finished: bool) -> None:
        del is_finished
        self._writer.close()


class _WeightsAndBiases:
    def __init__(
        self,
        folder: Path | None,
        config: Mapping[str, Any],
        history: Iterable[Mapping[str, Any]],
        say: Callable[[str], None],
    ) -> None:
        wandb = importlib.import_module("wandb")
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "jpt"),
                name=None if folder is None else folder.resolve().name,
                dir=None if folder is None else str(folder),
                config=dict(config),
                id=_run_id(folder),
                resume="allow",
                # Its own output would mix with jpt's.
                settings={"silent": True, "console": "off"},
            )
        except Exception as error:  # not logged in, no network, no access to the project
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"wandb cannot start ({reason}); run 'wandb login', or set WANDB_MODE=offline"
            ) from None
        # The step is a metric of its own, because a resumed run repeats some steps.
        self._run.define_metric("*", step_metric="step")
        if not self._run.resumed:
            for line in history:
                self.log(int(line["step"]), _numbers(line))
        say(f"wandb: {self._run.dir if self._run.offline else self._run.url}")

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({"step": step, **numbers})

    def close(self, is_finished: bool) -> None:
        self._run.finish(exit_code=0 if is_finished else 1)


def _run_id(folder: Path | None) -> str:
    """Return the id under which a run is resumed, stored in its folder."""
    new = secrets.token_hex(8)
    if folder is None:
        return new
    file = make_folder(folder / WANDB) / _RUN_ID
    if not file.exists():
        write_text(file, new)
    return file.read_text(encoding="utf-8").strip()


# --- Loss curve in the terminal

BLOCKS = "▁▂▃▄▅▆▇█"
COLUMNS = 80
_MIN_POINTS = 3


def plot_loss(history: Iterable[Mapping[str, Any]]) -> str | None:
    """Return the training loss as a sparkline with its first, last and lowest value."""
    lines = [line for line in history if line.get("split") == "train" and "loss" in line]
    if len(lines) < _MIN_POINTS:
        return None
    losses = np.array([line["loss"] for line in lines], np.float64)
    lowest = int(np.argmin(losses))
    left = f"loss {_short(losses[0])} "
    right = (
        f" {_short(losses[-1])}, lowest {_short(losses[lowest])} at step {lines[lowest]['step']}"
    )
    return f"{left}{sparkline(losses, COLUMNS - len(left) - len(right))}{right}"


def sparkline(values: np.ndarray, columns: int) -> str:
    """Return numbers as blocks of eight heights."""
    parts = np.array_split(values, min(columns, len(values)))
    means = np.array([part.mean() for part in parts])
    spread = means.max() - means.min()
    heights = (means - means.min()) / (spread if spread > 0 else 1.0) * (len(BLOCKS) - 1)
    return "".join(BLOCKS[height] for height in np.rint(heights).astype(int))


def _short(loss: float) -> str:
    return f"{loss:.3f}" if 0.001 <= abs(loss) < 1000 or loss == 0 else f"{loss:.2e}"


# --- Progress bar


@dataclass
class ConstantPredictions:
    """Warns, once while it lasts, that a run predicts the same for all rows of validation."""

    steps: int
    _is_on: bool = False

    def warning(self, score: Score, step: int, history: Sequence[Mapping[str, Any]]) -> str | None:
        """Return a warning with its likely cause if it is new, from a tenth of the run on."""
        was_on = self._is_on
        self._is_on = score.warning is not None and 10 * step >= self.steps
        if was_on or not self._is_on:
            return None
        return f"step {step} of {self.steps}: {score.warning}; {likely_cause(history)}"


def likely_cause(history: Sequence[Mapping[str, Any]]) -> str:
    """Return the likely cause of one prediction for all rows of validation, from the log."""
    for line in reversed(history):
        if line["split"] == "validation" and _is_learnt(line):
            return f"it beat any constant answer at step {line['step']}: lower learning_rate"
    losses = np.array([line["loss"] for line in history if line["split"] == "train"], np.float64)
    if len(losses) < 4:
        return "try another learning_rate or other label words"
    halves = np.array_split(losses, 2)
    noise = math.sqrt(sum(half.var(ddof=1) / len(half) for half in halves))
    first, last = (half.mean() for half in halves)
    means = f"({_short(first)}, then {_short(last)})"
    if last < first - 2 * noise:
        return f"the training loss falls {means}: more steps may help"
    if last > first + 2 * noise:
        return f"the training loss rises {means}: lower learning_rate"
    return (
        f"the training loss does not fall {means}: try a higher learning_rate or other label words"
    )


def _is_learnt(line: Mapping[str, Any]) -> bool:
    """Return whether the accuracy is clearly above that of a constant prediction."""
    level = (line.get("majority") or 0.0) + 2 * (line.get("standard_error") or 0.0)
    return line.get("measures", {}).get("accuracy", 0.0) > level


class StepBar:
    """A progress bar on stderr, with lines above it."""

    def __init__(self, shown: bool = True) -> None:
        self._shown, self._bar = shown, tqdm(disable=True)

    def start(self, steps: int, first: int = 0) -> None:
        """Show the bar."""
        look = {"unit": "step", "dynamic_ncols": True, "mininterval": 0.5}
        hidden = not self._shown
        self._bar = tqdm(total=steps, initial=first, disable=hidden, file=sys.stderr, **look)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self._shown:
            self._bar.write(line, file=sys.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()


class Progress(StepBar):
    """The progress bar of a run, with loss, validation score, speed and remaining time."""

    def __init__(self, steps: int, first: int = 0, shown: bool = True) -> None:
        super().__init__(shown)
        self._fields: dict[str, str] = {}
        self._constant = ConstantPredictions(steps)
        self.start(steps, first)

    def stepped(self, loss: float, rows_per_s: float) -> None:
        """Show a finished step."""
        self._fields |= {"loss": f"{loss:.3f}", "rows/s": f"{rows_per_s:.0f}"}
        self._bar.set_postfix(self._fields, refresh=False)
        self._bar.update()

    def scored(self, score: Score, step: int, history: Sequence[Mapping[str, Any]] = ()) -> None:
        """Show a validation score, and a warning if all predictions are the same."""
        self._fields[score.metric] = f"{score.value:.3f}"
        if warning := self._constant.warning(score, step, history):
            self.say(f"warning: {warning}")


def peak_memory_mb() -> int:
    """Return the peak memory of this process in MB."""
    status = Path("/proc/self/status")
    if status.exists():
        # ru_maxrss also counts the parent process before exec.
        lines = status.read_text(encoding="utf-8").splitlines()
        return round(
            next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 if sys.platform != "darwin" else 1024**2))
