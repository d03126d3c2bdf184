"""Sweeps: sweep files, groups of runs, tables, adaptive search and cleanup."""

import json
import math
import re
import shutil
import signal
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jpt
from jpt.errors import InputError, StoppedError
from jpt.io.files import read_json, write_json
from jpt.recipes import sweep as sweep_module
from jpt.recipes.sweep import Search, choose_slots, parse_sweep, read_sweep, sweep, tidy_ended
from jpt.tasks.task import Task
from jpt.tuning import bound_task
from jpt.tuning.run_dir import RunFolder
from tests.helpers.running import raises
from tests.helpers.study import assert_page_is_sound
from tests.helpers.toys import read_prompts, read_rows, write_fixed, write_sweep_task

pytestmark = pytest.mark.plain_programs


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("given")
    fixed = write_fixed(folder, eval_every=2)
    tasks = [fixed.pop("task"), str(write_sweep_task(folder / "second"))]
    varied = {"task": tasks, "seed": [0, 1], "learning_rate": [0.01, 0.1]}
    return {"fixed": fixed, "grid": varied, "run": {"slots": 3}}


@pytest.fixture(scope="module")
def swept(grid: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("swept") / "out"
    result = sweep(grid, out)
    assert result.record["states"] == {"done": 8}
    return out


def test_a_run_is_that_of_tune(grid: dict[str, Any], swept: Path) -> None:
    task = grid["grid"]["task"][1]
    options = {**grid["fixed"], "seed": 1, "learning_rate": 0.1}
    backbone = options.pop("backbone")
    alone = jpt.tune(backbone, task, **options)
    folder = swept / "runs" / "second+learning_rate=0.1" / "seed-1"
    found = jpt.tune(backbone, task, folder, **options)  # finds the run finished
    np.testing.assert_allclose(found.last.values, alone.last.values, rtol=0, atol=1e-5)
    assert found.record["test"]["accuracy"] == alone.record["test"]["accuracy"]


def test_tables_agree_with_the_results(swept: Path) -> None:
    results = {
        str(path.parent.relative_to(swept / "runs")): json.loads(path.read_text())
        for path in swept.rglob("result.json")
    }
    rows = read_rows(swept / "runs.csv")
    assert {row["run"] for row in rows} == set(results)
    for row in rows:
        assert float(row["test"]) == results[row["run"]]["test"]["accuracy"]
        assert row["learning_rate"] in row["run"]
    settings = read_rows(swept / "settings.csv")
    for setting in settings:
        values = [float(row["test"]) for row in rows if row["setting"] == setting["setting"]]
        assert float(setting["test"]) == pytest.approx(statistics.mean(values))
        assert float(setting["test_std"]) == pytest.approx(statistics.stdev(values))
    for task in ("first", "second"):
        in_task = [row for row in settings if row["task"] == task]
        (best,) = [row for row in in_task if row["best"] == "True"]
        assert float(best["validation"]) == max(float(row["validation"]) for row in in_task)
    names = sorted(path.name for path in swept.iterdir())
    assert names == ["runs", "runs.csv", "settings.csv", "sweep.json"]


def test_a_stopped_sweep_ends_the_same(grid, swept, tmp_path, monkeypatch):
    real, calls = sweep_module.fit_runs, []

    def fail(*arguments: Any) -> None:
        if calls:
            raise RuntimeError("power")
        calls.append(arguments)
        real(*arguments)

    with monkeypatch.context() as broken:
        broken.setattr(sweep_module, "fit_runs", fail)
        with pytest.raises(RuntimeError, match="power"):
            sweep(grid, tmp_path)
    assert 0 < len(list(tmp_path.rglob("result.json"))) < 8
    assert sweep(grid, tmp_path).record["states"] == {"done": 8}
    assert read_prompts(tmp_path) == read_prompts(swept)


def test_what_runs_share_is_read_once(grid, tmp_path, monkeypatch):
    read: list[tuple[str, str]] = []
    loaded: list[Any] = []
    rows, load = bound_task.read_rows, sweep_module.resolve_backbone

    def counted(task: Task, name: str) -> Any:
        read.append((task.short_name, name))
        return rows(task, name)

    monkeypatch.setattr(bound_task, "read_rows", counted)
    monkeypatch.setattr(sweep_module, "resolve_backbone", lambda *g: loaded.append(g) or load(*g))
    sweep(grid, tmp_path / "out")
    assert len(loaded) == 1
    assert sorted(read) == sorted(
        (task, name) for task in ("first", "second") for name in ("train", "validation", "test")
    )


def test_jobs_of_an_array_share_the_work(grid: dict[str, Any], swept: Path, tmp_path: Path) -> None:
    first = sweep(grid, tmp_path, shard="1/2")
    assert first.record["states"]["waiting"] > 0 < first.record["states"]["done"]
    assert "waiting:" in first.describe()
    second = sweep(grid, tmp_path, shard="2/2")
    assert second.record["states"] == {"done": 8}
    assert read_prompts(tmp_path) == read_prompts(swept)


@pytest.mark.slow
def test_a_larger_grid_adds_runs(grid: dict[str, Any], tmp_path: Path) -> None:
    smaller = {**grid, "grid": {**grid["grid"], "seed": [1]}}
    assert sweep(smaller, tmp_path).record["states"] == {"done": 4}
    before = read_prompts(tmp_path)
    assert sweep(grid, tmp_path).record["states"] == {"done": 8}
    assert before.items() <= read_prompts(tmp_path).items()


def test_invalid_and_other_runs_are_refused(grid, tmp_path, swept: Path) -> None:
    wrong = {**grid, "grid": {**grid["grid"], "task": [*grid["grid"]["task"], "sst3"]}}
    raises(sweep, wrong, tmp_path / "out", match=r"run sst3\+learning_rate=0.01/seed-0: .*sst2")
    assert not list(tmp_path.rglob("*.safetensors"))
    raises(sweep, grid, tmp_path, shard="3/2", match=r"shard is '3/2'")
    with pytest.raises(InputError, match=r"need .* GB .* use fewer slots"):
        sweep({**grid, "run": {"memory_gb": 1e-5}}, tmp_path / "small")
    other = {**grid, "fixed": {**grid["fixed"], "steps": 8}}
    raises(sweep, other, swept, match=r"steps was 6 and is now 8")


@pytest.mark.slow
def test_runs_on_a_mesh(grid: dict[str, Any], swept: Path, tmp_path: Path) -> None:
    smaller = {**grid, "grid": {**grid["grid"], "seed": [1]}}
    assert sweep(smaller, tmp_path, mesh="prompt:2,data:2").record["states"] == {"done": 4}
    for row in read_rows(tmp_path / "runs.csv"):
        mine, other = (jpt.load_prompt(at / "runs" / row["run"]) for at in (tmp_path, swept))
        assert mine.card.score == other.card.score
    assert sweep(smaller, tmp_path).record["states"] == {"done": 4}, "another mesh is no other run"
    with pytest.raises(InputError, match=r"mesh is data:1, but the sweep file has data:2"):
        sweep({**grid, "fixed": {**grid["fixed"], "mesh": "data:2"}}, tmp_path, mesh="data:1")


def test_memory_bounds_the_runs_at_once(grid: dict[str, Any]) -> None:
    parts = sweep_module.RunLoader().prepare(parse_sweep(grid).runs[0])
    weights, each = sweep_module.run_bytes(parts)
    assert choose_slots(parts, 8, None, (weights + 3.5 * each) / 1e9) == 3
    assert choose_slots(parts, 2, None, (weights + 3.5 * each) / 1e9) == 2
    assert choose_slots(parts, 8, None, None) == 1  # a CPU


def test_the_report_names_the_best_setting(swept: Path, tmp_path: Path) -> None:
    for name in ("runs.csv", "settings.csv"):
        (tmp_path / name).write_bytes((swept / name).read_bytes())
    page = jpt.write_report(tmp_path).read_text()
    settings = read_rows(swept / "settings.csv")
    for row in settings:
        assert row["setting"] in page
    (best,) = [row for row in settings if row["task"] == "first" and row["best"] == "True"]
    assert f"{best['setting']}, the best of" in page
    assert_page_is_sound(page, tmp_path)
    (tmp_path / "settings.csv").write_text(
        (swept / "settings.csv").read_text().replace(best["validation"], "high", 1)
    )
    raises(jpt.write_report, tmp_path, match=r"settings.csv, line \d: validation is 'high'")


def test_the_command(swept: Path, tmp_path: Path, grid: dict[str, Any], run) -> None:
    lines = ["[fixed]"] + [f"{key} = {json.dumps(value)}" for key, value in grid["fixed"].items()]
    lines += ["[grid]"] + [f"{key} = {json.dumps(value)}" for key, value in grid["grid"].items()]
    (tmp_path / "grid.toml").write_text("\n".join([*lines, "[run]", "slots = 3"]))
    code, out, err = run("sweep", tmp_path / "grid.toml", "--out", swept, "--json")
    assert code == 0 and json.loads(out)["states"] == {"done": 8}
    assert "* first+learning_rate=" in err


FIXED = {"backbone": "builtin/bert-small", "task": "builtin/imdb"}
FROM_0 = {"from": 0, "to": 1, "count": 2}
UNEQUAL = [{"length": [1, 2], "steps": [1]}]


def test_grid_zip_and_names() -> None:
    sweep = parse_sweep(
        {
            "fixed": {"backbone": "builtin/bert-small", "steps": 7},
            "grid": {"task": ["builtin/imdb", "data/sst2/"], "seed": [3, 4]},
            "zip": [{"length": [5, 10], "batch_size": [8, 4]}],
        }
    )
    assert len(sweep.runs) == 8
    assert {run.name for run in sweep.runs} >= {
        "imdb+length=5+batch_size=8/seed-3",
        "sst2+length=10+batch_size=4/seed-4",
    }
    assert {(run.options.length, run.options.batch_size) for run in sweep.runs} == {(5, 8), (10, 4)}
    assert {run.options.steps for run in sweep.runs} == {7}
    assert {run.setting for run in sweep.runs if run.values["seed"] == 3} == {
        run.setting for run in sweep.runs if run.values["seed"] == 4
    }
    grid = {"task": ["builtin/imdb", "imdb"]}
    sweep = parse_sweep({"fixed": {"backbone": "builtin/bert-small"}, "grid": grid})
    assert [run.name for run in sweep.runs] == ["builtin_imdb", "imdb"]


def test_ranges_are_geometric_or_linear() -> None:
    for name, given, expected in (
        ("learning_rate", {"from": 1e-4, "to": 1e-1, "count": 4}, [1e-4, 1e-3, 1e-2, 1e-1]),
        ("learning_rate", {"from": 1, "to": 3, "count": 3, "scale": "linear"}, [1.0, 2.0, 3.0]),
        ("steps", {"from": 10, "to": 1000, "count": 3}, [10, 100, 1000]),
    ):
        runs = parse_sweep({"fixed": FIXED, "grid": {name: given}}).runs
        found = [getattr(run.options, name) for run in runs]
        assert found == pytest.approx(expected, rel=1e-6) and type(found[0]) is type(expected[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"fixed": {"backbone": "b"}}, "the sweep has no task"),
        ({"fixed": {"task": "imdb"}}, "the sweep has no backbone"),
        ({"fixed": FIXED, "gird": {}}, "unknown table 'gird'; did you mean grid"),
        ({"fixed": FIXED, "grid": {"learningrate": [1.0]}}, "did you mean learning_rate"),
        ({"fixed": FIXED, "grid": {"seed": 3}}, "seed is 3; give a list"),
        ({"fixed": FIXED, "grid": {"seed": []}}, "give a list of values"),
        ({"fixed": FIXED, "grid": {"seed": [1, 1]}}, "has duplicate values"),
        ({"fixed": FIXED, "grid": {"task": ["a"]}}, "task is set in two tables"),
        ({"fixed": FIXED, "grid": {"steps": {"from": 1, "to": 9}}}, "steps has no count"),
        ({"fixed": FIXED, "grid": {"steps": {"from": 9, "to": 1, "count": 2}}}, "the range of"),
        ({"fixed": FIXED, "grid": {"learning_rate": FROM_0}}, 'write scale = "linear"'),
        ({"fixed": FIXED, "zip": UNEQUAL}, "differ in length: length 2, steps 1"),
        ({"fixed": {**FIXED, "steps": 0}}, "steps is 0; give a whole number"),
        ({"fixed": {**FIXED, "dtype": "float8"}}, "dtype is 'float8'"),
        ({"fixed": FIXED, "run": {"slots": 0}}, "slots is 0"),
        ({"fixed": FIXED, "run": {"places": 2}}, "places, which is now called slots"),
        ({"fixed": FIXED, "run": {"memory_gb": -1}}, "memory_gb is -1"),
        ({"fixed": FIXED, "run": {"slot": 2}}, "did you mean slots"),
    ],
)
def test_a_wrong_file_is_refused(content: dict[str, Any], message: str) -> None:
    raises(parse_sweep, content, match=re.escape(message))


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text("[grid\n")
    raises(read_sweep, path, match="grid.toml: not valid TOML")
    path.write_text('[grid]\nsteps = "many"\n')
    raises(read_sweep, path, match="grid.toml: steps is 'many'")
    raises(read_sweep, tmp_path / "nowhere.toml", match="nowhere.toml")


