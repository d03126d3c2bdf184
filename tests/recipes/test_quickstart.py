"""The quickstart study: completeness, resuming, progress and invalid input."""

import contextlib
import io
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jpt
from jpt.recipes import quickstart as recipe
from jpt.recipes.quickstart import TASKS, quickstart
from tests.helpers.running import raises
from tests.helpers.toys import read_rows, write_task


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("tasks")
    toml = (write_task(root / "mood") / "task.toml").read_text()
    write_task(root / "taste", toml=toml.replace("mood", "taste"))
    other = toml.replace("mood", "shape").replace('"sentiment"', '"form"')
    write_task(root / "shape", toml=other.replace('bad = "bad"', 'bad = "false"'))
    return [str(root / name) for name in ("mood", "taste", "shape")]


@pytest.fixture(scope="module")
def finished_and_log(tmp_path_factory: pytest.TempPathFactory, tasks: list[str]):
    folder, log = tmp_path_factory.mktemp("study") / "study", io.StringIO()
    with contextlib.redirect_stderr(log):
        return quickstart(folder, tasks=tasks, steps=2, progress=True), log.getvalue()


@pytest.fixture(scope="module")
def finished(finished_and_log) -> recipe.QuickstartResult:
    return finished_and_log[0]


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "checkpoints" not in path.parts
    }


def test_all_results_are_written_and_agree(finished: recipe.QuickstartResult) -> None:
    folder = finished.folder
    names = {"mood", "taste", "shape"}
    rows = read_rows(folder / "transfer.csv")
    pairs = {(row["target_task"], row["source_prompt"]) for row in rows}
    assert pairs == set(itertools.product(names, [*names, "random", "none"]))
    rows = read_rows(folder / "indicators.csv")
    pairs = {(row["prompt_a"], row["prompt_b"]) for row in rows}
    assert pairs == set(itertools.product(names, names))
    assert {"neuron_overlap", "cosine_concat"} <= set(rows[0])
    correlation = json.loads((folder / "correlation.json").read_text())
    assert {"including_in_task", "excluding_in_task"} <= set(correlation)
    measured = {each for part in correlation.values() if isinstance(part, dict) for each in part}
    assert measured and not {"random", "none"} & {
        name for each in correlation["excluding_in_task"].values() for name in each["per_target"]
    }
    masks = json.loads((folder / "mask.json").read_text())
    assert set(masks["targets"]) == names
    kinds = {"in_task", "random", "common"}
    assert all(set(each["masks"]) == kinds for each in masks["targets"].values())
    choices = json.loads((folder / "choice.json").read_text())
    assert set(choices["targets"]) == names and "neuron_overlap" in choices["rankings"]
    page = finished.report.read_text()
    assert 'id="mask-shares-' in page and 'id="choice-costs-' in page and 'id="prompt-map-' in page
    assert "the model without a prompt" in page
    assert page.lower().startswith("<!doctype html>")
    for line in finished.record["findings"]:
        assert line in finished.describe()
    assert str(finished.report) in finished.describe()


def test_a_finished_study_returns_at_once_unchanged(finished, tasks, monkeypatch):
    before = files_of(finished.folder)
    monkeypatch.setattr(recipe, "load_backbone", None)  # nothing may be loaded
    again = quickstart(finished.folder, tasks=tasks, steps=2)
    assert again.record == finished.record and again.report == finished.report
    assert files_of(finished.folder) == before


