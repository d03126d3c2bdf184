"""Tokens of label words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from jpt.errors import InputError
from jpt.tasks.task import ANSWER_CUE, Task, template_fields

TokenIds = tuple[int, ...]


class TokenLookup(Protocol):
    """Tokenizer methods needed to find label words."""

    def word_tokens(self, word: str) -> list[int]:
        """Return the token ids of a word."""
        ...

    def word_after(self, text: str, word: str) -> list[int]:
        """Return the token ids of a word that follows a text and a space."""
        ...

    def token_text(self, token: int) -> str:
        """Return the text of a token."""
        ...

    def check_ids(self, ids: Iterable[int], where: str) -> None:
        """Raise InputError for a token outside the model's word table."""
        ...

    @property
    def unknown(self) -> int | None:
        """Id of the unknown token, if there is one."""
        ...


class LabelWords(NamedTuple):
    """Label words and their token ids, in the order of the labels."""

    words: tuple[tuple[str, ...], ...]  # of each label
    token_ids: tuple[tuple[TokenIds, ...], ...]  # of each word of each label

    @property
    def ids(self) -> tuple[int, ...]:
        """First token of each label's first word."""
        return tuple(of[0][0] for of in self.token_ids)

    @property
    def all_ids(self) -> tuple[int, ...]:
        """All tokens of all words."""
        return tuple(token for of in self.token_ids for word in of for token in word)


def label_words(
    task: Task,
    tokenizer: TokenLookup,
    model_type: str,
    layout: str = "encoder",
    scoring: str = "phrase",
) -> LabelWords:
    """Return the label words of a task for a model; raise InputError if they are unusable."""
    words = task.words(model_type)
    token_ids = {
        label: tuple(_token_ids(task, label, word, tokenizer, layout) for word in of)
        for label, of in words.items()
    }
    _refuse_ambiguous(task, words, token_ids, tokenizer, scoring)
    return LabelWords(tuple(words.values()), tuple(token_ids.values()))


def _refuse_ambiguous(
    task: Task,
    words: dict[str, tuple[str, ...]],
    token_ids: dict[str, tuple[TokenIds, ...]],
    tokenizer: TokenLookup,
    scoring: str,
) -> None:
    """Raise InputError for a word that starts with another: it could never score higher."""
    seen: list[tuple[str, str, TokenIds]] = []
    for label, of in words.items():
        for word, found in zip(of, token_ids[label], strict=True):
            for other_label, other_word, other in seen:
                shared = 1 if scoring == "first_token" else min(len(found), len(other))
                if found[:shared] != other[:shared]:
                    continue
                start = " ".join(repr(tokenizer.token_text(token)) for token in found[:shared])
                ids = ", ".join(map(str, found[:shared]))
                cure = "give each label its own word"
                if scoring == "first_token" and found != other:
                    cure += ", or score whole words (label_scoring phrase)"
                raise InputError(
                    f"labels {other_label!r} and {label!r} of task {task.name} have label words "
                    f"with the same first token ({other_word!r} and {word!r} both start with "
                    f"{start}, id {ids}); {cure}"
                )
            seen.append((label, word, found))


def _token_ids(task: Task, label: str, word: str, tokenizer: TokenLookup, layout: str) -> TokenIds:
    is_decoder = layout == "decoder"
    cue = answer_cue(task) if is_decoder else ""
    token_ids = tokenizer.word_after(cue, word) if is_decoder else tokenizer.word_tokens(word)
    where = f"label word {word!r} for {label!r} of task {task.name}"
    if not token_ids or (layout == "encoder" and len(token_ids) != 1):
        shown = ", ".join(repr(tokenizer.token_text(token)) for token in token_ids)
        raise InputError(
            f"{where} is {len(token_ids)} tokens in this vocabulary ({shown}); masked models "
            "compare single tokens: choose a word that is one token"
        )
    if tokenizer.unknown is not None and tokenizer.unknown in token_ids:
        raise InputError(
            f"{where} is not in this vocabulary ({tokenizer.token_text(tokenizer.unknown)}); "
            "choose a word that is"
        )
    tokenizer.check_ids(token_ids, where)
    return tuple(token_ids)


def answer_cue(task: Task) -> str:
    """Return the text that a decoder reads before its answer."""
    last = task.template("decoder")[-1]
    return ANSWER_CUE if template_fields(last) else last
