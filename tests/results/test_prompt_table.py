"""Relative performance, means by task type and rankings: published matrices and plain loops."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jpt
from jpt.results.prompt_table import describe_matrix
from jpt.types import TransferMatrix
from tests.helpers.running import load_script, raises


@pytest.fixture(scope="module")
def expected(reference_folder: Path) -> dict[str, Any]:
    return json.loads((reference_folder / "reference" / "expected.json").read_text())["backbones"]


def read_wide(path: Path) -> tuple[list[str], dict[str, dict[str, float]]]:
    """Read the relative matrix of the reference: one line per target, one column per prompt."""
    with path.open() as file:
        lines = list(csv.DictReader(file))
    prompts = [name for name in lines[0] if name not in ("target_task", "own_value")]
    return prompts, {
        line["target_task"]: {name: float(line[name]) for name in (*prompts, "own_value")}
        for line in lines
    }


@pytest.mark.parametrize("backbone", ["roberta-base", "t5-base"])
def test_published_matrices(reference_folder: Path, expected: Any, backbone: str) -> None:
    folder, wanted = reference_folder / "reference" / "transfer", expected[backbone]
    matrix = jpt.read_transfer(folder / f"{backbone}.csv")
    relative = jpt.relative_performance(matrix)
    prompts, lines = read_wide(folder / f"{backbone}_relative.csv")
    assert set(lines) == set(matrix.targets) and set(prompts) == set(matrix.prompts)
    for row, target in enumerate(matrix.targets):
        score = matrix.values[row, matrix.prompts.index(target)]
        assert score == lines[target]["own_value"] == wanted["own_performance"][target]
        for column, prompt in enumerate(matrix.prompts):
            # The file has six decimals.
            assert relative.values[row, column] == pytest.approx(lines[target][prompt], abs=6e-7)
    found = jpt.summarize_transfer(matrix)
    means = wanted["relative_transfer"]
    transfer = found["relative_transfer"]
    assert transfer["best_other_source"] == means.pop("best_other_source")
    assert {name: transfer[name] for name in means} == pytest.approx(means, abs=1e-6)
    assert transfer["untouched_mean"] is None
    for target, means in wanted["relative_by_type"].items():
        assert found["relative_by_type"][target] == pytest.approx(means, abs=1e-6)
    for target, ranked in found["ranking"].items():
        scores = {name: lines[target][name] for name in set(prompts) - {target, "random"}}
        assert sorted(ranked) == sorted(scores)
        values = [scores[name] for name in ranked]
        assert all(a >= b - 1e-6 for a, b in zip(values, values[1:], strict=False))


@pytest.mark.parametrize(
    ("backbone", "same", "other"), [("roberta-large", 76, 53), ("t5-small", 79.1, 48)]
)
def test_script_reports_the_other_backbones(
    reference_folder: Path, capsys, backbone: str, same: float, other: float
) -> None:
    script = load_script("paper/transfer_figures.py")
    script.main(["--reference", str(reference_folder / "reference")])
    out = capsys.readouterr().out
    titles = [line.removeprefix("## ") for line in out.splitlines() if line.startswith("## ")]
    assert titles == ["roberta-base", "roberta-large", "t5-base", "t5-small"]
    part = out.split(f"## {backbone}\n")[1].split("## ")[0]
    assert f"same type {same:.1f} %, other types {other:.1f} %" in part
    path = reference_folder / "reference" / "transfer" / f"{backbone}.csv"
    found = jpt.summarize_transfer(path)["relative_transfer"]
    assert 100 * found["same_type_mean"] == pytest.approx(same, abs=0.05)
    assert 100 * found["different_type_mean"] == pytest.approx(other, abs=0.05)


def test_ties_unknown_types_and_missing_ratios(tmp_path: Path) -> None:
    values = np.array([[1.0, 0.5, 0.5, 0.7, np.nan]])
    matrix = TransferMatrix(("a",), ("a", "c", "b", "mine", "d"), values, ("accuracy",))
    kinds = {"a": "x", "b": "y", "c": "x", "mine": None, "d": "y"}
    found = jpt.summarize_transfer(matrix, target_types=kinds, prompt_types=kinds)
    assert found["ranking"] == {"a": ["mine", "b", "c"]}
    assert found["relative_by_type"] == {"x": {"x": 0.5, "y": 0.5}}
    assert found["relative_transfer"]["best_other_source"] == {"a": "b"}
    assert found["relative_transfer"]["random_mean"] is None
    file = tmp_path / "transfer.csv"
    lines = ["target_task,source_prompt,metric,value", "imdb,imdb,accuracy,0", "sst2,imdb,f1,0.5"]
    file.write_text("\n".join(lines) + "\n")
    found = jpt.summarize_transfer(file)
    assert found["ranking"] == {} and found["relative_transfer"]["n_same"] == 0
    assert np.isnan(jpt.relative_performance(jpt.read_transfer(file)).values).all()
    raises(jpt.summarize_transfer, tmp_path / "none.csv", match="no such file")


@pytest.mark.parametrize("count", [1, 4, 30])
def test_wide_matrices_are_split_into_blocks(count: int) -> None:
    names = tuple(f"a_rather_long_name_{number}" for number in range(count))
    values = np.arange(count * 2, dtype=np.float64).reshape(2, count) / 100
    matrix = TransferMatrix(("one", "other"), names, values, ("accuracy",) * 2)
    lines = describe_matrix(matrix, {"one": names[0]}, ["a note " * 20]).splitlines()
    assert max(map(len, lines)) <= 80
    heads = [line.split() for line in lines if line.startswith("   ")]
    assert sum(heads, []) == list(names)
    ones = [cell for line in lines if line.startswith("one ") for cell in line.split()[1:]]
    assert ones == [f"{value:.3f}{'*' * (not column)}" for column, value in enumerate(values[0])]
    others = [line for line in lines if line.startswith("other ")]
    assert len(others) == len(heads), "each block has every target"
