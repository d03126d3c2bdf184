"""Rows given in Python: lists, generators and data sets of the library, and what is refused."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jpt.data.rows import attach_data, has_split, read_rows, with_rows
from jpt.errors import InputError
from jpt.tasks.catalog import load_task
from tests.data.row_files import GENERATIVE, SENTIMENT

GOOD = {"text": "fine", "label": "positive"}


def test_lists_and_generators_are_read_again_and_again() -> None:
    def generate() -> Iterator[dict]:
        row = {}
        for number in range(3):
            row.update(text=f"row {number}", label=number % 2)  # one and the same dictionary
            yield row

    task = attach_data(SENTIMENT, {"train": [GOOD], "test": generate()})
    assert read_rows(task, "train") == [GOOD]
    for _ in range(2):
        assert [row["text"] for row in read_rows(task, "test")] == ["row 0", "row 1", "row 2"]
    assert [has_split(task, split) for split in ("train", "validation", "test")] == [
        True,
        False,
        True,
    ]


def test_later_changes_of_what_was_given_do_not_matter() -> None:
    row = dict(GOOD)
    task = with_rows(SENTIMENT, {"train": [row]})
    row["text"] = "changed"
    assert read_rows(task, "train") == [GOOD]


@pytest.mark.parametrize("form", [None, "numpy"])
def test_a_data_set_of_the_library_with_its_class_names(form: str | None) -> None:
    import datasets

    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["positive", "negative"]),
        }
    )
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    data = datasets.DatasetDict({"train": datasets.Dataset.from_list(rows, features=features)})
    read = read_rows(with_rows(SENTIMENT, data.with_format(form)), "train")
    assert read == [{"text": "a", "label": "positive"}, {"text": "b", "label": "negative"}]
    assert all(type(value) is str for row in read for value in row.values())


def test_written_answers_of_every_form() -> None:
    given = ["a", ["a", "b"], ("a",), np.array(["a", "b"]), {"text": ["a"], "answer_start": [3]}]
    task = with_rows(GENERATIVE, {"train": [{"question": "q", "answers": one} for one in given]})
    answers = [row["answers"] for row in read_rows(task, "train")]
    assert answers == [("a",), ("a", "b"), ("a",), ("a", "b"), ("a",)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, r'data of task sst2 has no split; give {"train": rows'),
        ({"train": []}, "rows given for train are none; task sst2 needs at least one"),
        ({"train": iter(())}, "rows given for train are none"),
        ({"training": [GOOD]}, "unknown split 'training'; did you mean train"),
        ({0: [GOOD]}, "unknown split '0'"),
        ({"text": ["a"], "label": [1]}, "unknown split 'text'"),
        ({"train": 3}, "rows given for train are of type int; give a list of rows"),
        ({"train": "train.csv"}, "rows given for train are of type str"),
        (
            {"train": {"text": ["a"]}},
            r'train are of type dict; give .* {"text": ..., "label": ...}',
        ),
        ({"train": [GOOD, ("a", 1)]}, r"rows given for train, row 2: a tuple stands there"),
        ([GOOD], "data is of type list; give a folder, or rows as"),
    ],
)
def test_what_cannot_be_rows(data: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        attach_data(SENTIMENT, data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"txt": "a", "label": 1}, "field 'text' is missing; the row has txt, label; did you mean"),
        ({**GOOD, "text": float("nan")}, "field 'text' is of type float; it must be text"),
        (
            {**GOOD, "label": np.array([[1, 2], [3, 4]])},
            r"label array\(\[\[1, 2\], \[3, 4\]\]\) is",
        ),
        ({**GOOD, "label": 10**5000}, "label of type int is none of the labels"),
        ({**GOOD, "label": "1" * 5000}, "label '1111.* is none of the labels"),
    ],
)
def test_a_wrong_row_is_named(row: dict, message: str) -> None:
    task = with_rows(SENTIMENT, {"test": [GOOD, GOOD, row]})
    with pytest.raises(InputError, match=f"^rows given for test, row 3: {message}") as caught:
        read_rows(task, "test")
    assert "\n" not in str(caught.value)


def test_rows_of_a_task_made_by_hand_are_checked_too() -> None:
    task = dataclasses.replace(SENTIMENT, rows={"train": (["fine", "positive"],)})
    with pytest.raises(InputError, match="rows given for train, row 1: a list stands there"):
        read_rows(task, "train")


def test_a_split_that_was_not_given() -> None:
    task = with_rows(SENTIMENT, {"train": [GOOD], "validation": [GOOD]})
    with pytest.raises(InputError, match="no test rows: rows are given for train, validation"):
        read_rows(task, "test")


def test_the_last_that_was_attached_counts(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\nfrom the folder,1\n")
    given = attach_data(attach_data(SENTIMENT, tmp_path), {"train": [GOOD]})
    assert read_rows(given, "train") == [GOOD] and given.folder is None
    again = attach_data(given, str(tmp_path))
    assert read_rows(again, "train") == [{"text": "from the folder", "label": "positive"}]
    assert attach_data(again, None) is again


def test_folders_and_tasks_that_take_no_data(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="folder .*file is a file; give a folder with the rows"):
        attach_data(SENTIMENT, tmp_path / "file")
    with pytest.raises(InputError, match="folder .*gone does not exist"):
        attach_data(SENTIMENT, tmp_path / "gone")
    for data in (tmp_path, {"train": [GOOD]}):
        with pytest.raises(InputError, match="builtin/imdb brings its own rows; leave data"):
            attach_data(load_task("builtin/imdb"), data)
