"""Similarity of prompts by their vectors and by the neurons that they activate."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int, Int64
from tqdm import tqdm

from jpt.errors import InputError, unknown_name
from jpt.io.files import make_folder, read_number, read_table, write_table
from jpt.prompts.store import Prompts, load_runs, stack_prompts
from jpt.results.prompt_table import check_unique, read_activations
from jpt.types import Activations, Prompt, PromptCard

# --- Sums over neurons

_PRODUCT_BYTES = 64 << 20  # limit of one float64 block


@dataclass(frozen=True)
class NeuronPairs:
    """Sums over the neurons of a window of layers, for each pair of prompts."""

    # A neuron is activated if its value is above 0; with a text probe it counts with its rate, the
    # share of rows in which it is activated.

    shared: Float64[np.ndarray, "K K"]  # neurons activated by both; text probe: products of rates
    smaller: Float64[np.ndarray, "K K"]  # the same; text probe: smaller of the two rates
    products: Float64[np.ndarray, "K K"]  # products of activations
    cka: Float64[np.ndarray, "K K"] | None = None  # mean over layers; text probe only

    @staticmethod
    def cosines(products: Float64[np.ndarray, "K K"]) -> Float64[np.ndarray, "K K"]:
        """Return products normalised by their diagonal; NaN where that is 0."""
        squares = products.diagonal()
        lengths = np.sqrt(squares[:, None] * squares[None])
        found = np.where(lengths > 0, products / np.where(lengths > 0, lengths, 1), np.nan)
        return np.clip(found, -1, 1)

    def jaccard(self) -> Float64[np.ndarray, "K K"]:
        """Return intersection over union of activated neurons; NaN without activated neurons."""
        active = self.smaller.diagonal()
        either = active[:, None] + active[None] - self.smaller
        inactive = (active[:, None] == 0) | (active[None] == 0)
        return np.where(inactive, np.nan, self.smaller / np.where(inactive, 1, either))


class LayerPairs:
    """Sums of single layers, to be added up over windows."""

    def __init__(self, activations: Activations) -> None:
        self._products = _products(activations.values)
        self._cka = activations.cka
        if activations.rates is None:
            self._shared = self._smaller = _shared(activations.values)
        else:
            self._shared = _products(activations.rates)
            self._smaller = _smaller(activations.rates)

    def window(self, first: int, last: int) -> NeuronPairs:
        """Add up the layers of a window."""
        layers = slice(first, last + 1)
        sums = (each[layers].sum(0) for each in (self._shared, self._smaller, self._products))
        return NeuronPairs(*sums, None if self._cka is None else self._cka[layers].mean(0))


def _shared(values: Float32[np.ndarray, "K L F"]) -> Int64[np.ndarray, "L K K"]:
    """Count the neurons that both prompts of a pair activate."""
    prompts, layers = values.shape[:2]
    active = np.packbits(values > 0, axis=-1)  # [K, L, F / 8]
    shared = np.zeros((layers, prompts, prompts), np.int64)
    for index, one in enumerate(active):
        shared[:, index] = np.bitwise_count(active & one).sum(-1, dtype=np.int64).T
    return shared


def _products(values: Float32[np.ndarray, "K L F"]) -> Float64[np.ndarray, "L K K"]:
    """Return products in float64, computed in blocks of neurons."""
    prompts, layers, neurons = values.shape
    products = np.zeros((layers, prompts, prompts))
    size = max(1, _PRODUCT_BYTES // (8 * prompts))
    for layer in range(layers):
        for start in range(0, neurons, size):
            some = values[:, layer, start : start + size].astype(np.float64)
            products[layer] += some @ some.T
    return products


def _smaller(rates: Float[np.ndarray, "K L F"]) -> Float64[np.ndarray, "L K K"]:
    """Sum the smaller of two rates over neurons."""
    prompts, layers = rates.shape[:2]
    smaller = np.zeros((layers, prompts, prompts))
    for index, one in enumerate(rates):
        sums = np.minimum(rates[index:], one).sum(-1, dtype=np.float64).T  # [L, K - index]
        smaller[:, index, index:] = smaller[:, index:, index] = sums
    return smaller


# --- Comparison of prompt tokens ("rows"), in float64, in blocks

# Floor of norms, so that the cosine of a zero row is 0, as in torch's cosine_similarity, which the
# paper's code uses.
SMALLEST_NORM = 1e-8

# Squared distances below this share of the squared norms lose too many digits in a gram matrix
# (the error of a distance would be above 1e-11 of the norms); they are computed from differences.
_NEAR = 1e-10
_BLOCK_ROWS = 800  # of each side: a gram matrix of 5 MB stays in the cache
_NEAR_ROWS = 2048  # differences of near rows at once, 17 MB at width 1024

Pairs = Float64[np.ndarray, "a b"]


@dataclass(frozen=True)
class RowPairs:
    """Products and distances of rows between prompts a and prompts b."""

    a: Float64[np.ndarray, "a P D"]
    b: Float64[np.ndarray, "b P D"]
    products: Float64[np.ndarray, "a b P"]  # of rows at equal positions
    apart: Float64[np.ndarray, "a b P"]  # squared distances of rows at equal positions
    distances: Float64[np.ndarray, "a P b P"]  # of all pairs of rows

    def from_row(self, first: int) -> RowPairs:
        """Return the pairs without the rows before `first`."""
        return RowPairs(
            self.a[:, first:],
            self.b[:, first:],
            self.products[:, :, first:],
            self.apart[:, :, first:],
            self.distances[:, first:, :, first:],
        )

    def whole_cosines(self) -> Pairs:
        """Return the cosines of flattened prompts."""
        norms = [floored_norms(side.reshape(len(side), -1)) for side in (self.a, self.b)]
        return np.clip(self.products.sum(-1) / norms[0][:, None] / norms[1][None], -1, 1)

    def row_cosines(self) -> Float64[np.ndarray, "a b P"]:
        """Return the cosines of rows at equal positions."""
        norms = floored_norms(self.a)[:, None], floored_norms(self.b)[None]
        return np.clip(self.products / norms[0] / norms[1], -1, 1)

    def mean_cosines(self) -> Pairs:
        """Return the mean cosine of all pairs of rows."""
        # It is the product of the two means of unit rows.
        means = [(side / floored_norms(side)[..., None]).mean(1) for side in (self.a, self.b)]
        return np.clip(means[0] @ means[1].T, -1, 1)


def row_pairs(
    bank: Float32[np.ndarray, "K P D"], progress: bool = False
) -> Iterator[tuple[tuple[slice, slice], RowPairs]]:
    """Yield the upper triangle of all pairs in blocks."""
    size = max(1, _BLOCK_ROWS // bank.shape[1])
    slices = [slice(start, start + size) for start in range(0, len(bank), size)]
    total = len(slices) * (len(slices) + 1) // 2
    with tqdm(total=total, desc="indicators", unit="block", disable=not progress) as bar:
        for count, left in enumerate(slices):
            a = bank[left].astype(np.float64)
            for right in slices[count:]:
                yield (left, right), compare_rows(a, bank[right].astype(np.float64))
                bar.update()


def compare_rows(a: Float64[np.ndarray, "a P D"], b: Float64[np.ndarray, "b P D"]) -> RowPairs:
    """Compare every row of prompts a with every row of prompts b."""
    rows, width = np.arange(a.shape[1]), a.shape[2]
    gram = (a.reshape(-1, width) @ b.reshape(-1, width).T).reshape(
        *a.shape[:2], *b.shape[:2]
    )  # [a, P, b, P]
    products = np.moveaxis(gram[:, rows, :, rows], 0, -1)  # [P, a, b] -> [a, b, P]
    apart = np.stack([_squared(b - one) for one in a])
    norms = _squared(a)[:, :, None, None] + _squared(b)
    gram *= -2
    squared = np.maximum(gram + norms, 0)
    near = squared < _NEAR * norms
    # Rows at equal positions are often near, since the prompts of a study start equal.
    near[:, rows, :, rows] = False
    squared[:, rows, :, rows] = np.moveaxis(apart, -1, 0)
    _recompute(squared, near, a, b)
    return RowPairs(a, b, products, apart, np.sqrt(squared, out=squared))


def floored_norms(rows: Float64[np.ndarray, "*N D"]) -> Float64[np.ndarray, "*N"]:
    """Return the norms of rows, at least `SMALLEST_NORM`."""
    return np.maximum(np.sqrt(_squared(rows)), SMALLEST_NORM)


def symmetric(pairs: Float[np.ndarray, "K K"]) -> Float64[np.ndarray, "K K"]:
    """Mirror the upper triangle, and round a diagonal of 1 to exactly 1."""
    whole = np.triu(pairs) + np.triu(pairs, 1).T
    diagonal = whole.diagonal()
    np.fill_diagonal(whole, np.where(np.abs(diagonal - 1) < 1e-12, 1, diagonal))
    return whole


def _recompute(
    squared: Float64[np.ndarray, "a P b P"],
    near: Bool[np.ndarray, "a P b P"],
    a: Float64[np.ndarray, "a P D"],
    b: Float64[np.ndarray, "b P D"],
) -> None:
    """Compute near squared distances from differences, in place."""
    indices: Int[np.ndarray, "4 N"] = np.array(np.nonzero(near))
    for start in range(0, indices.shape[1], _NEAR_ROWS):
        some = indices[:, start : start + _NEAR_ROWS]
        squared[tuple(some)] = _squared(a[some[0], some[1]] - b[some[2], some[3]])


def _squared(rows: Float64[np.ndarray, "*N D"]) -> Float64[np.ndarray, "*N"]:
    return np.einsum("...d,...d->...", rows, rows)


# --- The table of indicators
# A new indicator is one entry in `OF_ROWS` or `OF_NEURONS`, for instance
# OF_ROWS["cosine_last"] = Indicator("C_last", "cosine of the last tokens",
#                                    lambda pairs: pairs.row_cosines()[..., -1])


@dataclass(frozen=True)
class Indicator:
    """A similarity of two prompts."""

    label: str
    meaning: str
    # from a `RowPairs` (matrix [a, b]) or a `NeuronPairs` (matrix [K, K]), of which the upper
    # triangle is used; returns None to leave the column out
    compute: Callable[[Any], Any]
    windows: bool = False  # neurons: add a column for every three consecutive layers
    undefined: str = "no neuron is activated"  # neurons: why the value of a prompt can be NaN


def _near(distances: Any) -> Any:
    return 1 / (1 + distances)


OF_ROWS: dict[str, Indicator] = {
    "euclidean_concat": Indicator(
        "E_concat",
        "Euclidean similarity of the flattened prompts",
        lambda pairs: _near(np.sqrt(pairs.apart.sum(-1))),
    ),
    "euclidean_average": Indicator(
        "E_average",
        "mean Euclidean similarity of all pairs of tokens",
        lambda pairs: _near(pairs.distances.mean((1, 3))),
    ),
    "cosine_concat": Indicator(
        "C_concat", "cosine similarity of the flattened prompts", RowPairs.whole_cosines
    ),
    "cosine_average": Indicator(
        "C_average", "mean cosine similarity of all pairs of tokens", RowPairs.mean_cosines
    ),
    "euclidean_rows": Indicator(
        "E_rows",
        "mean Euclidean similarity of tokens at the same position",
        lambda pairs: _near(np.sqrt(pairs.apart).mean(-1)),
    ),
    "cosine_rows": Indicator(
        "C_rows",
        "mean cosine similarity of tokens at the same position",
        lambda pairs: pairs.row_cosines().mean(-1),
    ),
}
"""Indicators of prompt embeddings."""

PAPER = ("euclidean_concat", "euclidean_average", "cosine_concat", "cosine_average")
"""The paper's embedding indicators (section 5)."""

