"""Tokenise the rows of a task into compact arrays, with a cache on disk."""

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

# --- Encoding
# Encoders read ``[CLS] text [SEP]`` or ``[CLS] first [SEP] second [SEP]``: one separator between
# the two, in RoBERTa too, as in the paper's code. T5 reads all segments and an end token (paper: in
# some tasks only; T5 was pretrained with it), decoders a start token, if they have one, and all
# segments.

# Characters that are tokenised per token that is kept; the rest of a long text is tokenised only if
# they yield too few tokens. English has 4 to 5 characters per token.
CHARACTERS_PER_TOKEN = 10


@dataclass(frozen=True)
class EncodedAnswers:
    """Concatenated answers of a split of a generative task.

    Attributes:
        tokens: Token ids of the training targets: each row's first answer and an end token.
        offsets: Row i has ``tokens[offsets[i]:offsets[i + 1]]``.
        width: Largest number of tokens of a row, end token included.
        cut_rows: Number of truncated answers, which have no end token.
        references: All answers of each row as text.
        reference_tokens: All answers of each row as token ids, truncated, without end token.
    """

    tokens: Int32[np.ndarray, "total"]
    offsets: Int64[np.ndarray, "N+1"]
    width: int
    cut_rows: int
    references: tuple[tuple[str, ...], ...]
    reference_tokens: tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(frozen=True)
class EncodedSplit:
    """Concatenated rows of a split.

    Attributes:
        tokens: Token ids of all rows, special tokens included.
        offsets: Row i has ``tokens[offsets[i]:offsets[i + 1]]``.
        labels: Class number of each row; 0 in generative tasks.
        cut_rows: Number of truncated rows.
        answers: Answers of a generative task.
        content: Checksum of the rows.
    """

    tokens: Int32[np.ndarray, "total"]
    offsets: Int64[np.ndarray, "N+1"]
    labels: Int32[np.ndarray, "N"]
    cut_rows: int
    answers: EncodedAnswers | None = None
    content: str = ""

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.labels)

    @property
    def lengths(self) -> Int64[np.ndarray, "N"]:
        """Number of tokens of each row."""
        return np.diff(self.offsets)


def encode_split(
    rows: Sequence[Mapping[str, Any]],
    task: Task,
    tokenizer: TextTokenizer,
    max_tokens: int,
    layout: str = "encoder",
    answer_tokens: int | None = None,
) -> EncodedSplit:
    """Tokenise the rows of a split and truncate long ones; see `cut_segments`."""
    if not rows:
        raise InputError(f"task {task.name} has no rows to encode; give at least one")
    texts = [render(task, row, layout) for row in rows]
    template = task.template(layout)
    fixed = {
        index: tokenizer.encode([texts[0][index]])[0]
        for index, segment in enumerate(template)
        if not template_fields(segment)
    }
    free = [index for index in range(len(template)) if index not in fixed]
    room = _room(max_tokens, len(free), sum(map(len, fixed.values())), task, tokenizer, layout)
    columns = [encode_texts([t[index] for t in texts], tokenizer, room) for index in free]
    segments_by_row = list(zip(*columns, strict=True))
    ids = []
    for segments in segments_by_row:
        by_index = dict(zip(free, cut_segments(segments, room), strict=True)) | fixed
        ids.append(frame([by_index[i] for i in range(len(template))], tokenizer, layout))
    tokens, offsets = join_rows(ids)
    return EncodedSplit(
        tokens=tokens,
        offsets=offsets,
        labels=_class_numbers(rows, task),
        cut_rows=sum(sum(map(len, segments)) > room for segments in segments_by_row),
        answers=encode_answers(rows, task, tokenizer, layout, answer_tokens or task.answer_tokens),
    )