RATES = {"learning_rate": {"from": 1e-3, "to": 1e-1}}
NOWHERE = {"backbone": "nowhere", "task": "builtin/imdb"}


@pytest.fixture(scope="module")
def search_grid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("optuna")
    fixed = write_fixed(tmp_path_factory.mktemp("given"))
    return {"fixed": fixed, "grid": {"seed": [0, 1]}, "search": RATES, "run": {"slots": 2}}


@pytest.fixture(scope="module")
def searched(search_grid: dict[str, Any], tmp_path_factory) -> sweep_module.SweepResult:
    return sweep(search_grid, tmp_path_factory.mktemp("searched") / "out", trials=5)


class Workers:
    """Trains here, records the runs, and fails after some groups."""

    def __init__(self, groups: int | None = None) -> None:
        self.left, self.trained = groups, []

    def __call__(self, groups: Sequence[Any], *given: Any) -> None:
        for group in groups:
            if self.left == 0:
                raise ConnectionError("the machine is lost")
            sweep_module.train_here([group], *given)
            self.trained += group.runs
            self.left = None if self.left is None else self.left - 1


def plan_of(trials: int, **search: Any) -> Search:
    pytest.importorskip("optuna")
    return Search(parse_sweep({"fixed": FIXED, "search": search}), trials)


