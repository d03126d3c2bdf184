"""Compile log, log sinks and loss curves."""

import collections
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jpt
from jpt.testing import write_tiny_backbone
from jpt.tuning import bound_task
from jpt.tuning.logging import (
    BLOCKS,
    COLUMNS,
    CompileLog,
    LogSinks,
    Progress,
    likely_cause,
    parse_sinks,
    plot_loss,
    sparkline,
)
from jpt.tuning.step import BoundStep
from jpt.types import Batch, Score
from tests.helpers.running import raises
from tests.helpers.toys import first_rows, json_lines, write_task

CATALOG = [name for name in jpt.task_names() if not name.startswith("builtin/")]
GENERATIVE = ("multi_news", "nq_open", "samsum", "squad")


def batch_of(rows: int, tokens: int, packed_index: int | None = None) -> Batch:
    ones = np.ones(rows, np.int32)
    packed = None if packed_index is None else np.zeros((1, packed_index), np.int32)
    rest = (ones, ones, ones.astype(np.float32))
    return Batch(np.ones((rows, tokens), np.int32), *rest, packed_index=packed)


def test_lines_name_what_was_compiled_and_why() -> None:
    lines: list[str] = []
    with CompileLog(lines.append) as log:
        for elapsed_s, cached, *sizes in (
            (2.06, False, 32, 48),
            (2.06, True, 32, 64),
            (2.06, False, 16, 64),
            (2.06, False, 64, 96),
            (2.06, False, 16, 48),
            (2.06, False, 16, 48, 384),
            (2.06, False, 16, 48),
            (0.01, False, 99, 99),  # too fast for a line
        ):
            if cached:
                jax.monitoring.record_event("/jax/compilation_cache/cache_hits")
            name = "/jax/core/compile/backend_compile_duration"
            jax.monitoring.record_event_duration_secs(name, elapsed_s, fun_name="jit(step)")
            log.stepped(batch_of(*sizes))
        log.stepped(batch_of(32, 48))  # nothing was compiled
        log.scored()
    for line, (verb, sizes, why) in zip(
        lines,
        [
            ("compiled", "32 rows of 48 tokens in", "first step"),
            ("loaded", "32 rows of 64 tokens from the compile cache in", "new length"),
            ("compiled", "16 rows of 64 tokens in", "new number of rows"),
            ("compiled", "64 rows of 96 tokens in", "new number of rows and new length"),
            ("compiled", "16 rows of 48 tokens in", "new pair of sizes"),
            ("compiled", "16 rows of 48 tokens packed into 384 in", "new packed length"),
            ("compiled", "16 rows of 48 tokens in", "same shapes, different sharding"),
        ],
        strict=True,
    ):
        assert line == f"{verb} the train step for {sizes} 2.1 s ({why})"


def test_programs_are_recorded_while_the_log_is_open() -> None:
    work = jax.jit(lambda x: jnp.cos(x) + 1)
    with CompileLog() as log:
        work(jnp.ones(3))
        assert [each.name for each in log.take()].count("jit(<lambda>)") == 1
        work(jnp.ones(3))
        assert "jit(<lambda>)" not in [each.name for each in log.take()]
        work(jnp.ones(5))
        assert [each.name for each in log.take()].count("jit(<lambda>)") == 1
    work(jnp.ones(7))
    assert log.take() == []


@contextmanager
def counted() -> Iterator[dict[str, Any]]:
    calls: dict[str, set[Any]] = {"step": set(), "_score_step": set()}
    real_step, real_score = BoundStep.__call__, bound_task._score_step

    def note(name: str, batch: Batch, answer: Any) -> None:
        width = None if batch.answers is None else batch.answers.shape[1]
        packed = None if batch.packed_index is None else batch.packed_index.shape[-1]
        several = answer.label_tokens is not None
        calls[name].add((batch.tokens.shape[1], len(answer.label_ids), several, width, packed))

    def step(self: BoundStep, frozen: Any, state: Any, batch: Batch) -> Any:
        note("step", batch, frozen[1])
        return real_step(self, frozen, state, batch)

    def score(module: Any, params: Any, prompts: Any, batch: Batch, answer: Any, *more: Any) -> Any:
        note("_score_step", batch, answer)
        return real_score(module, params, prompts, batch, answer, *more)

    found: dict[str, Any] = {"calls": calls}
    with pytest.MonkeyPatch.context() as patch, CompileLog() as log:
        patch.setattr(BoundStep, "__call__", step)
        patch.setattr(bound_task, "_score_step", score)
        yield found
        names = collections.Counter(program.name for program in log.take())
        found["compiled"] = {name: names[f"jit({name})"] for name in calls}


