"""Rows of every source and format read equal; errors name file, line and field."""

import csv
import io
import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

import jpt.data.formats
import jpt.data.rows
from jpt.data.formats import READERS
from jpt.data.rows import (
    attach_data,
    has_split,
    is_visible,
    read_rows,
    rows_checksum,
    with_rows,
)
from jpt.errors import DataWarning, InputError
from jpt.tasks.catalog import CATALOG, load_task
from jpt.tasks.task import Task
from tests.helpers.files import GENERATIVE, PAIR, SENTIMENT, WRITERS, mutate, parquet, refusal

Row = dict[str, object]


def read_bytes(folder: Path, data: bytes, name: str, task: Task = SENTIMENT) -> list[Row]:
    (folder / name).write_bytes(data)
    return read_rows(replace(task, folder=folder, files={"train": name}), "train")


SNIPPETS = (
    *("fine", "Film", "42", "é", "日本", "👩‍🚀", "\u2028", "\u0085", "\u00a0", "\ufeff", "ß"),
    *(" ", "  ", ",", "\t", ";", '"', '""', "'", "\n", "\r\n", "\r", "\\", "\\n", "[", "{", "#"),
)


def random_text(rng: random.Random) -> str:
    text = "".join(rng.choices(SNIPPETS, k=rng.randrange(1, 9)))
    return text if is_visible(text) else random_text(rng)


def random_rows(task: Task, rng: random.Random, size: int) -> list[dict]:
    rows = [{name: random_text(rng) for name in task.fields} for _ in range(size)]
    for row in rows:
        if task.is_generative:
            row["answers"] = [random_text(rng) for _ in range(rng.randrange(1, 4))]
        else:
            row["label"] = rng.choice(task.labels)
    return rows


