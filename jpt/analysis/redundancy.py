"""Redundancy: neurons that every prompt activates, and neurons that none does, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from jpt.types import Activations


@dataclass(frozen=True)
class Redundancy:
    """Shares of the neurons of each layer, over several prompts.

    Attributes:
        prompts: how many prompts there are.
        activated: share that a prompt activates, on average.
        always: share that every prompt activates.
        never: share that no prompt activates.
        always_by_chance: what ``always`` would be if each prompt activated as many neurons of the
            layer as it does, but drawn by lot.
        never_by_chance: likewise.
    """

    prompts: int
    activated: Float64[np.ndarray, "L"]
    always: Float64[np.ndarray, "L"]
    never: Float64[np.ndarray, "L"]
    always_by_chance: Float64[np.ndarray, "L"]
    never_by_chance: Float64[np.ndarray, "L"]

    def summary(self) -> dict[str, Any]:
        """Gives the shares over all layers and by layer, ready for JSON."""
        names = ("activated", "always", "never", "always_by_chance", "never_by_chance")
        shares = {name: getattr(self, name) for name in names}
        return {
            "prompts": self.prompts,
            **{name: float(values.mean()) for name, values in shares.items()},
            "by_layer": {name: values.tolist() for name, values in shares.items()},
        }

    def describe(self) -> str:
        """Says the shares over all layers, and by layer, in lines of at most 80 columns.

        Returns:
            The text.
        """
        always, never = 100 * self.always.mean(), 100 * self.never.mean()
        by_lot = 100 * self.always_by_chance.mean(), 100 * self.never_by_chance.mean()
        lines = [
            f"always on (all {self.prompts} prompts): {always:.1f} % of the neurons (by chance"
            f" {by_lot[0]:.1f} %)",
            f"never on: {never:.1f} % (by chance {by_lot[1]:.1f} %)",
            "layer  activated  always on  never on",
        ]
        by_layer = zip(self.activated, self.always, self.never, strict=True)
        for layer, (activated, always, never) in enumerate(by_layer):
            shares = f"{100 * activated:7.1f} %  {100 * always:7.1f} %  {100 * never:6.1f} %"
            lines.append(f"{layer:>5}  {shares}")
        return "\n".join(lines)


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