def assert_compiled_once_a_size(found: dict[str, Any], some: int) -> None:
    for name, sizes in found["calls"].items():
        assert found["compiled"][name] <= len(sizes), (name, found["compiled"], sizes)
    assert len(found["calls"]["step"]) >= some, "the runs were of one size only"


def toy_task(name: str, words: dict[str, tuple[str, ...]], tail: str) -> jpt.Task:
    rows = [
        {"text": f"the film is {word} {end}", "label": label}
        for label, each in words.items()
        for word in each
        for end in (tail, f"{tail} and {tail} number 1 , number 2 , number 3 , number 4 . " * 2)
    ]
    return jpt.Task(
        name,
        "toy",
        ("text",),
        tuple(words),
        {"encoder": ("{text}",)},
        {"default": {label: each[0] for label, each in words.items()}},
        rows={split: rows for split in ("train", "validation", "test")},
    )


GOOD, BAD = ("good", "great", "lovely"), ("bad", "awful", "boring")
TOYS: list[Callable[[], jpt.Task]] = [
    lambda: toy_task("a", {"yes": GOOD, "no": BAD}, "a film"),
    lambda: toy_task("b", {"fine": ("fine", "bright"), "poor": ("poor", "dull")}, "not"),
    lambda: toy_task("c", {"1": ("was",), "2": ("is",)}, "the the the"),
    lambda: toy_task("d", {"x": ("good",), "y": ("bad",), "z": ("not",)}, "a film"),
]


@pytest.mark.slow
@pytest.mark.plain_programs
def test_tasks_of_one_size_share_their_programs(tmp_path: Path) -> None:
    backbone = jpt.load_backbone(write_tiny_backbone(tmp_path / "tiny", "bert"))
    given = {"steps": 6, "eval_every": 6, "batch_size": 2, "eval_batch_size": 4, "length": 3}
    with counted() as found:
        for number, task in enumerate(TOYS):
            options = {"learning_rate": 10.0**-number, "seed": number, "max_tokens": 40}
            jpt.tune(backbone, task(), **options, **given)
    assert_compiled_once_a_size(found, some=4)
    assert {sizes[1] for sizes in found["calls"]["step"]} == {2, 3}


@pytest.mark.slow
@pytest.mark.plain_programs
@pytest.mark.parametrize("name", ["bert-small", "t5-mini", "gpt2-mini"])
def test_catalog_tasks_compile_once_per_size(name: str, reference_folder: Path) -> None:
    # The sizes of the catalog tests, whose programs are in the compile cache of tests.
    backbone = jpt.load_backbone(f"builtin/{name}")
    tasks = [task for task in CATALOG if name != "bert-small" or task not in GENERATIVE]
    assert len(tasks) == (13 if name == "bert-small" else 17)
    given = {"batch_size": 8, "eval_batch_size": 16, "length": 8, "max_tokens": 48, "steps": 4}
    with counted() as found:
        for task in tasks:
            data = first_rows(reference_folder / "data" / task, 16)
            jpt.tune(backbone, task, data=data, eval_every=4, **given)
    assert_compiled_once_a_size(found, some=5)
    assert {sizes[1] for sizes in found["calls"]["step"] if sizes[3] is None} == {2, 3, 4}
    assert {sizes[0] for sizes in found["calls"]["step"]} == {32, 48}, "buckets"


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


