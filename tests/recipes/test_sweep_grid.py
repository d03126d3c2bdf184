"""What a sweep file may say, and what is said of one that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jpt.errors import InputError
from jpt.recipes.sweep import parse_sweep, read_sweep

FIXED = {"backbone": "builtin/bert-small", "task": "builtin/imdb"}


def test_every_combination_and_lists_that_go_together() -> None:
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


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"from": 1e-4, "to": 1e-1, "count": 4}, [1e-4, 1e-3, 1e-2, 1e-1]),
        ({"from": 1, "to": 3, "count": 3, "scale": "linear"}, [1.0, 2.0, 3.0]),
    ],
)
def test_a_range_has_equal_ratios_or_equal_distances(
    given: dict[str, Any], expected: list[float]
) -> None:
    sweep = parse_sweep({"fixed": FIXED, "grid": {"learning_rate": given}})
    assert [run.options.learning_rate for run in sweep.runs] == pytest.approx(expected, rel=1e-6)


def test_what_is_counted_is_whole() -> None:
    given = {"from": 10, "to": 1000, "count": 3}
    sweep = parse_sweep({"fixed": FIXED, "grid": {"steps": given}})
    assert [run.options.steps for run in sweep.runs] == [10, 100, 1000]


def test_tasks_of_one_short_name_stay_apart() -> None:
    grid = {"task": ["builtin/imdb", "imdb"]}
    sweep = parse_sweep({"fixed": {"backbone": "builtin/bert-small"}, "grid": grid})
    assert [run.name for run in sweep.runs] == ["builtin_imdb", "imdb"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"fixed": {"backbone": "b"}}, "no task is named"),
        ({"fixed": {"task": "imdb"}}, "no backbone is named"),
        ({"fixed": FIXED, "gird": {}}, "unknown table 'gird'; did you mean grid"),
        ({"fixed": FIXED, "grid": {"learningrate": [1.0]}}, "did you mean learning_rate"),
        ({"fixed": FIXED, "grid": {"seed": 3}}, "seed is 3; give a list"),
        ({"fixed": FIXED, "grid": {"seed": []}}, "give a list of values"),
        ({"fixed": FIXED, "grid": {"seed": [1, 1]}}, "has a value twice"),
        ({"fixed": FIXED, "grid": {"task": ["a"]}}, "task stands in two places"),
        ({"fixed": FIXED, "grid": {"steps": {"from": 1, "to": 9}}}, "steps has no count"),
        ({"fixed": FIXED, "grid": {"steps": {"from": 9, "to": 1, "count": 2}}}, "the range of"),
        (
            {"fixed": FIXED, "grid": {"learning_rate": {"from": 0, "to": 1, "count": 2}}},
            'write scale = "linear"',
        ),
        (
            {"fixed": FIXED, "zip": [{"length": [1, 2], "steps": [1]}]},
            "differ in length: length 2, steps 1",
        ),
        ({"fixed": {**FIXED, "steps": 0}}, "steps is 0; give a whole number"),
        ({"fixed": {**FIXED, "dtype": "float8"}}, "dtype is 'float8'"),
        ({"fixed": FIXED, "run": {"places": 0}}, "places is 0"),
        ({"fixed": FIXED, "run": {"memory_gb": -1}}, "memory_gb is -1"),
        ({"fixed": FIXED, "run": {"place": 2}}, "did you mean places"),
    ],
)
def test_a_wrong_file_is_refused(content: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        parse_sweep(content)
    assert message in str(error.value)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text("[grid\n")
    with pytest.raises(InputError, match="grid.toml is no TOML"):
        read_sweep(path)
    path.write_text('[grid]\nsteps = "many"\n')
    with pytest.raises(InputError, match="grid.toml: steps is 'many'"):
        read_sweep(path)
    with pytest.raises(InputError, match="nowhere.toml"):
        read_sweep(tmp_path / "nowhere.toml")
