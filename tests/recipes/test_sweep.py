"""A sweep gives the runs that `jpt.tune` gives, goes on where it stopped, and adds them up."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jpt
from jpt.cli.app import main
from jpt.errors import InputError
from jpt.recipes import sweep as sweep_module
from jpt.recipes.sweep import sweep
from jpt.tuning.bound_task import BoundTask
from tests.analysis.page_checks import assert_page_is_sound
from tests.tiny_sweep import read_prompts, write_fixed, write_task

pytestmark = pytest.mark.usefixtures("plain_programs")


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("given")
    fixed = write_fixed(folder, eval_every=2)
    tasks = [fixed.pop("task"), str(write_task(folder / "second"))]
    varied = {"task": tasks, "seed": [0, 1], "learning_rate": [0.01, 0.1]}
    return {"fixed": fixed, "grid": varied, "run": {"places": 3}}


@pytest.fixture(scope="module")
def swept(grid: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("swept") / "out"
    result = sweep(grid, out)
    assert result.record["states"] == {"done": 8}
    return out


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_run_is_that_of_tune(grid: dict[str, Any], swept: Path, tmp_path: Path) -> None:
    """Its folder too: `jpt.tune` with the same options finds it finished."""
    task = grid["grid"]["task"][1]
    options = {**grid["fixed"], "seed": 1, "learning_rate": 0.1}
    backbone = options.pop("backbone")
    alone = jpt.tune(backbone, task, **options)
    folder = swept / "runs" / "second+learning_rate=0.1" / "seed-1"
    found = jpt.tune(backbone, task, folder, **options)
    np.testing.assert_allclose(found.last.values, alone.last.values, rtol=0, atol=1e-5)
    assert found.record["test"]["accuracy"] == alone.record["test"]["accuracy"]


def test_the_tables_are_those_of_the_results(swept: Path) -> None:
    results = {
        str(path.parent.relative_to(swept / "runs")): json.loads(path.read_text())
        for path in swept.rglob("result.json")
    }
    rows = table(swept / "runs.csv")
    assert {row["run"] for row in rows} == set(results)
    for row in rows:
        assert float(row["test"]) == results[row["run"]]["test"]["accuracy"]
        assert row["learning_rate"] in row["run"]
    settings = table(swept / "settings.csv")
    for setting in settings:
        values = [float(row["test"]) for row in rows if row["setting"] == setting["setting"]]
        assert float(setting["test"]) == pytest.approx(statistics.mean(values))
        assert float(setting["test_std"]) == pytest.approx(statistics.stdev(values))
    for task in ("first", "second"):
        own = [row for row in settings if row["task"] == task]
        (best,) = [row for row in own if row["best"] == "True"]
        assert float(best["validation"]) == max(float(row["validation"]) for row in own)


def test_nothing_else_is_left(swept: Path) -> None:
    assert sorted(path.name for path in swept.iterdir()) == [
        "runs",
        "runs.csv",
        "settings.csv",
        "sweep.json",
    ]


def test_a_stopped_sweep_ends_the_same(
    grid: dict[str, Any], swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = sweep_module.fit_runs, []

    def fail(*arguments: Any) -> None:
        if calls:
            raise RuntimeError("power")
        calls.append(arguments)
        real(*arguments)

    with monkeypatch.context() as broken:
        broken.setattr(sweep_module, "run_bank", fail)
        with pytest.raises(RuntimeError, match="power"):
            sweep(grid, tmp_path)
    assert 0 < len(list(tmp_path.rglob("result.json"))) < 8
    assert sweep(grid, tmp_path).record["states"] == {"done": 8}
    assert read_prompts(tmp_path) == read_prompts(swept)


def test_what_runs_share_is_read_once(
    grid: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, str]] = []
    loaded: list[Any] = []
    split, load = BoundTask.split, sweep_module.resolve_backbone

    def counted(self: BoundTask, name: str) -> Any:
        read.append((self.task.short_name, name))
        return split(self, name)

    monkeypatch.setattr(BoundTask, "split", counted)
    monkeypatch.setattr(sweep_module, "as_backbone", lambda *g: loaded.append(g) or load(*g))
    sweep(grid, tmp_path / "out")
    assert len(loaded) == 1
    assert sorted(read) == sorted(
        (task, name) for task in ("first", "second") for name in ("train", "validation", "test")
    )


def test_jobs_of_an_array_share_it_out(grid: dict[str, Any], swept: Path, tmp_path: Path) -> None:
    first = sweep(grid, tmp_path, shard="1/2")
    assert first.record["states"]["waiting"] > 0 < first.record["states"]["done"]
    assert "waiting:" in first.describe()
    second = sweep(grid, tmp_path, shard="2/2")
    assert second.record["states"] == {"done": 8}
    assert read_prompts(tmp_path) == read_prompts(swept)


def test_a_larger_grid_adds_to_it(
    grid: dict[str, Any], swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smaller = {**grid, "grid": {**grid["grid"], "seed": [1]}}
    assert sweep(smaller, tmp_path).record["states"] == {"done": 4}
    before = read_prompts(tmp_path)
    assert sweep(grid, tmp_path).record["states"] == {"done": 8}
    assert before.items() <= read_prompts(tmp_path).items()


def test_other_options_are_another_run(grid: dict[str, Any], swept: Path) -> None:
    other = {**grid, "fixed": {**grid["fixed"], "steps": 8}}
    with pytest.raises(InputError, match=r"steps was 6 and is now 8"):
        sweep(other, swept)


def test_a_run_that_cannot_work_stops_it_before_anything_is_written(
    grid: dict[str, Any], tmp_path: Path
) -> None:
    wrong = {**grid, "grid": {**grid["grid"], "task": [*grid["grid"]["task"], "sst3"]}}
    with pytest.raises(InputError, match=r"run sst3\+learning_rate=0.01/seed-0: .*sst2"):
        sweep(wrong, tmp_path / "out")
    assert not list(tmp_path.rglob("*.safetensors"))
    with pytest.raises(InputError, match=r"shard is '3/2'"):
        sweep(grid, tmp_path, shard="3/2")
    with pytest.raises(InputError, match=r"need .* GB .* give fewer places"):
        sweep({**grid, "run": {"memory_gb": 1e-5}}, tmp_path / "small")


def test_runs_lie_on_a_mesh(grid: dict[str, Any], swept: Path, tmp_path: Path) -> None:
    smaller = {**grid, "grid": {**grid["grid"], "seed": [1]}}
    assert sweep(smaller, tmp_path, mesh="prompt:2,data:2").record["states"] == {"done": 4}
    for row in table(tmp_path / "runs.csv"):
        mine, other = (jpt.load_prompt(at / "runs" / row["run"]) for at in (tmp_path, swept))
        assert mine.card.score == other.card.score
    assert sweep(smaller, tmp_path).record["states"] == {"done": 4}, "another mesh is no other run"
    with pytest.raises(InputError, match=r"mesh is data:1, and the file has data:2"):
        sweep({**grid, "fixed": {**grid["fixed"], "mesh": "data:2"}}, tmp_path, mesh="data:1")


def test_memory_bounds_the_runs_at_once(grid: dict[str, Any]) -> None:
    from jpt.recipes.sweep import RunLoader, choose_slots, parse_sweep, run_bytes

    parts = RunLoader().prepare(parse_sweep(grid).runs[0])
    weights, each = run_bytes(parts)
    assert choose_slots(parts, 8, None, (weights + 3.5 * each) / 1e9) == 3
    assert choose_slots(parts, 2, None, (weights + 3.5 * each) / 1e9) == 2
    assert choose_slots(parts, 8, None, None) == 1  # a CPU


def test_its_page_says_what_is_best(swept: Path, tmp_path: Path) -> None:
    for name in ("runs.csv", "settings.csv"):
        (tmp_path / name).write_bytes((swept / name).read_bytes())
    page = jpt.write_report(tmp_path).read_text()
    settings = table(swept / "settings.csv")
    for row in settings:
        assert row["setting"] in page
    (best,) = [row for row in settings if row["task"] == "first" and row["best"] == "True"]
    assert f"{best['setting']} is best" in page
    assert_page_is_sound(page, tmp_path)
    (tmp_path / "settings.csv").write_text(
        (swept / "settings.csv").read_text().replace(best["validation"], "high", 1)
    )
    with pytest.raises(InputError, match=r"settings.csv, line \d: validation is 'high'"):
        jpt.write_report(tmp_path)


def test_the_command(
    swept: Path,
    tmp_path: Path,
    grid: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = ["[fixed]"] + [f"{key} = {json.dumps(value)}" for key, value in grid["fixed"].items()]
    lines += ["[grid]"] + [f"{key} = {json.dumps(value)}" for key, value in grid["grid"].items()]
    (tmp_path / "grid.toml").write_text("\n".join([*lines, "[run]", "places = 3"]))
    command = ["jpt", "sweep", str(tmp_path / "grid.toml"), "--out", str(swept), "--json"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["states"] == {"done": 8}
    assert "* first+learning_rate=" in told.err
