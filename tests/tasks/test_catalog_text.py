"""What each family of models reads for a row of each of the paper's tasks, letter by letter."""

import json
from pathlib import Path

import pytest

from jpt.io.tokenizer import load_tokenizer
from jpt.tasks.catalog import CATALOG
from jpt.tasks.task import render

REVIEW = {"text": "A fine film."}
PART = {"text": "Nice screen, poor sound.", "aspect": "sound"}
WEATHER = {"premise": "It rains.", "hypothesis": "It is wet."}
TOWER = {"question": "How tall is it?", "sentence": "It was built in 1889."}
RACE = {"scenario": "I run a race.", "excuse": "So I should train."}
DESERT = {"scenario": "I deserve a car because I paid for it."}
TWINS = {"sentence1": "He left.", "sentence2": "He went away."}
PASSAGE = {"question": "Who won?", "context": "Ann won the race."}

# For each task a row, then what encoders, encoder-decoders and decoders read for it.
TEXTS = {
    "imdb": (REVIEW, ("A fine film.",), ("A fine film.",), "A fine film.\nAnswer:"),
    "sst2": (REVIEW, ("A fine film.",), ("A fine film.",), "A fine film.\nAnswer:"),
    "movie_rationales": (REVIEW, ("A fine film.",), ("A fine film.",), "A fine film.\nAnswer:"),
    "tweeteval_sentiment": (REVIEW, ("A fine film.",), ("A fine film.",), "A fine film.\nAnswer:"),
    "laptop": (
        PART,
        ("Nice screen, poor sound. sound",),
        ("Nice screen, poor sound.", "sound"),
        "Nice screen, poor sound.\nAspect: sound\nAnswer:",
    ),
    "restaurant": (
        PART,
        ("Nice screen, poor sound. sound",),
        ("Nice screen, poor sound.", "sound"),
        "Nice screen, poor sound.\nAspect: sound\nAnswer:",
    ),
    "mnli": (
        WEATHER,
        ("It is wet.", "It rains."),
        ("hypothesis: It is wet.", "[SEP] sentence: premise: It rains."),
        "Premise: It rains.\nHypothesis: It is wet.\nAnswer:",
    ),
    "snli": (
        WEATHER,
        ("It is wet.", "It rains."),
        ("hypothesis: It is wet.", "[SEP] sentence: premise: It rains."),
        "Premise: It rains.\nHypothesis: It is wet.\nAnswer:",
    ),
    "qnli": (
        TOWER,
        ("How tall is it?", "It was built in 1889."),
        ("hypothesis: How tall is it?", "[SEP] sentence: premise: It was built in 1889."),
        "Question: How tall is it?\nSentence: It was built in 1889.\nAnswer:",
    ),
    "deontology": (
        RACE,
        ("I run a race.", "So I should train."),
        ("I run a race.", "So I should train."),
        "Scenario: I run a race.\nExcuse: So I should train.\nAnswer:",
    ),
    "justice": (
        DESERT,
        ("I deserve a car because I paid for it.",),
        ("I deserve a car because I paid for it.",),
        "I deserve a car because I paid for it.\nAnswer:",
    ),
    "qqp": (
        TWINS,
        ("He left.", "He went away."),
        ("He left.", "<extra_id_0> He went away."),
        "First: He left.\nSecond: He went away.\nAnswer:",
    ),
    "mrpc": (
        TWINS,
        ("He left.", "He went away."),
        ("He left.", "<extra_id_0> He went away."),
        "First: He left.\nSecond: He went away.\nAnswer:",
    ),
    "squad": (
        PASSAGE,
        None,
        ("context: Ann won the race.", "SEP question: Who won?"),
        "Context: Ann won the race.\nQuestion: Who won?\nAnswer:",
    ),
    "nq_open": (
        {"question": "who won the race"},
        None,
        ("context: who won the race",),
        "Question: who won the race\nAnswer:",
    ),
    "multi_news": (
        {"document": "Rain fell.\n|||||\nThe race was off."},
        None,
        ("Rain fell.\n|||||\nThe race was off.",),
        "Rain fell.\n|||||\nThe race was off.\nSummary:",
    ),
    "samsum": (
        {"document": "Ann: I won!\nBob: Well done."},
        None,
        ("context: Ann: I won!\nBob: Well done.",),
        "Ann: I won!\nBob: Well done.\nSummary:",
    ),
}


def test_no_task_is_left_out() -> None:
    assert set(TEXTS) == set(CATALOG)


@pytest.mark.parametrize("name", TEXTS)
def test_each_family_reads_its_own_text(name: str) -> None:
    task = CATALOG[name]
    row, encoder, encoder_decoder, decoder = TEXTS[name]
    assert (encoder is None) == task.is_generative, "encoders write no text"
    if encoder is not None:
        assert render(task, row) == encoder
    assert render(task, row, "encoder_decoder") == encoder_decoder
    # A decoder reads its segments as one text.
    assert "".join(render(task, row, "decoder")) == decoder


@pytest.mark.parametrize("name", ["laptop", "restaurant"])
def test_t5_reads_the_pieces_of_one_text_where_the_aspect_is_a_segment_of_its_own(
    name: str, reference_folder: Path
) -> None:
    tokenizer = load_tokenizer(reference_folder / "tokenizers" / "t5-base", ("eos",))
    lines = (reference_folder / "data" / name / "test.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        paper, *segments = tokenizer.encode(
            [f"{row['text']} {row['aspect']}", *render(CATALOG[name], row, "encoder_decoder")]
        )
        assert paper == [piece for segment in segments for piece in segment]
    assert len(rows) > 300
