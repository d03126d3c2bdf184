"""Tokenised rows kept on disk, so that a split is tokenised once for all runs that read it.

A file is named by what went into it: the content of the rows, template, labels, vocabulary and
lengths. It can therefore never be stale, and anything wrong with it only means that the rows are
tokenised again. The folder is ``JPT_CACHE``, by default ``jpt`` in the user's cache folder; an
empty ``JPT_CACHE`` keeps nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jpt.data.encode import EncodedAnswers, EncodedSplit, encode_split, join_rows
from jpt.data.rows import rows_checksum
from jpt.errors import InputError
from jpt.files.atomic import atomic_file
from jpt.files.tokenizer import TextTokenizer
from jpt.files.user_cache import make_room, user_cache
from jpt.tasks.task import Task

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
        pieces = [ids for of in split.answers.pieces for ids in of]
        arrays["piece_tokens"], arrays["piece_offsets"] = join_rows(pieces)
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
    references, pieces, start = tuple(tuple(row["answers"]) for row in rows), [], 0
    for of in references:
        pieces.append(tuple(flat[start : start + len(of)]))
        start += len(of)
    return EncodedAnswers(
        kept["answer_tokens"],
        kept["answer_offsets"],
        int(kept["width"]),
        int(kept["cut_answers"]),
        references,
        tuple(pieces),
    )
