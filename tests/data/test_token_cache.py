"""Kept tokens: the same as fresh ones, found for the same content only, never trusted blindly."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import jpt.data.encode as token_cache
from jpt.data.encode import EncodedSplit, encode_cached, encode_split
from jpt.io.tokenizer import TextTokenizer
from jpt.tasks.catalog import CATALOG
from jpt.tasks.task import Task

SST2 = CATALOG["sst2"]
ECHO = Task(
    "echo", "copy", ("text",), (), {"encoder_decoder": ("{text}",)}, {}, "bleu",
    answer_field="answers", answer_tokens=2,
)  # fmt: skip
WORDS = ("the", "film", "good", "one", "two", "three")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


def rows_of(count: int, written: bool = False) -> list[dict[str, object]]:
    random = np.random.default_rng(count)
    rows: list[dict[str, object]] = []
    for number in range(count):
        text = " ".join(random.choice(WORDS, 1 + number % 9))
        rows.append({"text": text, "label": ("negative", "positive")[number % 2]})
        if written:
            answers = tuple(" ".join(random.choice(WORDS, 1 + k)) for k in range(1 + number % 3))
            rows[-1] = {"text": text, "answers": answers}
    return rows


def assert_equal(found: EncodedSplit, expected: EncodedSplit) -> None:
    for name in ("tokens", "offsets", "labels"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert found.cut_rows == expected.cut_rows
    if expected.answers is None:
        assert found.answers is None
        return
    for field in dataclasses.fields(expected.answers):
        np.testing.assert_equal(
            getattr(found.answers, field.name), getattr(expected.answers, field.name)
        )


@pytest.mark.parametrize("task", [SST2, ECHO], ids=["labels", "written"])
def test_what_was_kept_is_what_is_made_anew(
    task: Task, toy_tokenizer: TextTokenizer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(600, task.is_generative)
    layout = "decoder" if task.is_generative else "encoder"
    fresh = encode_split(rows, task, toy_tokenizer, 8, layout)
    assert_equal(encode_cached(rows, task, toy_tokenizer, 8, layout), fresh)
    assert len(list(folder.iterdir())) == 1

    def refuse(*inputs: object) -> None:
        raise AssertionError("tokenised again")

    monkeypatch.setattr(token_cache, "encode_split", refuse)
    assert_equal(encode_cached(rows, task, toy_tokenizer, 8, layout), fresh)


def test_every_part_of_the_content_counts(toy_tokenizer: TextTokenizer, folder: Path) -> None:
    rows = rows_of(600)
    changed = [*rows[:-1], {**rows[-1], "text": "film"}]
    swapped = [*rows[:-1], {**rows[-1], "label": "negative"}]
    other = dataclasses.replace(SST2, templates={"encoder": ("the {text}",)})
    turned = dataclasses.replace(SST2, labels=SST2.labels[::-1])
    contents = set()
    for given, task, limit in (
        (rows, SST2, 8),
        (rows, SST2, 9),
        (changed, SST2, 8),
        (swapped, SST2, 8),
        (rows, other, 8),
        (rows, turned, 8),
    ):
        found = encode_cached(given, task, toy_tokenizer, limit)
        assert_equal(found, encode_split(given, task, toy_tokenizer, limit))
        contents.add(found.content)
    assert len(list(folder.iterdir())) == 6 and len(contents) == 3


def test_a_broken_file_is_made_anew(toy_tokenizer: TextTokenizer, folder: Path) -> None:
    rows = rows_of(600)
    fresh = encode_cached(rows, SST2, toy_tokenizer, 8)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    for content in (b"", b"no archive", whole[: len(whole) // 2], whole[:-1]):
        file.write_bytes(content)
        assert_equal(encode_cached(rows, SST2, toy_tokenizer, 8), fresh)
        assert file.read_bytes() == whole


def test_no_folder_no_space_and_few_rows_are_no_error(
    toy_tokenizer: TextTokenizer, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    few = rows_of(20)
    assert_equal(
        encode_cached(few, SST2, toy_tokenizer, 8), encode_split(few, SST2, toy_tokenizer, 8)
    )
    assert not folder.exists()
    rows = rows_of(600)
    fresh = encode_split(rows, SST2, toy_tokenizer, 8)
    (tmp_path / "file").write_text("")
    for place in ("", str(tmp_path / "file")):
        monkeypatch.setenv("JPT_CACHE", place)
        assert_equal(encode_cached(rows, SST2, toy_tokenizer, 8), fresh)


def test_the_folder_stays_small(
    toy_tokenizer: TextTokenizer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_cached(rows_of(600), SST2, toy_tokenizer, 8)
    size = next(folder.iterdir()).stat().st_size
    monkeypatch.setattr(token_cache, "MOST_BYTES", int(2.5 * size))
    for limit in (9, 10, 11):
        encode_cached(rows_of(600), SST2, toy_tokenizer, limit)
    assert len(list(folder.iterdir())) == 2