def expected(rows: list[dict]) -> list[dict]:
    return [{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows]


@pytest.mark.parametrize("task", [SENTIMENT, PAIR, GENERATIVE], ids=lambda task: task.name)
def test_all_formats_and_given_rows_read_equal(task: Task, tmp_path: Path) -> None:
    assert set(WRITERS) == set(READERS)
    for seed in range(40):
        rows = random_rows(task, random.Random(seed), size=7)
        for suffix, write in WRITERS.items():
            read = read_bytes(tmp_path, write(rows), f"rows{suffix}", task)
            assert read == expected(rows), (seed, suffix)
            assert rows_checksum(read) == rows_checksum(expected(rows))
        assert read_rows(with_rows(task, {"train": rows}), "train") == expected(rows)


def test_empty_lines_byte_order_marks_and_line_ends_are_ignored(tmp_path: Path) -> None:
    rows = random_rows(PAIR, random.Random(0), size=5)
    for row in rows:  # line ends are replaced below, so none in the texts
        row.update({name: row[name].replace("\n", "").replace("\r", "") for name in PAIR.fields})
    for suffix in (".csv", ".tsv", ".jsonl"):
        text = WRITERS[suffix](rows).replace(b"\r\n", b"\n")
        for ending in (b"\n\n", b"\r\n", b"\n  \n"):
            data = b"\xef\xbb\xbf" + text.replace(b"\n", ending)
            assert read_bytes(tmp_path, data, f"rows{suffix}", PAIR) == rows, (suffix, ending)


DAMAGE = (
    *(b'"', b"\n", b",", b"\t", b"\0", b"\xff", b"[", b"{", b"'", b"\\", b"\\u", b"\\ud800"),
    *(b"\r", b"null", b"NaN", b"1e999", b"\xef\xbb\xbf", b"\xff\xfe", b"true", b"[1]"),
)


@pytest.mark.parametrize("suffix", WRITERS)
def test_damaged_files_give_rows_or_one_line(suffix: str, tmp_path: Path) -> None:
    rng, name, refused = random.Random(suffix), f"train{suffix}", 0
    tasks = (SENTIMENT, GENERATIVE)
    whole = [(task, WRITERS[suffix](random_rows(task, rng, 6))) for task in tasks]
    for _ in range(300):
        task, data = rng.choice(whole)
        try:
            rows = read_bytes(tmp_path, mutate(data, rng, DAMAGE), name, task)
        except InputError as error:
            refused += 1
            assert str(tmp_path / name) in str(error) and "\n" not in str(error)
        else:
            assert all(row[name].strip() for row in rows for name in task.fields)
    assert refused > 100


GOOD = {"text": "fine", "label": "positive"}


def test_lists_and_generators_are_copied() -> None:
    def generate() -> Iterator[dict]:
        row = {}
        for number in range(3):
            row.update(text=f"row {number}", label=number % 2)  # one and the same dictionary
            yield row

    task = attach_data(SENTIMENT, {"train": [GOOD], "test": generate()})
    assert read_rows(task, "train") == [GOOD]
    for _ in range(2):
        assert [row["text"] for row in read_rows(task, "test")] == ["row 0", "row 1", "row 2"]
    assert has_split(task, "train") and has_split(task, "test")
    assert not has_split(task, "validation")
    row = dict(GOOD)
    task = with_rows(SENTIMENT, {"train": [row]})
    row["text"] = "changed"
    assert read_rows(task, "train") == [GOOD]


def labels_of_library(task: Task, names: list[str], *numbers: int, form: str | None = None) -> list:
    import datasets

    classes = datasets.ClassLabel(names=names)
    features = datasets.Features({"text": datasets.Value("string"), "label": classes})
    rows = [{"text": "a", "label": number} for number in numbers]
    data = datasets.Dataset.from_list(rows, features=features).with_format(form)
    return [row["label"] for row in read_rows(with_rows(task, {"train": data}), "train")]


def test_class_names_of_a_data_set_of_the_library() -> None:
    for form in (None, "numpy"):  # by name, not by position
        found = labels_of_library(SENTIMENT, ["positive", "negative"], 0, 1, form=form)
        assert found == ["positive", "negative"] and {type(label) for label in found} == {str}
    assert labels_of_library(MOOD, ["0", "1"], 0, 1) == ["bad", "good"]  # no names
    assert labels_of_library(NUMBERS, ["neg", "pos"], 0, 1) == ["0", "1"]
    with refusal(r"data name their classes pos, neg, .* sst2 knows none \(bad, good\); rename"):
        labels_of_library(MOOD, ["pos", "neg"], 0, 1)
    with pytest.warns(DataWarning, match="no label .* 1 of 3 rows"):
        assert labels_of_library(MOOD, ["good", "bad"], 0, -1, 1) == ["good", "bad"]


def test_answers_of_every_form() -> None:
    given = ["a", ["a", "b"], ("a",), np.array(["a", "b"]), {"text": ["a"], "answer_start": [3]}]
    task = with_rows(GENERATIVE, {"train": [{"question": "q", "answers": one} for one in given]})
    answers = [row["answers"] for row in read_rows(task, "train")]
    assert answers == [("a",), ("a", "b"), ("a",), ("a", "b"), ("a",)]


def test_invalid_data() -> None:
    for data, message in (
        ({}, r'data of task sst2 has no split; give {"train": rows'),
        ({"train": []}, "rows given for train are empty; task sst2 needs at least one"),
        ({"train": iter(())}, "rows given for train are empty"),
        ({"training": [GOOD]}, "unknown split 'training'; did you mean train"),
        ({0: [GOOD]}, "unknown split '0'"),
        ({"text": ["a"], "label": [1]}, "unknown split 'text'"),
        ({"train": 3}, "rows given for train are of type int; give a list of rows"),
        ({"train": "train.csv"}, "rows given for train are of type str"),
        ({"train": {"text": ["a"]}}, r'are of type dict; give .* {"text": ..., "label": ...}'),
        ({"train": [GOOD, ("a", 1)]}, "given for train, row 2: expected a mapping .*, got tuple"),
        ([GOOD], "data is of type list; give a folder, or rows as"),
    ):
        with refusal(message):
            attach_data(SENTIMENT, data)


def test_errors_in_given_rows() -> None:
    task = with_rows(SENTIMENT, {"test": [GOOD, GOOD, {"txt": "a"}], "validation": [GOOD]})
    with refusal("^rows given for test, row 3: field 'text' is missing; .*; did you mean"):
        read_rows(task, "test")
    with refusal("no train rows: rows are given for test, validation"):
        read_rows(task, "train")
    task = replace(SENTIMENT, rows={"train": (["fine", "positive"],)})
    with refusal("rows given for train, row 1: expected a mapping .*, got list"):
        read_rows(task, "train")


def test_the_last_attached_data_counts(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\nfrom the folder,1\n")
    given = attach_data(attach_data(SENTIMENT, tmp_path), {"train": [GOOD]})
    assert read_rows(given, "train") == [GOOD] and given.folder is None
    again = attach_data(given, str(tmp_path))
    assert read_rows(again, "train") == [{"text": "from the folder", "label": "positive"}]
    assert attach_data(again, None) is again


def test_folders_and_tasks_that_take_no_data(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for task, data, message in (
        (SENTIMENT, tmp_path / "file", "folder .*file is a file; give a folder with the rows"),
        (SENTIMENT, tmp_path / "gone", "folder .*gone does not exist"),
        (load_task("builtin/imdb"), tmp_path, "builtin/imdb has built-in rows; omit data"),
        (load_task("builtin/imdb"), {"train": [GOOD]}, "builtin/imdb has built-in rows; omit data"),
    ):
        with refusal(message):
            attach_data(task, data)


def read(tmp_path: Path, data: bytes, name: str = "rows.jsonl") -> list[tuple[int, dict]]:
    file = tmp_path / name
    file.write_bytes(data)
    rows = READERS[file.suffix](file, SENTIMENT)
    return [(int(re.split("[: ]", where)[-1]), row) for where, row in rows]


def test_json_rows_have_numbers(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n'
    assert read(tmp_path, data) == [(1, {"a": 1}), (2, {"a": 2})]
    assert read(tmp_path, b'{"a": 1}\n\n  \n{"a": 2}') == [(1, {"a": 1}), (4, {"a": 2})]
    data = '{"a": "x\u2028y\u0085z"}\n'.encode()
    assert read(tmp_path, data) == [(1, {"a": "x\u2028y\u0085z"})]
    data = b'\xef\xbb\xbf\n[{"a": "x\\ny"},\n\n {"a": 2}]\n'
    assert read(tmp_path, data, "rows.json") == [(1, {"a": "x\ny"}), (2, {"a": 2})]


def test_broken_json(tmp_path: Path) -> None:
    for data, message in (
        (
            b'{"a": 1}\n{"a": \n',
            r"jsonl:2 is not JSON \(line 2, column 7: Exp.*; write one JSON object per line",
        ),
        (b'{"a": 1} {"a": 2}\n', r"jsonl:1 is not JSON \(line 1, column 10: Extra data"),
        (b'{"a": 1}\n\n["a"]\n', "jsonl:3: expected a JSON object, got list"),
        (b'"a"', "jsonl:1: expected a JSON object, got str"),
        (b"[" * 100_000, "jsonl:1 is not JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "jsonl:1 is not JSON"),
        (b'{"a": 1}\n{"a": "caf\xe9"}\n', "jsonl:2: not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "jsonl:1: not UTF-8"),
        (b'{"a": 1}\n{"a": 2}\n', r"json is not a JSON list; name it .jsonl"),
        (b"", "json is not a JSON list"),
        (
            b'[{"a": 1},\n{"a": }]',
            r"json is not JSON \(line 2, column 7: Expecting value\); repair",
        ),
        (b'[{"a": 1}, 3]', "json, row 2: expected a JSON object, got int"),
        (b"[" * 100_000, "json is not JSON"),
        (b'[{"a": "caf\xe9"}]', "json:1: not UTF-8"),
    ):
        with refusal(f"rows.{message}"):
            read(tmp_path, data, "rows.jsonl" if message.startswith("jsonl") else "rows.json")


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with refusal("cannot read"):
        list(READERS[".jsonl"](tmp_path, SENTIMENT))
    (tmp_path / "train.parquet").mkdir()
    with refusal(r"cannot read .*train\.parquet: it is a folder"):
        read_rows(replace(SENTIMENT, folder=tmp_path), "train")


PARQUET_GOOD = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]


def read_file(folder: Path, data: bytes, task: Task = SENTIMENT) -> list[Row]:
    return read_bytes(folder, data, "train.parquet", task)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        *((["positive", "negative"], kind) for kind in (pa.string(), pa.large_string())),
        (["positive", "negative"], pa.dictionary(pa.int8(), pa.string())),
        *(([1, 0], kind) for kind in (pa.int8(), pa.uint64(), pa.decimal128(3, 1))),
        *((["1", "0"], pa.string()), ([1.0, 0.0], pa.float64()), ([True, False], pa.bool_())),
    ],
    ids=str,
)
def test_labels_of_every_type(tmp_path: Path, values: list, kind: pa.DataType) -> None:
    schema = pa.schema({"label": kind, "text": pa.large_string()})
    rows = [{"text": text, "label": value} for text, value in zip("ab", values, strict=True)]
    read_back = read_file(tmp_path, parquet(rows, schema))
    assert read_back == [{"text": "a", "label": "positive"}, {"text": "b", "label": "negative"}]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["positive", "negative"], ["negative", "positive"]),  # the file's own order
        (["bad", "good"], ["positive", "negative"]),  # names unknown here: the hub's numbers
    ],
)
def test_class_names_written_by_the_datasets_library(tmp_path, names: list[str], labels: list[str]):
    import datasets

    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    data = datasets.Dataset.from_list(PARQUET_GOOD, features=datasets.Features(features))
    data.to_parquet(tmp_path / "data.parquet")
    rows = read_file(tmp_path, (tmp_path / "data.parquet").read_bytes())
    assert [row["label"] for row in rows] == labels


