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
from jpt.results.prompt_table import read_activations, check_unique
from jpt.types import Activations, Prompt, PromptCard

# --- What the neurons of prompts have in common, layer by layer and in windows of layers

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


# --- What is known of some prompts against some others, row by row, in float64, in blocks

SMALLEST_NORM = 1e-8
"""A norm below it counts as this: the cosine of a row of zeros is 0 (torch's cosine_similarity,
with which the paper's code computes)."""

# Squared distances below this share of the squared norms lose too many digits in a gram matrix
# (the error of a distance would be above 1e-11 of the norms); they are computed from differences.
_NEAR = 1e-10
_BLOCK_ROWS = 800  # of each side: a gram matrix of 5 MB stays in the cache
_NEAR_ROWS = 2048  # differences of near rows at once, 17 MB at width 1024

Pairs = Float64[np.ndarray, "a b"]


@dataclass(frozen=True)
class RowPairs:
    """Some prompts (a) against some others (b): what indicators of vectors are made of."""

    a: Float64[np.ndarray, "a P D"]  # rows of the ones
    b: Float64[np.ndarray, "b P D"]  # rows of the others
    products: Float64[np.ndarray, "a b P"]  # of the rows at equal places
    apart: Float64[np.ndarray, "a b P"]  # squared distances of the rows at equal places
    distances: Float64[np.ndarray, "a P b P"]  # of every row and every row

    def from_row(self, first: int) -> RowPairs:
        """Leaves out the rows before one."""
        return RowPairs(
            self.a[:, first:],
            self.b[:, first:],
            self.products[:, :, first:],
            self.apart[:, :, first:],
            self.distances[:, first:, :, first:],
        )

    def whole_cosines(self) -> Pairs:
        """Cosines of the prompts as one long vector each."""
        norms = [floored_norms(side.reshape(len(side), -1)) for side in (self.a, self.b)]
        return np.clip(self.products.sum(-1) / norms[0][:, None] / norms[1][None], -1, 1)

    def row_cosines(self) -> Float64[np.ndarray, "a b P"]:
        """Cosines of the rows at equal places."""
        norms = floored_norms(self.a)[:, None], floored_norms(self.b)[None]
        return np.clip(self.products / norms[0] / norms[1], -1, 1)

    def mean_cosines(self) -> Pairs:
        """The mean over all cosines of unit rows is the product of the two means of unit rows."""
        means = [(side / floored_norms(side)[..., None]).mean(1) for side in (self.a, self.b)]
        return np.clip(means[0] @ means[1].T, -1, 1)


def row_pairs(
    bank: Float32[np.ndarray, "K P D"], progress: bool = False
) -> Iterator[tuple[tuple[slice, slice], RowPairs]]:
    """Goes through the upper triangle of all pairs, a block at a time."""
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
    """Compares every row of some prompts with every row of some others."""
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
    # Rows at equal places are the ones that are often near: prompts of a study start equal.
    near[:, rows, :, rows] = False
    squared[:, rows, :, rows] = np.moveaxis(apart, -1, 0)
    _mend(squared, near, a, b)
    return RowPairs(a, b, products, apart, np.sqrt(squared, out=squared))


def floored_norms(rows: Float64[np.ndarray, "*N D"]) -> Float64[np.ndarray, "*N"]:
    """Gives the norms of rows, at least `SMALLEST_NORM`."""
    return np.maximum(np.sqrt(_squared(rows)), SMALLEST_NORM)


def symmetric(pairs: Float[np.ndarray, "K K"]) -> Float64[np.ndarray, "K K"]:
    """Puts the upper triangle on both sides; an own pair that is 1 but for its last digits is 1."""
    whole = np.triu(pairs) + np.triu(pairs, 1).T
    own = whole.diagonal()
    np.fill_diagonal(whole, np.where(np.abs(own - 1) < 1e-12, 1, own))
    return whole


def _mend(
    squared: Float64[np.ndarray, "a P b P"],
    near: Bool[np.ndarray, "a P b P"],
    a: Float64[np.ndarray, "a P D"],
    b: Float64[np.ndarray, "b P D"],
) -> None:
    """Computes the near ones among the squared distances from differences, in place."""
    places: Int[np.ndarray, "4 N"] = np.array(np.nonzero(near))
    for start in range(0, places.shape[1], _NEAR_ROWS):
        some = places[:, start : start + _NEAR_ROWS]
        squared[tuple(some)] = _squared(a[some[0], some[1]] - b[some[2], some[3]])


