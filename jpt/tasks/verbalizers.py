"""Label words: the piece of a vocabulary whose score stands for a label.

For masked models a word is looked up as it stands at the start of a text, so in a byte-pair
vocabulary it has no leading space: "positive", not " positive". The paper's own numbers come from
that choice. A decoder goes on after a text, so there the word has the space before it. Where the
answer is generated (T5, decoders) a word of several pieces is told by its first one, as in the
paper's code.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from jpt.errors import InputError
from jpt.tasks.task import ANSWER_CUE, Task


class PieceLookup(Protocol):
    """What is needed of a tokenizer to find label words in its vocabulary."""

    def word_pieces(self, word: str) -> list[int]:
        """Gives the ids of the pieces of a word."""
        ...

    def word_after(self, text: str, word: str) -> list[int]:
        """Gives the ids of the pieces of a word that goes on after a text and a space."""
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


def label_ids(
    task: Task, tokenizer: PieceLookup, model_type: str, layout: str = "encoder"
) -> LabelWords:
    """Finds the pieces whose scores are compared to answer a task.

    Args:
        task: the task whose labels are to be told apart.
        tokenizer: the vocabulary of the model.
        model_type: the model type of its config, for instance ``"bert"``.
        layout: where the model gives its answer; a masked model compares single pieces only.

    Returns:
        One word and one id for each label.

    Raises:
        InputError: a word is more than one piece in a masked model or unknown, or two labels share
            a piece.

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
    ids = tuple(_piece(task, label, word, tokenizer, layout) for label, word in words.items())
    for position, token in enumerate(ids):
        if token in ids[:position]:
            first, second = task.labels[ids.index(token)], task.labels[position]
            raise InputError(
                f"labels {first!r} and {second!r} of task {task.name} have the same label word "
                f"piece {tokenizer.piece(token)!r} (id {token}); give each label its own word"
            )
    return LabelWords(tuple(words.values()), ids)


def _piece(task: Task, label: str, word: str, tokenizer: PieceLookup, layout: str) -> int:
    is_decoder = layout == "decoder"
    pieces = tokenizer.word_after(ANSWER_CUE, word) if is_decoder else tokenizer.word_pieces(word)
    place = f"label word {word!r} for {label!r} of task {task.name}"
    if not pieces or (layout == "encoder" and len(pieces) != 1):
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
