"""What every family of models returns: the answer of a batch, and the memory of generation."""

from __future__ import annotations

from typing import Any

from flax import struct
from jaxtyping import Array, Bool, Float, Int


@struct.dataclass
class ModelOutput:
    """What a model says of a batch; ``S`` is absent where only the answer was computed."""

    # scores of the label words asked for, or of the whole vocabulary; float32
    logits: Float[Array, "B *S C"]
    hidden: Float[Array, "B *S D"]  # last states
    # feed-forward activations after the non-linearity, where they were asked for
    neurons: Float[Array, "L B *S F"] | None = None


@struct.dataclass
class AnswerScores:
    """What a model says of answers of several tokens that might follow a text."""

    # logarithm of each token's probability, given the text and the tokens before it
    log_probs: Float[Array, "B W A"]
    is_best: Bool[Array, "B W A"]  # whether no other token is more probable there


@struct.dataclass
class Cache:
    """Keys and values that generation computes once and reads at every further token."""

    # those of the prompt, which all rows look at; no axis of rows. None without a prompt or where
    # the prompt is read with the text
    shared: Any
    context: Any  # those of what each row reads; every leaf is [layers, B, ...]. They never change
    lengths: Int[Array, "B"]  # how many tokens each row reads
    generated: Any  # those of the tokens generated so far; every leaf is [layers, B, N, ...]
    steps: Int[Array, ""]  # how many tokens were generated and read again
