"""Label words: known to the vocabulary, one token each in encoders, and distinct."""

import dataclasses

import pytest

from jpt.errors import InputError
from jpt.tasks.catalog import CATALOG
from jpt.tasks.task import Task
from jpt.tasks.verbalizers import label_words

TOKENS = ["[UNK]", "no", "neutral", "yes", "con", "##tra"]


class SmallVocabulary:
    """Has the tokens above; "contra" is two of them, and everything else is unknown."""

    unknown = 0

    def word_tokens(self, word: str) -> list[int]:
        if word == "contra":
            return [4, 5]
        return [TOKENS.index(word)] if word in TOKENS else [0]

    def token_text(self, token: int) -> str:
        return TOKENS[token]


class SharedStarts(SmallVocabulary):
    def word_tokens(self, word: str) -> list[int]:
        return {"contra": [4, 5], "conno": [4, 1], "con": [4]}.get(word) or [3]


def with_words(*words: str | tuple[str, ...]) -> Task:
    task = CATALOG["mnli"]
    return dataclasses.replace(
        task, label_words={"default": dict(zip(task.labels, words, strict=True))}
    )


def test_ids_are_in_label_order() -> None:
    found = label_words(CATALOG["mnli"], SmallVocabulary(), "bert")
    assert found.words == (("no",), ("neutral",), ("yes",))
    assert found.token_ids == (((1,),), ((2,),), ((3,),)) and found.ids == (1, 2, 3)


def test_several_words_per_label_and_tokens_per_word() -> None:
    with pytest.raises(InputError, match="2 tokens"):
        label_words(with_words(("no", "con"), "contra", "yes"), SmallVocabulary(), "bert")
    task = with_words("no", "contra", ("yes", "neutral"))
    found = label_words(task, SmallVocabulary(), "t5", "encoder_decoder")
    assert found.token_ids == (((1,),), ((4, 5),), ((3,), (2,)))
    assert found.ids == (1, 4, 3)


def test_words_with_a_common_start() -> None:
    task = with_words("contra", "conno", "yes")
    found = label_words(task, SharedStarts(), "t5", "encoder_decoder", "phrase")
    assert found.token_ids == (((4, 5),), ((4, 1),), ((3,),))
    with pytest.raises(InputError, match=r"start with 'con', id 4\); .*label_scoring phrase"):
        label_words(task, SharedStarts(), "t5", "encoder_decoder", "first_token")
    # The longer of the two can never be more probable than its beginning.
    with pytest.raises(InputError, match="'contra' and 'con' both start with 'con'"):
        label_words(with_words("contra", "con", "yes"), SharedStarts(), "t5", "encoder_decoder")


def test_unusable_words() -> None:
    for words, message in (
        (("contra", "neutral", "yes"), r"2 tokens in this vocabulary \('con', '##tra'\)"),
        (("no", "neutral", "sure"), r"'sure' for 'entailment' .* not in this vocabulary"),
        (("no", "neutral", "no"), r"'contradiction' and 'entailment' .* start with 'no', id 1\)"),
    ):
        with pytest.raises(InputError, match=message):
            label_words(with_words(*words), SmallVocabulary(), "bert")