class FakeWandb:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, resumed: bool = False) -> None:
        url, folder = "https://example.org/run", "runs/a/wandb/offline-run"
        self.run = Mock(resumed=resumed, offline=not resumed, url=url, dir=folder)
        self.init = Mock(return_value=self.run)
        module = ModuleType("wandb")
        module.init = self.init
        monkeypatch.setitem(sys.modules, "wandb", module)

    @property
    def started(self) -> list[dict[str, Any]]:
        return [call.kwargs for call in self.init.call_args_list]

    @property
    def logged(self) -> list[tuple[int, dict[str, float]]]:
        lines = [dict(call.args[0]) for call in self.run.log.call_args_list]
        return [(line.pop("step"), line) for line in lines]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return FakeWandb(monkeypatch)


def test_sinks_are_imported_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name for name in sys.modules if name.startswith(("wandb", "tensorboard"))}
    with LogSinks(parse_sinks(None), None, {}) as sinks:
        sinks.log(LINES[0])
    assert parse_sinks("") == parse_sinks([]) == ()
    assert before == {name for name in sys.modules if name.startswith(("wandb", "tensorboard"))}
    raises(parse_sinks, "tensorbord", match="did you mean tensorboard")
    for name in ("tensorboard", "wandb"):
        for module in [name, *(each for each in sys.modules if each.startswith(f"{name}."))]:
            monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
        raises(parse_sinks, f" {name} ,", match=f"pip install {name}$")


def test_wandb_logs_every_number(wandb: FakeWandb, tmp_path: Path) -> None:
    said: list[str] = []
    names = parse_sinks(["wandb", "wandb"])
    with LogSinks(names, tmp_path, {"seed": 3}, LINES[:1], said.append) as sinks:
        for line in LINES[1:]:
            sinks.log(line)
    assert wandb.logged == SHOWN
    wandb.run.define_metric.assert_called_once_with("*", step_metric="step")
    wandb.run.finish.assert_called_once_with(exit_code=0)
    (started,) = wandb.started
    assert (started["project"], started["name"]) == ("jpt", tmp_path.name)
    assert started["config"] == {"seed": 3} and started["dir"] == str(tmp_path)
    assert said == ["wandb: runs/a/wandb/offline-run"]


def test_wandb_resumes_under_its_id(monkeypatch, wandb: FakeWandb, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), LogSinks(("wandb",), tmp_path, {}):
        raise KeyboardInterrupt
    wandb.run.finish.assert_called_once_with(exit_code=1)
    again, said = FakeWandb(monkeypatch, resumed=True), []
    with LogSinks(("wandb",), tmp_path, {}, LINES[:2], said.append) as sinks:
        sinks.log(LINES[2])
    assert said == ["wandb: https://example.org/run"] and again.logged == SHOWN[2:]
    assert again.started[0]["id"] == wandb.started[0]["id"]
    assert again.started[0]["resume"] == "allow"
    with LogSinks(("wandb",), tmp_path / "other", {}):
        assert again.started[1]["id"] != wandb.started[0]["id"]


def test_sinks_that_fail_or_cannot_start(wandb: FakeWandb, tmp_path: Path) -> None:
    said: list[str] = []
    with LogSinks(("wandb",), tmp_path, {}, (), said.append) as sinks:
        sinks.log(LINES[0])
        wandb.run.log.side_effect = RuntimeError("no server")
        sinks.log(LINES[1])
        sinks.log(LINES[2])
    assert wandb.logged == SHOWN[:2], "closed after the first failure"
    wandb.run.finish.assert_not_called()
    assert len(said) == 2 and "wandb failed (no server); the run continues" in said[1]
    wandb.init.side_effect = RuntimeError("api_key not\nconfigured")
    raises(
        LogSinks,
        ("wandb",),
        tmp_path,
        {},
        match=r"\(api_key not configured\); run .wandb login., .*=offline",
    )
    raises(LogSinks, ("tensorboard",), None, {}, match="into the run folder; set out")