def _squared(rows: Float64[np.ndarray, "*N D"]) -> Float64[np.ndarray, "*N"]:
    return np.einsum("...d,...d->...", rows, rows)


# --- The table of indicators: what `jpt.compute_indicators` computes. A new one is one entry here
# An indicator of vectors (`OF_ROWS`) makes a matrix [a, b] of a `RowPairs`, one of neurons
# (`OF_NEURONS`) a matrix [K, K] of a `NeuronPairs`. Its column is computed, written, read,
# correlated and shown like all others; only the upper triangle counts. Example: >>>
# OF_ROWS["cosine_last"] = Indicator( ... "C_last", "cosine of the last rows", lambda pairs:
# pairs.row_cosines()[..., -1] ... ) >>> del OF_ROWS["cosine_last"]


@dataclass(frozen=True)
class Indicator:
    """One way to say how alike two prompts are."""

    label: str  # its name for people
    meaning: str  # what it is, in a few words
    # gives the matrix of a `RowPairs` or a `NeuronPairs`; None where that lacks what the indicator
    # needs, which leaves the column out
    compute: Callable[[Any], Any]
    windows: bool = False  # of neurons: whether every three consecutive layers have a column, too
    undefined: str = "no neuron is activated"  # of neurons: of which prompts it is NaN


def _near(distances: Any) -> Any:
    return 1 / (1 + distances)


OF_ROWS: dict[str, Indicator] = {
    "euclidean_concat": Indicator(
        "E_concat",
        "nearness of the two whole prompts",
        lambda pairs: _near(np.sqrt(pairs.apart.sum(-1))),
    ),
    "euclidean_average": Indicator(
        "E_average",
        "mean nearness of all pairs of their rows",
        lambda pairs: _near(pairs.distances.mean((1, 3))),
    ),
    "cosine_concat": Indicator(
        "C_concat", "cosine of the two whole prompts", RowPairs.whole_cosines
    ),
    "cosine_average": Indicator(
        "C_average", "mean cosine of all pairs of their rows", RowPairs.mean_cosines
    ),
    "euclidean_rows": Indicator(
        "E_rows",
        "mean nearness of their rows at equal places",
        lambda pairs: _near(np.sqrt(pairs.apart).mean(-1)),
    ),
    "cosine_rows": Indicator(
        "C_rows",
        "mean cosine of their rows at equal places",
        lambda pairs: pairs.row_cosines().mean(-1),
    ),
}
"""Indicators that compare the vectors of two prompts."""

PAPER = ("euclidean_concat", "euclidean_average", "cosine_concat", "cosine_average")
"""Those of the paper's section 5."""

