"""JSON lines: what is read, and the line that is named when something is wrong."""

from pathlib import Path

import pytest

from jpt.data.rows import read_json_lines, read_json_list
from jpt.errors import InputError


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
