"""DOC"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

import jpt.data.rows
from jpt.data.rows import (
    READERS,
    attach_data,
    check_row,
    find_label,
    has_split,
    read_delimited,
    read_json_lines,
    read_json_list,
    read_rows,
    rows_checksum,
    show,
    with_rows,
)
from jpt.errors import InputError
from jpt.tasks.catalog import CATALOG, load_task
from jpt.tasks.task import Task
from tests.helpers.row_files import GENERATIVE, PAIR, SENTIMENT, WRITERS, parquet

# --- formats

PIECES = (
    *("fine", "Film", "42", "é", "日本", "👩‍🚀", "\u2028", "\u0085", "\u00a0", "\ufeff", "ß"),
    *(" ", "  ", ",", "\t", ";", '"', '""', "'", "\n", "\r\n", "\r", "\\", "\\n", "[", "{", "#"),
)


def draw_text(draw: random.Random) -> str:
    text = "".join(draw.choices(PIECES, k=draw.randrange(1, 9)))
    return text if text.strip() else draw_text(draw)


def draw_rows(task: Task, draw: random.Random, size: int) -> list[dict]:
    """Rows as :func:`read_rows` should give them."""
    rows: list[dict] = []
    for _ in range(size):
        row: dict = {name: draw_text(draw) for name in task.fields}
        if task.is_generative:
            row["answers"] = [draw_text(draw) for _ in range(draw.randrange(1, 4))]
        else:
            row["label"] = draw.choice(task.labels)
        rows.append(row)
    return rows


def expected(rows: list[dict]) -> list[dict]:
    return [{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows]


def test_every_format_is_written_here() -> None:
    assert set(WRITERS) == set(READERS)


@pytest.mark.parametrize("task", [SENTIMENT, PAIR, GENERATIVE], ids=lambda task: task.name)
def test_all_formats_and_given_rows_read_equal(task: Task, tmp_path: Path) -> None:
    for seed in range(40):
        rows = draw_rows(task, random.Random(seed), size=7)
        for suffix, write in WRITERS.items():
            folder = tmp_path / f"{seed}{suffix}"
            folder.mkdir()
            (folder / f"train{suffix}").write_bytes(write(rows))
            read = read_rows(dataclasses.replace(task, folder=folder), "train")
            assert read == expected(rows), (seed, suffix)
            assert rows_checksum(read) == rows_checksum(expected(rows))
        assert read_rows(with_rows(task, {"train": rows}), "train") == expected(rows)


def test_empty_lines_a_mark_and_other_line_ends_change_nothing(tmp_path: Path) -> None:
    rows = draw_rows(PAIR, random.Random(0), size=5)
    for row in rows:  # line ends are replaced below, so none in the texts
        row.update({name: row[name].replace("\n", "").replace("\r", "") for name in PAIR.fields})
    for suffix in (".csv", ".tsv", ".jsonl"):
        text = WRITERS[suffix](rows).replace(b"\r\n", b"\n")
        for ending in (b"\n\n", b"\r\n", b"\n  \n"):
            (tmp_path / f"rows{suffix}").write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", ending))
            task = dataclasses.replace(PAIR, folder=tmp_path, files={"test": f"rows{suffix}"})
            assert read_rows(task, "test") == rows, (suffix, ending)


DAMAGE = (
    *(b'"', b"\n", b",", b"\t", b"\0", b"\xff", b"[", b"{", b"'", b"\\", b"\\u", b"\\ud800"),
    *(b"\r", b"null", b"NaN", b"1e999", b"\xef\xbb\xbf", b"\xff\xfe", b"true", b"[1]"),
)


def damage(data: bytes, draw: random.Random) -> bytes:
    """Changes, adds, repeats or leaves out some bytes, or cuts the file short."""
    for _ in range(draw.choice((1, 1, 2, 8))):
        at = draw.randrange(len(data)) if data else 0
        end = at + draw.randrange(30)
        data = draw.choice(
            (
                data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :],
                data[:at] + draw.choice(DAMAGE) + data[at:],
                data[:at] + data[end:],
                data[:end] + data[at:],
                data[:at],
            )
        )
    return data


@pytest.mark.parametrize("suffix", WRITERS)
def test_damaged_files_give_rows_or_one_line(suffix: str, tmp_path: Path) -> None:
    draw = random.Random(suffix)
    file = tmp_path / f"train{suffix}"
    whole = {
        name: (
            dataclasses.replace(task, folder=tmp_path),
            WRITERS[suffix](draw_rows(task, draw, 6)),
        )
        for name, task in (("labels", SENTIMENT), ("written", GENERATIVE))
    }
    told = 0
    for _ in range(300):
        task, data = whole[draw.choice(("labels", "written"))]
        file.write_bytes(damage(data, draw))
        try:
            rows = read_rows(task, "train")
        except InputError as error:
            told += 1
            assert str(file) in str(error) and "\n" not in str(error)
        else:
            assert all(row[name].strip() for row in rows for name in task.fields)
    assert told > 100, "the damage was not noticed"


# --- given rows

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


# --- json lines


def read(tmp_path: Path, data: bytes) -> list[tuple[int, dict]]:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(data)
    return list(read_json_lines(file))


def test_lines_have_their_numbers(tmp_path: Path) -> None:
    assert read(tmp_path, b'{"a": 1}\n\n  \n{"a": 2}') == [(1, {"a": 1}), (4, {"a": 2})]


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n'
    assert read(tmp_path, data) == [(1, {"a": 1}), (2, {"a": 2})]


def test_a_line_separator_inside_a_text_is_no_line_end(tmp_path: Path) -> None:
    data = '{"a": "x\u2028y\u0085z"}\n'.encode()
    assert read(tmp_path, data) == [(1, {"a": "x\u2028y\u0085z"})]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1}\n{"a": \n', r"rows.jsonl:2: broken JSON \(Expecting value at column"),
        (b'{"a": 1} {"a": 2}\n', r"rows.jsonl:1: broken JSON \(Extra data"),
        (b'{"a": 1}\n\n["a"]\n', "rows.jsonl:3: a list stands there"),
        (b'"a"', "rows.jsonl:1: a str stands there"),
        (b"[" * 100_000, "rows.jsonl:1: broken JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "rows.jsonl:1: broken JSON"),
        (b'{"a": 1}\n{"a": "caf\xe9"}\n', "rows.jsonl:2: not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "rows.jsonl:1: not UTF-8"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, data)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        list(read_json_lines(tmp_path))


def read_list(tmp_path: Path, data: bytes) -> list[tuple[int, dict]]:
    file = tmp_path / "rows.json"
    file.write_bytes(data)
    return list(read_json_list(file))


def test_a_list_of_objects(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbf\n[{"a": "x\\ny"},\n\n {"a": 2}]\n'
    assert read_list(tmp_path, data) == [(1, {"a": "x\ny"}), (2, {"a": 2})]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1}\n{"a": 2}\n', r"rows.json is no JSON list; end its name in .jsonl"),
        (b"", "rows.json is no JSON list"),
        (b'[{"a": 1},\n{"a": }]', r"rows.json:2: broken JSON \(Expecting value at column 7\)"),
        (b'[{"a": 1}, 3]', "rows.json, row 2: a int stands there; each row must be a JSON object"),
        (b"[" * 100_000, "rows.json:1: broken JSON"),
        (b'[{"a": "caf\xe9"}]', "rows.json:1: not UTF-8"),
    ],
)
def test_what_is_wrong_in_a_list(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_list(tmp_path, data)
    assert "\n" not in str(caught.value)


# --- parquet

PARQUET_GOOD = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]


def parquet_read(tmp_path: Path, data: bytes, task=SENTIMENT) -> list[dict]:
    (tmp_path / "train.parquet").write_bytes(data)
    return read_rows(dataclasses.replace(task, folder=tmp_path), "train")


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["positive", "negative"], pa.string()),
        (["positive", "negative"], pa.large_string()),
        (["positive", "negative"], pa.dictionary(pa.int8(), pa.string())),
        (["1", "0"], pa.string()),
        ([1, 0], pa.int8()),
        ([1, 0], pa.uint64()),
        ([1.0, 0.0], pa.float64()),
        ([True, False], pa.bool_()),
        ([1, 0], pa.decimal128(3, 1)),
    ],
    ids=str,
)
def test_labels_of_every_type(tmp_path: Path, values: list, kind: pa.DataType) -> None:
    schema = pa.schema({"label": kind, "text": pa.large_string()})
    rows = [{"text": text, "label": value} for text, value in zip("ab", values, strict=True)]
    read_back = parquet_read(tmp_path, parquet(rows, schema))
    assert read_back == [{"text": "a", "label": "positive"}, {"text": "b", "label": "negative"}]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["positive", "negative"], ["negative", "positive"]),  # the file's own order
        (["bad", "good"], ["positive", "negative"]),  # names unknown here: the hub's numbers
    ],
)
def test_class_names_that_the_data_set_library_writes(
    tmp_path: Path, names: list[str], labels: list[str]
) -> None:
    import datasets

    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    data = datasets.Dataset.from_list(PARQUET_GOOD, features=datasets.Features(features))
    data.to_parquet(tmp_path / "data.parquet")
    rows = parquet_read(tmp_path, (tmp_path / "data.parquet").read_bytes())
    assert [row["label"] for row in rows] == labels


def test_a_class_that_the_task_lacks_is_not_taken_for_another(tmp_path: Path) -> None:
    # Class 1 of the file is neutral; by the hub's numbers it would be positive.
    names = b'{"info": {"features": {"label": {"names": ["negative", "neutral", "positive"]}}}}'
    schema = pa.schema({"text": pa.string(), "label": pa.int64()}, {b"huggingface": names})
    with pytest.raises(InputError, match=r"train\.parquet, row 1: label 'neutral' is none"):
        parquet_read(tmp_path, parquet(PARQUET_GOOD, schema))


@pytest.mark.parametrize(
    "answers", [["x", "y"], {"text": ["x", "y"], "answer_start": [1, 2]}], ids=["list", "squad"]
)
def test_answers_are_lists_or_squads_form(tmp_path: Path, answers: object) -> None:
    rows = parquet_read(tmp_path, parquet([{"question": "q", "answers": answers}]), GENERATIVE)
    assert rows == [{"question": "q", "answers": ("x", "y")}]


def test_rows_of_several_groups_and_batches_are_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jpt.data.rows, "BATCH_ROWS", 5)
    rows = [{"text": f"{number}", "label": number % 2} for number in range(17)]
    assert [row["text"] for row in parquet_read(tmp_path, parquet(rows))] == [
        row["text"] for row in rows
    ]
    rows[12]["text"] = ""
    with pytest.raises(InputError, match=r"train\.parquet, row 13: field 'text' is empty"):
        parquet_read(tmp_path, parquet(rows))


def test_columns_that_are_not_needed_are_not_read(tmp_path: Path) -> None:
    data = bytearray(parquet([{**row, "more": "x" * 100} for row in PARQUET_GOOD]))
    file = pyarrow.parquet.ParquetFile(pa.BufferReader(bytes(data)))
    unneeded = file.metadata.row_group(0).column(2)
    begin = unneeded.dictionary_page_offset
    data[begin : begin + unneeded.total_compressed_size] = b"\xff" * unneeded.total_compressed_size
    with pytest.raises(Exception, match="(?i)thrift|page|invalid"):  # it is damaged there
        pyarrow.parquet.read_table(pa.BufferReader(bytes(data)))
    assert [row["text"] for row in parquet_read(tmp_path, bytes(data))] == ["a", "b"]


def one_row(text: pa.Array, label: pa.Array | None = None) -> bytes:
    data = io.BytesIO()
    label = pa.array([1] * len(text)) if label is None else label
    pyarrow.parquet.write_table(pa.table({"text": text, "label": label}), data)
    return data.getvalue()


NOT_UTF8 = pa.StringArray.from_buffers(
    2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")
)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (one_row(pa.array([1, 2])), ", row 1: field 'text' is of type int; it must be text"),
        (one_row(pa.array([b"a"])), ", row 1: field 'text' is of type bytes; it must be text"),
        (one_row(pa.array([["a"]])), ", row 1: field 'text' is of type list"),
        (one_row(pa.array(["a", None])), ", row 2: field 'text' is null; it must be text"),
        (one_row(pa.array(["a", " "])), ", row 2: field 'text' is empty"),
        (one_row(NOT_UTF8), ", row 2: field 'text' is not UTF-8"),
        (one_row(pa.array(["a"]), pa.array([2])), ", row 1: label 2 is none of the labels"),
        (one_row(pa.array(["a"]), pa.array([0.5])), ", row 1: label 0.5 is none of the labels"),
        (one_row(pa.array(["a"]), pa.nulls(1)), ", row 1: label None is none of the labels"),
        (one_row(pa.array([], pa.string()), pa.array([], pa.int8())), " has no rows"),
        (parquet([{"Text": "a", "label": 1}]), ": column 'text' is missing .* mean 'Text'"),
        (parquet([{"text": "a"}]), ": column 'label' is missing among text; text, label are need"),
        (parquet(PARQUET_GOOD)[:-40], " is no parquet file, or a broken one .* is it cut short"),
        (b"text,label\na,1\n", " is no parquet file"),
        (b"", " is no parquet file"),
    ],
)
def test_what_is_wrong_is_named_with_row_and_column(
    tmp_path: Path, data: bytes, message: str
) -> None:
    with pytest.raises(InputError, match=r"train\.parquet" + message) as caught:
        parquet_read(tmp_path, data)
    assert "\n" not in str(caught.value)


def test_a_broken_letter_far_down_is_named_with_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jpt.data.rows, "BATCH_ROWS", 1)
    with pytest.raises(InputError, match=r"train\.parquet, row 2: field 'text' is not UTF-8"):
        parquet_read(tmp_path, one_row(NOT_UTF8))


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"])] * 2 + [pa.array([1])], ["text", "text", "label"])
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"train\.parquet: 2 columns are called 'text'"):
        read_rows(dataclasses.replace(SENTIMENT, folder=tmp_path), "train")


def test_a_page_damaged_in_the_middle(tmp_path: Path) -> None:
    data = bytearray(one_row(pa.array([f"text {number}" * 9 for number in range(3000)])))
    data[2000:2600] = bytes(600)
    with pytest.raises(InputError, match=r"train\.parquet"):
        parquet_read(tmp_path, bytes(data))


def test_a_folder_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").mkdir()
    with pytest.raises(InputError, match=r"cannot read .*train\.parquet: it is a folder"):
        read_rows(dataclasses.replace(SENTIMENT, folder=tmp_path), "train")


# --- rows


def own_task(*labels: str) -> Task:
    words = {label: "word" for label in labels}
    return Task("own", "own", ("text",), labels, {"encoder": ("{text}",)}, {"default": words})


NUMBERS, TRUTHS, RATINGS = own_task("0", "1"), own_task("false", "true"), own_task("0.5", "1.0")
ANSWERS = own_task("None", "Some")


@pytest.mark.parametrize(
    ("task", "value", "label"),
    [
        *((NUMBERS, one, "1") for one in (1, 1.0, "1", "1.0", "1.00", True, "True", np.int8(1))),
        *((NUMBERS, one, "1") for one in (np.float32(1), np.True_, np.str_("1"), Decimal("1.0"))),
        *((NUMBERS, zero, "0") for zero in (0, 0.0, -0.0, False, "false", np.uint8(0))),
        *((TRUTHS, true, "true") for true in (True, "true", "True", "TRUE", np.True_)),
        *((TRUTHS, other, None) for other in (1, "1", 1.0, "yes")),
        *((SENTIMENT, one, "positive") for one in (1, 1.0, "1", "1.0", True, "positive")),
        *((RATINGS, one, "1.0") for one in (1.0, "1.0", np.float64(1))),
        *((NUMBERS, none, None) for none in (2, -1, 0.5, "0.5", "1.5", "1.", "1,0", "", " 1")),
        *((NUMBERS, none, None) for none in (float("nan"), float("inf"), Decimal("NaN"))),
        *((NUMBERS, none, None) for none in (Decimal("sNaN"), Decimal("Infinity"), [1], b"1")),
        *((NUMBERS, none, None) for none in (np.array([1]), None)),
        (ANSWERS, None, None),
        (ANSWERS, "None", "None"),
    ],
)
def test_labels_in_every_form(task: Task, value: object, label: str | None) -> None:
    assert find_label(value, task) == label


def test_absurd_numbers_are_no_labels() -> None:
    for absurd in (10**5000, "9" * 5000, "1" * 5000 + ".0", Decimal("1e5000"), 1e300):
        assert find_label(absurd, SENTIMENT) is None
        assert find_label(absurd, NUMBERS) is None


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([], "field 'answers' has no answer; give at least one"),
        ({"text": [], "answer_start": []}, "field 'answers' has no answer"),
        ({"answer_start": [1]}, "field 'answers' has answer_start but no 'text'"),
        ({}, "field 'answers' has nothing but no 'text'"),
        ("", "field 'answers' is empty"),
        (["a", "  "], "answer 2 of field 'answers' is empty"),
        (["a", None], "answer 2 of field 'answers' is null; it must be text"),
        ([["a"]], "answer 1 of field 'answers' is of type list; it must be text"),
        (["a", "\ud83d"], "answer 2 of field 'answers' has half a character"),
        (7, "field 'answers' is of type int; it must be a text or a list of texts"),
        (None, "field 'answers' is null"),
    ],
)
def test_wrong_answers_are_named(answers: object, message: str) -> None:
    with pytest.raises(InputError, match=r"^a\.jsonl:7: " + message):
        check_row({"question": "q", "answers": answers}, GENERATIVE, "a.jsonl:7")


def test_answers_under_another_name_and_answers_twice() -> None:
    from dataclasses import replace

    task = replace(GENERATIVE, answer_field="summary")
    row = check_row({"question": "q", "summary": ["a", "a"], "answers": "no"}, task, "row 1")
    assert row == {"question": "q", "answers": ("a", "a")}
    with pytest.raises(InputError, match="field 'summary' is missing; the row has question"):
        check_row({"question": "q"}, task, "row 1")


def test_messages_stay_short_and_in_one_line() -> None:
    row = {f"a\nlong name {number} " + "x" * 300: 1 for number in range(500)}
    with pytest.raises(InputError) as caught:
        check_row(row, SENTIMENT, "row 1")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500
    assert "488 more" in str(caught.value)


def test_anything_can_be_shown() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    assert show(Broken()) == "of type Broken"
    assert show(nested) == "of type list"
    assert show("x" * 10**6) == "'" + "x" * 59 + "..."


ROWS = [{"text": "a", "label": "b"}, {"text": "c", "label": "d"}]

OTHERS = [
    ROWS[::-1],
    ROWS[:1],
    [*ROWS, ROWS[0]],
    [{"text": "b", "label": "a"}, ROWS[1]],
    [{"text": "a", "answers": ("b",)}, ROWS[1]],
    [{"text": "a", "label": ("b",)}, ROWS[1]],
    [{"text": 'a","label":"b', "label": ""}, ROWS[1]],
    [{"text": "a\n", "label": "b"}, ROWS[1]],
    [{"texta": "", "label": "b"}, ROWS[1]],
    [],
]


def test_the_checksum_is_of_the_content() -> None:
    turned = [dict(reversed(row.items())) for row in ROWS]
    assert rows_checksum(turned) == rows_checksum(iter(ROWS)) == rows_checksum(ROWS)
    assert len({rows_checksum(rows) for rows in (ROWS, *OTHERS)}) == 1 + len(OTHERS)
    split, joined = {"answers": ("a", "b")}, {"answers": ("ab",)}
    assert rows_checksum([split]) != rows_checksum([joined])


def test_the_checksum_stays_the_same_over_versions() -> None:
    # Token caches and resumed runs depend on it. `printf '{"label": "b", "text": "\\u00e9"}\n'
    # | sha256sum` gives these digits.
    assert rows_checksum([{"text": "é", "label": "b"}]) == "5ce4a4c6d5562fee"


def test_the_checksum_is_quick() -> None:
    rows = [{"text": f"a short text, number {n}", "label": "positive"} for n in range(50_000)]
    begin = time.perf_counter()
    rows_checksum(rows)
    assert time.perf_counter() - begin < 1.0  # 0.08 s on an idle core


# --- sources

SOURCES_GOOD = {"text": "fine", "label": "positive"}


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
    task = sst2_in(tmp_path, {**SOURCES_GOOD, "id": 7})
    assert read_rows(task, "train") == [SOURCES_GOOD]


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
        ({**SOURCES_GOOD, "text": ""}, "field 'text' is empty"),
        ({**SOURCES_GOOD, "text": " \t"}, "field 'text' is empty"),
        ({**SOURCES_GOOD, "text": 3}, "field 'text' is of type int; it must be text"),
        ({**SOURCES_GOOD, "text": None}, "field 'text' is null; it must be text"),
        ({**SOURCES_GOOD, "text": "a\ud83d b"}, "field 'text' has half a character .* at letter 2"),
        ({**SOURCES_GOOD, "label": "great"}, r"label 'great' is none .* \(negative, positive\)"),
        ({**SOURCES_GOOD, "label": -1}, "label -1 is none of the labels of task sst2"),
        ({**SOURCES_GOOD, "label": None}, "label None is none"),
        ({**SOURCES_GOOD, "label": ["positive"]}, "label .* is none"),
    ],
)
def test_wrong_rows_are_named_with_their_line(tmp_path: Path, row: dict, message: str) -> None:
    task = sst2_in(tmp_path, SOURCES_GOOD, row)
    with pytest.raises(InputError, match=r"train\.jsonl:2: " + message) as caught:
        read_rows(task, "train")
    assert "\n" not in str(caught.value)


def test_an_empty_split(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.jsonl has no rows"):
        read_rows(sst2_in(tmp_path), "train")


def test_a_missing_split_says_what_is_there(tmp_path: Path) -> None:
    task = sst2_in(tmp_path, SOURCES_GOOD)
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
        read_rows(sst2_in(tmp_path, SOURCES_GOOD), "dev")


def test_a_task_without_any_source() -> None:
    with pytest.raises(InputError, match="neither a folder nor a hub id"):
        read_rows(dataclasses.replace(CATALOG["sst2"], hub=None), "test")


@pytest.mark.parametrize("suffix", READERS)
def test_a_split_is_found_in_every_format(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"test{suffix}").write_bytes(WRITERS[suffix]([SOURCES_GOOD]))
    task = load_task("sst2", data=tmp_path)
    assert read_rows(task, "test") == [SOURCES_GOOD]
    assert has_split(task, "test") and not has_split(task, "validation")


def test_two_files_of_one_split(tmp_path: Path) -> None:
    task = sst2_in(tmp_path, SOURCES_GOOD)
    (tmp_path / "train.csv").write_text("text,label\na,negative\n")
    message = r"more than one file of train rows: .*train\.jsonl and .*train\.csv; remove all but"
    with pytest.raises(InputError, match=message):
        read_rows(task, "train")
    named = dataclasses.replace(task, files={"train": "train.csv"})
    assert read_rows(named, "train") == [{"text": "a", "label": "negative"}]
    assert has_split(task, "train")


def test_a_missing_file_that_was_named(tmp_path: Path) -> None:
    task = dataclasses.replace(sst2_in(tmp_path, SOURCES_GOOD), files={"train": "rows.csv"})
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


# --- tabular


def tabular_read(
    tmp_path: Path, data: bytes, name: str = "train.csv", task=SENTIMENT
) -> list[dict]:
    (tmp_path / name).write_bytes(data)
    return read_rows(dataclasses.replace(task, folder=tmp_path, files={"train": name}), "train")


def test_rows_have_the_line_where_they_begin(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(b'text,label\n"a\nb",1\n\n  \nc,0\r\n"d\r\n\r\n",1\ne,0')
    rows = list(read_delimited(file, SENTIMENT))
    assert [number for number, _ in rows] == [2, 6, 7, 10]
    assert [row["text"] for _, row in rows] == ["a\nb", "c", "d\r\n\r\n", "e"]


def test_other_columns_and_their_order_do_no_harm(tmp_path: Path) -> None:
    data = b',label,id,text,,\n0,positive,7,"a, b",,\n'
    assert tabular_read(tmp_path, data) == [{"text": "a, b", "label": "positive"}]


def test_a_document_longer_than_the_usual_limit(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    document = "word, " * 60_000
    rows = tabular_read(tmp_path, f'text,label\n"{document}",1\n'.encode())
    assert rows == [{"text": document, "label": "positive"}]
    assert csv.field_size_limit() == limit


def test_an_ending_in_capitals(tmp_path: Path) -> None:
    assert len(tabular_read(tmp_path, b"text\tlabel\na, b\t1\n", name="Rows.TSV")) == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"train\.csv is empty; its first line must name the columns text, label"),
        (b"\n \n\n", r"train\.csv is empty"),
        (b"text,label\n", r"train\.csv has no rows"),
        (b"text,label\n\n \n", r"train\.csv has no rows"),
        (b"text,label\n,\n,\n", r"train\.csv:2: field 'text' is empty"),
        (b"\nText,label\na,1\n", r":2: column 'text' is missing .* did you mean 'Text'\?"),
        (
            b"sentence,gold\na,1\n",
            r":1: column 'text' is missing among sentence, gold; text, label",
        ),
        (b"text,lable\na,1\n", r":1: column 'label' is missing .* did you mean 'lable'\?"),
        (b"text, label\na, 1\n", r":1: column 'label' is missing .* did you mean ' label'\?"),
        (b"I liked it.,1\nb,0\n", r":1: column 'text' is missing among I liked it\., 1; "),
        (b'"two\nlines",1\nb,0\n', r":1: column 'text' is missing among 'two\\nlines', 1;"),
        (b"text;label\na;1\n", r":1: the header names one column only, 'text;label'.* by commas"),
        (b"text,label,text\na,1,b\n", r":1: 2 columns are called 'text'; rename or remove"),
        (b"text,label\na,1\nb\n", r":3: 1 cells for 2 columns; is a delimiter missing\?"),
        (b'text,label\n"a\n\n",1\nb, c,0\n', r":5: 3 cells for 2 columns; put cells with commas"),
        (b"text,label\na,1\ncaf\xe9,0\n", r":3: not UTF-8 .*save the file as UTF-8"),
        (b"\xef\xbb\xbftext,label\na,1\n\xe9,0\n", r":3: not UTF-8"),
        ("text,label\na,1\n".encode("utf-16"), r":1: not UTF-8"),
        ("text,label\na,1\n".encode("utf-16-le"), r":1: a NUL byte .*is it UTF-16\?"),
        (b"text,label\na,1\nb\0,0\n", r":3: a NUL byte stands there"),
        (b'text,label\na,1\n"b,0\nc,1\n', r":3: a quote that opens here is never closed; double"),
        (b'text,label\na,1\n"b" or c,0\n', r":3: broken quotes, ',' expected after '\"'; double"),
        (b"text,label\na,1\n ,0\n", r":3: field 'text' is empty"),
        (b"text,label\na,1\nb,2\n", r":3: label '2' is none of the labels of task sst2"),
        (b"text,label\na,\n", r":2: label '' is none of the labels"),
        (b"text,label\na,Positive\n", r":2: label 'Positive' is none .* did you mean 'positive'\?"),
    ],
)
def test_what_is_wrong_is_named_with_line_and_column(
    tmp_path: Path, data: bytes, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        tabular_read(tmp_path, data)
    assert str(tmp_path / "train.csv") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tabs_are_named_where_they_part_the_cells(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.tsv:1: the header .* parted by tabs"):
        tabular_read(tmp_path, b"text,label\na,1\n", name="train.tsv")
    with pytest.raises(InputError, match=r"train\.tsv:2: 3 cells .* put cells with tabs"):
        tabular_read(tmp_path, b"text\tlabel\na\t\t1\n", name="train.tsv")


@pytest.mark.parametrize(
    ("cell", "answers"),
    [
        ("Paris", ("Paris",)),
        ('"[""Paris"", ""Lutetia""]"', ("Paris", "Lutetia")),
        ('"{""text"": [""Paris""], ""answer_start"": [3]}"', ("Paris",)),
        ("[unclear] Paris", ("[unclear] Paris",)),
        ("{Paris}", ("{Paris}",)),
        ("1887", ("1887",)),
    ],
)
def test_a_cell_holds_one_answer_or_a_list(tmp_path: Path, cell: str, answers: tuple) -> None:
    rows = tabular_read(tmp_path, f"question,answers\nWhere?,{cell}\n".encode(), task=GENERATIVE)
    assert rows == [{"question": "Where?", "answers": answers}]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("", "field 'answers' is empty"),
        ("[]", "field 'answers' has no answer; give at least one"),
        ('"[""a"", """"]"', "answer 2 of field 'answers' is empty"),
        ('"[""a"", 3]"', "answer 2 of field 'answers' is of type int; it must be text"),
        ("\"['a', 'b']\"", r"field 'answers' looks like a list but is no JSON, .* double quotes"),
        ('"[""a"", ""b]"', "field 'answers' looks like a list but is no JSON"),
    ],
)
def test_a_wrong_cell_of_answers(tmp_path: Path, cell: str, message: str) -> None:
    with pytest.raises(InputError, match=r"train\.csv:2: " + message) as caught:
        tabular_read(tmp_path, f"question,answers\nWhere?,{cell}\n".encode(), task=GENERATIVE)
    assert "\n" not in str(caught.value)