def join_rows(ids: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate rows of ids; return the tokens and offsets."""
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
    """Tokenise the answers of a generative task."""
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
    # Paper: the first answer without an end token, so that generation never learns to stop; here
    # complete answers have one.
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
    """Tokenise texts of which at most the first ``room`` tokens are kept, and one more."""
    heads = [_head(text, room * CHARACTERS_PER_TOKEN) for text in texts]
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
    """Truncate a text or a pair to a number of tokens, as if from the longer end."""
    # The shorter text of a pair is truncated only if it exceeds half of the room.
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
    """Return the room for text besides special tokens and fixed segments."""
    special = len(frame([[]] * n_segments, tokenizer, layout)) + n_fixed
    if max_tokens < special + n_segments:
        raise InputError(
            f"max_tokens is {max_tokens}, but a row of task {task.name} has {special} special and "
            f"at least {n_segments} text tokens; give {special + n_segments} or more"
        )
    return max_tokens - special


def frame(segments: Sequence[list[int]], tokenizer: TextTokenizer, layout: str) -> list[int]:
    """Add the special tokens of a layout to the segments of a text."""
    special = tokenizer.ids
    if layout == "encoder":
        return [special.cls, *chain.from_iterable([*ids, special.sep] for ids in segments)]
    ids = list(chain.from_iterable(segments))
    if layout == "encoder_decoder":
        return [*ids, special.eos]
    return [special.bos, *ids] if tokenizer.add_bos else ids


def _head(text: str, n_letters: int) -> str:
    """Return the start of a text up to a single space, which no token crosses."""
    if len(text) <= n_letters:
        return text
    end = text.rfind(" ", 1, n_letters)
    while end > 0 and (text[end - 1].isspace() or text[end + 1].isspace()):
        end = text.rfind(" ", 1, end)
    return text if end <= 0 else text[:end]


# --- Cache of encoded splits
# Files are named by a hash of the rows, template, labels, vocabulary and lengths, so they are never
# stale; a broken file only means that the rows are tokenised again.

FORM = 1
"""Version of the file format."""
FEWEST_ROWS = 500
"""Smaller splits are not cached: tokenising is as fast as a file."""
MOST_BYTES = 2 << 30
"""Size limit of the folder; the least recently used files are removed."""

_ANSWERS = ("tokens", "offsets")


def cache_folder() -> Path | None:
    """Return the folder of encoded splits, or None if caches are disabled."""
    return user_cache("tokens")


def encode_cached(
    rows: Sequence[Mapping[str, Any]],
    task: Task,
    tokenizer: TextTokenizer,
    max_tokens: int,
    layout: str = "encoder",
    answer_tokens: int | None = None,
) -> EncodedSplit:
    """Tokenise the rows of a split, or load them from the cache."""
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
    """Cache a split; a full or read-only disk is not an error."""
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
    """Load a cached split; return None if it is missing or broken."""
    if not file.exists():
        return None
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as cached:
            split = EncodedSplit(
                cached["tokens"], cached["offsets"], cached["labels"], int(cached["cut_rows"])
            )
            answers = _load_answers(cached, rows) if "width" in cached else None
        os.utime(file)  # marks it as recently used
    except Exception:  # whatever NumPy raises for a broken file
        return None
    if len(split.labels) != len(rows) or len(split.offsets) != len(rows) + 1:
        return None
    return dataclasses.replace(split, answers=answers)


def _load_answers(cached: Any, rows: Sequence[Mapping[str, Any]]) -> EncodedAnswers:
    tokens, offsets = cached["piece_tokens"].tolist(), cached["piece_offsets"].tolist()
    flat = [tuple(tokens[a:b]) for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    references, reference_tokens, start = tuple(tuple(row["answers"]) for row in rows), [], 0
    for of in references:
        reference_tokens.append(tuple(flat[start : start + len(of)]))
        start += len(of)
    return EncodedAnswers(
        cached["answer_tokens"],
        cached["answer_offsets"],
        int(cached["width"]),
        int(cached["cut_answers"]),
        references,
        tuple(reference_tokens),
    )
