"""The log in TensorBoard and Weights & Biases: by stand-ins, and by the packages where they are."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import jpt
from jpt.errors import InputError
from jpt.tuning.logging import LogSinks, parse_sinks
from tests.toy_task import write_task

LINES = [
    {"step": 10, "split": "train", "loss": 0.75, "accuracy": 0.5},
    {"step": 10, "split": "validation", "accuracy": 0.5, "metric": "accuracy", "counts": {"a": 3}},
    {"step": 20, "split": "train", "loss": math.inf, "accuracy": 1},
]
SHOWN = [
    (10, {"train/loss": 0.75, "train/accuracy": 0.5}),
    (10, {"validation/accuracy": 0.5}),
    (20, {"train/accuracy": 1.0}),
]


class StandIn:
    """A Weights & Biases that writes down what it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, resumed: bool = False) -> None:
        self.started: list[dict[str, Any]] = []
        self.told: list[tuple[int, dict[str, float]]] = []
        self.ended: list[int] = []
        self.resumed, self.offline = resumed, True
        self.url, self.dir = "https://example.org/run", "runs/a/wandb/offline-run"
        self.fault: Exception | None = None
        module = ModuleType("wandb")
        module.init = self.init
        monkeypatch.setitem(sys.modules, "wandb", module)

    def init(self, **options: Any) -> StandIn:
        if self.fault:
            raise self.fault
        self.started.append(options)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "step")

    def log(self, numbers: dict[str, float]) -> None:
        if self.fault:
            raise self.fault
        self.told.append((numbers.pop("step"), numbers))

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return StandIn(monkeypatch)


def test_unknown_names_and_missing_packages_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="did you mean tensorboard"):
        parse_sinks("tensorbord")
    for name in ("tensorboard", "wandb"):
        for module in [name, *(each for each in sys.modules if each.startswith(f"{name}."))]:
            monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
        with pytest.raises(InputError, match=f"pip install {name}$"):
            parse_sinks(f" {name} ,")


def test_nothing_is_imported_unless_asked_for() -> None:
    before = {name for name in sys.modules if name.startswith(("wandb", "tensorboard"))}
    with LogSinks(parse_sinks(None), None, {}) as sinks:
        sinks.log(LINES[0])
    assert parse_sinks("") == parse_sinks([]) == ()
    assert before == {name for name in sys.modules if name.startswith(("wandb", "tensorboard"))}


def test_wandb_is_told_every_number_of_the_log(wandb: StandIn, tmp_path: Path) -> None:
    said: list[str] = []
    names = parse_sinks(["wandb", "wandb"])
    with LogSinks(names, tmp_path, {"seed": 3}, LINES[:1], said.append) as sinks:
        for line in LINES[1:]:
            sinks.log(line)
    assert wandb.told == SHOWN and wandb.ended == [0]
    (started,) = wandb.started
    assert (started["project"], started["name"]) == ("jpt", tmp_path.name)
    assert started["config"] == {"seed": 3} and started["dir"] == str(tmp_path)
    assert said == ["wandb: runs/a/wandb/offline-run"]


def test_a_run_of_wandb_goes_on_under_its_id(
    monkeypatch: pytest.MonkeyPatch, wandb: StandIn, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt), LogSinks(("wandb",), tmp_path, {}):
        raise KeyboardInterrupt
    assert wandb.ended == [1]
    again, said = StandIn(monkeypatch, resumed=True), []
    again.offline = False
    with LogSinks(("wandb",), tmp_path, {}, LINES[:2], said.append) as sinks:
        sinks.log(LINES[2])
    assert said == ["wandb: https://example.org/run"]
    assert again.told == SHOWN[2:], "what it knows already is not told again"
    assert again.started[0]["id"] == wandb.started[0]["id"]
    assert again.started[0]["resume"] == "allow"
    with LogSinks(("wandb",), tmp_path / "other", {}):
        assert again.started[1]["id"] != wandb.started[0]["id"]


def test_a_start_that_fails_is_told_before_the_run(wandb: StandIn, tmp_path: Path) -> None:
    wandb.fault = RuntimeError("api_key not\nconfigured")
    with pytest.raises(InputError, match=r"\(api_key not configured\); log in .*OFFLINE|offline"):
        LogSinks(("wandb",), tmp_path, {})
    with pytest.raises(InputError, match="folder of the run; give out"):
        LogSinks(("tensorboard",), None, {})


