"""Runs of a bank end as if each had run alone, whoever their neighbours are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import jpt
from jpt.config import TuneOptions
from jpt.errors import InputError
from jpt.tuning import multi_run
from jpt.tuning.multi_run import SlotRun, SlotSchedule, fit_runs, pack_runs, read_diverged
from jpt.tuning.run_dir import RunFolder
from jpt.tuning.tune import prepare_run
from tests.toy_task import write_task

COMMON = {"eval_every": 5, "checkpoint_every": 4, "batch_size": 6, "length": 5}
THREE = (
    'name = "degree"\ntype = "sentiment"\nfields = ["text"]\nlabels = ["low", "middle", "high"]\n'
    'template = "{text}"\n[label_words]\nlow = "bad"\nmiddle = "new"\nhigh = "good"\n'
)
RUNS = {
    "mood-0": ("mood", {"steps": 20, "seed": 0, "learning_rate": 0.01}),
    "degree-0": ("degree", {"steps": 20, "seed": 0, "learning_rate": 0.003}),
    "mood-1": ("mood", {"steps": 12, "seed": 1, "learning_rate": 0.003, "init": "vocab"}),
    "degree-2": ("degree", {"steps": 8, "seed": 2, "learning_rate": 0.01}),
}


class Silent:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.steps, self.ends = 0, []

    def turned(self, steps: int, rows_per_s: float) -> None:
        self.steps += steps

    def scored(self, run: str, score: object) -> None:
        assert run in RUNS

    def ended(self, run: str, record: dict[str, object]) -> None:
        self.ends.append(run)

    def say(self, line: str) -> None:
        assert "compile" in line


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tasks")
    words = {"low": "awful", "middle": "plain", "high": "lovely and quite unforgettable " * 3}
    rows = [{"text": f"{words[k]} film {n}", "label": k} for n in range(9) for k in words]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    splits = {"train": text, "validation": text, "test": text}
    return {
        "mood": write_task(folder / "mood"),
        "degree": write_task(folder / "degree", toml=THREE, **splits),
    }


@pytest.fixture(scope="module")
def backbone() -> jpt.Backbone:
    return jpt.load_backbone("builtin/bert-small")


def prepare(
    tasks: dict[str, Path], backbone: jpt.Backbone, out: Path, names: list[str], **more: object
) -> dict[str, SlotRun]:
    runs = {}
    for name in names:
        task, options = RUNS[name]
        settled = TuneOptions(**{**COMMON, **options, **more})
        parts = prepare_run(backbone, tasks[task], None, settled)
        runs[name] = SlotRun(parts, RunFolder(out / name, parts.config()))
    return runs


def plan(names: list[str], places: int) -> SlotSchedule:
    (timeline,) = pack_runs({name: RUNS[name][1]["steps"] for name in names}, places)
    return timeline


@pytest.fixture(scope="module")
def alone(
    tasks: dict[str, Path], backbone: jpt.Backbone, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Every run by itself."""
    out = tmp_path_factory.mktemp("alone")
    for name, (task, options) in RUNS.items():
        jpt.tune(backbone, tasks[task], out / name, **COMMON, **options)
    return out


