"""Generate continuations for lines of text, with or without a prompt."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int64
from tqdm import tqdm

from jpt.backbones.generation import beam_search, greedy, without_ends
from jpt.backbones.registry import FAMILIES, Backbone, check_lengths
from jpt.config import check_counts
from jpt.data.batches import BUCKETS
from jpt.data.encode import EncodedSplit, frame
from jpt.errors import InputError
from jpt.parallel import batch_sharding, fetch, make_mesh
from jpt.prompts.store import check_prompt, load_prompt
from jpt.tuning.bound_task import Batching, resolve_backbone, sharded_batches
from jpt.types import Batch, Prompt

WRITING = ("encoder_decoder", "decoder")
"""The layouts of models that can write."""


def generate(
    prompt: Prompt | str | Path | None,
    texts: Sequence[str],
    *,
    backbone: Backbone | str | Path | None = None,
    max_tokens: int = 32,
    beams: int = 1,
    eval_batch_size: int = 16,
    dtype: str = "float32",
    mesh: str | None = None,
    progress: bool = False,
) -> list[str]:
    """Lets a decoder continue texts, or T5 answer them.

    Texts are read as they stand and never cut: by T5 with its end piece behind, by a decoder with
    its start piece in front where its tokenizer adds one; an empty one as that piece alone. A
    continuation goes up to the end piece; a decoder's begins with the space that may come first.

    Args:
        prompt: a prompt, its file, the folder of its run, or None for the untouched model.
        texts: any number of them.
        backbone: instead of the one that the prompt's card names; the width is checked.
        max_tokens: the most tokens that a continuation has.
        beams: with 1 the most probable token is taken each time; else so many continuations are
            written side by side, and that with the best mean log-probability is taken.
        eval_batch_size: texts that are continued at once; changes speed, never a continuation.
        dtype: of weights and matrix products.
        mesh: devices by axis.
        progress: whether to show a bar on stderr.

    Returns:
        The continuations, in the order of the texts.

    Raises:
        InputError: for an encoder, a prompt that does not fit, or more tokens than positions.

    Example:
        >>> import tempfile
        >>> from jpt.testing import write_tiny_backbone
        >>> folder = write_tiny_backbone(tempfile.mkdtemp(), "gpt2")
        >>> len(generate(None, ["the film is", "a"], backbone=folder, max_tokens=3))
        2
    """
    _check_texts(texts)
    check_counts(max_tokens=max_tokens, beams=beams, eval_batch_size=eval_batch_size)
    devices = make_mesh(mesh)
    batch_sharding(devices, eval_batch_size)
    model, values = _load(prompt, backbone, dtype, devices)
    rows = _encode(texts, model)
    longest = _check_room(model, 0 if values is None else len(values), rows, max_tokens)
    for note in model.notes if progress else ():
        print(note, file=sys.stderr)
    found = [""] * len(rows)
    with tqdm(total=len(rows), disable=not progress, unit="text", dynamic_ncols=True) as bar:
        for numbers, batch in _batches(rows, eval_batch_size, longest, model.pad_id, devices):
            written = _write(model, values, batch, max_tokens, beams)
            for number, new in zip(numbers, written, strict=False):  # filling rows are left over
                found[number] = _continuation(model, rows[number], new)
            bar.update(len(numbers))
    return found


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise InputError("texts is no list of texts; give one, for instance ['The film was']")


def _load(
    prompt: Prompt | str | Path | None,
    backbone: Backbone | str | Path | None,
    dtype: str,
    mesh: Mesh,
) -> tuple[Backbone, Float[np.ndarray, "P D"] | None]:
    """Loads what writes, and checks that it can, behind this prompt."""
    if prompt is None and backbone is None:
        raise InputError("there is nothing to write with; give a prompt or a backbone")
    if prompt is not None and not isinstance(prompt, Prompt):
        prompt = load_prompt(prompt)
    model = resolve_backbone(
        prompt.card.backbone if backbone is None else backbone, dtype, mesh=mesh
    )
    if model.layout not in WRITING:
        able = ", ".join(kind for kind, of in FAMILIES.items() if of.layout in WRITING)
        raise InputError(
            f"{model.name} has the layout {model.layout}, which fills gaps and writes no text; the "
            f"layouts {' and '.join(WRITING)} can ({able})"
        )
    if prompt is None:
        return model, None
    check_prompt(prompt, model.name, model.config.width, model.layout, backbone is not None)
    return model, prompt.values


def _encode(texts: Sequence[str], model: Backbone) -> list[list[int]]:
    """Tokenises every text as the model reads it."""
    encoded = model.tokenizer.encode(list(texts))
    rows = [frame([row], model.tokenizer, model.layout) or [model.start_id] for row in encoded]
    for number, row in enumerate(rows, 1):
        if max(row) >= model.config.vocabulary:
            raise InputError(
                f"text {number} has the piece {max(row)}, but {model.name} has "
                f"{model.config.vocabulary} words; tokenizer and weights are of two models"
            )
    return rows


def _check_room(
    model: Backbone, prompt_rows: int, rows: Sequence[list[int]], max_tokens: int
) -> int:
    """Refuses texts that the positions cannot serve; gives the longest text that they can."""
    lengths = [len(row) for row in rows]
    longest = max(lengths, default=1)
    if model.layout == "encoder_decoder":
        check_lengths(model, prompt_rows, longest)
        return max(longest, BUCKETS[-1])
    positions, number = model.config.positions, lengths.index(longest) + 1 if rows else 0
    wanted = prompt_rows + longest + max_tokens
    if wanted > positions:
        room = positions - prompt_rows - longest
        cure = f"set max_tokens to {room} or less" if room > 0 else f"shorten text {number}"
        raise InputError(
            f"prompt {prompt_rows} + text {longest} (text {number}) + max_tokens {max_tokens} = "
            f"{wanted} tokens, but {model.name} has {positions} positions; {cure}"
        )
    return positions - prompt_rows - max_tokens


def _batches(
    rows: Sequence[list[int]], batch_size: int, longest: int, pad: int, mesh: Mesh
) -> Iterator[tuple[Int64[np.ndarray, "N"], Batch]]:
    """Batches of one size, each padded to a bucket; the numbers of their real rows come first."""
    if not rows:
        return
    split = EncodedSplit(
        tokens=np.fromiter(chain.from_iterable(rows), dtype=np.int32),
        offsets=np.cumsum([0, *map(len, rows)], dtype=np.int64),
        labels=np.zeros(len(rows), np.int32),
        cut_rows=0,
    )
    # A few texts need no large batch: as many rows as texts, and as the devices can share.
    shares = mesh.shape["data"]
    batch_size = min(batch_size, -(-len(rows) // shares) * shares)
    yield from sharded_batches(split, Batching(batch_size, longest, pad), mesh)


def _write(
    model: Backbone,
    prompt: Float[np.ndarray, "P D"] | None,
    batch: Batch,
    max_tokens: int,
    beams: int,
) -> list[list[int]]:
    """Gives the new tokens of each row, the end piece left out."""
    module = model.module.clone(dropout_rate=0.0)
    ends = model.tokenizer.end_ids
    inputs = (module, model.params, batch.tokens, batch.lengths, prompt, max_tokens, ends)
    found = fetch(greedy(*inputs) if beams == 1 else beam_search(*inputs, beams))
    return without_ends(found, ends)


def _continuation(model: Backbone, read: list[int], new: list[int]) -> str:
    """Turns new tokens into text: what they add to the text that they continue."""
    decode = model.tokenizer.decode
    if model.layout == "encoder_decoder":
        return decode(new)
    # Vocabularies that mark leading spaces lose the first one of what they decode.
    before, whole = decode(read), decode([*read, *new])
    return whole.removeprefix(before) if whole.startswith(before) else decode(new)
