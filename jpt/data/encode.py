"""Tokenise the rows of a task into compact arrays, and cache them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from jpt.data.rows import rows_checksum
from jpt.errors import InputError
from jpt.io.files import atomic_file, make_room, user_cache
from jpt.io.tokenizer import TextTokenizer
from jpt.tasks.task import Task, render, template_fields
from jpt.tasks.verbalizers import answer_cue

# --- Rows of text to ids: tokenised once for a whole run, cut to length by a fixed rule
# An encoder reads ``[CLS] text [SEP]`` or ``[CLS] first [SEP] second [SEP]``: one separator between
# the two, in RoBERTa too, as in the paper's code. T5 reads all segments and its end piece behind
# them (paper: in some tasks only; T5 was pretrained with it), a decoder all segments behind its
# start piece, if it has one.

# Letters read for one piece that is kept, before a long text is tokenised: text beyond them is
# looked at only when they gave too few pieces. English has 4 to 5 letters a piece.
LETTERS_PER_TOKEN = 10


@dataclass(frozen=True)
class EncodedAnswers:
    """The answers to be written of a split's rows, as ids one after the other.

    Attributes:
        tokens: what is trained to be written: each row's first answer and the end piece behind it.
        offsets: row i has the tokens from offsets[i] up to offsets[i + 1].
        width: the most tokens that a row may have, the end piece included.
        cut_rows: how many answers were too long and lost text, and their end piece.
        references: every answer of each row, as text.
        pieces: every answer of each row, cut to the width without an end piece.
    """

    tokens: Int32[np.ndarray, "total"]
    offsets: Int64[np.ndarray, "N+1"]
    width: int
    cut_rows: int
    references: tuple[tuple[str, ...], ...]
    reference_tokens: tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(frozen=True)
class EncodedSplit:
    """The rows of a split as ids, one after the other.

    Attributes:
        tokens: the ids of all rows, special pieces included.
        offsets: row i has the tokens from offsets[i] up to offsets[i + 1].
        labels: the class number of each row; 0 where the answer is written.
        cut_rows: how many rows were too long and lost text.
        answers: what is to be written, where it is.
        content: checksum of the rows as they were read.
    """

    tokens: Int32[np.ndarray, "total"]
    offsets: Int64[np.ndarray, "N+1"]
    labels: Int32[np.ndarray, "N"]
    cut_rows: int
    answers: EncodedAnswers | None = None
    content: str = ""

    @property
    def n_rows(self) -> int:
        """How many rows there are."""
        return len(self.labels)

    @property
    def lengths(self) -> Int64[np.ndarray, "N"]:
        """How many tokens each row has."""
        return np.diff(self.offsets)


def encode_split(
    rows: Sequence[Mapping[str, Any]],
    task: Task,
    tokenizer: TextTokenizer,
    max_tokens: int,
    layout: str = "encoder",
    answer_tokens: int | None = None,
) -> EncodedSplit:
    """Tokenises the rows of a split and cuts those that are too long."""
    # A single text loses its end. Of a pair the longer text loses its end first; the shorter one is
    # cut only when it has itself more than half of the room. A segment without a field is never
    # cut.
    if not rows:
        raise InputError(f"there are no rows of task {task.name} to encode; give at least one")
    texts = [render(task, row, layout) for row in rows]
    template = task.template(layout)
    fixed = {
        place: tokenizer.encode([texts[0][place]])[0]
        for place, segment in enumerate(template)
        if not template_fields(segment)
    }
    free = [place for place in range(len(template)) if place not in fixed]
    room = _room(max_tokens, len(free), sum(map(len, fixed.values())), task, tokenizer, layout)
    columns = [encode_texts([t[place] for t in texts], tokenizer, room) for place in free]
    reference_tokens = list(zip(*columns, strict=True))
    ids = []
    for row_segments in reference_tokens:
        held = dict(zip(free, cut_segments(row_segments, room), strict=True)) | fixed
        ids.append(frame([held[place] for place in range(len(template))], tokenizer, layout))
    tokens, offsets = join_rows(ids)
    return EncodedSplit(
        tokens=tokens,
        offsets=offsets,
        labels=_class_numbers(rows, task),
        cut_rows=sum(sum(map(len, row_segments)) > room for row_segments in reference_tokens),
        answers=encode_answers(rows, task, tokenizer, layout, answer_tokens or task.answer_tokens),
    )


def join_rows(ids: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Puts rows of ids one after the other."""
    tokens = np.fromiter(chain.from_iterable(ids), dtype=np.int32)
    return tokens, np.cumsum([0, *map(len, ids)], dtype=np.int64)


