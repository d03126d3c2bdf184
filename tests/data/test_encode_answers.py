"""Answers to be written: whole ones end, cut ones do not, references stay as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jpt.data.batches import evaluation_batches, make_batch
from jpt.data.encode import EncodedSplit, encode_split
from jpt.io.tokenizer import TextTokenizer, load_tokenizer
from jpt.tasks.task import Task

ECHO = Task(
    "echo", "copy", ("text",), (), {"encoder_decoder": ("{text}",)}, {}, "bleu",
    answer_field="said", answer_tokens=6,
)  # fmt: skip
ROWS = [
    {"text": "Who was it?", "answers": ("Denver", "Denver Broncos")},
    {"text": "What?", "answers": ("a rather long answer that goes on and on for ever",)},
    {"text": "Which?", "answers": ("  spaces kept  ", "two")},
]


@pytest.fixture(params=["t5-base", "gpt2"])
def tokenizer(request: pytest.FixtureRequest, reference_folder: Path) -> TextTokenizer:
    return load_tokenizer(reference_folder / "tokenizers" / request.param, ("eos",))


def encoded(tokenizer: TextTokenizer, limit: int = 6) -> EncodedSplit:
    is_t5 = tokenizer.find("<extra_id_0>") is not None
    layout = "encoder_decoder" if is_t5 else "decoder"
    return encode_split(ROWS, ECHO, tokenizer, 32, layout, limit)


def answer_of(split: EncodedSplit, row: int) -> list[int]:
    answers = split.answers
    return answers.tokens[answers.offsets[row] : answers.offsets[row + 1]].tolist()


def test_a_whole_answer_ends_and_a_cut_one_does_not(tokenizer: TextTokenizer) -> None:
    split, eos = encoded(tokenizer), tokenizer.ids.eos
    assert answer_of(split, 0)[-1] == eos
    assert tokenizer.decode(answer_of(split, 0)).strip() == "Denver"
    assert len(answer_of(split, 1)) == 6 and eos not in answer_of(split, 1)
    assert tokenizer.decode(answer_of(split, 1)).strip().startswith("a rather long answer")
    assert split.answers.cut_rows == 1 and split.answers.width == 7
    assert encoded(tokenizer, 40).answers.cut_rows == 0
    assert not split.labels.any() and split.cut_rows == 0


def test_every_reference_is_there_as_text_and_in_pieces(tokenizer: TextTokenizer) -> None:
    answers = encoded(tokenizer).answers
    assert answers.references == tuple(row["answers"] for row in ROWS)
    for of, pieces in zip(answers.references, answers.reference_tokens, strict=True):
        assert [len(ids) <= 6 for ids in pieces] == [True] * len(of)
    # What is written is compared in the same pieces that are trained.
    assert answers.reference_tokens[0][0] == tuple(answer_of(encoded(tokenizer), 0)[:-1])
    assert tokenizer.decode(answers.reference_tokens[0][1]).strip() == "Denver Broncos"


def test_a_decoder_goes_on_with_a_space_behind_its_cue(reference_folder: Path) -> None:
    tokenizer = load_tokenizer(reference_folder / "tokenizers" / "gpt2", ("eos",))
    split = encoded(tokenizer)
    row = split.tokens[split.offsets[0] : split.offsets[1]].tolist()
    whole = tokenizer.word_tokens("Who was it?\nAnswer: Denver")
    assert [*row, *answer_of(split, 0)[:-1]] == whole


def test_batches_hold_the_answers_of_their_rows(tokenizer: TextTokenizer) -> None:
    split, pad = encoded(tokenizer), 77
    batch = make_batch(split, np.array([2, 0]), 4, 32, pad)
    assert batch.answers.shape == (4, 7) and batch.answers.dtype == np.int32
    for place, row in enumerate([2, 0, 2, 2]):
        expected = answer_of(split, row)
        assert batch.answer_lengths[place] == len(expected)
        assert batch.answers[place].tolist() == [*expected, *[pad] * (7 - len(expected))]
    rows = [numbers for numbers, _ in evaluation_batches(split, 2, 32, pad)]
    assert sorted(np.concatenate(rows)) == [0, 1, 2]
