"""The log of a run in TensorBoard and Weights & Biases too, beside ``metrics.jsonl``.

Both packages are optional, loaded when they are asked for. A sink shows what the log says; where it
fails on the way, the run goes on without it.
"""

from __future__ import annotations

import importlib
import math
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from jpt.errors import InputError, unknown_name
from jpt.files.atomic import make_folder, write_text
from jpt.processes import is_first

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
    """Where lines of a log are shown."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Shows the numbers of a step."""

    def close(self, is_finished: bool) -> None:
        """Writes what is still on its way."""


def parse_sinks(log: str | Sequence[str] | None) -> tuple[str, ...]:
    """Reads which sinks are asked for, and looks whether their packages are there."""
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
    """The sinks of one run, which may have none; of several processes only the first shows."""

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
        """Shows one line of the log."""
        numbers = _numbers(line)
        for name, sink in list(self._open.items()) if numbers else ():
            self._try(name, lambda sink=sink: sink.log(int(line["step"]), numbers))

    def _try(self, name: str, show: Callable[[], None]) -> None:
        """A run of hours does not end because a disk of the log is full or a server is away."""
        try:
            show()
        except Exception as error:
            del self._open[name]
            reason = " ".join(str(error).split())[:200]
            self._say(f"note: {name} stopped ({reason}); the run goes on, its log is metrics.jsonl")


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line, as ``train/loss``."""
    return {
        f"{line['split']}/{name}": float(value)
        for name, value in line.items()
        if name != "step" and type(value) in (int, float) and math.isfinite(value)
    }


class _TensorBoard:
    """Event files in the folder of the run, written by the tensorboard package."""

    def __init__(
        self, folder: Path | None, history: Iterable[Mapping[str, Any]], say: Callable[[str], None]
    ) -> None:
        if folder is None:
            raise InputError("log 'tensorboard' writes into the folder of the run; give out")
        writer, self._events, self._summaries = map(importlib.import_module, _MODULES[TENSORBOARD])
        place = make_folder(folder / TENSORBOARD)
        self._writer = writer.EventFileWriter(str(place))
        # A run that goes on has forgotten what came after its checkpoint: TensorBoard drops what
        # older files say from this step on, and reads the log anew.
        start = self._events.SessionLog(status=self._events.SessionLog.START)
        self._writer.add_event(self._events.Event(wall_time=time.time(), step=0, session_log=start))
        for line in history:
            self.log(int(line["step"]), _numbers(line))
        say(f"tensorboard --logdir {place}")

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
    """A run of Weights & Biases; where it goes (and whether it is offline) its own settings say."""

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
                # Its own lines would stand between those of jpt.
                settings={"silent": True, "console": "off"},
            )
        except Exception as error:  # not logged in, no network, a project that is not one's own
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"wandb cannot start ({reason}); log in with 'wandb login', or set"
                " WANDB_MODE=offline"
            ) from None
        # Steps of the run are told as a number of their own: one that goes on repeats some.
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
    """The id under which a run goes on, kept in its folder."""
    new = secrets.token_hex(8)
    if folder is None:
        return new
    file = make_folder(folder / WANDB) / _RUN_ID
    if not file.exists():
        write_text(file, new)
    return file.read_text(encoding="utf-8").strip()