def _class_numbers(rows: Sequence[Mapping[str, Any]], task: Task) -> Int32[np.ndarray, "N"]:
    if task.is_generative:
        return np.zeros(len(rows), np.int32)
    class_of = {label: number for number, label in enumerate(task.labels)}
    return np.array([class_of[row["label"]] for row in rows], dtype=np.int32)


def encode_answers(
    rows: Sequence[Mapping[str, Any]],
    task: Task,
    tokenizer: TextTokenizer,
    layout: str,
    answer_tokens: int | None,
) -> EncodedAnswers | None:
    """Tokenises the answers that are to be written."""
    if not task.is_generative:
        return None
    references = tuple(tuple(row["answers"]) for row in rows)
    texts = list(chain.from_iterable(references))
    if layout == "decoder":
        encoded = tokenizer.encode_after(answer_cue(task), texts)
    else:
        encoded = tokenizer.encode(texts)
    cut, position = [], 0
    for of in references:
        cut.append(tuple(encoded[position : position + len(of)]))
        position += len(of)
    # Paper: the first answer is trained, and without an end piece, so that outputs never learn to
    # stop; here the end piece is written too where the answer is whole.
    end = [] if tokenizer.ids.eos is None else [tokenizer.ids.eos]
    firsts = [of[0] for of in cut]
    tokens, offsets = join_rows(
        [ids + end if len(ids) <= answer_tokens else ids[:answer_tokens] for ids in firsts]
    )
    return EncodedAnswers(
        tokens=tokens,
        offsets=offsets,
        width=answer_tokens + len(end),
        cut_rows=sum(len(ids) > answer_tokens for ids in firsts),
        references=references,
        reference_tokens=tuple(tuple(tuple(ids[:answer_tokens]) for ids in of) for of in cut),
    )


def encode_texts(texts: list[str], tokenizer: TextTokenizer, room: int) -> list[list[int]]:
    """Tokenises texts of which only so many first pieces can matter."""
    heads = [_head(text, room * LETTERS_PER_TOKEN) for text in texts]
    encoded = tokenizer.encode(heads)
    short = [
        i
        for i, (head, text) in enumerate(zip(heads, texts, strict=True))
        if len(head) < len(text) and len(encoded[i]) <= room
    ]
    for i, ids in zip(short, tokenizer.encode([texts[i] for i in short]), strict=True):
        encoded[i] = ids
    return encoded


