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

from jpt.data.formats import show
from jpt.data.rows import rows_checksum
from jpt.errors import InputError
from jpt.io.files import atomic_file, make_room, user_cache
from jpt.io.tokenizer import TextTokenizer
from jpt.tasks.task import Task, fill_segment, render, segment_parts, template_fields
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
    columns = []
    for index in free:
        own = _own_special(rows, template[index], tokenizer)
        columns.append(encode_texts([text[index] for text in texts], tokenizer, room, own))
    segments_by_row = list(zip(*columns, strict=True))
    _check_tokens(segments_by_row, rows, task)
    ids = []
    for segments in segments_by_row:
        by_index = dict(zip(free, cut_segments(segments, room), strict=True)) | fixed
        ids.append(frame([by_index[i] for i in range(len(template))], tokenizer, layout))
    tokens, offsets = join_rows(ids)
    split = EncodedSplit(
        tokens=tokens,
        offsets=offsets,
        labels=_class_numbers(rows, task),
        cut_rows=sum(sum(map(len, segments)) > room for segments in segments_by_row),
        answers=encode_answers(rows, task, tokenizer, layout, answer_tokens or task.answer_tokens),
    )
    _check_ids(split, rows, task, tokenizer, layout)
    return split


def _check_ids(
    split: EncodedSplit,
    rows: Sequence[Mapping[str, Any]],
    task: Task,
    tokenizer: TextTokenizer,
    layout: str,
) -> None:
    """Raise InputError for a token outside the model's word table; name the text it is in."""
    for segment in task.template(layout):
        own = fill_segment(segment, dict.fromkeys(template_fields(segment), ""))
        tokenizer.check_ids(tokenizer.encode([own])[0], f"template of task {task.name}")
    for what, part in (("row", split), ("answer of row", split.answers)):
        if part is None or part.tokens.max(initial=0) < (tokenizer.table_size or np.inf):
            continue
        for number, row in enumerate(rows):
            text = row["answers"][0] if part is not split else " ".join(row[f] for f in task.fields)
            ids = part.tokens[part.offsets[number] : part.offsets[number + 1]].tolist()
            tokenizer.check_ids(ids, f"task {task.name}, {what} {number + 1} ({text[:60]!r})")


def _own_special(
    rows: Sequence[Mapping[str, Any]], segment: str, tokenizer: TextTokenizer
) -> list[list[bool]] | None:
    """Return for each special token of filled segments whether it is the template's own."""
    parts = segment_parts(segment)
    own = tokenizer.count_special([literal for literal, _ in parts])
    if not any(own):
        return None
    names = [name for _, name in parts if name is not None]
    of_rows = {name: tokenizer.count_special([row[name] for row in rows]) for name in names}
    return [
        [
            is_own
            for (_, name), count in zip(parts, own, strict=True)
            for is_own in [True] * count + [False] * (of_rows[name][number] if name else 0)
        ]
        for number in range(len(rows))
    ]


def _check_tokens(
    segments_by_row: Sequence[Sequence[list[int]]], rows: Sequence[Mapping[str, Any]], task: Task
) -> None:
    """Raise InputError for a text of which the tokenizer keeps nothing, as for an empty one."""
    for number, segments in enumerate(segments_by_row):
        if not all(segments):
            texts = " or ".join(show(rows[number][name]) for name in task.fields)
            raise InputError(
                f"task {task.name}, row {number + 1}: expected a token in every text, but the "
                f"tokenizer finds none in {texts}; remove the row"
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
        encoded = tokenizer.encode_after(answer_cue(task), texts, plain=True)
    else:
        encoded = tokenizer.encode_plain(texts)
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


def encode_texts(
    texts: list[str],
    tokenizer: TextTokenizer,
    room: int,
    own: Sequence[list[bool]] | None = None,
) -> list[list[int]]:
    """Tokenise texts of which at most the first ``room`` tokens are kept, and one more."""
    heads = [_head(text, room * CHARACTERS_PER_TOKEN) for text in texts]
    encoded = tokenizer.encode_plain(heads, own)
    short = [
        i
        for i, (head, text) in enumerate(zip(heads, texts, strict=True))
        if len(head) < len(text) and len(encoded[i]) <= room
    ]
    own = None if own is None else [own[i] for i in short]
    for i, ids in zip(short, tokenizer.encode_plain([texts[i] for i in short], own), strict=True):
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

FORM = 2
"""Version of the file format and of tokenisation."""
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
        kind += [tokenizer.fingerprint, tokenizer.table_size]
        name = hashlib.sha256(json.dumps(kind).encode()).hexdigest()
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