OF_NEURONS: dict[str, Indicator] = {
    "neuron_overlap": Indicator(
        "ON",
        "cosine of which neurons the prompts activate",
        lambda pairs: pairs.cosines(pairs.shared),
        windows=True,
    ),
    "neuron_jaccard": Indicator(
        "Jaccard",
        "neurons that both activate, among those that either does",
        NeuronPairs.jaccard,
    ),
    "activation_cosine": Indicator(
        "C_activations",
        "cosine of the activations themselves",
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
"""Indicators that compare the neurons behind two prompts, in a window of layers."""


def is_indicator(column: str) -> bool:
    """Says whether a column of a table holds an indicator."""
    return column.startswith((*OF_ROWS, *OF_NEURONS))


# --- What the columns of ``indicators.csv`` are called where people read

EMBEDDING = {name: OF_ROWS[name].label for name in PAPER}
"""The paper's four indicators that compare the vectors of two prompts (its section 5)."""

MEANINGS = {name: indicator.meaning for name, indicator in {**OF_ROWS, **OF_NEURONS}.items()}

_WINDOW = re.compile(r"neuron_overlap_layers_(\d+)_(\d+)")
_WITH_ROW, _ALL = "_with_row0", "_all"


def indicator_label(name: str) -> str:
    """Gives the name of an indicator for people."""
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
    """Reads the layers off the name of a window."""
    found = _WINDOW.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None


def windows(names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Finds the windows among the columns."""
    found = {name: window for name in names if (window := window_of(name)) is not None}
    return dict(sorted(found.items(), key=lambda item: item[1]))


# --- How alike the neurons behind prompts are: every indicator of the table, window by window
# ON, the paper's, is the cosine of two prompts' 0/1 vectors: shared / sqrt(activated by a x
# activated by b). A neuron is activated where its value is above 0. Of a probe on text it is the
# cosine of the shares of rows in which neurons are activated. The authors' code
# (``caculate_metric_value_for_correlation.py``) takes windows of three layers from layers 0, 3, 6
# and so on, and all layers; here every window of three is there, and the top three are the default.

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
    """Computes the indicators of neurons of every pair of prompts."""
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
    return columns, [*_of_text(activations), *(_note(*item) for item in undefined.items())]


def parse_layers(layers: str | tuple[int, int] | None, count: int) -> tuple[int, int]:
    """Reads which layers a window has."""
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


def _undefined(activations: Activations, column: Float64[np.ndarray, "K K"]) -> str:
    """The prompts that have no value of their own."""
    places = np.flatnonzero(np.isnan(column.diagonal()))
    names = ", ".join(activations.names[place] for place in places[:_SHOWN_LAYERS])
    return names + (
        f" and {places.size - _SHOWN_LAYERS} more" if places.size > _SHOWN_LAYERS else ""
    )


def _note(key: tuple[str, str, tuple[int, int]], columns: list[str]) -> str:
    names, reason, (first, last) = key
    told = f"{columns[0]} is" if len(columns) == 1 else f"{', '.join(columns)} are"
    return f"{names}: {reason} in layers {first}-{last}, {told} not defined there"


def _of_text(activations: Activations) -> list[str]:
    """Says that neurons were read behind text, and what that makes of ON."""
    if activations.rates is None:
        return []
    probe = activations.probe
    rows = f"{probe.get('rows', 'some')} rows of {probe.get('task', 'text')}"
    return [
        f"the neurons are of {rows}: neuron_overlap is the cosine of the shares of rows in which"
        " neurons are activated, not of zeros and ones"
    ]


# --- How alike prompts are as vectors: every indicator of the table, in float64, in blocks
# With prompts a and b of rows a_i and b_j, flattened A and B: euclidean_concat 1 / (1 + |A - B|)
# euclidean_average 1 / (1 + mean over all i, j of |a_i - b_j|) cosine_concat cos(A, B)
# cosine_average mean over all i, j of cos(a_i, b_j) euclidean_rows 1 / (1 + mean over i of |a_i -
# b_i|) cosine_rows mean over i of cos(a_i, b_i) The first four are the paper's. Its averages
# compare every row with every row, so a prompt's own averages are not 1; in the last two a prompt
# is most like itself.

EMBEDDING_INDICATORS = PAPER
"""The paper's four."""


def embedding_similarities(
    bank: Float32[np.ndarray, "K P D"], first_rows: Sequence[int] = (0,), *, progress: bool = False
) -> list[dict[str, Float64[np.ndarray, "K K"]]]:
    """Computes the indicators of vectors of every pair of prompts."""
    # Each unordered pair counts once, so the matrices are exactly symmetric. (The authors'
    # ``caculate_metric_value_for_correlation.py`` goes through ordered pairs in float32.)
    found = [{name: np.zeros((len(bank), len(bank))) for name in OF_ROWS} for _ in first_rows]
    for place, pairs in row_pairs(bank, progress):
        for columns, first in zip(found, first_rows, strict=True):
            some = pairs.from_row(first)
            for name, indicator in OF_ROWS.items():
                columns[name][place] = indicator.compute(some)
    return [{name: symmetric(matrix) for name, matrix in columns.items()} for columns in found]


# --- Indicators of transferability: what can be said of two prompts without any transfer
# Some compare the prompts' vectors (`jpt.indicators.indicators`), the others the neurons that they
# activate (`jpt.indicators.indicators`); all stand in one table (`jpt.indicators.indicators`).

WITH_ROW0 = "_with_row0"
"""What the names of indicators end in that include the row 0 no model reads."""

_PAIR = ("prompt_a", "prompt_b")
_SHOWN = 8


INDICATORS = "indicators.csv"


@dataclass(frozen=True)
class Indicators:
    """Every indicator of every pair of prompts.

    Attributes:
        names: of the prompts, sorted.
        columns: the matrices by name of the indicator, exactly symmetric; NaN where undefined.
        cards: of the prompts, by name; empty where they are not known.
        notes: what is undefined or left out, and why.
    """

    names: tuple[str, ...]
    columns: dict[str, Float64[np.ndarray, "K K"]]
    cards: dict[str, PromptCard] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __getitem__(self, indicator: str) -> Float64[np.ndarray, "K K"]:
        """Gives one matrix by its name; an unknown name is told with the nearest ones."""
        if indicator not in self.columns:
            raise unknown_name("indicator", indicator, self.columns)
        return self.columns[indicator]

    def value(self, indicator: str, prompt_a: str, prompt_b: str) -> float:
        """Looks up one pair.

        Args:
            indicator: name of the matrix.
            prompt_a: name of a prompt.
            prompt_b: name of a prompt.

        Returns:
            The value.

        Raises:
            InputError: there is no such indicator or prompt.
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
    """Compares every prompt with every other, by its vectors and by the neurons it activates.

    Prompts are taken in the order of their names, whatever order they come in, so the order
    changes nothing.

    Args:
        prompts: a folder of prompts, or prompts by name; all of one backbone and length. Where
            all have an unused row 0 (imported encoder prompts), each indicator is also there
            with it, under a name that ends in ``_with_row0``. Of several seeds each run is
            compared, as ``NAME/seed-S``.
        activations: of the same prompts, or their file, of either probe; without them no neurons
            are compared. CKA needs those of a probe on text.
        out: folder for ``indicators.csv``.
        layers: first and last layer of ``neuron_overlap`` and the like, counted from 0, as
            ``"9-11"`` or ``(9, 11)``; by default the top three.
        progress: whether to show a bar on stderr.

    Returns:
        The indicators.

    Raises:
        InputError: prompts that do not belong together, activations of other prompts, layers
            outside those of the activations, or values that are not finite.

    Example:
        >>> card = PromptCard("bert", "sst2")
        >>> bank = {"a": Prompt(np.eye(2, 3, dtype=np.float32), card)}
        >>> bank["b"] = Prompt(2 * bank["a"].values, card)
        >>> found = indicators(bank)
        >>> found.value("cosine_concat", "a", "a"), found.value("cosine_average", "a", "b")
        (1.0, 0.5)
    """
    loaded = load_runs(prompts)
    overlaps: dict[str, Float64[np.ndarray, "K K"]] = {}
    notes: list[str] = []
    # Overlap first: a window that does not exist is told before the longer work.
    if activations is not None:
        overlaps, notes = neuron_similarities(_of_prompts(activations, loaded), layers)
    elif layers is not None:
        raise InputError(
            f"layers is {layers}, but there are no activations whose layers it could choose; give"
            " them as well (jpt neurons makes them)"
        )
    columns, row_notes = _embedding_columns(loaded, progress)
    cards = {name: prompt.card for name, prompt in loaded.items()}
    found = Indicators(tuple(loaded), {**columns, **overlaps}, cards, (*row_notes, *notes))
    if out is not None:
        write_indicators(make_folder(out) / INDICATORS, found)
    return found


def write_indicators(path: str | Path, found: Indicators) -> None:
    """Writes a table with a line for every ordered pair, own pairs included."""
    stacked = np.stack(list(found.columns.values()), axis=-1)
    rows = (
        (a, b, *values)
        for a, line in zip(found.names, stacked.tolist(), strict=True)
        for b, values in zip(found.names, line, strict=True)
    )
    write_table(path, (*_PAIR, *found.columns), rows)


def read_indicators(path: str | Path, prompts: Prompts | None = None) -> Indicators:
    """Reads a table of `write_indicators`, or one of its form."""
    rows = read_table(path, _PAIR)
    columns = [name for name in (rows[0] if rows else ()) if is_indicator(name)]
    if not columns:
        raise InputError(f"{path} holds no indicators; make it with jpt indicators")
    names = tuple(dict.fromkeys(row["prompt_a"] for row in rows))
    places = {name: place for place, name in enumerate(names)}
    pairs = [(row["prompt_a"], row["prompt_b"]) for row in rows]
    check_unique([f"the pair {a}, {b}" for a, b in pairs], str(path))
    if len(pairs) != len(names) ** 2 or not all(b in places for _, b in pairs):
        raise InputError(
            f"{path} has {len(pairs)} pairs of {len(names)} prompts; each of the"
            f" {len(names) ** 2} ordered pairs expected once: make it again with jpt indicators"
        )
    values = np.empty((len(columns), len(names), len(names)))
    for number, row in enumerate(rows, 2):
        place = places[row["prompt_a"]], places[row["prompt_b"]]
        values[:, *place] = [read_number(path, number, row, column) for column in columns]
    cards = {} if prompts is None else _cards_of(prompts, names, path)
    return Indicators(names, dict(zip(columns, values, strict=True)), cards)


def name_difference(
    left: str, left_names: set[str], right: str, right_names: set[str]
) -> str | None:
    """Says which prompts only one of two sides names."""
    parts = []
    for owner, only in ((left, left_names - right_names), (right, right_names - left_names)):
        if only:
            more = f" and {len(only) - _SHOWN} more" if len(only) > _SHOWN else ""
            parts.append(f"only {owner}: {', '.join(sorted(only)[:_SHOWN])}{more}")
    return "; ".join(parts) or None


def _embedding_columns(
    prompts: Mapping[str, Prompt], progress: bool
) -> tuple[dict[str, Float64[np.ndarray, "K K"]], list[str]]:
    """The embedding indicators, with row 0 as well where all prompts have one."""
    bank = stack_prompts(prompts)  # [K, P, D]
    _check_finite(prompts, bank)
    unused = [prompt.unused_row for prompt in prompts.values()]
    lacking = sum(row is None for row in unused)
    if lacking:
        notes = []
        if lacking < len(unused):
            notes.append(
                f"{lacking} of {len(unused)} prompts have no unused row 0: the indicators with it"
                " are left out"
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
            f"prompt {name} holds NaN or infinity ({broken.size} of {len(bank)} prompts do); its"
            " training diverged: tune it again with a lower rate"
        )


def _of_prompts(
    activations: Activations | str | Path, prompts: Mapping[str, Prompt]
) -> Activations:
    """The activations in the order of the prompts, after a check that they are theirs."""
    where = "the activations"
    if not isinstance(activations, Activations):
        where = str(activations)
        activations = read_activations(activations)
    check_unique(activations.names, where)
    _check_activations(activations, where)
    difference = name_difference(where, set(activations.names), "the prompts", set(prompts))
    if difference:
        raise InputError(
            f"{where} and the prompts name different ones ({difference}); make the activations of"
            " these prompts with jpt neurons"
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
    """Refuses arrays that do not fit their names or one another."""
    values, rates, cka = activations.values, activations.rates, activations.cka
    count = len(activations.names)
    if values.ndim != 3 or len(values) != count:
        raise InputError(
            f"{where} name {count} prompts and have the shape {list(values.shape)}; [K, L, F]"
            " expected"
        )
    if not all(np.isfinite(each).all() for each in (values, rates) if each is not None):
        raise InputError(f"{where}: an activation is NaN or infinite; make them again")
    if rates is not None and rates.shape != values.shape:
        raise InputError(f"{where}: rates {list(rates.shape)} of {list(values.shape)} activations")
    if cka is not None and cka.shape != (values.shape[1], count, count):
        raise InputError(f"{where}: cka {list(cka.shape)} of {list(values.shape)} activations")


def _cards_of(prompts: Prompts, names: tuple[str, ...], path: str | Path) -> dict[str, PromptCard]:
    loaded = load_runs(prompts)
    difference = name_difference(str(path), set(names), "the prompts", set(loaded))
    if difference:
        raise InputError(
            f"{path} and the prompts name different ones ({difference}); make the table again with"
            " jpt indicators"
        )
    return {name: loaded[name].card for name in names}
