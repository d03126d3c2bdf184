"""Several prompts of one length and width as one array, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32

from jpt.errors import InputError
from jpt.types import Prompt, PromptCard


def stack_prompts(prompts: Mapping[str, Prompt]) -> Float32[np.ndarray, "K P D"]:
    """Stacks prompts in the order in which they come."""
    if not prompts:
        raise InputError("a bank of prompts needs at least one; none was given")
    first, shape = next((name, prompt.values.shape) for name, prompt in prompts.items())
    for name, prompt in prompts.items():
        if prompt.values.shape != shape:
            raise InputError(
                f"prompt {name} is {_size(prompt.values.shape)} and prompt {first} {_size(shape)};"
                " a bank holds prompts of one length and width"
            )
    return np.stack([np.asarray(prompt.values, np.float32) for prompt in prompts.values()])


def unstack_prompts(
    bank: Float32[np.ndarray, "K P D"], cards: Sequence[PromptCard]
) -> tuple[Prompt, ...]:
    """Takes a bank apart."""
    if bank.ndim != 3:
        raise InputError(f"a bank has the axes [K, P, D]; this one is {_size(bank.shape)}")
    if len(cards) != len(bank):
        raise InputError(f"{len(cards)} cards for {len(bank)} prompts; give one for each")
    pairs = zip(np.asarray(bank), cards, strict=True)
    return tuple(Prompt(np.array(values, np.float32), card) for values, card in pairs)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(length) for length in shape)