@pytest.mark.slow
def test_run_logs_to_sinks_and_shows_its_curve(wandb: FakeWandb, tmp_path: Path) -> None:
    options = {"steps": 30, "eval_every": 15, "batch_size": 4, "eval_batch_size": 8}
    backbone, task = "builtin/bert-small", write_task(tmp_path / "mood")
    result = jpt.tune(backbone, task, tmp_path / "run", log="wandb", **options)
    wandb.run.finish.assert_called_once_with(exit_code=0)
    *during, last = wandb.logged
    assert [step for step, _ in during] == [line["step"] for line in result.history]
    for (_, numbers), line in zip(during, result.history, strict=True):
        name = "train/loss" if line["split"] == "train" else "validation/accuracy"
        assert numbers[name] == line[name.partition("/")[2]]
    assert last[0] == 30 and last[1]["test/accuracy"] == result.record["test"]["accuracy"]
    losses = [line["loss"] for line in result.history if line["split"] == "train"]
    curve = result.describe().splitlines()[1]
    assert curve.startswith(f"loss {losses[0]:.3f} ") and f" {losses[-1]:.3f}, lowest" in curve
    jpt.tune(backbone, task, tmp_path / "run", log=["wandb"], **options)
    assert len(wandb.started) == 1, "a finished run returns at once"


def test_tensorboard_logs_every_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    writer, session = Mock(), Mock(side_effect=SimpleNamespace, START=1)
    new_writer = Mock(return_value=writer)
    for name, content in {
        "tensorboard.summary.writer.event_file_writer": {"EventFileWriter": new_writer},
        "tensorboard.compat.proto.event_pb2": {"Event": SimpleNamespace, "SessionLog": session},
        "tensorboard.compat.proto.summary_pb2": {
            "Summary": Mock(side_effect=SimpleNamespace, Value=SimpleNamespace)
        },
    }.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    with LogSinks(parse_sinks("tensorboard"), tmp_path, {}, LINES[:1]) as sinks:
        for line in LINES[1:]:
            sinks.log(line)
    new_writer.assert_called_once_with(str(tmp_path / "tensorboard"))
    writer.close.assert_called_once_with()
    first, *others = (call.args[0] for call in writer.add_event.call_args_list)
    assert (first.step, first.session_log.status) == (0, session.START)
    assert [(e.step, {v.tag: v.simple_value for v in e.summary.value}) for e in others] == SHOWN


def test_real_tensorboard_reads_a_resumed_run(tmp_path: Path) -> None:
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
    wandb.teardown()  # waits for its writer process
    assert len(said) == 1 and str(tmp_path) in said[0]
    (stored,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    data = stored.read_bytes()
    assert b"train/loss" in data and b"validation/accuracy" in data


def history(losses: list[float]) -> list[dict]:
    lines = [{"step": 10 * n, "split": "train", "loss": loss} for n, loss in enumerate(losses, 1)]
    lines.insert(1, {"step": 10, "split": "validation", "loss": 99.0, "accuracy": 0.5})
    lines.insert(2, {"step": 10, "split": "validation", "accuracy": 0.5})
    return lines


def test_curves_and_blocks() -> None:
    line = plot_loss(history([0.9, 0.7, 0.25, 0.4]))
    assert line.startswith("loss 0.900 ") and line.endswith(" 0.400, lowest 0.250 at step 30")
    assert line.split()[2] == "█▆▁▃"
    values = np.repeat([0.0, 7.0, 3.0, 3.0], 50) + np.tile([-1.0, 1.0], 100)
    assert sparkline(values, 4) == "▁█▄▄" and sparkline(values[:1], 4) == "▁"
    assert sparkline(np.full(9, 0.3), 40) == "▁" * 9


@pytest.mark.parametrize("count", [0, 1, 2])
def test_two_losses_are_no_curve(count: int) -> None:
    assert plot_loss(history([0.5] * count)) is None


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e12])
def test_long_runs_fit_the_terminal(scale: float) -> None:
    line = plot_loss(history((scale * np.random.default_rng(0).uniform(size=30_000)).tolist()))
    assert len(line) == COLUMNS and set(line.split()[2]) <= set(BLOCKS)


