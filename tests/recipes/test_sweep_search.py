"""A search asks for settings, runs them as a sweep does, and goes on from their folders."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from jpt.errors import InputError
from jpt.recipes.sweep import Search, SweepResult, describe_search, parse_sweep, sweep, train_here
from tests.tiny_sweep import read_prompts, read_rows, write_fixed

RATES = {"learning_rate": {"from": 1e-3, "to": 1e-1}}


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("optuna")
    fixed = write_fixed(tmp_path_factory.mktemp("given"))
    return {"fixed": fixed, "grid": {"seed": [0, 1]}, "search": RATES, "run": {"places": 2}}


@pytest.fixture(scope="module")
def searched(grid: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    return sweep(grid, tmp_path_factory.mktemp("searched") / "out", trials=5)


class Workers:
    """Trains here, counts the runs, and breaks down before the last bank that it may train."""

    def __init__(self, banks: int | None = None) -> None:
        self.left, self.trained = banks, []

    def __call__(self, banks: Sequence[Any], *given: Any) -> None:
        for bank in banks:
            if self.left == 0:
                raise ConnectionError("the machine is lost")
            train_here([bank], *given)
            self.trained += bank.runs
            self.left = None if self.left is None else self.left - 1


def plan_of(trials: int, **search: Any) -> Search:
    pytest.importorskip("optuna")
    fixed = {"backbone": "builtin/bert-small", "task": "builtin/imdb"}
    return Search(parse_sweep({"fixed": fixed, "search": search}), trials)


def tell_all(search: Search, value: Any, at_once: int = 1) -> list[dict[str, Any]]:
    """Answers every question of a search by a formula; None is a run that has diverged."""
    while (part := search.ask(at_once)) is not None:
        found = [(run.name, value(run.values)) for run in part.runs]
        search.tell(
            [
                {"run": name, "state": "diverged" if v is None else "done", "validation": v}
                for name, v in found
            ]
        )
    return search.record()["trials"]


def test_trials_are_runs_of_the_sweep(searched: SweepResult) -> None:
    """The values of a trial are those in the names, the configs and the table, to the last bit."""
    trials = searched.record["search"]["trials"]
    rows = read_rows(searched.folder / "runs.csv")
    assert [trial["trial"] for trial in trials] == [1, 2, 3, 4, 5] and len(rows) == 10
    for trial in trials:
        rate = trial["values"]["learning_rate"]
        own = [row for row in rows if row["setting"] == f"first+learning_rate={rate:g}"]
        assert [row["seed"] for row in own] == ["0", "1"] and 1e-3 <= rate <= 1e-1
        for row in own:
            config = searched.folder / "runs" / row["run"] / "config.json"
            assert json.loads(config.read_text())["learning_rate"] == rate
            assert float(row["learning_rate"]) == rate
        mean = statistics.fmean(float(row["validation"]) for row in own)
        assert math.isclose(trial["validation"], mean, rel_tol=1e-12)
    best = searched.record["search"]["best"]
    assert best["validation"] == max(trial["validation"] for trial in trials)
    assert best["settings"] == [
        row["setting"]
        for row in read_rows(searched.folder / "settings.csv")
        if row["best"] == "True"
    ]
    assert describe_search(searched.record["search"]) in searched.describe()


def test_lost_search_goes_on_with_the_same_trials(
    grid: dict[str, Any], searched: SweepResult, tmp_path: Path
) -> None:
    broken, rest = Workers(3), Workers()
    with pytest.raises(ConnectionError):
        sweep(grid, tmp_path / "out", trials=5, workers=broken)
    resumed = sweep(grid, tmp_path / "out", trials=5, workers=rest)
    assert resumed.record["search"] == searched.record["search"]
    assert read_prompts(tmp_path / "out") == read_prompts(searched.folder)
    assert len(broken.trained) == 6 and len(rest.trained) == 4
    assert not set(broken.trained) & set(rest.trained)


def test_more_trials_go_on_where_fewer_ended(
    grid: dict[str, Any], searched: SweepResult, tmp_path: Path
) -> None:
    few, more = Workers(), Workers()
    first = sweep(grid, tmp_path / "out", trials=2, workers=few)
    # Other places: what is asked for hangs on the round, which stays as it began.
    second = sweep({**grid, "run": {"places": 1}}, tmp_path / "out", trials=4, workers=more)
    trials = searched.record["search"]["trials"]
    assert first.record["search"]["trials"] == trials[:2]
    assert [trial["values"] for trial in second.record["search"]["trials"]] == [
        trial["values"] for trial in trials[:4]
    ]
    assert len(few.trained) == len(more.trained) == 4


def test_search_finds_the_best_rate() -> None:
    """Blind draws from six decades would lie 1.5 decades from the best rate in the median."""

    def distance(values: Any) -> float:
        return abs(math.log10(values["learning_rate"]) + 2)

    search = plan_of(40, learning_rate={"from": 1e-6, "to": 1.0})
    trials = tell_all(search, lambda values: -(distance(values) ** 2), at_once=2)
    far = [distance(trial["values"]) for trial in trials]
    assert statistics.median(far[10:]) < 0.75
    best = search.record()["best"]
    assert distance(best["values"]) == min(far) < 0.1


def test_what_diverges_is_avoided_but_told() -> None:
    def value(values: Any) -> float | None:
        return None if values["learning_rate"] > 1e-2 else 0.5

    search = plan_of(40, learning_rate={"from": 1e-6, "to": 1e2})
    trials = tell_all(search, value)
    lost = [trial["validation"] is None for trial in trials]
    assert sum(lost[:10]) >= 3  # drawn blindly, half of them would be
    assert sum(lost[10:]) / 30 < sum(lost[:10]) / 10 / 2
    assert search.record()["best"]["validation"] == 0.5


def test_diverged_run_is_no_result(grid: dict[str, Any], tmp_path: Path) -> None:
    """For real: rates that make the loss no number."""
    wild = {"learning_rate": {"from": 1e37, "to": 1e38}}
    result = sweep({**grid, "search": wild}, tmp_path / "out", trials=1)
    assert result.record["states"] == {"done": 0, "diverged": 2}
    assert result.record["search"]["best"] is None and "all 1 trials diverged" in result.describe()


def test_whole_numbers_are_whole_and_run_once() -> None:
    """Three settings are all there are: the later trials repeat them, and nothing runs twice."""
    search = plan_of(8, length={"from": 4, "to": 6, "scale": "linear"})
    trials = tell_all(search, lambda values: 0.1 * values["length"], at_once=2)
    lengths = [trial["values"]["length"] for trial in trials]
    assert all(type(length) is int for length in lengths) and set(lengths) <= {4, 5, 6}
    assert [run.name for run in search.whole.runs] == [
        f"imdb+length={length}" for length in dict.fromkeys(lengths)
    ]


@pytest.mark.parametrize(
    ("change", "trials", "said"),
    [
        ({}, None, "--trials 20"),
        ({"search": {}}, 3, "no [search]"),
        ({"search": {"dtype": {"from": 1, "to": 2}}}, 3, "searches numbers"),
        ({"search": {"seed": {"from": 1, "to": 2}}}, 3, "searches numbers"),
        ({"search": {"steps": {"from": 0.2, "to": 9}}}, 3, "steps is 0"),
        ({}, 0, "trials is 0"),
    ],
)
def test_what_cannot_be_searched(
    change: dict[str, Any], trials: int | None, said: str, tmp_path: Path
) -> None:
    fixed = {"backbone": "nowhere", "task": "builtin/imdb"}
    given = {"fixed": fixed, "search": RATES, **change}
    with pytest.raises(InputError) as caught:
        sweep(given, tmp_path / "out", trials=trials)
    assert said in str(caught.value) and not (tmp_path / "out").exists()


def test_search_is_not_shared_out(grid: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leave out shard"):
        sweep(grid, tmp_path, trials=2, shard="1/2")


def test_folder_of_another_search_is_refused(grid: dict[str, Any], searched: SweepResult) -> None:
    other = {**grid, "search": {"learning_rate": {"from": 1e-4, "to": 1e-1}}}
    with pytest.raises(InputError, match="holds a search over"):
        sweep(other, searched.folder, trials=5)


def test_optuna_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    given = {"fixed": {"backbone": "nowhere", "task": "builtin/imdb"}, "search": RATES}
    with pytest.raises(InputError, match=r"pip install 'jpt\[search\]'"):
        sweep(given, tmp_path / "out", trials=2)
