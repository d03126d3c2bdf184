"""Warm-start studies: runs, resuming, speed-ups, notes and text."""

import csv
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import jpt
from jpt.testing import write_tiny_backbone
from jpt.transfer import warm_start as module
from jpt.transfer.warm_start import (
    DEFINITIONS,
    ScoreCurve,
    WarmStartResult,
    _notes,
    arithmetic_mean,
    compare_curves,
    describe_record,
    geometric_mean,
)
from jpt.tuning import trainer
from jpt.tuning.tune import TrainBatches, WarmStart
from tests.helpers.toys import write_task

pytestmark = pytest.mark.plain_programs

SETTINGS = {"batch_size": 8, "max_tokens": 16, "learning_rate": 3e-2}
STUDY = {"steps": 6, "eval_every": 2, "seeds": (0, 4), **SETTINGS}
SEEDS = (0, 4)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("tasks") / "mood")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> jpt.Backbone:
    return jpt.load_backbone(write_tiny_backbone(tmp_path_factory.mktemp("tiny") / "bert", "bert"))


@pytest.fixture(scope="module")
def sources(task: Path, backbone: jpt.Backbone, tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("sources")
    jpt.tune(backbone, task, root / "tuned", steps=8, length=4, **SETTINGS)
    values = np.random.default_rng(1).normal(0, 1, (4, 32)).astype(np.float32)
    jpt.save_prompt(root / "drawn.safetensors", make_prompt(backbone, values))
    return [root / "tuned", root / "drawn.safetensors"]


def make_prompt(backbone: jpt.Backbone, values: np.ndarray, **card: object) -> jpt.Prompt:
    return jpt.Prompt(values, jpt.PromptCard(backbone.name, "elsewhere", **card))


@pytest.fixture(scope="module")
def batches() -> dict[tuple[str, int], list[bytes]]:
    return {}


@pytest.fixture(scope="module")
def study(task, backbone, sources, batches, tmp_path_factory) -> Iterator[WarmStartResult]:
    real = TrainBatches.batch

    def note(feed: TrainBatches, step: int, mesh):
        batch = real(feed, step, mesh)
        arrays = b"".join(np.asarray(each).tobytes() for each in (batch.tokens, batch.labels))
        key = feed.options.init, feed.options.seed
        batches.setdefault(key, []).append(step.to_bytes(2) + arrays)
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainBatches, "batch", note)
        out = tmp_path_factory.mktemp("study") / "out"
        yield jpt.warm_start(task, sources, out, backbone=backbone, **STUDY)


def test_runs_of_a_seed_read_the_same_batches(study, batches) -> None:
    inits = ("random", "prompt:tuned", "prompt:drawn")
    assert set(batches) == {(init, seed) for init in inits for seed in SEEDS}
    for seed in SEEDS:
        first = batches["random", seed]
        assert len(first) == 6 and all(batches[init, seed] == first for init in inits)
    assert batches["random", 0] != batches["random", 4]
    configs = [json.loads(path.read_text()) for path in study.folder.rglob("config.json")]
    differ = {"init", "start", "seed"}
    kept = [{k: v for k, v in config.items() if k not in differ} for config in configs]
    assert len(kept) == 6 and all(one == kept[0] for one in kept)


def test_runs_and_step_0_equal_tune_and_evaluate(study, task, backbone, sources) -> None:
    options = {"steps": 6, "eval_every": 2, "seed": 4, "length": 4, **SETTINGS}
    inits = {"vanilla": "random", "tuned": f"prompt:{sources[0]}", "drawn": f"prompt:{sources[1]}"}
    for name, init in inits.items():
        alone = jpt.tune(backbone, task, init=init, **options)
        np.testing.assert_array_equal(study.runs[4, name].last.values, alone.last.values)
        scored = [line for line in alone.history if line["split"] == "validation"]
        curve = study.curves[4, name]
        assert curve.steps.tolist() == [0, *(line["step"] for line in scored)] == [0, 2, 4, 6]
        assert curve.values.tolist()[1:] == [line["accuracy"] for line in scored]
    options = {"split": "validation", "backbone": backbone, "max_tokens": 16}
    for name, source in zip(("tuned", "drawn"), sources, strict=True):
        score = jpt.evaluate(source, task, **options)
        assert [study.curves[seed, name].values[0] for seed in SEEDS] == [score.value] * 2


