"""Indicators of transferability: what can be said of two prompts without any transfer.

Some compare the prompts' vectors (`jpt.analysis.similarity`), the others the neurons that they
activate (`jpt.analysis.overlap`); all stand in one table (`jpt.analysis.indicator_table`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64

from jpt.analysis.indicator_table import is_indicator
from jpt.analysis.overlap import neuron_similarities
from jpt.analysis.similarity import embedding_similarities
from jpt.errors import InputError, unknown_name
from jpt.files.atomic import make_folder
from jpt.files.study_files import read_activations, refuse_twice
from jpt.files.tables import read_number, read_table, write_table
from jpt.prompts.bank import stack_prompts
from jpt.prompts.seed_prompts import Prompts, load_runs
from jpt.types import Activations, Prompt, PromptCard

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


def indicators(
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
    refuse_twice([f"the pair {a}, {b}" for a, b in pairs], str(path))
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
    refuse_twice(activations.names, where)
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
