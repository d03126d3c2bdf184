"""Parquet: each type a column may have, class names, and the row that a message names."""

import dataclasses
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

import jpt.data.rows
from jpt.data.rows import read_rows
from jpt.errors import InputError
from tests.data.row_files import GENERATIVE, SENTIMENT, parquet

GOOD = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]


def read(tmp_path: Path, data: bytes, task=SENTIMENT) -> list[dict]:
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
    read_back = read(tmp_path, parquet(rows, schema))
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
    data = datasets.Dataset.from_list(GOOD, features=datasets.Features(features))
    data.to_parquet(tmp_path / "data.parquet")
    rows = read(tmp_path, (tmp_path / "data.parquet").read_bytes())
    assert [row["label"] for row in rows] == labels


def test_a_class_that_the_task_lacks_is_not_taken_for_another(tmp_path: Path) -> None:
    # Class 1 of the file is neutral; by the hub's numbers it would be positive.
    names = b'{"info": {"features": {"label": {"names": ["negative", "neutral", "positive"]}}}}'
    schema = pa.schema({"text": pa.string(), "label": pa.int64()}, {b"huggingface": names})
    with pytest.raises(InputError, match=r"train\.parquet, row 1: label 'neutral' is none"):
        read(tmp_path, parquet(GOOD, schema))


@pytest.mark.parametrize(
    "answers", [["x", "y"], {"text": ["x", "y"], "answer_start": [1, 2]}], ids=["list", "squad"]
)
def test_answers_are_lists_or_squads_form(tmp_path: Path, answers: object) -> None:
    rows = read(tmp_path, parquet([{"question": "q", "answers": answers}]), GENERATIVE)
    assert rows == [{"question": "q", "answers": ("x", "y")}]


def test_rows_of_several_groups_and_batches_are_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jpt.data.rows, "BATCH_ROWS", 5)
    rows = [{"text": f"{number}", "label": number % 2} for number in range(17)]
    assert [row["text"] for row in read(tmp_path, parquet(rows))] == [row["text"] for row in rows]
    rows[12]["text"] = ""
    with pytest.raises(InputError, match=r"train\.parquet, row 13: field 'text' is empty"):
        read(tmp_path, parquet(rows))


def test_columns_that_are_not_needed_are_not_read(tmp_path: Path) -> None:
    data = bytearray(parquet([{**row, "more": "x" * 100} for row in GOOD]))
    file = pyarrow.parquet.ParquetFile(pa.BufferReader(bytes(data)))
    unneeded = file.metadata.row_group(0).column(2)
    begin = unneeded.dictionary_page_offset
    data[begin : begin + unneeded.total_compressed_size] = b"\xff" * unneeded.total_compressed_size
    with pytest.raises(Exception, match="(?i)thrift|page|invalid"):  # it is damaged there
        pyarrow.parquet.read_table(pa.BufferReader(bytes(data)))
    assert [row["text"] for row in read(tmp_path, bytes(data))] == ["a", "b"]


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
        (parquet(GOOD)[:-40], " is no parquet file, or a broken one .* is it cut short"),
        (b"text,label\na,1\n", " is no parquet file"),
        (b"", " is no parquet file"),
    ],
)
def test_what_is_wrong_is_named_with_row_and_column(
    tmp_path: Path, data: bytes, message: str
) -> None:
    with pytest.raises(InputError, match=r"train\.parquet" + message) as caught:
        read(tmp_path, data)
    assert "\n" not in str(caught.value)


def test_a_broken_letter_far_down_is_named_with_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jpt.data.rows, "BATCH_ROWS", 1)
    with pytest.raises(InputError, match=r"train\.parquet, row 2: field 'text' is not UTF-8"):
        read(tmp_path, one_row(NOT_UTF8))


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"])] * 2 + [pa.array([1])], ["text", "text", "label"])
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"train\.parquet: 2 columns are called 'text'"):
        read_rows(dataclasses.replace(SENTIMENT, folder=tmp_path), "train")


def test_a_page_damaged_in_the_middle(tmp_path: Path) -> None:
    data = bytearray(one_row(pa.array([f"text {number}" * 9 for number in range(3000)])))
    data[2000:2600] = bytes(600)
    with pytest.raises(InputError, match=r"train\.parquet"):
        read(tmp_path, bytes(data))


def test_a_folder_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").mkdir()
    with pytest.raises(InputError, match=r"cannot read .*train\.parquet: it is a folder"):
        read_rows(dataclasses.replace(SENTIMENT, folder=tmp_path), "train")
