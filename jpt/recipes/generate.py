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

GENERATIVE = ("encoder_decoder", "decoder")  # layouts


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
    """Continue texts with a decoder, or answer them with T5.

    Texts are not cut. T5 reads a text with its end token appended; a decoder reads it with its
    start token prepended if its tokenizer adds one. An empty text is that token alone. A
    continuation ends before the end token; a decoder's starts with its leading space, if any.

    Args:
        prompt: Prompt, prompt file or run folder; None for the backbone without a prompt.
        texts: Texts to continue.
        backbone: Backbone; defaults to the one in the prompt's card. Its width is checked.
        max_tokens: Maximum number of new tokens per continuation.
        beams: Beam width; 1 is greedy. The beam with the best mean log-probability is returned.
        eval_batch_size: Texts continued at once; changes speed only.
        dtype: Data type of weights and matrix products.
        mesh: Devices per mesh axis.
        progress: Show a progress bar on stderr.

    Returns:
        The continuations, in the order of the texts.

    Raises:
        InputError: The backbone is an encoder, the prompt does not fit it, or prompt, text and
            continuation exceed its positions.

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
            generated = _generate(model, values, batch, max_tokens, beams)
            for number, new in zip(numbers, generated, strict=False):  # padding rows come last
                found[number] = _continuation(model, rows[number], new)
            bar.update(len(numbers))
    return found


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise InputError("texts: expected a list of strings, for instance ['The film was']")


def _load(
    prompt: Prompt | str | Path | None,
    backbone: Backbone | str | Path | None,
    dtype: str,
    mesh: Mesh,
) -> tuple[Backbone, Float[np.ndarray, "P D"] | None]:
    """Load the backbone and the prompt's values and check that they fit."""
    if prompt is None and backbone is None:
        raise InputError("expected a prompt or a backbone, got neither; give one of them")
    if prompt is not None and not isinstance(prompt, Prompt):
        prompt = load_prompt(prompt)
    model = resolve_backbone(
        prompt.card.backbone if backbone is None else backbone, dtype, mesh=mesh
    )
    if model.layout not in GENERATIVE:
        able = ", ".join(kind for kind, of in FAMILIES.items() if of.layout in GENERATIVE)
        raise InputError(
            f"{model.name} has the layout {model.layout}, which cannot generate text; use one "
            f"with the layout {' or '.join(GENERATIVE)} ({able})"
        )
    if prompt is None:
        return model, None
    check_prompt(prompt, model.name, model.config.width, model.layout, backbone is not None)
    return model, prompt.values


def _encode(texts: Sequence[str], model: Backbone) -> list[list[int]]:
    """Tokenise every text with the special tokens that the model expects."""
    encoded = model.tokenizer.encode(list(texts))
    rows = [frame([row], model.tokenizer, model.layout) or [model.start_id] for row in encoded]
    for number, row in enumerate(rows, 1):
        model.tokenizer.check_ids(row, f"text {number}")
    return rows


def _check_room(
    model: Backbone, prompt_rows: int, rows: Sequence[list[int]], max_tokens: int
) -> int:
    """Return the maximum text length in tokens; raise InputError if a text is longer."""
    lengths = [len(row) for row in rows]
    longest = max(lengths, default=1)
    if model.layout == "encoder_decoder":
        check_lengths(model, prompt_rows, longest)
        return max(longest, BUCKETS[-1])
    positions, number = model.config.positions, lengths.index(longest) + 1 if rows else 0
    wanted = prompt_rows + longest + max_tokens
    if wanted > positions:
        room = positions - prompt_rows - longest
        fix = f"set max_tokens to {room} or less" if room > 0 else f"shorten text {number}"
        raise InputError(
            f"prompt {prompt_rows} + text {longest} (text {number}) + max_tokens {max_tokens} = "
            f"{wanted} tokens, but {model.name} has {positions} positions; {fix}"
        )
    return positions - prompt_rows - max_tokens


def _batches(
    rows: Sequence[list[int]], batch_size: int, longest: int, pad: int, mesh: Mesh
) -> Iterator[tuple[Int64[np.ndarray, "N"], Batch]]:
    """Yield batches of one size, padded to a bucket, with the numbers of their real rows."""
    if not rows:
        return
    split = EncodedSplit(
        tokens=np.fromiter(chain.from_iterable(rows), dtype=np.int32),
        offsets=np.cumsum([0, *map(len, rows)], dtype=np.int64),
        labels=np.zeros(len(rows), np.int32),
        cut_rows=0,
    )
    # No more rows than texts, rounded up to the devices on data.
    shares = mesh.shape["data"]
    batch_size = min(batch_size, -(-len(rows) // shares) * shares)
    yield from sharded_batches(split, Batching(batch_size, longest, pad), mesh)


def _generate(
    model: Backbone,
    prompt: Float[np.ndarray, "P D"] | None,
    batch: Batch,
    max_tokens: int,
    beams: int,
) -> list[list[int]]:
    """Return the new tokens of each row, without the end token."""
    module = model.module.clone(dropout_rate=0.0)
    ends = model.tokenizer.end_ids
    inputs = (module, model.params, batch.tokens, batch.lengths, prompt, max_tokens, ends)
    found = fetch(greedy(*inputs) if beams == 1 else beam_search(*inputs, beams))
    return without_ends(found, ends)


def _continuation(model: Backbone, read: list[int], new: list[int]) -> str:
    """Decode new tokens as what they add to the text that they continue."""
    decode = model.tokenizer.decode
    if model.layout == "encoder_decoder":
        return decode(new)
    # Tokenizers that mark leading spaces drop the first one on decoding.
    before, whole = decode(read), decode([*read, *new])
    return whole.removeprefix(before) if whole.startswith(before) else decode(new)
