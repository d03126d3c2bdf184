"""How long prompts and texts may be: what a model has positions for."""

from __future__ import annotations

import sys

from jpt.backbones.registry import Backbone
from jpt.errors import InputError


def longest_text(
    backbone: Backbone, prompt_rows: int, first_position: int = 0, answer_tokens: int = 0
) -> int:
    """Says how long a text a model has positions for."""
    positions = backbone.config.positions
    if backbone.layout == "decoder":
        return positions - prompt_rows - answer_tokens
    return positions - first_position if backbone.layout == "encoder" else sys.maxsize


def check_lengths(
    backbone: Backbone,
    prompt_rows: int,
    max_tokens: int,
    first_position: int = 0,
    answer_tokens: int = 0,
) -> None:
    """Refuses texts and prompts that the model's positions cannot serve."""
    positions = backbone.config.positions
    most = longest_text(backbone, prompt_rows, first_position, answer_tokens)
    if max_tokens > most:
        parts = {
            "prompt": prompt_rows if backbone.layout == "decoder" else 0,
            "text": max_tokens,
            "answer": answer_tokens if backbone.layout == "decoder" else 0,
            "first position": first_position,
        }
        named = [f"{name} {count}" for name, count in parts.items() if count]
        sum_ = f"{' + '.join(named)} =" if len(named) > 1 else "a text of"
        cure = f"set max_tokens to {most} or less" if most > 0 else "take a shorter prompt"
        raise InputError(
            f"{sum_} {sum(parts.values())} tokens, but {backbone.name} has {positions} "
            f"positions; {cure}"
        )
    if prompt_rows > positions:
        # T5 has no positions; there the most rows are a rule of ours.
        raise InputError(
            f"a prompt of {prompt_rows} rows is longer than the {positions} positions of "
            f"{backbone.name}; set length to {positions} or less"
        )