def test_files_comparisons_and_text(study) -> None:
    record = json.loads((study.folder / "warm_start.json").read_text())
    assert record == study.record
    assert record["definitions"] == DEFINITIONS and record["tolerance"] == 0.01
    assert record["settings"]["length"] == 4 and record["settings"]["eval_every"] == 2
    assert list(record["sources"]) == ["tuned", "drawn"] and record["sources"]["tuned"]["steps"]
    assert [(run["seed"], run["run"]) for run in record["runs"]] == list(study.runs)
    with (study.folder / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["run", "seed", "step", "value"] and len(rows) == 6 * 4
    for row in rows:
        curve = study.curves[int(row["seed"]), row["run"]]
        assert float(row["value"]) == curve.values[curve.steps == int(row["step"])]
    names = {path.name for path in study.folder.iterdir()}
    assert names == {"seed-0", "seed-4", "warm_start.json", "curves.csv"}
    for name, found in study.record["comparisons"].items():
        pairs = [(study.curves[seed, "vanilla"], study.curves[seed, name]) for seed in SEEDS]
        compared = [compare_curves(*pair) for pair in pairs]
        convergence = found["convergence_speed_up"]["values"]
        assert convergence == pytest.approx([one.convergence for one in compared])
        assert found["comparable_speed_up"]["values"] == [one.comparable for one in compared]
        finals = {key: run.record["test"]["accuracy"] for key, run in study.runs.items()}
        gains = [finals[seed, name] - finals[seed, "vanilla"] for seed in SEEDS]
        assert found["gain"]["values"] == gains
        assert found["gain"]["mean"] == pytest.approx(sum(gains) / 2)
    lines = study.describe().splitlines()
    assert max(map(len, lines)) <= 80
    long = {**study.record, "notes": ["name " * 30], "backbone": "folder/" * 30}
    assert max(map(len, describe_record(long).splitlines())) <= 80
    assert any(line.startswith("vanilla ") for line in lines)
    assert sum(line.startswith("drawn ") for line in lines) == 2  # scores, then speed-ups


def test_a_repeated_call_trains_nothing(study, task, backbone, sources, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("trained again")

    before = {p: p.stat().st_mtime_ns for p in study.folder.glob("seed-*/**/*")}
    monkeypatch.setattr("jpt.tuning.tune.fit", fail)
    again = jpt.warm_start(task, sources, study.folder, backbone=backbone, **STUDY)
    assert again.record == study.record
    assert {p: p.stat().st_mtime_ns for p in study.folder.glob("seed-*/**/*")} == before


def test_a_stopped_study_is_resumed(study, task, backbone, sources, tmp_path, monkeypatch) -> None:
    real, reports = trainer._report, []

    def fail(*arguments):
        reports.append(1)
        if len(reports) == 30:
            raise RuntimeError("power")
        return real(*arguments)

    monkeypatch.setattr(trainer, "_report", fail)
    with pytest.raises(RuntimeError, match="power"):
        jpt.warm_start(task, sources, tmp_path / "out", backbone=backbone, **STUDY)
    assert list((tmp_path / "out").rglob("result.json"))
    assert not (tmp_path / "out" / "warm_start.json").exists()
    monkeypatch.setattr(trainer, "_report", real)
    again = jpt.warm_start(task, sources, tmp_path / "out", backbone=backbone, **STUDY)
    assert again.record == study.record


def test_prompts_by_name_in_memory_give_the_same(study, task, backbone, sources) -> None:
    named = {"tuned": jpt.load_prompt(sources[0]), "drawn": sources[1]}
    found = jpt.warm_start(task, named, backbone=backbone, **STUDY)
    assert found.folder is None and found.record == study.record


def test_copied_moments_change_the_run(study, task, backbone, sources) -> None:
    found = jpt.warm_start(task, sources[:1], backbone=backbone, copy_moments=True, **STUDY)
    assert found.record["copy_moments"] and found.record["sources"]["tuned"]["moments"]
    assert found.record["sources"]["tuned"]["steps"] == 8
    for seed in SEEDS:
        bare, warm = study.runs[seed, "tuned"], found.runs[seed, "tuned"]
        assert not np.array_equal(bare.last.values, warm.last.values)
        vanilla = found.runs[seed, "vanilla"].last.values
        np.testing.assert_array_equal(vanilla, study.runs[seed, "vanilla"].last.values)


@pytest.mark.slow
def test_a_curve_has_twenty_scorings_by_default(task, backbone, sources) -> None:
    for steps, every in ((400, 20), (7, 1)):
        prepared = module._prepare(task, sources, backbone, False, None, {"steps": steps})
        assert prepared.options.eval_every == every and prepared.options.length == 4


@pytest.fixture
def assert_refused(task, backbone, sources, tmp_path, monkeypatch):

    def call(message: str, **changes: object) -> None:
        def fail(*_: object, **__: object) -> None:
            raise AssertionError("a run was started")

        monkeypatch.setattr(module, "tune", fail)
        options = {"sources": sources, "backbone": backbone, **STUDY, **changes}
        with pytest.raises(jpt.InputError, match=message) as refused:
            jpt.warm_start(options.pop("task", task), out=tmp_path / "out", **options)
        assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()

    return call


def test_invalid_sources(assert_refused, backbone, sources, tmp_path: Path) -> None:
    good, longer, narrow = (
        make_prompt(backbone, np.ones(shape, np.float32)) for shape in ((4, 32), (5, 32), (4, 31))
    )
    elsewhere = dataclasses.replace(good, card=jpt.PromptCard("builtin/bert-small", "x"))
    decoder = make_prompt(backbone, good.values, layout="decoder")
    assert_refused("sources: expected at least one", sources=[])
    assert_refused("source vanilla: the name of the run", sources={"vanilla": good})
    assert_refused("source tuned: given twice", sources=[sources[0], sources[0]])
    assert_refused("source drawn: given twice", sources=[sources[1], tmp_path / "drawn"])
    assert_refused("expected a name that can be a folder", sources={"../up": good})
    assert_refused("no.safetensors", sources=[tmp_path / "no.safetensors"])
    assert_refused("width 32 for .* got width 31", sources={"a": narrow})
    assert_refused("length 4, that of prompt a, got 5", sources={"a": good, "b": longer})
    assert_refused("length: expected 4, as source tuned has, got 7", length=7)
    assert_refused("source a: .* got layout decoder", sources={"a": decoder})
    assert_refused("source a: .* got width 32", sources={"a": elsewhere}, backbone=None)
    assert_refused(
        "expected backbone .* got builtin/bert-small", sources={"b": elsewhere, "a": good}
    )
    assert_refused("source a: copy_moments needs", sources={"a": good}, copy_moments=True)
    assert_refused("drawn.safetensors is not a run folder", copy_moments=True)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("eval_every: expected at most 6, .* got 9", {"eval_every": 9}),
        ("seeds: expected one or more distinct", {"seeds": []}),
        ("seeds: expected one or more distinct", {"seeds": [1, 1]}),
        ("seed is -1", {"seeds": [-1]}),
        ("tolerance: .* got 1", {"tolerance": 1}),
        ("tolerance: .* got nan", {"tolerance": float("nan")}),
        ("init: set by warm_start", {"init": "vocab"}),
        ("seed: set by warm_start", {"seed": 3}),
        ("unknown task 'builtin/imbd'", {"task": "builtin/imbd"}),
    ],
)
def test_invalid_options(assert_refused, message: str, change: dict) -> None:
    assert_refused(message, **change)


