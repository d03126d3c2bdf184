"""CSV and TSV: what is read, and the line and column that are named when something is wrong."""

import csv
import dataclasses
from pathlib import Path

import pytest

from jpt.data.rows import read_delimited, read_rows
from jpt.errors import InputError
from tests.data.row_files import GENERATIVE, SENTIMENT


def read(tmp_path: Path, data: bytes, name: str = "train.csv", task=SENTIMENT) -> list[dict]:
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
    assert read(tmp_path, data) == [{"text": "a, b", "label": "positive"}]


def test_a_document_longer_than_the_usual_limit(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    document = "word, " * 60_000
    rows = read(tmp_path, f'text,label\n"{document}",1\n'.encode())
    assert rows == [{"text": document, "label": "positive"}]
    assert csv.field_size_limit() == limit


def test_an_ending_in_capitals(tmp_path: Path) -> None:
    assert len(read(tmp_path, b"text\tlabel\na, b\t1\n", name="Rows.TSV")) == 1


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
        read(tmp_path, data)
    assert str(tmp_path / "train.csv") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tabs_are_named_where_they_part_the_cells(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.tsv:1: the header .* parted by tabs"):
        read(tmp_path, b"text,label\na,1\n", name="train.tsv")
    with pytest.raises(InputError, match=r"train\.tsv:2: 3 cells .* put cells with tabs"):
        read(tmp_path, b"text\tlabel\na\t\t1\n", name="train.tsv")


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
    rows = read(tmp_path, f"question,answers\nWhere?,{cell}\n".encode(), task=GENERATIVE)
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
        read(tmp_path, f"question,answers\nWhere?,{cell}\n".encode(), task=GENERATIVE)
    assert "\n" not in str(caught.value)
