"""All formats say the same, and a damaged file of any gives rows or one line, nothing else."""

import dataclasses
import random
from pathlib import Path

import pytest

from jpt.data.rows import READERS, read_rows, rows_checksum, with_rows
from jpt.errors import InputError
from jpt.tasks.task import Task
from tests.data.row_files import GENERATIVE, PAIR, SENTIMENT, WRITERS

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
