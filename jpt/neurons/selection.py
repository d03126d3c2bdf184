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

# --- Which neurons are made silent: a prompt's most activated ones, and others to hold against them
# Paper's code (2.0, ``mask_activated_neuron``): the top 20 % of neurons by value over all layers.
# Every choice here has the same number of neurons, so that what they cost can be compared.

OF_SEVERAL = (MASK_OTHER, MASK_COMMON, MASK_SPECIFIC)
"""Choices that need the prompts of two tasks or more."""

Keys = tuple[Float[np.ndarray, "L F"] | Int[np.ndarray, "L F"] | Bool[np.ndarray, "L F"], ...]
"""What neurons are sorted by: the largest first, by the first key, then the second and so on."""


@dataclass(frozen=True)
class NeuronChoice:
    """Neurons that are silent in one run.

    Attributes:
        kind: one of `MASK_KINDS`.
        mask: 0 where a neuron is silent, 1 elsewhere.
        source: the prompt whose neurons they are; None where they are nobody's.
        draw: number of a random choice.
        fitting: how many of them are what the kind promises, where there are too few: activated by
            the prompt; by every prompt (common); by this one and no other (specific).
    """

    kind: str
    mask: Float32[np.ndarray, "L F"] = field(repr=False)
    source: str | None
    draw: int | None
    fitting: int

    def summary(self) -> dict[str, Any]:
        """Gives the choice without the mask, ready for JSON."""
        silent = (self.mask == 0).sum(axis=1)
        return {
            "neurons": int(silent.sum()),
            "by_layer": silent.tolist(),
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
    """Chooses neurons by what prompts activate.

    ``own``: those with the prompt's largest values. ``random``: as many in each layer as ``own``
    has there. ``other``: those with another prompt's largest values. ``common``: activated by the
    most prompts (all of them, where there are enough), the largest mean value first. ``specific``:
    activated by this prompt and by the fewest others, the largest value first.

    Args:
        activations: of the prompts.
        prompt: whose task is scored.
        kind: one of `MASK_KINDS`.
        ratio: share of the neurons of the layers.
        layers: first and last layer, from 0, both included, as ``"9-11"``; by default all.
        per_layer: take the share from each layer, instead of from all of them together.
        other: the other prompt of ``other``.
        draw: number of the random choice.
        seed: of random choices, and of which comes first among neurons of equal values.

    Returns:
        The choice; ``round(ratio x neurons)`` of them, whatever the kind.

    Raises:
        InputError: a ratio outside (0, 1), layers or prompts that are not there.

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
    place = activations.names.index(other if kind == MASK_OTHER else prompt)
    keys, is_fitting = _keys(activations, place, kind)
    silent = _silence(keys, window, count, per_layer, seed)
    silent = _redraw(silent, [seed, 1, draw]) if kind == MASK_RANDOM else silent
    return NeuronChoice(
        kind,
        np.where(silent, np.float32(0), np.float32(1)),
        {MASK_IN_TASK: prompt, MASK_OTHER: other, MASK_SPECIFIC: prompt}.get(kind),
        draw if kind == MASK_RANDOM else None,
        int((silent & is_fitting).sum()),
    )


def _check_names(activations: Activations, prompt: str, kind: str, other: str | None) -> None:
    names = activations.names
    for name in (prompt, other):
        if name is not None and name not in names:
            raise unknown_name("prompt of the activations", name, names)
    if kind in OF_SEVERAL and len(names) < 2:
        raise InputError(
            f"kind is {kind}, which compares prompts, but there is {len(names)} ({names[0]}); give"
            " the prompts of two tasks or more"
        )
    if kind == MASK_OTHER and other in (None, prompt):
        raise InputError(
            f"kind is {MASK_OTHER}, and the other prompt is {other}; name one that is not {prompt}"
        )


def _keys(activations: Activations, place: int, kind: str) -> tuple[Keys, Bool[np.ndarray, "L F"]]:
    """What decides, and which neurons are what the kind promises."""
    values, rates = activations.values[place], activations.rates
    # Of a probe on text: activated in half of the rows or more.
    active = activations.values > 0 if rates is None else rates >= 0.5
    if kind == MASK_COMMON:
        shared = active.sum(axis=0)
        mean = activations.values.mean(axis=0, dtype=np.float64)
        return (shared, mean), shared == len(active)
    if kind == MASK_SPECIFIC:
        others = active.sum(axis=0) - active[place]
        return (active[place], -others, values), active[place] & (others == 0)
    return (values,), (np.ones_like(active[0]) if kind == MASK_RANDOM else active[place])


def _silence(
    keys: Keys, window: tuple[int, int], count: int, per_layer: bool, seed: int
) -> Bool[np.ndarray, "L F"]:
    """Marks so many neurons with the largest keys; equal ones come in an order drawn by lot."""
    layers, width = keys[0].shape
    first, last = window
    # Without the lot, the zeros of a ReLU would be taken from the first layers first.
    lots = np.random.default_rng([seed, 0]).permutation(layers * width).reshape(layers, width)
    silent = np.zeros((layers, width), bool)
    groups = [[layer] for layer in range(first, last + 1)]
    for rows in groups if per_layer else [list(range(first, last + 1))]:
        ranked = [-key[rows].astype(np.float64).ravel() for key in keys]
        order = np.lexsort([lots[rows].ravel(), *reversed(ranked)])
        chosen = np.zeros(len(rows) * width, bool)
        chosen[order[:count]] = True
        silent[rows] = chosen.reshape(len(rows), width)
    return silent


def _redraw(silent: Bool[np.ndarray, "L F"], seed: list[int]) -> Bool[np.ndarray, "L F"]:
    """Draws as many neurons of each layer as are marked there."""
    generator = np.random.default_rng(seed)
    drawn = np.zeros_like(silent)
    for layer, count in enumerate(silent.sum(axis=1)):
        drawn[layer, generator.choice(silent.shape[1], int(count), replace=False)] = True
    return drawn


# --- Redundancy: neurons that every prompt activates, and neurons that none does, layer by layer


def redundancy(activations: Activations) -> Redundancy:
    """Counts the neurons that all prompts activate and those that none does.

    A neuron is activated where its value is above 0; of a probe on text, always on is what every
    prompt activates in every row, and never on what none does in any. With more prompts both
    shares can only fall, so compare models on prompts for the same tasks.

    Args:
        activations: of the prompts.

    Returns:
        The shares by layer.

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
    """Says the redundancy of a bank below what else is said of it."""
    found = redundancy(activations)
    return found.summary(), f"\n{found.describe()}" if found.prompts > 1 else ""
