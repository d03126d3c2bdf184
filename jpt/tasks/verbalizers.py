"""Label words: the one piece of a vocabulary whose score stands for a label.

A word is looked up as it stands at the start of a text, so in a byte-pair vocabulary it has no
leading space: "positive", not " positive". The paper's own numbers come from that choice.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from jpt.errors import InputError
from jpt.tasks.task import Task


class PieceLookup(Protocol):
    """What is needed of a tokenizer to find label words in its vocabulary."""

    def word_pieces(self, word: str) -> list[int]:
        """Gives the ids of the pieces of a word."""
        ...

    def piece(self, token: int) -> str:
        """Gives the text of one piece."""
        ...

    @property
    def unknown(self) -> int | None:
        """The id that stands for text outside the vocabulary, where there is one."""
        ...


class LabelWords(NamedTuple):
    """The word of each label and the id of its piece, in the order of the labels."""

    words: tuple[str, ...]
    ids: tuple[int, ...]


def label_ids(task: Task, tokenizer: PieceLookup, model_type: str) -> LabelWords:
    """Finds the pieces whose scores are compared to answer a task.

    Args:
        task: the task whose labels are to be told apart.
        tokenizer: the vocabulary of the model.
        model_type: the model type of its config, for instance ``"bert"``.

    Returns:
        One word and one id for each label.

    Raises:
        InputError: a word is more than one piece or unknown, or two labels share a piece.

    Example:
        >>> from jpt.tasks.catalog import CATALOG
        >>> class Letters:
        ...     unknown = None
        ...     def word_pieces(self, word): return [len(word)]
        ...     def piece(self, token): return str(token)
        >>> label_ids(CATALOG["mnli"], Letters(), "bert")
        LabelWords(words=('no', 'neutral', 'yes'), ids=(2, 7, 3))
    """
    words = task.words(model_type)
    ids = tuple(_only_piece(task, label, word, tokenizer) for label, word in words.items())
    for position, token in enumerate(ids):
        if token in ids[:position]:
            first, second = task.labels[ids.index(token)], task.labels[position]
            raise InputError(
                f"labels {first!r} and {second!r} of task {task.name} have the same label word "
                f"piece {tokenizer.piece(token)!r} (id {token}); give each label its own word"
            )
    return LabelWords(tuple(words.values()), ids)


def _only_piece(task: Task, label: str, word: str, tokenizer: PieceLookup) -> int:
    pieces = tokenizer.word_pieces(word)
    place = f"label word {word!r} for {label!r} of task {task.name}"
    if len(pieces) != 1:
        shown = ", ".join(repr(tokenizer.piece(token)) for token in pieces)
        raise InputError(
            f"{place} is {len(pieces)} pieces in this vocabulary ({shown}); a masked model "
            "compares single pieces: choose a word that is one piece"
        )
    if pieces[0] == tokenizer.unknown:
        raise InputError(
            f"{place} is not in this vocabulary ({tokenizer.piece(pieces[0])}); "
            "choose a word that is one piece"
        )
    return pieces[0]