CONSTANT = Score("accuracy", 0.5, 0.7, 10, 0.5, {"a": 10, "b": 0}, np.zeros(10, int))


def log_of(losses: Iterable[float], accuracy: float | None = None) -> list[dict[str, Any]]:
    train = [{"step": n, "split": "train", "loss": loss} for n, loss in enumerate(losses)]
    scored = {"step": 40, "split": "validation", "majority": 0.5, "standard_error": 0.1}
    return train if accuracy is None else [*train, {**scored, "measures": {"accuracy": accuracy}}]


FLAT, FALLING = [0.70, 0.68, 0.72, 0.70] * 2, [0.9, 0.91, 0.89, 0.6, 0.61, 0.59]


@pytest.mark.parametrize(
    ("history", "cause"),
    [
        (log_of(FLAT, 0.6), "the training loss does not fall (0.700, then 0.700): try a higher"),
        (log_of(FALLING), "the training loss falls (0.900, then 0.600): more steps may help"),
        (log_of(FALLING[::-1]), "the training loss rises (0.600, then 0.900): lower learning_rate"),
        (log_of(FLAT, 0.8), "it beat any constant answer at step 40: lower learning_rate"),
        (log_of(FLAT[:3]), "try another learning_rate or other label words"),
    ],
)
def test_cause_of_constant_predictions(history: list[dict[str, Any]], cause: str) -> None:
    assert likely_cause(history).startswith(cause)


def test_constant_predictions_are_reported_once_from_a_tenth_of_the_run(capsys) -> None:
    other, varied = (replace(CONSTANT, counts={"a": a, "b": 10 - a}) for a in (0, 5))
    with Progress(100) as progress:
        for step, score in enumerate([CONSTANT] * 12 + [other] * 2 + [varied] + [other] * 3, 1):
            progress.scored(score, step, log_of(FLAT))
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert [line.split(";")[0] for line in lines] == [
        f"warning: step {step} of 100: all 10 rows get the prediction '{label}'"
        for step, label in ((10, "a"), (16, "b"))
    ]
    right = replace(CONSTANT, value=1.0, majority=1.0, measures={"accuracy": 1.0})
    assert right.warning is None and replace(CONSTANT, rows=1).warning is None


@pytest.mark.slow
@pytest.mark.plain_programs
def test_constant_predictions_on_the_command_line(run, tmp_path: Path) -> None:
    rows = json_lines({"text": "a film", "label": label} for label in ("good", "bad") * 3)
    task = write_task(tmp_path / "mood", **dict.fromkeys(("train", "validation", "test"), rows))
    backbone, out = write_tiny_backbone(tmp_path / "bert", "bert"), tmp_path / "out"
    options = {"steps": 20, "eval_every": 1, "batch_size": 4, "length": 3, "max_tokens": 16}
    given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    options |= {"backbone": str(backbone), "task": str(task)}
    grid = tmp_path / "grid.toml"
    fixed = "".join(f"{name} = {value!r}\n" for name, value in options.items())
    grid.write_text(f"[fixed]\n{fixed}[grid]\nseed = [0, 1]\n[run]\nslots = 2\n")
    commands = {
        "": ("tune", "--backbone", backbone, "--task", task, "--out", out, *given),
        "mood/seed-[01]: ": ("sweep", grid, "--out", tmp_path / "sweep"),
    }
    for name, command in commands.items():
        code, _, err = run(*command)
        found = [line for line in re.split(r"[\r\n]", err) if "get the prediction" in line]
        message = rf"warning: {name}step (\d+) of 20: all 6 rows get the prediction '\w+'; \w+"
        steps = [int(re.search(message, line)[1]) for line in found]
        assert code == 0 and steps and min(steps) >= 2, err
    code, said, err = run("evaluate", "--prompt", out, "--task", task)
    assert code == 0 and re.search(r"^warning: all 6 rows get the prediction '\w+'$", said, re.M)
