"""Averages and learned mixtures of prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Float64

from jpt.errors import InputError, unknown_name
from jpt.prompts.store import list_runs, load_prompt, load_runs, stack_prompts
from jpt.types import Prompt, PromptCard

AVERAGE, MIXTURE = "average", "mixture"

Weights = Mapping[str, float] | Sequence[float]
"""A weight for each prompt: by name, or in the order in which the prompts were given."""

_SHOWN = 20


def average_prompts(
    prompts: Mapping[str, Prompt] | str | Path, weights: Weights | None = None
) -> Prompt:
    """Takes the weighted mean of several prompts, row by row.

    Args:
        prompts: a folder of prompts, or prompts by name; two or more of one backbone and length.
        weights: shares of the prompts, by name or in the order given (of a folder: by name,
            alphabetically); they are divided by their sum. By default all are alike.

    Returns:
        The mean. Its card keeps the task where all have the same one, else the task is
        ``mixture``; ``source`` names the parts with their shares. Rows that no model reads
        (``unused_row``) have no mean.

    Raises:
        InputError: fewer than two prompts, prompts that do not belong together, or weights that
            are not one number of 0 or more for each, not all of them 0.

    Example:
        >>> card = PromptCard("bert", "sst2")
        >>> ones, zeros = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
        >>> mean = average_prompts({"a": Prompt(ones, card), "b": Prompt(zeros, card)}, [3, 1])
        >>> float(mean.values[0, 0]), mean.card.source
        (0.75, 'average of a (0.75), b (0.25)')
    """
    loaded = load_parts(prompts)
    names = list(prompts) if isinstance(prompts, Mapping) else list(loaded)
    shares = resolve_weights(names, weights)
    column = np.array([shares[name] for name in loaded])
    values = mix_bank(stack_prompts(loaded), column[:, None])
    return Prompt(values, mixed_card(loaded, shares, AVERAGE))


def load_parts(prompts: Mapping[str, Prompt] | str | Path) -> dict[str, Prompt]:
    """Loads the prompts of a mixture."""
    loaded = load_runs(prompts)
    if len(loaded) < 2:
        raise InputError(
            f"a mixture needs two prompts or more; there is 1 ({next(iter(loaded))}): give another"
            f" of {next(iter(loaded.values())).card.backbone}, or use that one as it is"
        )
    return loaded


def choose_parts(
    prompts: Mapping[str, Prompt] | str | Path, names: Sequence[str] | None
) -> dict[str, Prompt]:
    """Loads some prompts of a folder; only these have to belong together."""
    if isinstance(prompts, Mapping):
        found: Mapping[str, Path | Prompt] = prompts
    else:
        found = list_runs(prompts)
    wanted = list(found) if names is None else list(names)
    for name in wanted:
        if name not in found:
            raise unknown_name("prompt", name, found)
        if wanted.count(name) > 1:
            raise InputError(f"prompt {name} is named {wanted.count(name)} times; name it once")
    chosen = {name: found[name] for name in wanted}
    return {
        n: each if isinstance(each, Prompt) else load_prompt(each) for n, each in chosen.items()
    }


def parse_weights(text: str) -> dict[str, float]:
    """Reads weights from text."""
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.rpartition("="))
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not name or math.isnan(value):
            raise InputError(
                f"weights has {part.strip()!r}; write NAME=NUMBER with commas between, for instance"
                " imdb=2,sst2=1"
            )
        if name in weights:
            raise InputError(f"weights names {name} twice; name each prompt once")
        weights[name] = value
    return weights


def resolve_weights(names: Sequence[str], weights: Weights | None) -> dict[str, float]:
    """Turns weights into shares that sum to 1."""
    listed = _in_order(names, [1.0] * len(names) if weights is None else weights)
    for name, weight in zip(names, listed, strict=True):
        is_number = isinstance(weight, int | float | np.number) and not isinstance(weight, bool)
        if not (is_number and math.isfinite(weight) and weight >= 0):
            raise InputError(f"the weight of {name} is {weight}; give a number of 0 or more")
    largest = max(listed)
    if largest <= 0:
        raise InputError(f"all {len(listed)} weights are 0; give at least one prompt a weight")
    scaled = [weight / largest for weight in listed]  # their sum is finite, whatever they are
    total = math.fsum(scaled)
    return {name: float(weight / total) for name, weight in zip(names, scaled, strict=True)}


def _in_order(names: Sequence[str], weights: Weights) -> list[float]:
    """The weights in the order of the names."""
    if not isinstance(weights, Mapping):
        if len(weights) != len(names):
            raise InputError(
                f"{len(weights)} weights for {len(names)} prompts ({', '.join(names[:_SHOWN])});"
                " give one for each"
            )
        return list(weights)
    for name in weights:
        if name not in names:
            raise unknown_name("prompt with a weight", str(name), names)
    lacking = [name for name in names if name not in weights]
    if lacking:
        raise InputError(
            f"{len(weights)} weights for {len(names)} prompts: {lacking[0]} has none; give each"
            f" one, for instance {lacking[0]}=0"
        )
    return [weights[name] for name in names]


def mix_bank(
    bank: Float32[np.ndarray, "K P D"], weights: Float64[np.ndarray, "K R"]
) -> Float32[np.ndarray, "P D"]:
    """Adds up the prompts of a bank, each times its weights."""
    return (weights[:, :, None] * bank.astype(np.float64)).sum(0).astype(np.float32)


def softmax_weights(logits: Float[np.ndarray, "K R"]) -> Float64[np.ndarray, "K R"]:
    """Turns logits into weights that sum to 1 over the prompts."""
    powers = np.exp(logits.astype(np.float64) - logits.max(0, keepdims=True))
    return powers / powers.sum(0, keepdims=True)


def mixed_card(
    prompts: Mapping[str, Prompt],
    shares: Mapping[str, float],
    kind: str,
    task: str | None = None,
    task_type: str | None = None,
) -> PromptCard:
    """Writes the card of a mixture."""
    cards = [prompt.card for prompt in prompts.values()]
    tasks, types = {card.task for card in cards}, {card.task_type for card in cards}
    if task is None:
        task = tasks.pop() if len(tasks) == 1 else MIXTURE
        task_type = types.pop() if len(types) == 1 else None
    ordered = sorted(prompts, key=lambda name: (-shares[name], name))
    told = ", ".join(f"{name} ({shares[name]:.3g})" for name in ordered[:_SHOWN])
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return PromptCard(
        cards[0].backbone,
        task,
        task_type,
        cards[0].layout,
        init=kind,
        source=f"{kind} of {told}{more}",
        first_position=cards[0].first_position,
    )
