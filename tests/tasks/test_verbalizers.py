"""Label words: one piece each, known, and no two the same."""

import dataclasses

import pytest

from jpt.errors import InputError
from jpt.tasks.catalog import CATALOG
from jpt.tasks.verbalizers import LabelWords, label_ids

PIECES = ["[UNK]", "no", "neutral", "yes", "con", "##tra"]


class SmallVocabulary:
    """Knows the pieces above; everything else is unknown, but "contra" is two pieces."""

    unknown = 0

    def word_pieces(self, word: str) -> list[int]:
        if word == "contra":
            return [4, 5]
        return [PIECES.index(word)] if word in PIECES else [0]

    def piece(self, token: int) -> str:
        return PIECES[token]


def with_words(*words: str):
    task = CATALOG["mnli"]
    return dataclasses.replace(
        task, label_words={"default": dict(zip(task.labels, words, strict=True))}
    )


def test_ids_stand_in_the_order_of_the_labels() -> None:
    found = label_ids(CATALOG["mnli"], SmallVocabulary(), "bert")
    assert found == LabelWords(("no", "neutral", "yes"), (1, 2, 3))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("contra", "neutral", "yes"), r"2 pieces in this vocabulary \('con', '##tra'\)"),
        (("no", "neutral", "sure"), r"'sure' for 'entailment' .* not in this vocabulary"),
        (("no", "neutral", "no"), r"'contradiction' and 'entailment' .* \(id 1\)"),
    ],
)
def test_wrong_words_are_named(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        label_ids(with_words(*words), SmallVocabulary(), "bert")