def test_other_and_broken_studies_are_refused(study, task, backbone, sources, tmp_path) -> None:
    with pytest.raises(jpt.InputError, match="holds another run: steps was 6 and is now 8"):
        jpt.warm_start(task, sources, study.folder, backbone=backbone, **{**STUDY, "steps": 8})
    broken = write_task(tmp_path / "mood", test='{"text": "fine", "label": "no such"}\n')
    with pytest.raises(jpt.InputError, match="test.jsonl"):
        jpt.warm_start(broken, sources, tmp_path / "out", backbone=backbone, **STUDY)
    assert not (tmp_path / "out").exists()


STEPS = [0, 10, 20, 30, 40]
VANILLA = [0.50, 0.55, 0.70, 0.79, 0.80]


def curve(values: list[float]) -> ScoreCurve:
    return ScoreCurve(np.array(STEPS), np.array(values))


@pytest.mark.parametrize(
    ("values", "tolerance", "step"),
    [
        (VANILLA, 0.01, 30),  # 0.79 is 0.80 - 0.01, but not exactly in binary
        (VANILLA, 0.0, 40),
        (VANILLA, 0.1, 20),
        ([0.5, 0.9, 0.9, 0.3, 0.9], 0.01, 10),  # a tie: the first counts, later dips do not
        ([0.9, 0.5, 0.5, 0.5, 0.905], 0.01, 0),
        ([0.5, 0.5, 0.5, 0.5, 0.5], 0.01, 0),
        ([-0.1, -0.05, 0.0, 0.2, 0.1], 0.01, 30),  # Matthews correlation may be below 0
    ],
)
def test_convergence_step(values, tolerance, step) -> None:
    assert curve(values).convergence_step(tolerance) == step


