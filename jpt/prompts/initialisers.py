"""Initialise prompts: random, from the vocabulary, from label words or from a text."""

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
"""The starts that a run can ask for, as they are written."""

ENCODER_STD = 0.02
"""Spread of a random start for encoders. Paper's code: N(0, 0.02^2) for BERT and RoBERTa."""

_ARGUMENTS = {"random": "", "vocab": "", "labels": "", "text": "WORDS", "prompt": "FILE"}
_UNTRAINED = re.compile(
    r"\[unused\d+\]|<unused\d+>|madeupword\d+|<extra_id_\d+>|<0x[0-9A-F]{2}>|<\|[^|]*\|>"
)


@dataclass(frozen=True)
class Init:
    """A start as it was asked for."""

    kind: str  # ``random``, ``vocab``, ``labels``, ``text`` or ``prompt``
    argument: str = ""  # the words or the file behind the colon; empty for the other kinds


def parse_init(text: str) -> Init:
    """Reads how a prompt shall start."""
    kind, colon, argument = text.partition(":")
    kind, argument = kind.strip(), argument.strip()
    if kind not in _ARGUMENTS:
        raise unknown_name("init", kind, KINDS)
    if _ARGUMENTS[kind] and not argument:
        raise InputError(f"init '{text}' lacks its {_ARGUMENTS[kind]}; write {kind}:...")
    if colon and not _ARGUMENTS[kind]:
        raise InputError(f"init '{text}': {kind} takes nothing after it; write {kind}")
    return Init(kind, argument)


def initial_generator(seed: int, backbone: str, kind: str) -> np.random.Generator:
    """Gives the random numbers of a start."""
    key = [seed, zlib.crc32(f"initial prompt/{backbone}/{kind}".encode())]
    return np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))


def random_values(
    generator: np.random.Generator, length: int, width: int, std: float = ENCODER_STD
) -> Float32[np.ndarray, "P D"]:
    """Draws a prompt from a normal distribution."""
    return np.float32(std) * generator.standard_normal((length, width), np.float32)


def sampled_ids(pieces: Iterable[str], special: Collection[int] = ()) -> Int[np.ndarray, "N"]:
    """Lists the ids of a vocabulary that stand for text."""
    kept = [
        token
        for token, piece in enumerate(pieces)
        if token not in special and not _UNTRAINED.fullmatch(piece)
    ]
    return np.array(kept, np.int64)


def vocabulary_values(
    generator: np.random.Generator, length: int, embedding: Any, ids: Int[np.ndarray, "N"]
) -> Float32[np.ndarray, "P D"]:
    """Takes the embeddings of words drawn from the vocabulary."""
    # Drawn, not the first ones: the head of a vocabulary is punctuation, digits and word parts.
    return _embed(embedding, _draw(generator, length, ids))


def label_values(
    generator: np.random.Generator,
    length: int,
    embedding: Any,
    label_ids: Sequence[int],
    ids: Int[np.ndarray, "N"],
) -> Float32[np.ndarray, "P D"]:
    """Takes the embeddings of the label words, then words drawn from the vocabulary."""
    if len(label_ids) > length:
        raise InputError(
            f"init labels needs a row for each of the {len(label_ids)} label words, the prompt has"
            f" {length}; set length to {len(label_ids)} or more"
        )
    others = np.setdiff1d(ids, label_ids)
    drawn = _draw(generator, length - len(label_ids), others if others.size else ids)
    return _embed(embedding, np.concatenate([np.array(label_ids, np.int64), drawn]))


def text_values(length: int, embedding: Any, text_ids: Sequence[int]) -> Float32[np.ndarray, "P D"]:
    """Takes the embeddings of the pieces of a text, repeated or cut to the prompt's length."""
    if not len(text_ids):
        raise InputError("init text has no words that the vocabulary knows; write text:WORDS")
    return _embed(embedding, np.resize(np.array(text_ids, np.int64), length))


def copied_values(
    prompt: Prompt, length: int, width: int, name: str = "the prompt"
) -> Float32[np.ndarray, "P D"]:
    """Takes the values of another prompt."""
    rows, columns = prompt.values.shape
    if columns != width:
        raise InputError(
            f"{name} is {columns} wide (tuned on {prompt.card.backbone}), the backbone {width};"
            " start from a prompt of a model of that width"
        )
    if rows != length:
        raise InputError(f"{name} has {rows} rows, length is {length}; set length to {rows}")
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
    """Makes the initial prompt of a run."""
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


def _draw(
    generator: np.random.Generator, count: int, ids: Int[np.ndarray, "N"]
) -> Int[np.ndarray, "P"]:
    """Draws ids without repeats, or all of them as often as needed when they are too few."""
    if not len(ids):
        raise InputError("the vocabulary has no piece that stands for text; use init random")
    rounds = [generator.permutation(ids) for _ in range(-(-count // len(ids)))]
    return np.concatenate([np.zeros(0, np.int64), *rounds])[:count].astype(np.int64)


def _embed(embedding: Any, ids: Int[np.ndarray, "P"]) -> Float32[np.ndarray, "P D"]:
    """Looks rows up; an id beyond the table would silently take another row in JAX."""
    if ids.size and not 0 <= ids.min() <= ids.max() < embedding.shape[0]:
        raise InputError(
            f"id {ids.max()} is outside the {embedding.shape[0]} words of the model; tokenizer and"
            " weights are of two models"
        )
    from jpt.parallel import fetch  # here, so that files of prompts are read without jax

    return fetch(embedding[ids.astype(np.int32)]).astype(np.float32)
