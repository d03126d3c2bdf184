"""Tables come back as they were written, and a broken one is named by file and line."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import jpt
from jpt.io.files import read_number, read_table, write_table
from jpt.results.prompt_table import read_transfer, write_transfer
from jpt.types import TransferMatrix

HEADER = "target_task,source_prompt,metric,value\n"


def test_floats_come_back_bit_for_bit(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=50) * 10.0 ** np.arange(-25, 25)
    write_table(tmp_path / "a.csv", ["x"], [[value] for value in values])
    rows = read_table(tmp_path / "a.csv", ["x"])
    np.testing.assert_array_equal([float(row["x"]) for row in rows], values)


def test_names_with_commas_quotes_and_other_scripts(tmp_path: Path) -> None:
    names = ['a,"b"', "größer", "line\nbreak", " spaced "]
    write_table(tmp_path / "a.csv", ["name", "x"], [[name, 1] for name in names])
    assert [row["name"] for row in read_table(tmp_path / "a.csv", ["name"])] == names


def test_a_matrix_with_holes_comes_back(tmp_path: Path) -> None:
    values = np.array([[0.5, np.nan], [np.nan, 0.25]])
    matrix = TransferMatrix(("t", "u"), ("a", "b"), values, ("accuracy", "f1"))
    write_transfer(tmp_path / "transfer.csv", matrix)
    again = read_transfer(tmp_path / "transfer.csv")
    assert (again.targets, again.prompts, again.metrics) == (("t", "u"), ("a", "b"), matrix.metrics)
    np.testing.assert_array_equal(again.values, values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"lacks target_task"),
        ("target_task,metric,value\n", "lacks source_prompt"),
        (HEADER, "has a header and no line"),
        (HEADER + "a,b,accuracy\n", "line 2: 3 values for 4 columns"),
        (HEADER + "a,b,accuracy,high\n", "line 2: value is 'high'; a number expected"),
        (HEADER + "a,b,accuracy,inf\n", "line 2: value is 'inf'"),
        (HEADER + "a,b,accuracy,1\na,b,accuracy,1\n", "line 3: b on a stands there twice"),
        (HEADER + "a,b,accuracy,1\na,c,f1,1\n", "line 3: a is measured by f1 here and by accuracy"),
        (HEADER + 'a,"b,accuracy,1\n', "no CSV table"),
        ("value,value\n", "names a column twice|lacks"),
    ],
)
def test_broken_tables(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "transfer.csv").write_text(text)
    with pytest.raises(jpt.InputError, match=message) as error:
        read_transfer(tmp_path / "transfer.csv")
    assert "transfer.csv" in str(error.value) and "\n" not in str(error.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "transfer.csv").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(jpt.InputError, match="no CSV table"):
        read_transfer(tmp_path / "transfer.csv")


def test_an_empty_place_is_not_a_number() -> None:
    assert math.isnan(read_number("a.csv", 2, {"x": " "}, "x"))