def test_the_best_step_is_the_first_of_a_tie() -> None:
    found = curve([0.5, 0.8, 0.6, 0.8, 0.7])
    assert (found.best, found.best_step) == (0.8, 10)


FLAT = [0.5] * 5


@pytest.mark.parametrize(
    ("vanilla", "warm", "convergence", "comparable", "at_start"),
    [
        (VANILLA, VANILLA, 1.0, 1.0, (False, False)),
        (VANILLA, [0.60, 0.795, 0.80, 0.80, 0.80], 3.0, 2.0, (False, False)),  # 30/10, 40/20
        (VANILLA, [0.60, 0.90, 0.80, 0.80, 0.80], 3.0, 4.0, (False, False)),
        # Never reached: 0.79 is not 0.80.
        (VANILLA, [0.60, 0.60, 0.61, 0.61, 0.79], 30 / 40, None, (False, False)),
        (VANILLA, [0.50, 0.50, 0.50, 0.50, 0.80], 30 / 40, 1.0, (False, False)),
        # Step 0 counts as the first scored step.
        (VANILLA, [0.85, 0.85, 0.84, 0.85, 0.855], 30 / 10, 40 / 10, (True, True)),
        (VANILLA, FLAT, 3.0, None, (True, False)),
        (FLAT, [0.4, 0.4, 0.4, 0.6, 0.6], 10 / 30, 10 / 30, (False, False)),
        (FLAT, FLAT, 1.0, 1.0, (True, True)),
    ],
)
def test_speed_ups(vanilla, warm, convergence, comparable, at_start) -> None:
    found = compare_curves(curve(vanilla), curve(warm))
    assert found.convergence == pytest.approx(convergence, abs=1e-12)
    assert found.comparable == comparable
    assert (found.converged_at_start, found.reached_at_start) == at_start


def test_means_and_intervals() -> None:
    found = geometric_mean([0.5, 2.0])
    # 12.7062 is the two-sided 95 % point of t with one degree of freedom; the standard error of
    # the logarithms -ln 2 and ln 2 is ln 2.
    ends = [found[name] for name in ("mean", "high", "low")]
    assert ends == pytest.approx([1.0, 2**12.7062, 2**-12.7062], rel=1e-4)
    assert found["values"] == [0.5, 2.0] and found["seeds_without"] == 0
    same = geometric_mean([3.0, 3.0, 3.0])
    assert [same["low"], same["high"]] == pytest.approx([3.0, 3.0])
    found = geometric_mean([4.0, None, 9.0])
    assert found["mean"] == pytest.approx(6.0) and found["seeds_without"] == 1
    assert found["values"] == [4.0, None, 9.0]
    nothing = geometric_mean([None, None])
    assert (nothing["mean"], nothing["low"], nothing["high"]) == (None, None, None)
    assert nothing["seeds_without"] == 2
    found = arithmetic_mean([0.01, 0.02, 0.06])
    error = math.sqrt(((0.02**2) + (0.01**2) + (0.03**2)) / 2 / 3)
    assert found["mean"] == pytest.approx(0.03)
    assert found["high"] - found["mean"] == pytest.approx(4.302653 * error, rel=1e-6)
    assert found["mean"] - found["low"] == pytest.approx(4.302653 * error, rel=1e-6)
    one = arithmetic_mean([0.5])
    assert (one["mean"], one["low"], one["high"]) == (0.5, None, None)
    same = geometric_mean([3.0, 3.0, 3.0])
    assert same["low"] == pytest.approx(3.0) and same["high"] == pytest.approx(3.0)