def tell_all(search: Search, value: Any, at_once: int = 1) -> list[dict[str, Any]]:
    """Answer every question of a search by a formula; None is a diverged run."""
    while (part := search.ask(at_once)) is not None:
        found = {run.name: value(run.values) for run in part.runs}
        state = {name: "diverged" if v is None else "done" for name, v in found.items()}
        search.tell([{"run": n, "state": state[n], "validation": v} for n, v in found.items()])
    return search.record()["trials"]


def test_trials_are_runs_of_the_sweep(searched: sweep_module.SweepResult) -> None:
    # The values are those in names, configs and table, to the last bit.
    trials = searched.record["search"]["trials"]
    rows = read_rows(searched.folder / "runs.csv")
    assert [trial["trial"] for trial in trials] == [1, 2, 3, 4, 5] and len(rows) == 10
    for trial in trials:
        rate = trial["values"]["learning_rate"]
        tried = [row for row in rows if row["setting"] == f"first+learning_rate={rate:g}"]
        assert [row["seed"] for row in tried] == ["0", "1"] and 1e-3 <= rate <= 1e-1
        for row in tried:
            config = searched.folder / "runs" / row["run"] / "config.json"
            assert json.loads(config.read_text())["learning_rate"] == rate
            assert float(row["learning_rate"]) == rate
        mean = statistics.fmean(float(row["validation"]) for row in tried)
        assert math.isclose(trial["validation"], mean, rel_tol=1e-12)
    best = searched.record["search"]["best"]
    assert best["validation"] == max(trial["validation"] for trial in trials)
    settings = read_rows(searched.folder / "settings.csv")
    assert best["settings"] == [row["setting"] for row in settings if row["best"] == "True"]
    assert sweep_module.describe_search(searched.record["search"]) in searched.describe()


