"""Rows of a task: read from folders and checked, one clear line for each thing that is wrong."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest

from jpt.data.rows import READERS, has_split, read_rows
from jpt.errors import InputError
from jpt.tasks.catalog import CATALOG, load_task
from jpt.tasks.task import Task
from tests.data.row_files import WRITERS

GOOD = {"text": "fine", "label": "positive"}


def sst2_in(folder: Path, *rows: object, split: str = "train") -> Task:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return load_task("sst2", data=folder)


# ../shared/data/README.md: rows of each split.
COUNTS = {
    "sst2": (6906, 872, 1221),
    "imdb": (2000, 400, 1200),
    "mnli": (8000, 1000, 2999),
    "qqp": (7098, 900, 1200),
}


@pytest.mark.parametrize("name", COUNTS)
def test_real_folders_are_read_whole(name: str, reference_folder: Path) -> None:
    task = load_task(reference_folder / "data" / name)
    splits = [read_rows(task, split) for split in ("train", "validation", "test")]
    assert tuple(map(len, splits)) == COUNTS[name]
    for rows in splits:
        assert {frozenset(row) for row in rows} == {frozenset((*task.fields, "label"))}
        assert set(Counter(row["label"] for row in rows)) == set(task.labels)


def test_more_fields_than_the_task_asks_for_are_left_out(tmp_path: Path) -> None:
    task = sst2_in(tmp_path, {**GOOD, "id": 7})
    assert read_rows(task, "train") == [GOOD]


def test_class_numbers_of_the_hub_are_labels_too(tmp_path: Path) -> None:
    task = sst2_in(tmp_path, {"text": "a", "label": 1}, {"text": "b", "label": 0})
    assert [row["label"] for row in read_rows(task, "train")] == ["positive", "negative"]


def test_files_and_label_may_have_other_names(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "gold": "negative"}\n')
    task = dataclasses.replace(
        load_task("sst2", data=tmp_path), files={"test": "rows.jsonl"}, label_field="gold"
    )
    assert read_rows(task, "test") == [{"text": "a", "label": "negative"}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": "positive"}, "field 'text' is missing; the row has label"),
        ({"text": "a"}, "field 'label' is missing; the row has text"),
        ({**GOOD, "text": ""}, "field 'text' is empty"),
        ({**GOOD, "text": " \t"}, "field 'text' is empty"),
        ({**GOOD, "text": 3}, "field 'text' is of type int; it must be text"),
        ({**GOOD, "text": None}, "field 'text' is null; it must be text"),
        ({**GOOD, "text": "a\ud83d b"}, "field 'text' has half a character .* at letter 2"),
        ({**GOOD, "label": "great"}, r"label 'great' is none .* \(negative, positive\)"),
        ({**GOOD, "label": -1}, "label -1 is none of the labels of task sst2"),
        ({**GOOD, "label": None}, "label None is none"),
        ({**GOOD, "label": ["positive"]}, "label .* is none"),
    ],
)
def test_wrong_rows_are_named_with_their_line(tmp_path: Path, row: dict, message: str) -> None:
    task = sst2_in(tmp_path, GOOD, row)
    with pytest.raises(InputError, match=r"train\.jsonl:2: " + message) as caught:
        read_rows(task, "train")
    assert "\n" not in str(caught.value)


def test_an_empty_split(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.jsonl has no rows"):
        read_rows(sst2_in(tmp_path), "train")


def test_a_missing_split_says_what_is_there(tmp_path: Path) -> None:
    task = sst2_in(tmp_path, GOOD)
    with pytest.raises(InputError, match=r"no test rows: .*test\.jsonl is missing.* train\.jsonl"):
        read_rows(task, "test")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no \.jsonl, \.csv, .* or \.json files"):
        read_rows(load_task("sst2", data=tmp_path), "test")


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    task = dataclasses.replace(load_task("sst2", data=tmp_path), files={"test": "rows.xml"})
    with pytest.raises(InputError, match=r"rows\.xml is no file of a kind that is read"):
        read_rows(task, "test")


def test_an_unknown_split(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown split 'dev'"):
        read_rows(sst2_in(tmp_path, GOOD), "dev")


def test_a_task_without_any_source() -> None:
    with pytest.raises(InputError, match="neither a folder nor a hub id"):
        read_rows(dataclasses.replace(CATALOG["sst2"], hub=None), "test")


@pytest.mark.parametrize("suffix", READERS)
def test_a_split_is_found_in_every_format(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"test{suffix}").write_bytes(WRITERS[suffix]([GOOD]))
    task = load_task("sst2", data=tmp_path)
    assert read_rows(task, "test") == [GOOD]
    assert has_split(task, "test") and not has_split(task, "validation")


def test_two_files_of_one_split(tmp_path: Path) -> None:
    task = sst2_in(tmp_path, GOOD)
    (tmp_path / "train.csv").write_text("text,label\na,negative\n")
    message = r"more than one file of train rows: .*train\.jsonl and .*train\.csv; remove all but"
    with pytest.raises(InputError, match=message):
        read_rows(task, "train")
    named = dataclasses.replace(task, files={"train": "train.csv"})
    assert read_rows(named, "train") == [{"text": "a", "label": "negative"}]
    assert has_split(task, "train")


def test_a_missing_file_that_was_named(tmp_path: Path) -> None:
    task = dataclasses.replace(sst2_in(tmp_path, GOOD), files={"train": "rows.csv"})
    with pytest.raises(InputError, match=r"no train rows: .*rows\.csv is missing; .* \[files\]"):
        read_rows(task, "train")


WRITTEN_TASKS = {"squad": "answers", "nq_open": "answers", "multi_news": "summary"}


@pytest.mark.parametrize("name", WRITTEN_TASKS)
def test_real_folders_with_answers_are_read_whole(name: str, reference_folder: Path) -> None:
    folder = reference_folder / "data" / name
    lines = (folder / "test.jsonl").read_text(encoding="utf-8").split("\n")
    raw = [json.loads(line) for line in lines if line]
    field = next(name for name in raw[0] if name not in ("answers", "summary"))
    task = Task(
        name="written",
        type="writing",
        fields=(field,),
        labels=(),
        templates={"encoder_decoder": (f"{{{field}}}",)},
        metric="exact_match",
        answer_field=WRITTEN_TASKS[name],
        answer_tokens=20,
        folder=folder,
    )
    rows = read_rows(task, "test")
    assert [row[field] for row in rows] == [row[field] for row in raw]
    wanted = [row[WRITTEN_TASKS[name]] for row in raw]
    wanted = [tuple(one) if isinstance(one, list) else (one,) for one in wanted]
    assert [row["answers"] for row in rows] == wanted