def test_an_unknown_class_is_not_mistaken_for_another(tmp_path: Path) -> None:
    # Class 1 of the file is neutral; by the hub's numbers it would be positive.
    names = b'{"info": {"features": {"label": {"names": ["negative", "neutral", "positive"]}}}}'
    schema = pa.schema({"text": pa.string(), "label": pa.int64()}, {b"huggingface": names})
    with refusal(r"train\.parquet, row 1: label 'neutral' is not"):
        read_file(tmp_path, parquet(PARQUET_GOOD, schema))


def test_answers_in_parquet(tmp_path: Path) -> None:
    for answers in (["x", "y"], {"text": ["x", "y"], "answer_start": [1, 2]}):
        rows = read_file(tmp_path, parquet([{"question": "q", "answers": answers}]), GENERATIVE)
        assert rows == [{"question": "q", "answers": ("x", "y")}]


def test_rows_of_several_groups_and_batches_are_in_order(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(jpt.data.formats, "BATCH_ROWS", 5)
    rows = [{"text": f"{number}", "label": number % 2} for number in range(17)]
    texts = [row["text"] for row in read_file(tmp_path, parquet(rows))]
    assert texts == [row["text"] for row in rows]
    rows[12]["text"] = ""
    with refusal(r"train\.parquet, row 13: field 'text' is empty"):
        read_file(tmp_path, parquet(rows))


def test_other_columns_are_not_read(tmp_path: Path) -> None:
    data = bytearray(parquet([{**row, "more": "x" * 100} for row in PARQUET_GOOD]))
    file = pyarrow.parquet.ParquetFile(pa.BufferReader(bytes(data)))
    unneeded = file.metadata.row_group(0).column(2)
    begin = unneeded.dictionary_page_offset
    data[begin : begin + unneeded.total_compressed_size] = b"\xff" * unneeded.total_compressed_size
    with pytest.raises(Exception, match="(?i)thrift|page|invalid"):  # it is damaged there
        pyarrow.parquet.read_table(pa.BufferReader(bytes(data)))
    assert [row["text"] for row in read_file(tmp_path, bytes(data))] == ["a", "b"]


def one_row(*columns: pa.Array, names: Sequence[str] = ("text", "label")) -> bytes:
    data = io.BytesIO()
    columns = columns if len(columns) > 1 else (*columns, pa.array([1] * len(columns[0])))
    pyarrow.parquet.write_table(pa.Table.from_arrays(columns, names), data)
    return data.getvalue()


ENDS, TEXT = pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")
NOT_UTF8 = pa.StringArray.from_buffers(2, ENDS, TEXT)


def test_broken_parquet(tmp_path: Path) -> None:
    for data, message in (
        (one_row(pa.array([1, 2])), ", row 1: field 'text' is of type int; expected text"),
        (one_row(pa.array([b"a"])), ", row 1: field 'text' is of type bytes; expected text"),
        (one_row(pa.array([["a"]])), ", row 1: field 'text' is of type list"),
        (one_row(pa.array(["a", None])), ", row 2: field 'text' is null; expected text"),
        (one_row(pa.array(["a", " "])), ", row 2: field 'text' is empty"),
        (one_row(NOT_UTF8), ", row 2: field 'text' cannot be read .*utf-8"),
        (one_row(pa.array(["a"]), pa.array([2])), ", row 1: label 2 is not a label"),
        (one_row(pa.array(["a"]), pa.array([0.5])), ", row 1: label 0.5 is not a label"),
        (one_row(pa.array(["a"]), pa.nulls(1)), " has 1 rows, but no label"),
        (one_row(pa.array([], pa.string()), pa.array([], pa.int8())), " has no rows"),
        (parquet([{"Text": "a", "label": 1}]), ": column 'text' is missing .* mean 'Text'"),
        (parquet([{"text": "a"}]), ": column 'label' is missing among text; expected text, label"),
        (parquet(PARQUET_GOOD)[:-40], " is not a valid parquet file .* if it is truncated"),
        (b"text,label\na,1\n", " is not a valid parquet file"),
        (b"", " is not a valid parquet file"),
    ):
        with refusal(r"train\.parquet" + message):
            read_file(tmp_path, data)


def test_later_batches_repeated_columns_and_damaged_pages(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(jpt.data.formats, "BATCH_ROWS", 1)
    with refusal(r"train\.parquet, row 2: field 'text' cannot be read .*utf-8"):
        read_file(tmp_path, one_row(NOT_UTF8))
    data = bytearray(one_row(pa.array([f"text {number}" * 9 for number in range(3000)])))
    data[2000:2600] = bytes(600)
    with refusal(r"train\.parquet"):
        read_file(tmp_path, bytes(data))
    columns = pa.array(["a"]), pa.array(["a"]), pa.array([1])
    with refusal(r"train\.parquet: 2 columns are named 'text'"):
        read_file(tmp_path, one_row(*columns, names=("text", "text", "label")))


def task_of(*labels: str) -> Task:
    words = {"default": dict.fromkeys(labels, "word")}
    return replace(SENTIMENT, labels=labels, label_words=words, hub=None)


NUMBERS, TRUTHS, RATINGS = task_of("0", "1"), task_of("false", "true"), task_of("0.5", "1.0")
ANSWERS, MOOD, FOUR = task_of("None", "Some"), task_of("bad", "good"), task_of(*"abcd")


def test_labels_in_every_form() -> None:
    for task, value, label in (
        *((NUMBERS, one, "1") for one in (1, 1.0, "1", "1.0", "1.00", True, "True", np.int8(1))),
        *((NUMBERS, one, "1") for one in (np.float32(1), np.True_, np.str_("1"), Decimal("1.0"))),
        *((NUMBERS, zero, "0") for zero in (0, 0.0, -0.0, False, "false", np.uint8(0))),
        *((TRUTHS, true, "true") for true in (True, "true", "True", "TRUE", np.True_)),
        *((TRUTHS, one, "true") for one in (1, "1", 1.0)),
        *((TRUTHS, other, None) for other in (2, "2", "yes", "T")),
        *((SENTIMENT, one, "positive") for one in (1, 1.0, "1", "1.0", True, "positive")),
        *((RATINGS, one, "1.0") for one in (1.0, "1.0", np.float64(1))),
        *((NUMBERS, none, None) for none in (2, -1, 0.5, "0.5", "1.5", "1.", "1,0", "", " 1")),
        *((NUMBERS, none, None) for none in (float("nan"), float("inf"), Decimal("NaN"))),
        *((NUMBERS, none, None) for none in (Decimal("sNaN"), Decimal("Infinity"), [1], b"1")),
        *((NUMBERS, none, None) for none in (np.array([1]), None)),
        (ANSWERS, None, None),
        (ANSWERS, "None", "None"),
        *((MOOD, one, "good") for one in (1, "1", "1.00", np.float32(1), True, "TRUE", "good")),
        *((FOUR, three, "d") for three in (3, 3.0, "3.0", Decimal(3), np.int64(3))),
        *((FOUR, none, None) for none in (4, -2, 0.5, "1,0", " 1", "٣x", float("inf"), True)),
        *((task_of("no", "yes"), yes, "yes") for yes in (1, True, "yes")),
        *((task_of("yes", "no"), none, None) for none in (0, 1, True, "false")),
    ):
        assert task.label_of(value) == label


def test_absurd_numbers_are_no_labels() -> None:
    for absurd in (10**5000, "9" * 5000, "1" * 5000 + ".0", Decimal("1e5000"), 1e300):
        for task in (SENTIMENT, NUMBERS):
            assert task.label_of(absurd) is None and not task.is_unlabelled(absurd)


def test_invalid_values() -> None:
    for changes, message in (
        ({"text": ""}, "field 'text' is empty"),
        ({"text": " \t"}, "field 'text' is empty"),
        ({"text": 3}, "field 'text' is of type int; expected text"),
        ({"text": float("nan")}, "field 'text' is of type float; expected text"),
        ({"text": None}, "field 'text' is null; expected text"),
        ({"text": "a\ud83d b"}, "field 'text' has half of a surrogate pair .* at character 2"),
        ({"label": "great"}, r"label 'great' is not a label .* \(negative, positive\)"),
        ({"label": 2}, r"label 2 is not .*; class numbers: 0 negative, 1 positive"),
        ({"label": -2}, "label -2 is not a label"),
        ({"label": ["positive"]}, "label .* is not a label"),
        ({"label": np.array([[1, 2], [3, 4]])}, r"label array\(\[\[1, 2\], \[3, 4\]\]\) is"),
        ({"label": 10**5000}, "label of type int is not a label"),
        ({"label": "1" * 5000}, "label '1111.* is not a label"),
        ({"answers": []}, "field 'answers' has no answer; give at least one"),
        ({"answers": {"text": [], "answer_start": []}}, "field 'answers' has no answer"),
        ({"answers": {"answer_start": [1]}}, "field 'answers' has answer_start but no 'text'"),
        ({"answers": {}}, "field 'answers' has nothing but no 'text'"),
        ({"answers": ""}, "field 'answers' is empty"),
        ({"answers": ["a", "  "]}, "answer 2 of field 'answers' is empty"),
        ({"answers": ["a", None]}, "answer 2 of field 'answers' is null; expected text"),
        ({"answers": [["a"]]}, "answer 1 of field 'answers' is of type list; expected text"),
        ({"answers": ["a", "\ud83d"]}, "answer 2 of field 'answers' has half of a surrogate pair"),
        ({"answers": 7}, "field 'answers' is of type int; expected a text or a list of texts"),
        ({"answers": None}, "field 'answers' is null"),
    ):
        task, row = SENTIMENT, {**GOOD, **changes}
        if "answers" in changes:
            task, row = GENERATIVE, {"question": "q", **changes}
        with refusal(r"^a\.jsonl:7: " + message):
            jpt.data.rows.check_row(row, task, "a.jsonl:7")


def test_answers_under_another_name_and_answers_twice() -> None:
    task = replace(GENERATIVE, answer_field="summary")
    row = jpt.data.rows.check_row(
        {"question": "q", "summary": ["a", "a"], "answers": "no"}, task, "row 1"
    )
    assert row == {"question": "q", "answers": ("a", "a")}
    with refusal("field 'summary' is missing; the row has question"):
        jpt.data.rows.check_row({"question": "q"}, task, "row 1")


def test_messages_stay_short_and_in_one_line() -> None:
    row = {f"a\nlong name {number} " + "x" * 300: 1 for number in range(500)}
    with pytest.raises(InputError) as caught:
        jpt.data.rows.check_row(row, SENTIMENT, "row 1")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500
    assert "488 more" in str(caught.value)


def test_anything_can_be_shown() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    assert jpt.data.formats.show(Broken()) == "of type Broken"
    assert jpt.data.formats.show(nested) == "of type list"
    assert jpt.data.formats.show("x" * 10**6) == "'" + "x" * 59 + "..."


ROWS = [{"text": "a", "label": "b"}, {"text": "c", "label": "d"}]
CHANGED = [
    *(
        {"text": "b", "label": "a"},
        {"text": "a", "answers": ("b",)},
        {"text": "a", "label": ("b",)},
    ),
    *({"text": 'a","label":"b', "label": ""}, {"text": "a\n", "label": "b"}),
    {"texta": "", "label": "b"},
]
OTHERS = [ROWS[::-1], ROWS[:1], [*ROWS, ROWS[0]], *([row, ROWS[1]] for row in CHANGED), []]


def test_the_checksum_is_of_the_content() -> None:
    turned = [dict(reversed(row.items())) for row in ROWS]
    assert rows_checksum(turned) == rows_checksum(iter(ROWS)) == rows_checksum(ROWS)
    assert len({rows_checksum(rows) for rows in (ROWS, *OTHERS)}) == 1 + len(OTHERS)
    split, joined = {"answers": ("a", "b")}, {"answers": ("ab",)}
    assert rows_checksum([split]) != rows_checksum([joined])
    # Caches and resumed runs depend on it: `sha256sum` of the row as a line of JSON.
    assert rows_checksum([{"text": "é", "label": "b"}]) == "5ce4a4c6d5562fee"
    rows = [{"text": f"a short text, number {n}", "label": "positive"} for n in range(50_000)]
    begin = time.perf_counter()
    rows_checksum(rows)
    assert time.perf_counter() - begin < 1.0  # 0.08 s on an idle core


def sst2_in(folder: Path, *rows: object, split: str = "train") -> Task:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return load_task("sst2", data=folder)


# Rows of each split, as the README of the reference data has them.
COUNTS = {"sst2": (6906, 872, 1221), "imdb": (2000, 400, 1200)}
COUNTS |= {"mnli": (8000, 1000, 2999), "qqp": (7098, 900, 1200)}


@pytest.mark.parametrize("name", COUNTS)
def test_real_folders_are_read_whole(name: str, reference_folder: Path) -> None:
    task = load_task(reference_folder / "data" / name)
    splits = [read_rows(task, split) for split in ("train", "validation", "test")]
    assert tuple(map(len, splits)) == COUNTS[name]
    for rows in splits:
        assert {frozenset(row) for row in rows} == {frozenset((*task.fields, "label"))}
        assert set(Counter(row["label"] for row in rows)) == set(task.labels)


def test_other_fields_class_numbers_and_names(tmp_path: Path) -> None:
    task = sst2_in(tmp_path, {**GOOD, "id": 7}, {**GOOD, "label": 1}, {**GOOD, "label": 0})
    rows = read_rows(task, "train")
    assert rows == [GOOD, GOOD, {**GOOD, "label": "negative"}]
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "gold": "negative"}\n')
    task = replace(task, files={"test": "rows.jsonl"}, label_field="gold")
    assert read_rows(task, "test") == [{"text": "a", "label": "negative"}]


def test_missing_sources(tmp_path: Path) -> None:
    with refusal(r"has no \.jsonl, \.csv, .* or \.json files"):
        read_rows(load_task("sst2", data=tmp_path), "test")
    with refusal(r"train\.jsonl has no rows"):
        read_rows(sst2_in(tmp_path), "train")
    sst2 = sst2_in(tmp_path, GOOD)
    files = {"test": "rows.xml", "train": "rows.csv"}
    for task, split, message in (
        (sst2, "test", r"no test rows: .*test\.jsonl is missing.* train\.jsonl"),
        (sst2, "dev", "unknown split 'dev'"),
        (replace(sst2, files=files), "test", r"rows\.xml: unsupported file format; use \.jsonl"),
        (replace(sst2, files=files), "train", r"no train rows: .*rows\.csv is missing; .* \[files"),
        (replace(CATALOG["sst2"], hub=None), "test", "neither a folder nor a hub id"),
    ):
        with refusal(message):
            read_rows(task, split)


@pytest.mark.parametrize("suffix", READERS)
def test_a_split_is_found_in_every_format(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"test{suffix}").write_bytes(WRITERS[suffix]([GOOD]))
    task = load_task("sst2", data=tmp_path)
    assert read_rows(task, "test") == [GOOD]
    assert has_split(task, "test") and not has_split(task, "validation")


def test_two_files_of_one_split(tmp_path: Path) -> None:
    task = sst2_in(tmp_path, GOOD)
    (tmp_path / "train.csv").write_text("text,label\na,negative\n")
    with refusal(r"more than one file of train .*train\.jsonl and .*train\.csv; remove all but"):
        read_rows(task, "train")
    named = replace(task, files={"train": "train.csv"})
    assert read_rows(named, "train") == [{"text": "a", "label": "negative"}]
    assert has_split(task, "train")


ANSWER_FIELDS = {"squad": "answers", "nq_open": "answers", "multi_news": "summary"}


@pytest.mark.parametrize("name", ANSWER_FIELDS)
def test_real_folders_with_answers_are_read_whole(name: str, reference_folder: Path) -> None:
    folder = reference_folder / "data" / name
    lines = (folder / "test.jsonl").read_text(encoding="utf-8").split("\n")
    raw, answer_field = [json.loads(line) for line in lines if line], ANSWER_FIELDS[name]
    field = next(name for name in raw[0] if name != answer_field)
    templates = {"encoder_decoder": (f"{{{field}}}",)}
    task = replace(GENERATIVE, fields=(field,), templates=templates, answer_field=answer_field)
    rows = read_rows(replace(task, folder=folder), "test")
    assert [row[field] for row in rows] == [row[field] for row in raw]
    wanted = [row[answer_field] for row in raw]
    wanted = [tuple(one) if isinstance(one, list) else (one,) for one in wanted]
    assert [row["answers"] for row in rows] == wanted


def test_rows_have_the_line_where_they_begin(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(b'text,label\n"a\nb",1\n\n  \nc,0\r\n"d\r\n\r\n",1\ne,0')
    rows = list(READERS[".csv"](file, SENTIMENT))
    assert [where for where, _ in rows] == [f"{file}:{number}" for number in (2, 6, 7, 10)]
    assert [row["text"] for _, row in rows] == ["a\nb", "c", "d\r\n\r\n", "e"]


def test_other_columns_long_cells_and_capitals(tmp_path: Path) -> None:
    data = b',label,id,text,,\n0,positive,7,"a, b",,\n'
    assert read_bytes(tmp_path, data, "a.csv") == [{"text": "a, b", "label": "positive"}]
    assert len(read_bytes(tmp_path, b"text\tlabel\na, b\t1\n", "Rows.TSV")) == 1
    limit, document = csv.field_size_limit(), "word, " * 60_000
    rows = read_bytes(tmp_path, f'text,label\n"{document}",1\n'.encode(), "a.csv")
    assert rows == [{"text": document, "label": "positive"}]
    assert csv.field_size_limit() == limit


def test_broken_tables(tmp_path: Path) -> None:
    for data, message in (
        (b"", r"train\.csv is empty; expected a header with text, label"),
        (b"\n \n\n", r"train\.csv is empty"),
        (b"text,label\n", r"train\.csv has no rows"),
        (b"text,label\n\n \n", r"train\.csv has no rows"),
        (b"text,label\n,\n,\n", r"train\.csv:2: field 'text' is empty"),
        (b"\nText,label\na,1\n", r":2: column 'text' is missing .* did you mean 'Text'\?"),
        (b"sentence,gold\na,1\n", r":1: column 'text' is missing among sentence, gold; exp"),
        (b"text,lable\na,1\n", r":1: column 'label' is missing .* did you mean 'lable'\?"),
        (b"text, label\na, 1\n", r":1: column 'label' is missing .* did you mean ' label'\?"),
        (b"I liked it.,1\nb,0\n", r":1: column 'text' is missing among I liked it\., 1; "),
        (b'"two\nlines",1\nb,0\n', r":1: column 'text' is missing among 'two\\nlines', 1;"),
        (b"text;label\na;1\n", r":1: expected text, label in .* by commas, got one column 'text;"),
        (b"text,label,text\na,1,b\n", r":1: 2 columns are named 'text'; rename or remove"),
        (b"text,label\na,1\nb\n", r":3: expected 2 cells, got 1; is a delimiter missing\?"),
        (b'text,label\n"a\n\n",1\nb, c,0\n', r":5: expected 2 cells, got 3; put cells with commas"),
        (b"text,label\na,1\ncaf\xe9,0\n", r":3: not UTF-8 .*save the file as UTF-8"),
        (b"\xef\xbb\xbftext,label\na,1\n\xe9,0\n", r":3: not UTF-8"),
        ("text,label\na,1\n".encode("utf-16"), r":1: not UTF-8"),
        ("text,label\na,1\n".encode("utf-16-le"), r":1: NUL byte .*if the file is UTF-16"),
        (b"text,label\na,1\nb\0,0\n", r":3: NUL byte in the text"),
        (b'text,label\na,1\n"b,0\nc,1\n', r":3: unclosed quote; double"),
        (b'text,label\na,1\n"b" or c,0\n', r":3: broken quotes, ',' expected after '\"'; double"),
        (b"text,label\na,1\n ,0\n", r":3: field 'text' is empty"),
        (b"text,label\na,1\nb,2\n", r":3: label '2' is not a label of task sst2"),
        (b"text,label\na,\n", r"train\.csv has 1 rows, but no label; task sst2 needs"),
        (b"text,label\na,Positive\n", r":2: label 'Positive' is not .* did you mean 'positive'\?"),
    ):
        with refusal(message) as caught:
            read_bytes(tmp_path, data, "train.csv")
        assert str(tmp_path / "train.csv") in str(caught.value)


def test_tabs_are_named_where_they_part_the_cells(tmp_path: Path) -> None:
    with refusal(r"train\.tsv:1: .* separated by tabs"):
        read_bytes(tmp_path, b"text,label\na,1\n", "train.tsv")
    with refusal(r"train\.tsv:2: .* got 3; put cells with tabs"):
        read_bytes(tmp_path, b"text\tlabel\na\t\t1\n", "train.tsv")


def read_cell(folder: Path, cell: str) -> list[Row]:
    return read_bytes(folder, f"question,answers\nq,{cell}\n".encode(), "train.csv", GENERATIVE)


def test_a_cell_holds_one_answer_or_a_list(tmp_path: Path) -> None:
    cells = {text: (text,) for text in ("Paris", "[unclear] Paris", "{Paris}", "1887")}
    cells |= {'"[""Paris"", ""Lutetia""]"': ("Paris", "Lutetia")}
    cells |= {'"{""text"": [""Paris""], ""answer_start"": [3]}"': ("Paris",)}
    for cell, answers in cells.items():
        assert read_cell(tmp_path, cell) == [{"question": "q", "answers": answers}]


def test_a_broken_cell_of_answers(tmp_path: Path) -> None:
    for cell, message in (
        ("", "is empty"),
        ("[]", "has no answer; give at least one"),
        ('"[""a"", """"]"', "is empty"),
        ('"[""a"", 3]"', "is of type int; expected text"),
        ("\"['a', 'b']\"", "looks like a list but is not JSON, .* double quotes"),
        ('"[""a"", ""b]"', "looks like a list but is not JSON"),
    ):
        with refusal(r"train\.csv:2: (answer 2 of )?field 'answers' " + message):
            read_cell(tmp_path, cell)