def test_a_failed_search_resumes_with_the_same_trials(search_grid, searched, tmp_path):
    broken, rest = Workers(3), Workers()
    with pytest.raises(ConnectionError):
        sweep(search_grid, tmp_path / "out", trials=5, workers=broken)
    resumed = sweep(search_grid, tmp_path / "out", trials=5, workers=rest)
    assert resumed.record["search"] == searched.record["search"]
    assert read_prompts(tmp_path / "out") == read_prompts(searched.folder)
    assert len(broken.trained) == 6 and len(rest.trained) == 4
    assert not set(broken.trained) & set(rest.trained)


@pytest.mark.slow
def test_more_trials_continue_fewer(search_grid, searched, tmp_path):
    few, more = Workers(), Workers()
    first = sweep(search_grid, tmp_path / "out", trials=2, workers=few)
    # The number of trials per round stays as it began, whatever the slots.
    other = {**search_grid, "run": {"slots": 1}}
    second = sweep(other, tmp_path / "out", trials=4, workers=more)
    trials, found = searched.record["search"]["trials"], second.record["search"]["trials"]
    assert first.record["search"]["trials"] == trials[:2]
    assert [trial["values"] for trial in found] == [trial["values"] for trial in trials[:4]]
    assert len(few.trained) == len(more.trained) == 4