def test_a_sink_that_fails_later_does_not_end_the_run(wandb: StandIn, tmp_path: Path) -> None:
    said: list[str] = []
    with LogSinks(("wandb",), tmp_path, {}, (), said.append) as sinks:
        sinks.log(LINES[0])
        wandb.fault = RuntimeError("the server is away")
        sinks.log(LINES[1])
        sinks.log(LINES[2])
    assert wandb.told == SHOWN[:1] and wandb.ended == []
    assert len(said) == 2 and "wandb stopped (the server is away); the run goes on" in said[1]


def test_a_run_shows_all_that_it_logs_and_its_curve(wandb: StandIn, tmp_path: Path) -> None:
    options = {"steps": 30, "eval_every": 15, "batch_size": 4, "eval_batch_size": 8}
    backbone, task = "builtin/bert-small", write_task(tmp_path / "mood")
    result = jpt.tune(backbone, task, tmp_path / "run", log="wandb", **options)
    assert wandb.ended == [0]
    *during, last = wandb.told
    assert [step for step, _ in during] == [line["step"] for line in result.history]
    for (_, told), line in zip(during, result.history, strict=True):
        name = "train/loss" if line["split"] == "train" else "validation/accuracy"
        assert told[name] == line[name.partition("/")[2]]
    assert last[0] == 30 and last[1]["test/accuracy"] == result.record["test"]["accuracy"]
    losses = [line["loss"] for line in result.history if line["split"] == "train"]
    curve = result.describe().splitlines()[1]
    assert curve.startswith(f"loss {losses[0]:.3f} ") and f" {losses[-1]:.3f}, lowest" in curve
    jpt.tune(backbone, task, tmp_path / "run", log=["wandb"], **options)
    assert len(wandb.started) == 1, "a finished run returns at once, whatever it is shown in"


class Writer:
    """TensorBoard's writer of event files, which keeps them instead."""

    def __init__(self, folder: str) -> None:
        self.folder, self.events, self.closed = folder, [], False
        WRITERS.append(self)

    def add_event(self, event: SimpleNamespace) -> None:
        self.events.append(event)

    def close(self) -> None:
        self.closed = True


WRITERS: list[Writer] = []


def stand_in_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    WRITERS.clear()
    parts = {
        "tensorboard.summary.writer.event_file_writer": {"EventFileWriter": Writer},
        "tensorboard.compat.proto.event_pb2": {"Event": SimpleNamespace, "SessionLog": Session},
        "tensorboard.compat.proto.summary_pb2": {"Summary": Summary},
    }
    for name, content in parts.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)


class Session(SimpleNamespace):
    START = 1


class Summary(SimpleNamespace):
    Value = SimpleNamespace


def test_event_files_hold_every_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in_tensorboard(monkeypatch)
    with LogSinks(parse_sinks("tensorboard"), tmp_path, {}, LINES[:1]) as sinks:
        for line in LINES[1:]:
            sinks.log(line)
    (writer,) = WRITERS
    assert writer.closed and writer.folder == str(tmp_path / "tensorboard")
    first, *others = writer.events
    assert (first.step, first.session_log.status) == (0, Session.START)
    found = [(e.step, {v.tag: v.simple_value for v in e.summary.value}) for e in others]
    assert found == SHOWN


def test_real_tensorboard_reads_what_a_run_that_went_on_wrote(tmp_path: Path) -> None:
    """Steps after the checkpoint come again; TensorBoard shows each of them once."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = [{"step": n, "split": "train", "loss": 1.0 / n} for n in range(1, 7)]
    with LogSinks(parse_sinks("tensorboard"), tmp_path, {}) as sinks:
        for line in lines[:5]:
            sinks.log({**line, "loss": 9.0} if line["step"] > 3 else line)
    with LogSinks(("tensorboard",), tmp_path, {}, lines[:3]) as sinks:
        for line in lines[3:]:
            sinks.log(line)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [(line["step"], pytest.approx(line["loss"])) for line in lines]


def test_real_wandb_writes_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    said: list[str] = []
    with LogSinks(parse_sinks("wandb"), tmp_path, {"seed": 3}, LINES[:1], said.append) as sinks:
        sinks.log(LINES[1])
    wandb.teardown()  # as at the end of a process: its writer is another one
    assert len(said) == 1 and str(tmp_path) in said[0]
    (stored,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    data = stored.read_bytes()
    assert b"train/loss" in data and b"validation/accuracy" in data