def notes_of(vanilla: list[list[float]], warm: list[list[float]], **card: object) -> list[str]:
    curves = {
        (seed, name): ScoreCurve(np.array([0, 10, 20]), np.array(values))
        for name, runs in (("vanilla", vanilla), ("one", warm))
        for seed, values in enumerate(runs)
    }
    compared = {"one": [compare_curves(curves[s, "vanilla"], curves[s, "one"]) for s in (0, 1)]}
    prompt = jpt.Prompt(np.ones((2, 4), np.float32), jpt.PromptCard("bert", "sst2", **card))
    return _notes({"one": WarmStart("one", prompt)}, compared, curves, [0, 1], 0.01)


def test_notes_count_seeds() -> None:
    assert notes_of([[0.5, 0.6, 0.7]] * 2, [[0.5, 0.6, 0.7]] * 2) == []
    found = notes_of([[0.5, 0.6, 0.7], [0.5, 0.6, 0.7]], [[0.5, 0.6, 0.65], [0.71, 0.71, 0.9]])
    assert found == [
        "one did not reach the vanilla run's best in 1 of 2 seeds",
        "one reached the vanilla run's best at step 0 in 1 of 2 seeds",
        "one converged to a lower score than the vanilla run in 1 of 2 seeds",
        "one converged to a higher score than the vanilla run in 1 of 2 seeds",
    ]
    found = notes_of([[0.5, 0.5, 0.5]] * 2, [[0.505, 0.5, 0.5]] * 2, first_position=1)
    assert found == [
        "vanilla never improved on step 0 in 2 of 2 seeds",
        "one was tuned with text positions from 1, here from 0",
        "one reached the vanilla run's best at step 0 in 2 of 2 seeds",
        "one converged at step 0 in 2 of 2 seeds",
    ]


def test_the_text_marks_missing_seeds_and_unreached_results() -> None:
    comparison = {
        "convergence_speed_up": geometric_mean([2.0, 2.0, 2.0]),
        "comparable_speed_up": geometric_mean([4.0, None, 4.0]),
        "gain": arithmetic_mean([0.02, 0.02, 0.02]),
    }
    never = {**comparison, "comparable_speed_up": geometric_mean([None] * 3)}
    wild = {**comparison, "comparable_speed_up": geometric_mean([0.1, None, 20.0])}
    run = {"at_start": 0.5, "best": 0.8125, "final": 0.75}
    names = ("vanilla", "some", "never", "wild")
    record = {"task": "mood", "backbone": "bert", "metric": "accuracy", "steps": 20}
    record |= {"seeds": [0, 1, 2], "final_split": "test", "confidence": 0.95, "notes": []}
    record |= {
        "sources": dict.fromkeys(names[1:]),
        "runs": [{"run": name, **run} for name in names],
        "comparisons": {"some": comparison, "never": never, "wild": wild},
    }
    lines = [line.split() for line in describe_record(record).splitlines()]
    assert ["vanilla", "0.500", "0.812", "0.750"] in lines
    assert ["some", "0.500", "0.812", "0.750", "+2.0", "[+2.0,", "+2.0]"] in lines
    speed = ["2.00", "[2.00,", "2.00]"]
    assert ["some", *speed, "4.00", "[4.00,", "4.00]", "2/3"] in lines
    assert ["never", *speed, "not", "reached"] in lines
    assert ["wild", *speed, "1.41", "[0.00,", ">999]", "2/3"] in lines