def test_search_finds_the_best_rate() -> None:
    # Random rates from six decades would be 1.5 decades off in the median.
    def distance(values: Any) -> float:
        return abs(math.log10(values["learning_rate"]) + 2)

    search = plan_of(40, learning_rate={"from": 1e-6, "to": 1.0})
    trials = tell_all(search, lambda values: -(distance(values) ** 2), at_once=2)
    far = [distance(trial["values"]) for trial in trials]
    assert statistics.median(far[10:]) < 0.75
    best = search.record()["best"]
    assert distance(best["values"]) == min(far) < 0.1


def test_diverging_settings_are_avoided() -> None:
    def value(values: Any) -> float | None:
        return None if values["learning_rate"] > 1e-2 else 0.5

    search = plan_of(40, learning_rate={"from": 1e-6, "to": 1e2})
    trials = tell_all(search, value)
    lost = [trial["validation"] is None for trial in trials]
    assert sum(lost[:10]) >= 3  # half of random rates would
    assert sum(lost[10:]) / 30 < sum(lost[:10]) / 10 / 2
    assert search.record()["best"]["validation"] == 0.5


def test_a_diverged_run_has_no_result(search_grid: dict[str, Any], tmp_path: Path) -> None:
    wild = {"learning_rate": {"from": 1e37, "to": 1e38}}
    result = sweep({**search_grid, "search": wild}, tmp_path / "out", trials=1)
    assert result.record["states"] == {"done": 0, "diverged": 2}
    assert result.record["search"]["best"] is None and "all 1 trials diverged" in result.describe()


def test_integers_are_searched_once() -> None:
    # There are only three settings: later trials repeat them, and nothing runs twice.
    search = plan_of(8, length={"from": 4, "to": 6, "scale": "linear"})
    trials = tell_all(search, lambda values: 0.1 * values["length"], at_once=2)
    lengths = [trial["values"]["length"] for trial in trials]
    assert all(type(length) is int for length in lengths) and set(lengths) <= {4, 5, 6}
    names = [f"imdb+length={length}" for length in dict.fromkeys(lengths)]
    assert [run.name for run in search.whole.runs] == names