SLOW = [pytest.param(n, marks=pytest.mark.slow) for n in ("transfer_matrix", "study_indicators")]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tune", "mask_neurons", "write_report", *SLOW])
def test_a_stopped_study_resumes_and_ends_equal(tmp_path, finished, tasks, monkeypatch, stage):
    calls: list[str] = []
    whole = getattr(recipe, stage)

    def stopped(*args: object, **options: object) -> object:
        calls.append(stage)
        if len(calls) == (2 if stage == "tune" else 1):
            raise jpt.StoppedError("SIGTERM", 75)
        return whole(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(recipe, stage, stopped)
        with pytest.raises(jpt.StoppedError):
            quickstart(tmp_path / "study", tasks=tasks, steps=2)
    assert not (tmp_path / "study" / "result.json").exists()
    quickstart(tmp_path / "study", tasks=tasks, steps=2)
    wanted, found = files_of(finished.folder), files_of(tmp_path / "study")
    assert found.keys() == wanted.keys()
    for name in wanted:
        if name.endswith((".safetensors", ".csv", "correlation.json")):
            assert found[name] == wanted[name], name


def test_progress_has_step_and_time(finished_and_log) -> None:
    _, log = finished_and_log
    steps = re.findall(r"^\[(\d+)/(\d+)\] (.*)$", log, re.MULTILINE)
    assert [(int(step), int(count)) for step, count, _ in steps] == [(n, 8) for n in range(1, 9)]
    assert "mood" in steps[0][2] and "0:00 elapsed" in steps[0][2]


def test_the_remaining_time_is_estimated(monkeypatch, capsys):
    now_s = 0.0
    monkeypatch.setattr(recipe.time, "monotonic", lambda: now_s)
    clock = recipe._Steps([1.0, 1.0, 0.5], shown=True)
    for spent_s in (60, 0.1, 30):  # the second was finished by an earlier call
        with clock.step("work"):
            now_s += spent_s
    assert capsys.readouterr().err.splitlines() == [
        "[1/3] work · 0:00 elapsed",
        "[2/3] work · 1:00 elapsed · about 1:30 left",
        "[3/3] work · 1:00 elapsed · about 0:30 left",
    ]


@pytest.mark.parametrize("change", [{"steps": 3}, {"seed": 1}, {"backbone": "builtin/bert-medium"}])
def test_the_folder_of_another_study(finished, tasks, change) -> None:
    before = files_of(finished.folder)
    with pytest.raises(jpt.InputError, match="holds another run: .* was .* and is now"):
        quickstart(finished.folder, **{"tasks": tasks, "steps": 2, **change})
    assert files_of(finished.folder) == before


def test_wrong_tasks(tmp_path: Path, tasks: list[str]) -> None:
    out = tmp_path / "study"
    raises(quickstart, out, tasks=tasks[:1], match="expected at least 2, got 1")
    raises(quickstart, out, tasks=[tasks[0], tasks[0]], match="two tasks are named mood")
    raises(quickstart, out, tasks=["builtin/imdb", "builtin/imbd"], match="unknown task")
    assert not out.exists()


def test_the_default_study_has_two_tasks_of_each_type() -> None:
    types = [jpt.load_task(name).type for name in TASKS]
    assert len(types) >= 6 and len(set(types)) >= 3
    assert all(types.count(type_) >= 2 for type_ in types)
    assert set(TASKS) <= set(jpt.task_names())


@pytest.mark.long
@pytest.mark.alone
def test_quickstart_learns_every_task_and_keeps_its_limits(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jpt.cli", "quickstart", "--json"]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "http_proxy": "http://127.0.0.1:9"}
    run = subprocess.run(command, cwd=tmp_path, env=offline, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    record = json.loads(run.stdout.splitlines()[-1])
    print(f"quickstart: {record['elapsed_s']} s, {record['peak_memory_mb']} MB")
    assert record["peak_memory_mb"] < 2048
    assert record["elapsed_s"] < 360
    folder = tmp_path / "jpt-quickstart"
    scores = {
        file.parent.name: json.loads(file.read_text())["test"]
        for file in (folder / "prompts").glob("*/result.json")
    }
    assert len(scores) >= 6
    for name, test in scores.items():
        assert test["accuracy"] >= test["majority"] + 0.08, (name, test)
    page = (folder / "report.html").read_text()
    assert all(name in page for name in scores)
    again = subprocess.run(command, cwd=tmp_path, env=offline, capture_output=True, text=True)
    assert json.loads(again.stdout.splitlines()[-1]) == record
    assert "[1/" not in again.stderr  # nothing was done again
