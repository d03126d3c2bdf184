"""Label words: one piece each, known, and no two the same."""

import dataclasses

import pytest

from jpt.errors import InputError
from jpt.tasks.catalog import CATALOG
from jpt.tasks.verbalizers import label_words

PIECES = ["[UNK]", "no", "neutral", "yes", "con", "##tra"]


class SmallVocabulary:
    """Knows the pieces above; everything else is unknown, but "contra" is two pieces."""

    unknown = 0

    def word_tokens(self, word: str) -> list[int]:
        if word == "contra":
            return [4, 5]
        return [PIECES.index(word)] if word in PIECES else [0]

    def piece(self, token: int) -> str:
        return PIECES[token]


def with_words(*words: str | tuple[str, ...]):
    task = CATALOG["mnli"]
    return dataclasses.replace(
        task, label_words={"default": dict(zip(task.labels, words, strict=True))}
    )


def test_ids_stand_in_the_order_of_the_labels() -> None:
    found = label_words(CATALOG["mnli"], SmallVocabulary(), "bert")
    assert found.words == (("no",), ("neutral",), ("yes",))
    assert found.pieces == (((1,),), ((2,),), ((3,),)) and found.ids == (1, 2, 3)


def test_a_label_may_have_several_words_and_a_word_several_pieces() -> None:
    task = with_words(("no", "con"), "contra", "yes")
    with pytest.raises(InputError, match="2 pieces"):
        label_words(task, SmallVocabulary(), "bert")
    task = with_words("no", "contra", ("yes", "neutral"))
    found = label_words(task, SmallVocabulary(), "t5", "encoder_decoder")
    assert found.pieces == (((1,),), ((4, 5),), ((3,), (2,)))
    assert found.ids == (1, 4, 3)


def test_words_that_begin_alike_are_told_apart_by_all_pieces_only() -> None:
    class Alike(SmallVocabulary):
        def word_tokens(self, word: str) -> list[int]:
            return {"contra": [4, 5], "conno": [4, 1], "con": [4]}.get(word) or [3]

    task = with_words("contra", "conno", "yes")
    found = label_words(task, Alike(), "t5", "encoder_decoder", "phrase")
    assert found.pieces == (((4, 5),), ((4, 1),), ((3,),))
    with pytest.raises(InputError, match=r"both with 'con', id 4\); .*label_scoring phrase"):
        label_words(task, Alike(), "t5", "encoder_decoder", "first_token")
    # The longer of the two can never be more probable than its beginning.
    with pytest.raises(InputError, match="'contra' and 'con' both with 'con'"):
        label_words(with_words("contra", "con", "yes"), Alike(), "t5", "encoder_decoder")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("contra", "neutral", "yes"), r"2 pieces in this vocabulary \('con', '##tra'\)"),
        (("no", "neutral", "sure"), r"'sure' for 'entailment' .* not in this vocabulary"),
        (("no", "neutral", "no"), r"'contradiction' and 'entailment' .* both with 'no', id 1\)"),
    ],
)
def test_wrong_words_are_named(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        label_words(with_words(*words), SmallVocabulary(), "bert")