@pytest.mark.parametrize(
    ("change", "trials", "message"),
    [
        *[({}, None, "--trials 20"), ({"search": {}}, 3, "has no [search]")],
        ({"search": {"dtype": {"from": 1, "to": 2}}}, 3, "expected one of"),
        ({"search": {"seed": {"from": 1, "to": 2}}}, 3, "expected one of"),
        *[({"search": {"steps": {"from": 0.2, "to": 9}}}, 3, "steps is 0"), ({}, 0, "trials is 0")],
    ],
)
def test_invalid_searches_are_refused(change, trials, message, tmp_path):
    given = {"fixed": NOWHERE, "search": RATES, **change}
    raises(sweep, given, tmp_path / "out", trials=trials, match=re.escape(message))
    assert not (tmp_path / "out").exists()


def test_shards_other_searches_and_missing_optuna(search_grid, tmp_path, searched, monkeypatch):
    raises(sweep, search_grid, tmp_path, trials=2, shard="1/2", match="leave out shard")
    other = {**search_grid, "search": {"learning_rate": {"from": 1e-4, "to": 1e-1}}}
    raises(sweep, other, searched.folder, trials=5, match="holds a search over")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"pip install 'jpt\[search\]'"):
        sweep({"fixed": NOWHERE, "search": RATES}, tmp_path / "out", trials=2)


LEFT = ("runs/a/.lock", "runs/a/.jpt-0.tmp", "groups/one/runs.json", "groups/one/checkpoints/5/d")


def write_ended(folder: Path) -> list[str]:
    for name in ("a", "b"):
        RunFolder(folder / "runs" / name, {"seed": name}).finish({"score": 1})
    for name in LEFT:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    write_json(folder / "groups/one/runs.json", ["a", "b"])
    return ["a", "b"]


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_leftovers_of_finished_runs_are_removed(tmp_path: Path) -> None:
    tidy_ended(tmp_path, write_ended(tmp_path))
    kept = {f"runs/{name}/{file}.json" for name in "ab" for file in ("config", "result")}
    assert files(tmp_path) == kept and not (tmp_path / "groups").exists()


def test_an_unfinished_group_is_kept(tmp_path: Path) -> None:
    write_ended(tmp_path)
    (tmp_path / "runs/b/result.json").unlink()
    tidy_ended(tmp_path, ["a"])
    assert files(tmp_path) >= {*LEFT[2:], "runs/a/result.json"}
    assert not files(tmp_path) & {*LEFT[:2]}
    shutil.rmtree(tmp_path / "runs/a")  # to be trained again
    tidy_ended(tmp_path, [])
    assert files(tmp_path) >= {*LEFT[2:]}


def test_what_another_process_locks_is_kept(tmp_path: Path) -> None:
    names = write_ended(tmp_path)
    with RunFolder(tmp_path / "runs/a", {"seed": "a"}).lock():
        tidy_ended(tmp_path, names)
        assert files(tmp_path) >= {*LEFT[2:], "runs/a/.lock"}
    tidy_ended(tmp_path, names)
    assert not (tmp_path / "groups").exists()


def test_sigterm_in_the_last_step_of_a_group_ends_the_sweep(tmp_path, monkeypatch):
    grid = {"fixed": write_fixed(tmp_path / "given"), "grid": {"seed": [0, 1]}}
    grid |= {"run": {"slots": 1}}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    sweep(grid, whole)

    def terminate(progress: sweep_module.SweepProgress, *_: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as asked:
        asked.setattr(sweep_module.SweepProgress, "ended", terminate)
        with pytest.raises(StoppedError) as end:
            sweep(grid, stopped)
    assert end.value.exit_code == 75
    assert len(list(stopped.rglob("result.json"))) == 1, "no further group has started"
    (stopped / ".jpt-0.tmp").touch()
    sweep(grid, stopped)
    assert read_prompts(stopped) == read_prompts(whole) and files(stopped) == files(whole)
    rows = [read_json(folder / "sweep.json")["runs"] for folder in (stopped, whole)]
    assert [row["test"] for row in rows[0]] == [row["test"] for row in rows[1]]