@pytest.fixture(scope="module")
def together(
    tasks: dict[str, Path], backbone: jpt.Backbone, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same runs in one bank of three places, of which one holds two of them."""
    out = tmp_path_factory.mktemp("together")
    progress = Silent()
    fit_runs(prepare(tasks, backbone, out, list(RUNS)), plan(list(RUNS), 3), out / "b", progress)
    assert progress.steps == sum(options["steps"] for _, options in RUNS.values())
    assert sorted(progress.ends) == sorted(RUNS)
    return out


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_ends_as_it_would_alone(alone: Path, together: Path, name: str) -> None:
    """Tasks of two and three labels, other seeds, rates, starts and numbers of steps."""
    for file in ("prompt.safetensors", "last.safetensors"):
        mine, other = jpt.load_prompt(together / name / file), jpt.load_prompt(alone / name / file)
        assert mine.card == other.card
        np.testing.assert_allclose(mine.values, other.values, atol=1e-5 * abs(other.values).max())
    assert [(line["step"], line["split"]) for line in lines(together / name)] == [
        (line["step"], line["split"]) for line in lines(alone / name)
    ]
    for mine, other in zip(lines(together / name), lines(alone / name), strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-5)
    mine, other = (json.loads((at / name / "result.json").read_text()) for at in (together, alone))
    assert mine["test"]["accuracy"] == other["test"]["accuracy"]
    assert mine["best_step"] == other["best_step"]


@pytest.mark.parametrize("stop_at", [3, 13])
def test_a_stopped_bank_ends_bit_for_bit_the_same(
    tasks: dict[str, Path],
    backbone: jpt.Backbone,
    together: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: int,
) -> None:
    """Power goes off; turn 13 is after one run has ended and another has taken its place."""
    real = multi_run.multi_run_train_step

    def failing(*arguments: object) -> object:
        step, left = real(*arguments), [stop_at]

        def run(*given: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise RuntimeError("power")
            return step(*given)

        return run

    names = list(RUNS)
    with monkeypatch.context() as broken:
        broken.setattr(multi_run, "bank_train_step", failing)
        with pytest.raises(RuntimeError, match="power"):
            runs = prepare(tasks, backbone, tmp_path, names)
            fit_runs(runs, plan(names, 3), tmp_path / "b", Silent())
    fit_runs(prepare(tasks, backbone, tmp_path, names), plan(names, 3), tmp_path / "b", Silent())
    clock = {"elapsed_s", "rows_per_s"}
    for name in names:
        for file in ("prompt.safetensors", "last.safetensors"):
            assert (tmp_path / name / file).read_bytes() == (together / name / file).read_bytes()
        assert [
            {key: value for key, value in line.items() if key not in clock}
            for line in lines(tmp_path / name)
        ] == [
            {key: value for key, value in line.items() if key not in clock}
            for line in lines(together / name)
        ]


def test_a_run_that_diverges_harms_no_other(
    tasks: dict[str, Path], backbone: jpt.Backbone, together: Path, tmp_path: Path
) -> None:
    names = ["mood-0", "degree-0", "mood-1", "degree-2"]
    runs = prepare(tasks, backbone, tmp_path, names)
    runs["degree-0"].parts.initial[0, 0] = np.nan
    fit_runs(runs, plan(names, 3), tmp_path / "b", Silent())
    found = read_diverged(tmp_path / "degree-0")
    assert found is not None and found["step"] == 1 and "nan" in found["diverged"]
    assert not (tmp_path / "degree-0" / "result.json").exists()
    for name in ("mood-0", "mood-1", "degree-2"):
        mine = (tmp_path / name / "prompt.safetensors").read_bytes()
        assert mine == (together / name / "prompt.safetensors").read_bytes()


def test_a_second_process_is_refused(
    tasks: dict[str, Path], backbone: jpt.Backbone, tmp_path: Path
) -> None:
    runs = prepare(tasks, backbone, tmp_path, ["mood-0", "degree-0"])
    with runs["degree-0"].folder.lock(), pytest.raises(InputError, match="another run is at work"):
        fit_runs(runs, plan(list(runs), 2), tmp_path / "b", Silent())


def test_runs_that_share_no_program_are_refused(
    tasks: dict[str, Path], backbone: jpt.Backbone, tmp_path: Path
) -> None:
    runs = prepare(tasks, backbone, tmp_path, ["mood-0"])
    runs |= prepare(tasks, backbone, tmp_path, ["degree-0"], batch_size=4)
    with pytest.raises(InputError, match="differ in what a bank shares"):
        fit_runs(runs, plan(["mood-0", "degree-0"], 2), tmp_path / "b", Silent())
