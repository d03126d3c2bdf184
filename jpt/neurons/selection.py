"""Choose neurons by activation or at random, and measure how redundant they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from jpt.config import (
    MASK_COMMON,
    MASK_IN_TASK,
    MASK_KINDS,
    MASK_OTHER,
    MASK_RANDOM,
    MASK_SPECIFIC,
    check_choice,
    check_ratio,
)
from jpt.errors import InputError, unknown_name
from jpt.indicators.indicators import parse_layers
from jpt.results.records import Redundancy
from jpt.types import Activations

# --- Selection
# Paper's code (2.0, ``mask_activated_neuron``): the top 20 % of neurons by value over all layers.
# Every kind selects the same number of neurons, so that their effects can be compared.

OF_SEVERAL = (MASK_OTHER, MASK_COMMON, MASK_SPECIFIC)  # kinds that need prompts of 2 or more tasks

# Sort keys of neurons, the first one most significant, the largest values first.
Keys = tuple[Float[np.ndarray, "L F"] | Int[np.ndarray, "L F"] | Bool[np.ndarray, "L F"], ...]


@dataclass(frozen=True)
class NeuronChoice:
    """Neurons to mask.

    Attributes:
        kind: One of `MASK_KINDS`.
        mask: 0 for masked neurons, 1 elsewhere.
        source: Prompt that the neurons were selected by; None for ``random`` and ``common``.
        draw: Number of the random sample.
        fitting: Number of masked neurons that meet the criterion of the kind: activated by the
            prompt, by every prompt (common), or by this prompt only (specific).
    """

    kind: str
    mask: Float32[np.ndarray, "L F"] = field(repr=False)
    source: str | None
    draw: int | None
    fitting: int

    def summary(self) -> dict[str, Any]:
        """Return the numbers of masked neurons as JSON."""
        masked = (self.mask == 0).sum(axis=1)
        return {
            "neurons": int(masked.sum()),
            "by_layer": masked.tolist(),
            "fitting": self.fitting,
        }


def choose_neurons(
    activations: Activations,
    prompt: str,
    kind: str = MASK_IN_TASK,
    *,
    ratio: float = 0.2,
    layers: str | tuple[int, int] | None = None,
    per_layer: bool = False,
    other: str | None = None,
    draw: int = 0,
    seed: int = 0,
) -> NeuronChoice:
    """Select neurons to mask by the activations of prompts.

    ``in_task``: largest values with the prompt. ``random``: as many per layer as ``in_task``, at
    random. ``other``: largest values with another prompt. ``common``: activated by the most
    prompts, of equal ones the largest mean first. ``specific``: activated by this prompt and the
    fewest others, of equal ones the largest value first.

    Args:
        activations: Activations of the prompts.
        prompt: Prompt whose task is scored.
        kind: One of `MASK_KINDS`.
        ratio: Share of neurons to mask, in (0, 1).
        layers: First and last layer, from 0, both included, as ``"9-11"``; defaults to all.
        per_layer: Apply the ratio to each layer instead of to all of them together.
        other: The other prompt, for the kind ``other``.
        draw: Number of the random sample.
        seed: Seed of random samples and of the order of neurons with equal values.

    Returns:
        The :class:`NeuronChoice` of ``round(ratio x neurons)`` neurons.

    Raises:
        InputError: If the ratio is outside (0, 1), or layers or prompts are unknown.

    Example:
        >>> values = np.array([[[3.0, -1.0, 2.0, 1.0]], [[-1.0, 4.0, 2.0, 1.0]]], np.float32)
        >>> bank = Activations(("a", "b"), values)
        >>> choose_neurons(bank, "a", ratio=0.5).mask
        array([[0., 1., 0., 1.]], dtype=float32)
        >>> choose_neurons(bank, "a", "common", ratio=0.5).mask
        array([[1., 1., 0., 0.]], dtype=float32)
    """
    check_choice("kind", kind, MASK_KINDS)
    _check_names(activations, prompt, kind, other)
    shape = activations.values.shape[1:]
    window = parse_layers(layers, shape[0]) if layers is not None else (0, shape[0] - 1)
    count = check_ratio(ratio, shape[1] if per_layer else (window[1] - window[0] + 1) * shape[1])
    index = activations.names.index(other if kind == MASK_OTHER else prompt)
    keys, is_fitting = _keys(activations, index, kind)
    masked = _select(keys, window, count, per_layer, seed)
    masked = _resample(masked, [seed, 1, draw]) if kind == MASK_RANDOM else masked
    return NeuronChoice(
        kind,
        np.where(masked, np.float32(0), np.float32(1)),
        {MASK_IN_TASK: prompt, MASK_OTHER: other, MASK_SPECIFIC: prompt}.get(kind),
        draw if kind == MASK_RANDOM else None,
        int((masked & is_fitting).sum()),
    )


def _check_names(activations: Activations, prompt: str, kind: str, other: str | None) -> None:
    names = activations.names
    for name in (prompt, other):
        if name is not None and name not in names:
            raise unknown_name("prompt of the activations", name, names)
    if kind in OF_SEVERAL and len(names) < 2:
        raise InputError(
            f"kind: {kind} needs prompts of 2 or more tasks, got {len(names)} ({names[0]}); give"
            " more prompts"
        )
    if kind == MASK_OTHER and other in (None, prompt):
        raise InputError(f"other: expected a prompt other than {prompt}, got {other}; give one")


def _keys(activations: Activations, index: int, kind: str) -> tuple[Keys, Bool[np.ndarray, "L F"]]:
    """Return the sort keys, and which neurons meet the criterion of the kind."""
    values, rates = activations.values[index], activations.rates
    # Text probe: activated in at least half of the rows.
    active = activations.values > 0 if rates is None else rates >= 0.5
    if kind == MASK_COMMON:
        shared = active.sum(axis=0)
        mean = activations.values.mean(axis=0, dtype=np.float64)
        return (shared, mean), shared == len(active)
    if kind == MASK_SPECIFIC:
        others = active.sum(axis=0) - active[index]
        return (active[index], -others, values), active[index] & (others == 0)
    return (values,), (np.ones_like(active[0]) if kind == MASK_RANDOM else active[index])


def _select(
    keys: Keys, window: tuple[int, int], count: int, per_layer: bool, seed: int
) -> Bool[np.ndarray, "L F"]:
    """Return the `count` neurons with the largest keys; ties are broken at random."""
    layers, width = keys[0].shape
    first, last = window
    # Without random tie-breaking, the zeros of a ReLU would come from the first layers.
    ties = np.random.default_rng([seed, 0]).permutation(layers * width).reshape(layers, width)
    masked = np.zeros((layers, width), bool)
    groups = [[layer] for layer in range(first, last + 1)]
    for rows in groups if per_layer else [list(range(first, last + 1))]:
        ranked = [-key[rows].astype(np.float64).ravel() for key in keys]
        order = np.lexsort([ties[rows].ravel(), *reversed(ranked)])
        chosen = np.zeros(len(rows) * width, bool)
        chosen[order[:count]] = True
        masked[rows] = chosen.reshape(len(rows), width)
    return masked


def _resample(masked: Bool[np.ndarray, "L F"], seed: list[int]) -> Bool[np.ndarray, "L F"]:
    """Sample as many neurons of each layer as are masked there."""
    generator = np.random.default_rng(seed)
    sampled = np.zeros_like(masked)
    for layer, count in enumerate(masked.sum(axis=1)):
        sampled[layer, generator.choice(masked.shape[1], int(count), replace=False)] = True
    return sampled


# --- Redundancy


def redundancy(activations: Activations) -> Redundancy:
    """Count the neurons that all prompts activate and those that none does, by layer.

    A neuron is activated if its value is above 0; with a text probe, in every row or in none.
    Both shares decrease with the number of prompts, so compare models on the same tasks.

    Args:
        activations: Activations of the prompts.

    Returns:
        The :class:`jpt.results.records.Redundancy` shares by layer.

    Example:
        >>> values = np.array([[[1, 1, -1, 0]], [[2, -1, 3, 0]]], np.float32)
        >>> found = redundancy(Activations(("a", "b"), values))
        >>> found.always.tolist(), found.never.tolist(), found.activated.tolist()
        ([0.25], [0.25], [0.5])
    """
    rates = activations.rates
    if rates is None:
        rates = (activations.values > 0).astype(np.float64)
    always, never = rates == 1, rates == 0
    return Redundancy(
        len(rates),
        rates.mean(axis=(0, 2), dtype=np.float64),
        always.all(axis=0).mean(axis=1),
        never.all(axis=0).mean(axis=1),
        always.mean(axis=2).prod(axis=0),
        never.mean(axis=2).prod(axis=0),
    )


def describe_redundancy(activations: Activations) -> tuple[dict[str, Any], str]:
    """Return the redundancy of a bank as JSON, and as text for two or more prompts."""
    found = redundancy(activations)
    return found.summary(), f"\n{found.describe()}" if found.prompts > 1 else ""
