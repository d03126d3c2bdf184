"""Weighted averages of prompts, and the arithmetic of learned mixtures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Float64

from jpt.errors import InputError, unknown_name
from jpt.prompts.store import list_runs, load_prompt, load_runs, stack_prompts
from jpt.types import Prompt, PromptCard, Scoring

AVERAGE, MIXTURE = "average", "mixture"

Weights = Mapping[str, float] | Sequence[float]
"""Weights of prompts by name, or in the order of the prompts."""

_SHOWN = 20


def average_prompts(
    prompts: Mapping[str, Prompt] | str | Path, weights: Weights | None = None
) -> Prompt:
    """Average prompts, optionally weighted.

    Args:
        prompts: Folder of prompts, or prompts by name; at least two of one backbone and length.
        weights: Weights by name or in the order of ``prompts`` (a folder: alphabetically). They are
            normalised to sum to 1. Uniform by default.

    Returns:
        The averaged `Prompt`, without ``unused_row``. Its card has the task that all prompts
        share, else ``mixture``, and lists the prompts and their weights as ``source``.

    Raises:
        InputError: If there are fewer than two prompts, their backbones, lengths or widths differ,
            or the weights are not one non-negative number per prompt, or are all 0.

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
    """Load the prompts of a mixture."""
    loaded = load_runs(prompts)
    if len(loaded) < 2:
        raise InputError(
            f"expected at least 2 prompts to mix, got 1 ({next(iter(loaded))}); give another one of"
            f" {next(iter(loaded.values())).card.backbone}"
        )
    return loaded


def choose_parts(
    prompts: Mapping[str, Prompt] | str | Path, names: Sequence[str] | None
) -> dict[str, Prompt]:
    """Load the named prompts; only these have to be compatible."""
    if isinstance(prompts, Mapping):
        found: Mapping[str, Path | Prompt] = prompts
    else:
        found = list_runs(prompts)
    wanted = list(found) if names is None else list(names)
    for name in wanted:
        if name not in found:
            raise unknown_name("prompt", name, found)
        if wanted.count(name) > 1:
            raise InputError(f"prompt {name} is listed {wanted.count(name)} times; list it once")
    chosen = {name: found[name] for name in wanted}
    return {
        n: each if isinstance(each, Prompt) else load_prompt(each) for n, each in chosen.items()
    }


def parse_weights(text: str) -> dict[str, float]:
    """Parse weights such as ``imdb=2,sst2=1``."""
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (field.strip() for field in part.rpartition("="))
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not name or math.isnan(value):
            raise InputError(
                f"weights: expected NAME=NUMBER,... such as imdb=2,sst2=1, got {part.strip()!r}"
            )
        if name in weights:
            raise InputError(f"weights: {name} is listed twice; list each prompt once")
        weights[name] = value
    return weights


def resolve_weights(names: Sequence[str], weights: Weights | None) -> dict[str, float]:
    """Normalise weights to sum to 1."""
    listed = _in_order(names, [1.0] * len(names) if weights is None else weights)
    for name, weight in zip(names, listed, strict=True):
        is_number = isinstance(weight, int | float | np.number) and not isinstance(weight, bool)
        if not (is_number and math.isfinite(weight) and weight >= 0):
            raise InputError(f"weights: expected a number of at least 0 for {name}, got {weight}")
    largest = max(listed)
    if largest <= 0:
        raise InputError(f"weights: expected a positive weight, got {len(listed)} zeros")
    scaled = [weight / largest for weight in listed]  # avoids overflow of the sum
    total = math.fsum(scaled)
    return {name: float(weight / total) for name, weight in zip(names, scaled, strict=True)}


def _in_order(names: Sequence[str], weights: Weights) -> list[float]:
    if not isinstance(weights, Mapping):
        if len(weights) != len(names):
            raise InputError(
                f"weights: expected {len(names)} numbers ({', '.join(names[:_SHOWN])}), got"
                f" {len(weights)}"
            )
        return list(weights)
    for name in weights:
        if name not in names:
            raise unknown_name("prompt with a weight", str(name), names)
    missing = [name for name in names if name not in weights]
    if missing:
        raise InputError(
            f"weights: expected {len(names)} numbers, got {len(weights)}; add {missing[0]}=0 to"
            f" leave {missing[0]} out"
        )
    return [weights[name] for name in names]


def mix_bank(
    bank: Float32[np.ndarray, "K P D"], weights: Float64[np.ndarray, "K R"]
) -> Float32[np.ndarray, "P D"]:
    """Return the weighted sum of a prompt bank; R is 1, or P for weights per row."""
    return (weights[:, :, None] * bank.astype(np.float64)).sum(0).astype(np.float32)


def softmax_weights(logits: Float[np.ndarray, "K R"]) -> Float64[np.ndarray, "K R"]:
    """Return the softmax over the prompts."""
    powers = np.exp(logits.astype(np.float64) - logits.max(0, keepdims=True))
    return powers / powers.sum(0, keepdims=True)


def mixed_card(
    prompts: Mapping[str, Prompt],
    shares: Mapping[str, float],
    kind: str,
    task: str | None = None,
    task_type: str | None = None,
) -> PromptCard:
    """Return the card of a mixture."""
    cards = [prompt.card for prompt in prompts.values()]
    tasks, types = {card.task for card in cards}, {card.task_type for card in cards}
    if task is None:
        task = tasks.pop() if len(tasks) == 1 else MIXTURE
        task_type = types.pop() if len(types) == 1 else None
    ordered = sorted(prompts, key=lambda name: (-shares[name], name))
    listed = ", ".join(f"{name} ({shares[name]:.3g})" for name in ordered[:_SHOWN])
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return PromptCard(
        cards[0].backbone,
        task,
        task_type,
        cards[0].layout,
        init=kind,
        source=f"{kind} of {listed}{more}",
        first_position=cards[0].first_position,
        scoring=_shared_scoring(cards) if task == cards[0].task else None,
    )


def _shared_scoring(cards: Sequence[PromptCard]) -> Scoring | None:
    """Return the settings that all prompts were tuned with."""
    first = cards[0].scoring
    if first is None or any(card.scoring != first for card in cards):
        return None
    return dataclasses.replace(first, split=None)
