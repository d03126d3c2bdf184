"""What the neurons of prompts have in common, layer by layer and in windows of layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from jpt.types import Activations

_PRODUCT_BYTES = 64 << 20  # some neurons of one layer of all prompts in float64, at most


@dataclass(frozen=True)
class NeuronPairs:
    """Sums over the neurons of some layers, for each two prompts: what indicators are made of."""

    # A neuron counts as activated where its value is above 0; of a probe on text it counts with the
    # share of the rows in which it is.

    # number of neurons that both activate; of a probe on text the product of the shares
    shared: Float64[np.ndarray, "K K"]
    # the same number; of a probe on text the smaller of the two shares
    smaller: Float64[np.ndarray, "K K"]
    products: Float64[np.ndarray, "K K"]  # products of the values themselves
    # mean over the layers of how alike rows of text look; None where there was no text
    cka: Float64[np.ndarray, "K K"] | None = None

    @staticmethod
    def cosines(products: Float64[np.ndarray, "K K"]) -> Float64[np.ndarray, "K K"]:
        """Divides products by the lengths, whose squares are the own products."""
        squares = products.diagonal()
        lengths = np.sqrt(squares[:, None] * squares[None])
        found = np.where(lengths > 0, products / np.where(lengths > 0, lengths, 1), np.nan)
        return np.clip(found, -1, 1)

    def jaccard(self) -> Float64[np.ndarray, "K K"]:
        """Activated by both, divided by activated by either; NaN where neither activates any."""
        own = self.smaller.diagonal()
        either = own[:, None] + own[None] - self.smaller
        silent = (own[:, None] == 0) | (own[None] == 0)
        return np.where(silent, np.nan, self.smaller / np.where(silent, 1, either))


class LayerPairs:
    """The sums of every single layer, from which those of any window follow."""

    def __init__(self, activations: Activations) -> None:
        self._products = _products(activations.values)
        self._cka = activations.cka
        if activations.rates is None:
            self._shared = self._smaller = _shared(activations.values)
        else:
            self._shared = _products(activations.rates)
            self._smaller = _smaller(activations.rates)

    def window(self, first: int, last: int) -> NeuronPairs:
        """Adds up the layers of a window."""
        layers = slice(first, last + 1)
        sums = (each[layers].sum(0) for each in (self._shared, self._smaller, self._products))
        return NeuronPairs(*sums, None if self._cka is None else self._cka[layers].mean(0))


def _shared(values: Float32[np.ndarray, "K L F"]) -> Int64[np.ndarray, "L K K"]:
    """How many neurons both prompts of a pair activate: counts, so nothing is rounded."""
    prompts, layers = values.shape[:2]
    active = np.packbits(values > 0, axis=-1)  # [K, L, F / 8]
    shared = np.zeros((layers, prompts, prompts), np.int64)
    for place, own in enumerate(active):
        shared[:, place] = np.bitwise_count(active & own).sum(-1, dtype=np.int64).T
    return shared


def _products(values: Float32[np.ndarray, "K L F"]) -> Float64[np.ndarray, "L K K"]:
    """Products in float64, a layer and some neurons at a time."""
    prompts, layers, neurons = values.shape
    products = np.zeros((layers, prompts, prompts))
    size = max(1, _PRODUCT_BYTES // (8 * prompts))
    for layer in range(layers):
        for start in range(0, neurons, size):
            some = values[:, layer, start : start + size].astype(np.float64)
            products[layer] += some @ some.T
    return products


def _smaller(rates: Float[np.ndarray, "K L F"]) -> Float64[np.ndarray, "L K K"]:
    """The sum over the neurons of the smaller of two rates, once for each pair."""
    prompts, layers = rates.shape[:2]
    smaller = np.zeros((layers, prompts, prompts))
    for place, own in enumerate(rates):
        sums = np.minimum(rates[place:], own).sum(-1, dtype=np.float64).T  # [L, K - place]
        smaller[:, place, place:] = smaller[:, place:, place] = sums
    return smaller
