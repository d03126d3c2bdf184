"""Which rows of a task a probe on text reads, and at which of their tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from jaxtyping import Float32, Int

from jpt.analysis.probe_options import ALL_TEXT, ANSWER, START, TEXT, Data, Positions, ProbeOptions
from jpt.backbones.lengths import check_lengths, longest_text
from jpt.backbones.registry import Backbone
from jpt.config import PAPER_CHOICES
from jpt.data.batches import shuffled
from jpt.data.encode import EncodedSplit, encode_split, join_rows
from jpt.data.rows import Row
from jpt.data.sources import attach_data, read_rows, read_texts
from jpt.errors import InputError
from jpt.tasks.registry import load_task
from jpt.tasks.task import Task

ROWS = 64
"""Rows of a probe on text, where nothing else is said."""

STREAM = crc32(b"probe/rows")


@dataclass(frozen=True)
class ProbeInput:
    """What every prompt of a bank is put in front of."""

    split: EncodedSplit  # the encoded rows
    max_tokens: int  # the length they were encoded with
    positions: Positions  # ``"answer"``, ``"text"`` or numbers of tokens
    record: dict[str, Any]  # what was read, for the file of activations
    first_position: int = 0  # position of the text's first token


def start_input(backbone: Backbone, first_position: int = 0) -> ProbeInput:
    """Gives the paper's probe: the start token alone."""
    tokens, offsets = join_rows([[backbone.start_id]])
    split = EncodedSplit(tokens, offsets, np.zeros(1, np.int32), 0)
    return ProbeInput(split, 1, ANSWER, {"kind": START}, first_position)


def text_input(
    backbone: Backbone, options: ProbeOptions, prompt_rows: int, first_position: int = 0
) -> ProbeInput:
    """Encodes some rows of a task; their labels are not looked at."""
    task, places = _as_task(options.task, options.data), options.places
    tokens = _text_tokens(options.max_tokens, backbone, task, prompt_rows, first_position)
    rows = _some(_read(task, options.split), options, f"{task.name} {options.split}")
    encoded = encode_split(rows, task, backbone.tokenizer, tokens, backbone.layout)
    encoded = _with_positions(encoded, places)
    record = {
        "kind": TEXT,
        "task": task.name,
        "split": options.split,
        "rows": encoded.n_rows,
        "seed": options.seed,
        "max_tokens": tokens,
        "positions": places if isinstance(places, str) else list(places),
    }
    return ProbeInput(encoded, tokens, places, record, first_position)


def position_weights(
    positions: Positions, lengths: Int[np.ndarray, "B"], width: int
) -> Float32[np.ndarray, "B T"]:
    """Says how much each token of a batch counts."""
    places, lengths = np.arange(width), np.asarray(lengths)[:, None]
    is_text = places < lengths
    chosen = is_text
    if positions != ALL_TEXT:
        numbers = np.array(positions)
        targets = np.where(numbers >= 0, numbers, lengths + numbers)  # [B, how many]
        chosen = is_text & (places == targets[:, :, None]).any(1)
    return (chosen / np.maximum(chosen.sum(1, keepdims=True), 1)).astype(np.float32)


def _with_positions(split: EncodedSplit, positions: Positions) -> EncodedSplit:
    """The rows that have at least one of the tokens."""
    if positions in (ANSWER, ALL_TEXT):
        return split
    lengths = split.lengths
    has = position_weights(positions, lengths, int(lengths.max())).any(axis=1)
    if not has.any():
        raise InputError(
            f"positions is {','.join(map(str, positions))}, but the longest of {split.n_rows} rows"
            f" has {lengths.max()} tokens; choose from 0 to {lengths.max() - 1}, or from the end"
        )
    ids = [split.tokens[a:b] for a, b in zip(split.offsets[:-1], split.offsets[1:], strict=True)]
    tokens, offsets = join_rows([row for row, keep in zip(ids, has, strict=True) if keep])
    return dataclasses.replace(
        split, tokens=tokens, offsets=offsets, labels=split.labels[has], answers=None
    )


def _as_task(task: Task | str | Path, data: Data | None) -> Task:
    if isinstance(task, Task):
        return task if data is None else attach_data(task, data)
    if data is None or isinstance(data, str | Path):
        return load_task(task, data)
    return attach_data(load_task(task), data)


def _read(task: Task, split: str) -> list[Row]:
    return read_rows(task, split) if task.is_written else read_texts(task, split)


def _some(rows: Sequence[Row], options: ProbeOptions, where: str) -> list[Row]:
    """Rows by chance, in the order in which they stood."""
    if options.rows is not None and options.rows > len(rows):
        raise InputError(
            f"rows is {options.rows}, but {where} has {len(rows)} rows; ask for {len(rows)} or"
            " fewer"
        )
    chosen = shuffled(options.seed, STREAM, 0, len(rows))[: options.rows or ROWS]
    return [rows[number] for number in sorted(chosen.tolist())]


def _text_tokens(
    max_tokens: int | None, backbone: Backbone, task: Task, prompt_rows: int, first_position: int
) -> int:
    """The longest text that a run of this task on this backbone would read."""
    answer = task.answer_tokens or 0
    if max_tokens is None:
        own = {} if task.max_tokens is None else {"max_tokens": task.max_tokens}
        choice = {**PAPER_CHOICES, **own, **backbone.defaults}["max_tokens"]
        most = longest_text(backbone, prompt_rows, first_position, answer)
        max_tokens = max(1, min(choice, most))
    check_lengths(backbone, prompt_rows, max_tokens, first_position, answer)
    return max_tokens