def cut_segments(segments: Sequence[list[int]], room: int) -> list[list[int]]:
    """Cuts the ids of a text, or of a pair, to the room there is."""
    if len(segments) == 1:
        return [segments[0][:room]]
    first, second = segments
    if len(first) >= len(second):
        shorter = min(len(second), room // 2)
        return [first[: room - shorter], second[:shorter]]
    shorter = min(len(first), room // 2)
    return [first[:shorter], second[: room - shorter]]


def _room(
    max_tokens: int,
    n_segments: int,
    n_fixed: int,
    task: Task,
    tokenizer: TextTokenizer,
    layout: str,
) -> int:
    """Pieces of text that fit beside the special pieces and those that no row can change."""
    special = len(frame([[]] * n_segments, tokenizer, layout)) + n_fixed
    if max_tokens < special + n_segments:
        raise InputError(
            f"max_tokens is {max_tokens}, but a row of task {task.name} has {special} special "
            f"pieces and at least {n_segments} of text; give {special + n_segments} or more"
        )
    return max_tokens - special


def frame(segments: Sequence[list[int]], tokenizer: TextTokenizer, layout: str) -> list[int]:
    """Puts the special pieces of a layout around the ids of a text."""
    special = tokenizer.ids
    if layout == "encoder":
        return [special.cls, *chain.from_iterable([*ids, special.sep] for ids in segments)]
    ids = list(chain.from_iterable(segments))
    if layout == "encoder_decoder":
        return [*ids, special.eos]
    return [special.bos, *ids] if tokenizer.add_bos else ids


def _head(text: str, n_letters: int) -> str:
    """The beginning of a text, up to a single space: pieces never reach over one."""
    if len(text) <= n_letters:
        return text
    end = text.rfind(" ", 1, n_letters)
    while end > 0 and (text[end - 1].isspace() or text[end + 1].isspace()):
        end = text.rfind(" ", 1, end)
    return text if end <= 0 else text[:end]


# --- Tokenised rows kept on disk, so that a split is tokenised once for all runs that read it
# A file is named by what went into it: the content of the rows, template, labels, vocabulary and
# lengths. It can therefore never be stale, and anything wrong with it only means that the rows are
# tokenised again. The folder is ``JPT_CACHE``, by default ``jpt`` in the user's cache folder; an
# empty ``JPT_CACHE`` keeps nothing.

FORM = 1
"""Of the files; another number is another file."""
FEWEST_ROWS = 500
"""Fewer are tokenised in the time that a file takes."""
MOST_BYTES = 2 << 30
"""What the folder may hold; what was not used for longest goes first."""

_ANSWERS = ("tokens", "offsets")


def cache_folder() -> Path | None:
    """Says where tokenised rows are kept."""
    return user_cache("tokens")


def encode_cached(
    rows: Sequence[Mapping[str, Any]],
    task: Task,
    tokenizer: TextTokenizer,
    max_tokens: int,
    layout: str = "encoder",
    answer_tokens: int | None = None,
) -> EncodedSplit:
    """Tokenises the rows of a split, or takes them from where they were kept."""
    settings = (max_tokens, layout, answer_tokens or task.answer_tokens)
    content, folder = rows_checksum(rows), cache_folder()
    file = None
    if folder is not None and len(rows) >= FEWEST_ROWS:
        kind = [FORM, content, task.fields, task.labels, task.template(layout), *settings]
        name = hashlib.sha256(json.dumps([*kind, tokenizer.fingerprint]).encode()).hexdigest()
        file = folder / f"{name[:32]}.npz"
        found = _load(file, rows)
        if found is not None:
            return dataclasses.replace(found, content=content)
    split = encode_split(rows, task, tokenizer, *settings)
    if file is not None:
        _save(file, split)
    return dataclasses.replace(split, content=content)


def _save(file: Path, split: EncodedSplit) -> None:
    """Keeps a split where that is possible: a full or read-only disk is no reason to stop."""
    arrays: dict[str, Any] = {
        "tokens": split.tokens,
        "offsets": split.offsets,
        "labels": split.labels,
        "cut_rows": split.cut_rows,
    }
    if split.answers is not None:
        arrays |= {f"answer_{name}": getattr(split.answers, name) for name in _ANSWERS}
        arrays |= {"width": split.answers.width, "cut_answers": split.answers.cut_rows}
        reference_tokens = [ids for of in split.answers.reference_tokens for ids in of]
        arrays["piece_tokens"], arrays["piece_offsets"] = join_rows(reference_tokens)
    with contextlib.suppress(OSError, InputError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file, is_cache=True) as stream:
            np.savez(stream, **arrays)
        make_room(file.parent.glob("*.npz"), MOST_BYTES)


def _load(file: Path, rows: Sequence[Mapping[str, Any]]) -> EncodedSplit | None:
    """Reads a kept split; None where there is none or it is broken."""
    if not file.exists():
        return None
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as kept:
            split = EncodedSplit(
                kept["tokens"], kept["offsets"], kept["labels"], int(kept["cut_rows"])
            )
            answers = _load_answers(kept, rows) if "width" in kept else None
        os.utime(file)  # used just now
    except Exception:  # whatever a broken file makes numpy's readers raise
        return None
    if len(split.labels) != len(rows) or len(split.offsets) != len(rows) + 1:
        return None
    return dataclasses.replace(split, answers=answers)


def _load_answers(kept: Any, rows: Sequence[Mapping[str, Any]]) -> EncodedAnswers:
    tokens, offsets = kept["piece_tokens"].tolist(), kept["piece_offsets"].tolist()
    flat = [tuple(tokens[a:b]) for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    references, reference_tokens, start = tuple(tuple(row["answers"]) for row in rows), [], 0
    for of in references:
        reference_tokens.append(tuple(flat[start : start + len(of)]))
        start += len(of)
    return EncodedAnswers(
        kept["answer_tokens"],
        kept["answer_offsets"],
        int(kept["width"]),
        int(kept["cut_answers"]),
        references,
        tuple(reference_tokens),
    )