OF_NEURONS: dict[str, Indicator] = {
    "neuron_overlap": Indicator(
        "ON",
        "cosine similarity of the binary activation patterns",
        lambda pairs: pairs.cosines(pairs.shared),
        windows=True,
    ),
    "neuron_jaccard": Indicator(
        "Jaccard",
        "Jaccard index of the sets of activated neurons",
        NeuronPairs.jaccard,
    ),
    "activation_cosine": Indicator(
        "C_activations",
        "cosine similarity of the activations",
        lambda pairs: pairs.cosines(pairs.products),
        undefined="all activations are 0",
    ),
    "activation_cka": Indicator(
        "CKA",
        "linear CKA of the activations over rows of text, mean over layers",
        lambda pairs: pairs.cka,
        undefined="the activations of a layer are the same for all rows",
    ),
}
"""Indicators of activated neurons in a window of layers."""


def is_indicator(column: str) -> bool:
    """Return whether a column of a table is an indicator."""
    return column.startswith((*OF_ROWS, *OF_NEURONS))


# --- Labels of the columns of ``indicators.csv``

EMBEDDING = {name: OF_ROWS[name].label for name in PAPER}
MEANINGS = {name: indicator.meaning for name, indicator in {**OF_ROWS, **OF_NEURONS}.items()}

