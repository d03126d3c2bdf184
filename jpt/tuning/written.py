"""Scoring answers that are written: greedy text against the references, and the loss."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jpt.backbones.generation import greedy, without_ends
from jpt.data.encode import EncodedSplit
from jpt.files.tokenizer import TextTokenizer
from jpt.mesh import fetch
from jpt.tasks.text_metrics import TEXT_METRICS, Written, score_texts
from jpt.tuning.losses import written_totals
from jpt.tuning.scoring import Batching, Score, placed_batches
from jpt.types import Batch, Parameters


@partial(jax.jit, static_argnums=0)
def _loss_step(
    module: nn.Module, params: Parameters, prompt: Float[Array, "P D"] | None, batch: Batch
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    loss, _, total = written_totals(module, params, prompt, batch)
    return loss, total


def score_written(
    module: nn.Module,
    params: Parameters,
    prompt: Float[Array, "P D"] | None,
    split: EncodedSplit,
    tokenizer: TextTokenizer,
    metric: str,
    batching: Batching,
    mesh: Mesh | None = None,
) -> Score:
    """Lets a model write the answer of every row of a split and compares it with the references."""
    rows: list[Written | None] = [None] * split.n_rows
    loss = tokens = 0.0
    for numbers, batch in placed_batches(split, batching, mesh):
        found, total = fetch(_loss_step(module, params, prompt, batch))
        loss, tokens = loss + float(found), tokens + float(total)
        written = write_answers(module, params, prompt, batch, tokenizer, split.answers.width)
        for number, ids in zip(numbers, written, strict=False):  # filling rows are left over
            rows[number] = _compare(split, int(number), ids, tokenizer)
    measures = score_texts(tuple(TEXT_METRICS), rows)
    return Score(
        metric=metric,
        value=measures[metric],
        loss=loss / tokens,
        rows=split.n_rows,
        majority=None,
        counts={},
        predictions=tuple(row.prediction for row in rows),
        measures=measures,
        written=tuple(rows),
    )


def write_answers(
    module: nn.Module,
    params: Parameters,
    prompt: Float[Array, "P D"] | None,
    batch: Batch,
    tokenizer: TextTokenizer,
    width: int,
) -> list[list[int]]:
    """Writes an answer to each row of a batch, the most probable token each time."""
    most = width - (tokenizer.ids.eos is not None)
    inputs = (module, params, batch.tokens, batch.lengths, prompt, most, tokenizer.end_ids)
    return without_ends(fetch(greedy(*inputs)), tokenizer.end_ids)


def _compare(
    split: EncodedSplit, number: int, ids: Sequence[int], tokenizer: TextTokenizer
) -> Written:
    answers = split.answers
    # A decoder's answer begins with the space behind its cue.
    text = tokenizer.decode(ids).strip()
    return Written(text, answers.references[number], tuple(ids), answers.pieces[number])
