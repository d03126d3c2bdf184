"""Initialise prompts: random, from vocabulary, label words, a text or another prompt."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from jpt.errors import InputError, unknown_name
from jpt.prompts.store import load_prompt
from jpt.types import Prompt

KINDS = ("random", "vocab", "labels", "text:WORDS", "prompt:FILE")
"""Values of the ``init`` option."""

ENCODER_STD = 0.02
"""Standard deviation of random prompts of encoders; N(0, 0.02^2) in the paper's code."""

_ARGUMENTS = {"random": "", "vocab": "", "labels": "", "text": "WORDS", "prompt": "FILE"}
_UNTRAINED = re.compile(
    r"\[unused\d+\]|<unused\d+>|madeupword\d+|<extra_id_\d+>|<0x[0-9A-F]{2}>|<\|[^|]*\|>"
)


@dataclass(frozen=True)
class Init:
    """Parsed ``init`` option."""

    kind: str  # ``random``, ``vocab``, ``labels``, ``text`` or ``prompt``
    argument: str = ""  # the words of ``text`` or the file of ``prompt``


def parse_init(text: str) -> Init:
    """Parse an ``init`` option."""
    kind, colon, argument = text.partition(":")
    kind, argument = kind.strip(), argument.strip()
    if kind not in _ARGUMENTS:
        raise unknown_name("init", kind, KINDS)
    if _ARGUMENTS[kind] and not argument:
        raise InputError(f"init: expected {kind}:{_ARGUMENTS[kind]}, got '{text}'")
    if colon and not _ARGUMENTS[kind]:
        raise InputError(f"init: expected {kind} without an argument, got '{text}'")
    return Init(kind, argument)


def initial_generator(seed: int, backbone: str, kind: str) -> np.random.Generator:
    """Return the random generator of an initialisation."""
    key = [seed, zlib.crc32(f"initial prompt/{backbone}/{kind}".encode())]
    return np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))


def random_values(
    generator: np.random.Generator, length: int, width: int, std: float = ENCODER_STD
) -> Float32[np.ndarray, "P D"]:
    """Sample a prompt from a normal distribution."""
    return np.float32(std) * generator.standard_normal((length, width), np.float32)


def sampled_ids(tokens: Iterable[str], special: Collection[int] = ()) -> Int[np.ndarray, "N"]:
    """Return the ids of a vocabulary without special, unused and byte tokens."""
    kept = [
        token_id
        for token_id, token in enumerate(tokens)
        if token_id not in special and not _UNTRAINED.fullmatch(token)
    ]
    return np.array(kept, np.int64)


def vocabulary_values(
    generator: np.random.Generator, length: int, embedding: Any, ids: Int[np.ndarray, "N"]
) -> Float32[np.ndarray, "P D"]:
    """Return the embeddings of random tokens of the vocabulary."""
    # Not the first ones: a vocabulary starts with punctuation, digits and word parts.
    return _embed(embedding, _sample(generator, length, ids))


def label_values(
    generator: np.random.Generator,
    length: int,
    embedding: Any,
    label_ids: Sequence[int],
    ids: Int[np.ndarray, "N"],
) -> Float32[np.ndarray, "P D"]:
    """Return the embeddings of the label words, filled up with random tokens."""
    if len(label_ids) > length:
        raise InputError(
            f"init labels: expected a length of at least {len(label_ids)}, the number of label"
            f" words, got {length}; set length to {len(label_ids)} or more"
        )
    others = np.setdiff1d(ids, label_ids)
    sample = _sample(generator, length - len(label_ids), others if others.size else ids)
    return _embed(embedding, np.concatenate([np.array(label_ids, np.int64), sample]))


def text_values(length: int, embedding: Any, text_ids: Sequence[int]) -> Float32[np.ndarray, "P D"]:
    """Return the embeddings of a text, repeated or truncated to the prompt length."""
    if not len(text_ids):
        raise InputError("init text: expected words of the vocabulary, got none; write text:WORDS")
    return _embed(embedding, np.resize(np.array(text_ids, np.int64), length))


def copied_values(
    prompt: Prompt, length: int, width: int, name: str = "the prompt"
) -> Float32[np.ndarray, "P D"]:
    """Return the values of another prompt."""
    rows, columns = prompt.values.shape
    if columns != width:
        raise InputError(
            f"{name}: expected width {width}, that of the backbone, got {columns} (tuned on"
            f" {prompt.card.backbone}); use a prompt of a model of that width"
        )
    if rows != length:
        raise InputError(f"{name}: expected length {length}, got {rows}; set length to {rows}")
    return np.array(prompt.values, np.float32)


def initial_values(
    init: Init,
    *,
    seed: int,
    backbone: str,
    length: int,
    embedding: Any,
    ids: Int[np.ndarray, "N"],
    label_ids: Sequence[int],
    encode: Callable[[str], Sequence[int]],
    std: float = ENCODER_STD,
) -> Float32[np.ndarray, "P D"]:
    """Return the initial prompt of a run."""
    generator, width = initial_generator(seed, backbone, init.kind), embedding.shape[1]
    if init.kind == "vocab":
        return vocabulary_values(generator, length, embedding, ids)
    if init.kind == "labels":
        return label_values(generator, length, embedding, label_ids, ids)
    if init.kind == "text":
        return text_values(length, embedding, encode(init.argument))
    if init.kind == "prompt":
        return copied_values(load_prompt(init.argument), length, width, init.argument)
    return random_values(generator, length, width, std)


def _sample(
    generator: np.random.Generator, count: int, ids: Int[np.ndarray, "N"]
) -> Int[np.ndarray, "P"]:
    """Sample ids without replacement; repeat only if there are fewer than ``count``."""
    if not len(ids):
        raise InputError("init: expected text tokens in the vocabulary, got none; use init random")
    rounds = [generator.permutation(ids) for _ in range(-(-count // len(ids)))]
    return np.concatenate([np.zeros(0, np.int64), *rounds])[:count].astype(np.int64)


def _embed(embedding: Any, ids: Int[np.ndarray, "P"]) -> Float32[np.ndarray, "P D"]:
    # JAX would clamp ids outside the table.
    if ids.size and not 0 <= ids.min() <= ids.max() < embedding.shape[0]:
        raise InputError(
            f"expected token ids below the model's vocabulary size {embedding.shape[0]}, got"
            f" {ids.max()}; use tokenizer and weights of one model"
        )
    from jpt.parallel import fetch  # lazy, so that prompt files can be read without jax

    return fetch(embedding[ids.astype(np.int32)]).astype(np.float32)
