"""Reading a prompt: the vocabulary nearest to each of its rows, their norms, how far they moved."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int

from jpt.backbones.registry import Backbone, load_backbone
from jpt.config import check_counts
from jpt.errors import InputError
from jpt.files.tokenizer import TextTokenizer
from jpt.prompts.initialisers import sampled_ids
from jpt.prompts.store import check_prompt, load_prompt
from jpt.tasks.registry import load_task
from jpt.tasks.verbalizers import label_words
from jpt.tuning.initial import initial_rows
from jpt.types import Prompt, PromptCard

TOP = 3
"""Pieces shown for a row, where nothing else is said."""

_TABLE_ROWS = 16384  # of the vocabulary at once: 256 MB at width 4096


@dataclass(frozen=True)
class Near:
    """Pieces of a vocabulary near to the rows of a prompt, the nearest first."""

    pieces: tuple[tuple[str, ...], ...]  # of each row
    values: Float64[np.ndarray, "P N"]  # by what they were chosen


@dataclass(frozen=True)
class PromptReading:
    """What can be read off a prompt.

    Attributes:
        card: where it comes from.
        first: number of the first row: 0 where the first is the row that no model reads.
        norms: of the rows.
        by_cosine: pieces by cosine with the row.
        by_product: pieces by product with the row, as a tied head would choose them.
        vocabulary: norm of the word table's rows: mean, smallest, largest.
        pieces: how many pieces were looked at.
        drift: distance of each row from where it started; NaN for a row that no start has.
        start_cosines: cosine of each row with where it started.
        notes: what is not known, and why.
    """

    card: PromptCard
    first: int
    norms: Float64[np.ndarray, "P"]
    by_cosine: Near
    by_product: Near
    vocabulary: tuple[float, float, float]
    pieces: int
    drift: Float64[np.ndarray, "P"] | None
    start_cosines: Float64[np.ndarray, "P"] | None
    notes: tuple[str, ...]

    @property
    def record(self) -> dict[str, Any]:
        """The reading as JSON."""
        rows = [
            {
                "row": self.first + place,
                "norm": float(norm),
                "drift": _known(self.drift, place),
                "cosine_with_start": _known(self.start_cosines, place),
                "nearest_by_cosine": _listed(self.by_cosine, place),
                "nearest_by_product": _listed(self.by_product, place),
            }
            for place, norm in enumerate(self.norms)
        ]
        mean, smallest, largest = self.vocabulary
        return {
            "card": {k: v for k, v in dataclasses.asdict(self.card).items() if v is not None},
            "vocabulary_norm": {"mean": mean, "min": smallest, "max": largest},
            "pieces": self.pieces,
            "rows": rows,
            "notes": list(self.notes),
        }


def show_prompt(
    prompt: Prompt | str | Path,
    *,
    backbone: Backbone | str | Path | None = None,
    top: int = TOP,
) -> PromptReading:
    """Reads a prompt in the words of its backbone.

    Args:
        prompt: a prompt, its file, or the folder of its run.
        backbone: instead of the one that the card names; the width is checked.
        top: how many pieces a row. Special pieces, and those that stand for no text
            (``[unused7]``), are left out.

    Returns:
        The reading.

    Raises:
        InputError: for a prompt that does not fit the backbone.

    Example:
        >>> prompt = Prompt(np.eye(2, 128, dtype=np.float32), PromptCard("builtin/bert-small", "t"))
        >>> show_prompt(prompt).norms.tolist()
        [1.0, 1.0]
    """
    check_counts(top=top)
    loaded = prompt if isinstance(prompt, Prompt) else load_prompt(prompt)
    card = loaded.card
    name = backbone if backbone is not None else card.backbone
    model = name if isinstance(name, Backbone) else load_backbone(name)
    check_prompt(loaded, model.name, model.config.width, model.layout, backbone is not None)
    has_unused = loaded.unused_row is not None
    rows = np.concatenate([loaded.unused_row, loaded.values]) if has_unused else loaded.values
    ids = _text_ids(model)
    table = model.params["embeddings"]["word"]
    norms, by_cosine, by_product = _nearest(rows, table, ids, min(top, len(ids)), model.tokenizer)
    start, notes = _start(loaded, model)
    if has_unused:
        notes.insert(0, "row 0 is read by no model: it came with the authors' file")
        start = (
            None if start is None else np.concatenate([np.full((1, rows.shape[1]), np.nan), start])
        )
    wide = rows.astype(np.float64)
    return PromptReading(
        card=card,
        first=0 if has_unused else 1,
        norms=np.linalg.norm(wide, axis=1),
        by_cosine=by_cosine,
        by_product=by_product,
        vocabulary=(float(norms.mean()), float(norms.min()), float(norms.max())),
        pieces=len(ids),
        drift=None if start is None else np.linalg.norm(wide - start, axis=1),
        start_cosines=None if start is None else _row_cosines(wide, start.astype(np.float64)),
        notes=tuple(notes),
    )


def _text_ids(model: Backbone) -> Int[np.ndarray, "N"]:
    tokenizer = model.tokenizer
    count = min(model.config.vocabulary, tokenizer.vocabulary_size)
    special = {token for token in tokenizer.ids if token is not None}
    ids = sampled_ids([tokenizer.piece(token) for token in range(count)], special)
    if not len(ids):
        raise InputError(f"the vocabulary of {model.name} has no piece that stands for text")
    return ids


def _nearest(
    rows: Float32[np.ndarray, "P D"],
    table: Any,
    ids: Int[np.ndarray, "N"],
    top: int,
    tokenizer: TextTokenizer,
) -> tuple[Float64[np.ndarray, "N"], Near, Near]:
    """Norms of the pieces, and the nearest ones by cosine and by product; the table in parts."""
    products = np.empty((len(rows), len(ids)), np.float32)
    norms = np.empty(len(ids))
    for start in range(0, len(ids), _TABLE_ROWS):
        some = slice(start, start + _TABLE_ROWS)
        words = np.asarray(table[ids[some].astype(np.int32)]).astype(np.float32)
        products[:, some] = rows @ words.T
        norms[some] = np.linalg.norm(words, axis=1)
    lengths = np.linalg.norm(rows, axis=1).astype(np.float64)

    def best(scores: Float64[np.ndarray, "P N"]) -> Near:
        # By score, equal ones by id.
        order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
        pieces = tuple(tuple(tokenizer.piece(int(ids[n])) for n in line) for line in order)
        return Near(pieces, np.take_along_axis(scores, order, axis=1).astype(np.float64))

    scale = np.maximum(lengths[:, None] * norms[None], np.finfo(np.float32).tiny)
    return norms, best(products / scale), best(products.astype(np.float64))


def _start(prompt: Prompt, model: Backbone) -> tuple[Float32[np.ndarray, "P D"] | None, list[str]]:
    """The rows that the prompt started from, or why they are not known."""
    card = prompt.card
    if card.source is not None:
        return None, [f"no drift: it was not tuned from a start known here ({card.source})"]
    if card.seed is None:
        return None, ["no drift: the card says no seed, so its start cannot be made again"]
    try:
        # The numbers follow from the name in the card, wherever the weights lie now.
        named = dataclasses.replace(model, name=card.backbone)
        labels = _label_ids(card, model) if card.init == "labels" else ()
        return initial_rows(named, card.init, card.seed, len(prompt.values), labels), []
    except InputError as error:
        return None, [f"no drift: the start {card.init} cannot be made again ({error})"]


def _label_ids(card: PromptCard, model: Backbone) -> Sequence[int]:
    task = load_task(card.task)
    return label_words(task, model.tokenizer, model.model_type, model.layout, "phrase").all_ids


def _row_cosines(
    rows: Float64[np.ndarray, "P D"], start: Float64[np.ndarray, "P D"]
) -> Float64[np.ndarray, "P"]:
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(start, axis=1)
    return (rows * start).sum(1) / np.where(norms > 0, norms, np.nan)


def _known(values: Float64[np.ndarray, "P"] | None, place: int) -> float | None:
    """JSON has no NaN."""
    return None if values is None or not np.isfinite(values[place]) else float(values[place])


def _listed(near: Near, place: int) -> list[dict[str, Any]]:
    pairs = zip(near.pieces[place], near.values[place].tolist(), strict=True)
    return [{"piece": piece, "value": value} for piece, value in pairs]
