"""How long prompts and texts may be: what a model has positions for."""

from __future__ import annotations

from jpt.backbones.registry import Backbone
from jpt.errors import InputError


def check_lengths(
    backbone: Backbone, prompt_rows: int, max_tokens: int, first_position: int = 0
) -> None:
    """Refuses texts and prompts that the model's positions cannot serve.

    Args:
        backbone: whose positions count.
        prompt_rows: P.
        max_tokens: longest text in tokens.
        first_position: position of the text's first token.

    Raises:
        InputError: with the arithmetic.
    """
    positions = backbone.config.positions
    if backbone.layout == "decoder" and prompt_rows + max_tokens > positions:
        raise InputError(
            f"prompt {prompt_rows} + text {max_tokens} = {prompt_rows + max_tokens} tokens, but "
            f"{backbone.name} has {positions} positions; set max_tokens to "
            f"{max(1, positions - prompt_rows)} or less"
        )
    if backbone.layout == "encoder" and max_tokens + first_position > positions:
        start = f" + first position {first_position}" if first_position else ""
        raise InputError(
            f"text of {max_tokens} tokens{start} = {max_tokens + first_position}, but "
            f"{backbone.name} has {positions} positions; set max_tokens to "
            f"{positions - first_position} or less"
        )
    if prompt_rows > positions:
        # T5 has no positions; there the most rows are a rule of ours.
        raise InputError(
            f"a prompt of {prompt_rows} rows is longer than the {positions} positions of "
            f"{backbone.name}; set length to {positions} or less"
        )