_WINDOW = re.compile(r"neuron_overlap_layers_(\d+)_(\d+)")
_WITH_ROW, _ALL = "_with_row0", "_all"


def indicator_label(name: str) -> str:
    """Return the display name of an indicator."""
    window = window_of(name)
    if window is not None:
        return f"ON, layers {window[0]}–{window[1]}"
    if name.endswith(_WITH_ROW):
        return f"{indicator_label(name.removesuffix(_WITH_ROW))} with row 0"
    if name.endswith(_ALL) and name.removesuffix(_ALL) in OF_NEURONS:
        return f"{OF_NEURONS[name.removesuffix(_ALL)].label}, all layers"
    table = {**OF_ROWS, **OF_NEURONS}
    return table[name].label if name in table else name


def window_of(name: str) -> tuple[int, int] | None:
    """Return the layers of a window column."""
    found = _WINDOW.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None


def windows(names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Return the window columns, by first layer."""
    found = {name: window for name in names if (window := window_of(name)) is not None}
    return dict(sorted(found.items(), key=lambda item: item[1]))


# --- Neuron indicators
# ON, the paper's overlap of activated neurons, is the cosine of two 0/1 vectors:
# shared / sqrt(activated by a x activated by b); with a text probe, of rates. The authors' code
# (``caculate_metric_value_for_correlation.py``) has windows of layers 0-2, 3-5 and so on, and all
# layers; here every window of three has a column, and the top three are the default.

OVERLAP = "neuron_overlap"
ALL = "_all"
OVERLAP_ALL = OVERLAP + ALL
WINDOW = "_layers_"
WINDOW_PREFIX = OVERLAP + WINDOW
WINDOW_LAYERS = 3
_SHOWN_LAYERS = 5


def neuron_similarities(
    activations: Activations, layers: str | tuple[int, int] | None = None
) -> tuple[dict[str, Float64[np.ndarray, "K K"]], list[str]]:
    """Return the neuron indicators of every pair of prompts, and notes."""
    count = activations.values.shape[1]
    chosen = parse_layers(layers, count)
    windows = [(start, start + WINDOW_LAYERS - 1) for start in range(count - WINDOW_LAYERS + 1)]
    pairs = LayerPairs(activations)
    sums = {window: pairs.window(*window) for window in (chosen, *windows, (0, count - 1))}
    columns: dict[str, Float64[np.ndarray, "K K"]] = {}
    undefined: dict[tuple[str, str, tuple[int, int]], list[str]] = {}
    for name, indicator in OF_NEURONS.items():
        named = {name: chosen}
        if indicator.windows:
            named |= {f"{name}{WINDOW}{first}_{last}": (first, last) for first, last in windows}
        for column, window in {**named, name + ALL: (0, count - 1)}.items():
            matrix = indicator.compute(sums[window])
            if matrix is None:
                continue
            columns[column] = symmetric(matrix)
            lacking = _undefined(activations, columns[column])
            if lacking:
                key = (lacking, indicator.undefined, window)
                undefined.setdefault(key, []).append(column)
    return columns, [*_probe_notes(activations), *(_note(*item) for item in undefined.items())]


def parse_layers(layers: str | tuple[int, int] | None, count: int) -> tuple[int, int]:
    """Return first and last layer of a window, by default the top three."""
    if layers is None:
        return max(0, count - WINDOW_LAYERS), count - 1
    parts = layers.split("-") if isinstance(layers, str) else [str(layer) for layer in layers]
    # isdecimal alone would accept digits of other scripts.
    if len(parts) not in (1, 2) or not all(
        part.strip().isascii() and part.strip().isdecimal() for part in parts
    ):
        raise InputError(
            f"layers: expected first and last layer, got {layers!r}; give for instance"
            f" {max(0, count - WINDOW_LAYERS)}-{count - 1}"
        )
    first, last = int(parts[0]), int(parts[-1])
    if not first <= last < count:
        raise InputError(
            f"layers: expected first <= last within 0 to {count - 1}, got {first}-{last}; the"
            f" activations have {count} layers"
        )
    return first, last


def _undefined(activations: Activations, column: Float64[np.ndarray, "K K"]) -> str:
    """Return the prompts whose value with themselves is undefined."""
    indices = np.flatnonzero(np.isnan(column.diagonal()))
    names = ", ".join(activations.names[index] for index in indices[:_SHOWN_LAYERS])
    more = indices.size - _SHOWN_LAYERS
    return names + (f" and {more} more" if more > 0 else "")


def _note(key: tuple[str, str, tuple[int, int]], columns: list[str]) -> str:
    names, reason, (first, last) = key
    which = f"{columns[0]} is" if len(columns) == 1 else f"{', '.join(columns)} are"
    return f"{names}: {reason} in layers {first}-{last}, {which} undefined there"


def _probe_notes(activations: Activations) -> list[str]:
    if activations.rates is None:
        return []
    probe = activations.probe
    rows = f"{probe.get('rows', 'some')} rows of {probe.get('task', 'text')}"
    return [
        f"activations of {rows}: neuron_overlap is the cosine of activation rates, not of zeros and"
        " ones"
    ]


# --- Embedding indicators
# For prompts a and b with tokens a_i and b_j, flattened A and B:
#   euclidean_concat   1 / (1 + |A - B|)                           paper
#   euclidean_average  1 / (1 + mean over all i, j of |a_i - b_j|)  paper
#   cosine_concat      cos(A, B)                                   paper
#   cosine_average     mean over all i, j of cos(a_i, b_j)         paper
#   euclidean_rows     1 / (1 + mean over i of |a_i - b_i|)
#   cosine_rows        mean over i of cos(a_i, b_i)
# The paper's averages of a prompt with itself are not 1, those of the last two are.

EMBEDDING_INDICATORS = PAPER


def embedding_similarities(
    bank: Float32[np.ndarray, "K P D"], first_rows: Sequence[int] = (0,), *, progress: bool = False
) -> list[dict[str, Float64[np.ndarray, "K K"]]]:
    """Return the embedding indicators of every pair of prompts, from each of the first rows on."""
    # Each unordered pair is computed once, so the matrices are exactly symmetric. (The authors'
    # ``caculate_metric_value_for_correlation.py`` computes ordered pairs in float32.)
    found = [{name: np.zeros((len(bank), len(bank))) for name in OF_ROWS} for _ in first_rows]
    for block, pairs in row_pairs(bank, progress):
        for columns, first in zip(found, first_rows, strict=True):
            some = pairs.from_row(first)
            for name, indicator in OF_ROWS.items():
                columns[name][block] = indicator.compute(some)
    return [{name: symmetric(matrix) for name, matrix in columns.items()} for columns in found]


# --- All indicators of all pairs

INDICATORS = "indicators.csv"
WITH_ROW0 = "_with_row0"  # suffix of indicators that include row 0, which no model reads
_PAIR = ("prompt_a", "prompt_b")
_SHOWN = 8


@dataclass(frozen=True)
class Indicators:
    """Indicators of every pair of prompts.

    Attributes:
        names: Names of the prompts, sorted.
        columns: Matrices [K, K] by indicator, exactly symmetric; NaN where undefined.
        cards: Cards of the prompts, by name; empty if unknown.
        notes: What is undefined or left out, and why.
    """

    names: tuple[str, ...]
    columns: dict[str, Float64[np.ndarray, "K K"]]
    cards: dict[str, PromptCard] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __getitem__(self, indicator: str) -> Float64[np.ndarray, "K K"]:
        if indicator not in self.columns:
            raise unknown_name("indicator", indicator, self.columns)
        return self.columns[indicator]

    def value(self, indicator: str, prompt_a: str, prompt_b: str) -> float:
        """Return the value of a pair of prompts.

        Args:
            indicator: Name of the indicator.
            prompt_a: Name of a prompt.
            prompt_b: Name of a prompt.

        Raises:
            InputError: If the indicator or a prompt is unknown.
        """
        for name in (prompt_a, prompt_b):
            if name not in self.names:
                raise unknown_name("prompt", name, self.names)
        return float(self[indicator][self.names.index(prompt_a), self.names.index(prompt_b)])


def compute_indicators(
    prompts: Prompts,
    activations: Activations | str | Path | None = None,
    out: str | Path | None = None,
    *,
    layers: str | tuple[int, int] | None = None,
    progress: bool = False,
) -> Indicators:
    """Compute the similarity of every pair of prompts from embeddings and activated neurons.

    Paper: section 5 (transferability indicators).

    Args:
        prompts: Folder of prompts, or prompts by name; all of one backbone and length. If all
            have an unused row 0 (imported encoder prompts), every embedding indicator has a second
            column with it, named ``..._with_row0``. Seeds are compared separately, as
            ``NAME/seed-S``.
        activations: Activations of the same prompts, or their file; without them there are no
            neuron indicators. CKA needs a text probe.
        out: Folder for ``indicators.csv``.
        layers: First and last layer of the neuron indicators, counted from 0, as ``"9-11"`` or
            ``(9, 11)``; defaults to the top three.
        progress: Show a progress bar on stderr.

    Returns:
        The :class:`Indicators`, prompts sorted by name.

    Raises:
        InputError: If prompts are incompatible, activations are of other prompts, layers are out
            of range, or values are not finite.

    Example:
        >>> card = PromptCard("bert", "sst2")
        >>> bank = {"a": Prompt(np.eye(2, 3, dtype=np.float32), card)}
        >>> bank["b"] = Prompt(2 * bank["a"].values, card)
        >>> found = compute_indicators(bank)
        >>> found.value("cosine_concat", "a", "a"), found.value("cosine_average", "a", "b")
        (1.0, 0.5)
    """
    loaded = load_runs(prompts)
    overlaps: dict[str, Float64[np.ndarray, "K K"]] = {}
    notes: list[str] = []
    # Overlap first: an invalid window is reported before the longer work.
    if activations is not None:
        overlaps, notes = neuron_similarities(_of_prompts(activations, loaded), layers)
    elif layers is not None:
        raise InputError(
            f"layers: needs activations, got {layers} without them; create them with jpt neurons"
            " and pass them as well"
        )
    columns, row_notes = _embedding_columns(loaded, progress)
    cards = {name: prompt.card for name, prompt in loaded.items()}
    found = Indicators(tuple(loaded), {**columns, **overlaps}, cards, (*row_notes, *notes))
    if out is not None:
        write_indicators(make_folder(out) / INDICATORS, found)
    return found


def write_indicators(path: str | Path, found: Indicators) -> None:
    """Write a table with a row for every ordered pair, including each prompt with itself."""
    stacked = np.stack(list(found.columns.values()), axis=-1)
    rows = (
        (a, b, *values)
        for a, line in zip(found.names, stacked.tolist(), strict=True)
        for b, values in zip(found.names, line, strict=True)
    )
    write_table(path, (*_PAIR, *found.columns), rows)


def read_indicators(path: str | Path, prompts: Prompts | None = None) -> Indicators:
    """Read a table in the format of `write_indicators`."""
    rows = read_table(path, _PAIR)
    columns = [name for name in (rows[0] if rows else ()) if is_indicator(name)]
    if not columns:
        raise InputError(f"{path}: no indicator columns; create it with jpt indicators")
    names = tuple(dict.fromkeys(row["prompt_a"] for row in rows))
    index = {name: number for number, name in enumerate(names)}
    pairs = [(row["prompt_a"], row["prompt_b"]) for row in rows]
    check_unique([f"the pair {a}, {b}" for a, b in pairs], str(path))
    if len(pairs) != len(names) ** 2 or not all(b in index for _, b in pairs):
        raise InputError(
            f"{path}: expected the {len(names) ** 2} ordered pairs of {len(names)} prompts, got"
            f" {len(pairs)}; regenerate it with jpt indicators"
        )
    values = np.empty((len(columns), len(names), len(names)))
    for number, row in enumerate(rows, 2):
        cell = index[row["prompt_a"]], index[row["prompt_b"]]
        values[:, *cell] = [read_number(path, number, row, column) for column in columns]
    cards = {} if prompts is None else _cards_of(prompts, names, path)
    return Indicators(names, dict(zip(columns, values, strict=True)), cards)


def name_difference(
    left: str, left_names: set[str], right: str, right_names: set[str]
) -> str | None:
    """Return the prompts that only one of two sides names, or None."""
    parts = []
    for side, only in ((left, left_names - right_names), (right, right_names - left_names)):
        if only:
            more = f" and {len(only) - _SHOWN} more" if len(only) > _SHOWN else ""
            parts.append(f"only {side}: {', '.join(sorted(only)[:_SHOWN])}{more}")
    return "; ".join(parts) or None


def _embedding_columns(
    prompts: Mapping[str, Prompt], progress: bool
) -> tuple[dict[str, Float64[np.ndarray, "K K"]], list[str]]:
    """Return the embedding indicators, also with row 0 if all prompts have one, and notes."""
    bank = stack_prompts(prompts)  # [K, P, D]
    _check_finite(prompts, bank)
    unused = [prompt.unused_row for prompt in prompts.values()]
    lacking = sum(row is None for row in unused)
    if lacking:
        notes = []
        if lacking < len(unused):
            notes.append(
                f"{lacking} of {len(unused)} prompts have no unused row 0: indicators with it left"
                " out"
            )
        return embedding_similarities(bank, progress=progress)[0], notes
    rows = np.stack([np.asarray(row, np.float32) for row in unused])
    _check_finite(prompts, rows)
    whole = np.concatenate([rows, bank], axis=1)
    plain, with_row0 = embedding_similarities(whole, (1, 0), progress=progress)
    return {**plain, **{name + WITH_ROW0: matrix for name, matrix in with_row0.items()}}, []


def _check_finite(prompts: Mapping[str, Prompt], bank: Float32[np.ndarray, "K P D"]) -> None:
    broken = np.flatnonzero(~np.isfinite(bank).all((1, 2)))
    if broken.size:
        name = list(prompts)[broken[0]]
        raise InputError(
            f"prompt {name}: NaN or infinity ({broken.size} of {len(bank)} prompts), its training"
            " diverged; tune it again with a lower learning rate"
        )


def _of_prompts(
    activations: Activations | str | Path, prompts: Mapping[str, Prompt]
) -> Activations:
    """Return the activations in the order of the prompts; check that their names match."""
    where = "the activations"
    if not isinstance(activations, Activations):
        where = str(activations)
        activations = read_activations(activations)
    check_unique(activations.names, where)
    _check_activations(activations, where)
    difference = name_difference(where, set(activations.names), "the prompts", set(prompts))
    if difference:
        raise InputError(
            f"{where}: expected the same names as the prompts, got {difference}; record"
            " activations of these prompts with jpt neurons"
        )
    order = [activations.names.index(name) for name in prompts]
    rates, cka = activations.rates, activations.cka
    return replace(
        activations,
        names=tuple(prompts),
        values=activations.values[order],
        rates=None if rates is None else rates[order],
        cka=None if cka is None else cka[:, order][:, :, order],
    )


def _check_activations(activations: Activations, where: str) -> None:
    """Raise InputError if the arrays do not match the names or each other."""
    values, rates, cka = activations.values, activations.rates, activations.cka
    count = len(activations.names)
    if values.ndim != 3 or len(values) != count:
        raise InputError(
            f"{where}: expected shape [{count}, L, F] for {count} prompts, got"
            f" {list(values.shape)}; regenerate them with jpt neurons"
        )
    if not all(np.isfinite(each).all() for each in (values, rates) if each is not None):
        raise InputError(f"{where}: NaN or infinite activation; regenerate them with jpt neurons")
    for name, each, shape in (
        ("rates", rates, values.shape),
        ("cka", cka, (values.shape[1], count, count)),
    ):
        if each is not None and each.shape != shape:
            raise InputError(
                f"{where}: expected {name} of shape {list(shape)}, got {list(each.shape)};"
                " regenerate them with jpt neurons"
            )


def _cards_of(prompts: Prompts, names: tuple[str, ...], path: str | Path) -> dict[str, PromptCard]:
    loaded = load_runs(prompts)
    difference = name_difference(str(path), set(names), "the prompts", set(loaded))
    if difference:
        raise InputError(
            f"{path}: expected the same names as the prompts, got {difference}; regenerate"
            " the table with jpt indicators"
        )
    return {name: loaded[name].card for name in names}
