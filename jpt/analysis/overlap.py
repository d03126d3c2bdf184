"""Overlap of activated neurons: the cosine of two prompts' 0/1 vectors, window by window.

A neuron is activated where its value is above 0. The authors' code
(``caculate_metric_value_for_correlation.py``) takes windows of three layers from layers 0, 3, 6 and
so on, and all layers; here every window of three is there, and the top three are the default.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64

from jpt.errors import InputError
from jpt.types import Activations

OVERLAP = "neuron_overlap"
OVERLAP_ALL = "neuron_overlap_all"
WINDOW_PREFIX = "neuron_overlap_layers_"
WINDOW_LAYERS = 3


def neuron_overlap(
    activations: Activations, layers: str | tuple[int, int] | None = None
) -> tuple[dict[str, Float64[np.ndarray, "K K"]], list[str]]:
    """Computes the overlap of activated neurons of every pair of prompts.

    It is the cosine of the 0/1 vectors: shared / sqrt(activated by a x activated by b). Counts are
    whole numbers, so nothing is rounded before that.

    Args:
        activations: of the prompts.
        layers: first and last layer of ``neuron_overlap``, counted from 0, both included, as
            ``"9-11"``, ``"9"`` or ``(9, 11)``; by default the top three.

    Returns:
        Matrices by name: ``neuron_overlap``, ``neuron_overlap_layers_0_2`` and every further
        window of three layers, ``neuron_overlap_all``. And a line for each window in which a
        prompt activates no neuron, whose overlap is NaN there.

    Raises:
        InputError: the layers are no window, or outside those of the activations.

    Example:
        >>> values = np.array([[[1, 1, -1]], [[1, -1, -1]]], np.float32)
        >>> found, notes = neuron_overlap(Activations(("a", "b"), values))
        >>> found["neuron_overlap"].round(3).tolist()
        [[1.0, 0.707], [0.707, 1.0]]
    """
    count = activations.values.shape[1]
    first, last = parse_layers(layers, count)
    windows = {OVERLAP: (first, last)}
    for start in range(count - WINDOW_LAYERS + 1):
        end = start + WINDOW_LAYERS - 1
        windows[f"{WINDOW_PREFIX}{start}_{end}"] = (start, end)
    windows[OVERLAP_ALL] = (0, count - 1)
    shared = _shared_below(activations)
    columns, notes = {}, []
    for name, (start, end) in windows.items():
        counts = shared[end + 1] - shared[start]
        columns[name] = _cosines(counts)
        silent = np.flatnonzero(counts.diagonal() == 0)
        if silent.size:
            names = ", ".join(activations.names[place] for place in silent[:5])
            more = f" and {silent.size - 5} more" if silent.size > 5 else ""
            notes.append(
                f"{names}{more}: no neuron is activated in layers {start}-{end}, {name} is not"
                " defined there"
            )
    return columns, notes


def parse_layers(layers: str | tuple[int, int] | None, count: int) -> tuple[int, int]:
    """Reads which layers a window has.

    Args:
        layers: as in `neuron_overlap`.
        count: how many layers there are.

    Returns:
        The first and the last layer.

    Raises:
        InputError: it is no window, or outside the layers.

    Example:
        >>> parse_layers("9-11", 12), parse_layers(None, 12), parse_layers(None, 2)
        ((9, 11), (9, 11), (0, 1))
    """
    if layers is None:
        return max(0, count - WINDOW_LAYERS), count - 1
    parts = layers.split("-") if isinstance(layers, str) else [str(layer) for layer in layers]
    # isdecimal alone would take digits of other scripts.
    if len(parts) not in (1, 2) or not all(
        part.strip().isascii() and part.strip().isdecimal() for part in parts
    ):
        raise InputError(
            f"layers is {layers!r}; first and last layer expected, for instance"
            f" {max(0, count - WINDOW_LAYERS)}-{count - 1}"
        )
    first, last = int(parts[0]), int(parts[-1])
    if not first <= last < count:
        raise InputError(
            f"layers {first}-{last} are no window of the {count} layers of the activations; they"
            f" are numbered 0 to {count - 1}, the first named first"
        )
    return first, last


def _shared_below(activations: Activations) -> Int64[np.ndarray, "L+1 K K"]:
    """How many neurons both prompts of a pair activate in the layers below each layer."""
    prompts, layers = activations.values.shape[:2]
    active = np.packbits(activations.values > 0, axis=-1)  # [K, L, F / 8]
    shared = np.zeros((layers + 1, prompts, prompts), np.int64)
    for place, own in enumerate(active):
        shared[1:, place] = np.bitwise_count(active & own).sum(-1, dtype=np.int64).T
    return shared.cumsum(axis=0)


def _cosines(counts: Int64[np.ndarray, "K K"]) -> Float64[np.ndarray, "K K"]:
    activated = counts.diagonal().astype(np.float64)
    lengths = np.sqrt(activated[:, None] * activated[None])
    return np.where(lengths > 0, counts / np.maximum(lengths, 1), np.nan)
