"""The parts of the report on how alike prompts are: by their neurons, and by their vectors."""

from __future__ import annotations

import numpy as np

from jpt.analysis.figures_map import prompt_map, scale_to_plane
from jpt.analysis.heat_map import HeatMap, heat_map
from jpt.analysis.indicator_names import (
    EMBEDDING,
    MEANINGS,
    OVERLAP,
    indicator_label,
    windows,
)
from jpt.analysis.layout import BASELINE, NO_TYPE, Layout
from jpt.analysis.page import (
    Markup,
    details,
    element,
    figure,
    missing,
    section,
    table,
)
from jpt.analysis.pinned import pin_rows
from jpt.analysis.plots import to_svg
from jpt.analysis.study import Study, commands
from jpt.analysis.wording import counted, decimal, percent, significant

_FILES = ("indicators.csv",)
_WHOLE_COSINE = "cosine_concat"
"""Of the paper's indicators of vectors the one that can be mapped: a prompt is 1 to itself."""


def overlap_section(study: Study, layout: Layout) -> Markup:
    """Shows the overlap of activated neurons of all pairs of prompts."""
    title = "Which prompts activate the same neurons"
    make = commands(study.folder)
    parts: list[Markup | None] = [
        element(
            "p",
            "A prompt alone, without any text, makes some neurons of the feed-forward layers"
            " active (above 0). ON is the cosine of two such patterns of zeros and ones: 1 for the"
            " same neurons, 0 for none in common.",
        )
    ]
    if study.neurons is None:
        parts.append(missing("There is no neurons.npz", make["neurons"]))
    if study.similarities is None:
        parts.append(missing("There is no indicators.csv", make["indicators"]))
    elif OVERLAP not in study.similarities.values:
        parts.append(missing("indicators.csv has no neuron_overlap", make["indicators"]))
    else:
        parts.append(_similarity_map(study, layout, OVERLAP, 900, _layers_told(study)))
        parts.append(_similarity_table(study, layout, OVERLAP))
        parts.append(_plane(study, layout, OVERLAP))
    return section("overlap", title, *parts)


def embedding_section(study: Study, layout: Layout) -> Markup:
    """Shows the four indicators that compare the vectors of prompts."""
    title = "Which prompts have similar vectors"
    lead = element(
        "p",
        "Four indicators compare the vectors of two prompts themselves. Pairs of a prompt with"
        " itself are gray and have no part in the colors.",
    )
    if study.similarities is None:
        make = commands(study.folder)["indicators"]
        return section("embeddings", title, lead, missing("There is no indicators.csv", make))
    shown = [name for name in EMBEDDING if name in study.similarities.values]
    maps = [
        element(
            "div",
            element("h3", EMBEDDING[name]),
            _similarity_map(study, layout, name, 540, f"{EMBEDDING[name]}: {MEANINGS[name]}."),
            _similarity_table(study, layout, name),
        )
        for name in shown
    ]
    plane = None
    if OVERLAP not in study.similarities.values and _WHOLE_COSINE in shown:
        plane = _plane(study, layout, _WHOLE_COSINE)  # for want of neurons
    return section("embeddings", title, lead, element("div", *maps, class_="pair"), plane)


def _layers_told(study: Study) -> str:
    """Which layers ON is of: the window whose values are the same."""
    assert study.similarities is not None
    values = study.similarities.values
    for name, (first, last) in windows(values).items():
        if np.array_equal(values[name], values[OVERLAP], equal_nan=True):
            total = f" of {study.neurons[1]}" if study.neurons else ""
            return f"ON over layers {first} to {last}{total} (0 is next to the input)."
    return "ON over the layers that jpt indicators was given."


def _similarity_map(
    study: Study, layout: Layout, name: str, width_px: float, caption: str
) -> Markup:
    values = _ordered(study, layout, name)
    np.fill_diagonal(values, np.nan)
    types = [layout.prompt_types[prompt] for prompt in layout.prompts]
    digits = 2 if name == OVERLAP else 3
    plot = heat_map(
        HeatMap(
            rows=layout.prompts,
            columns=layout.prompts,
            row_types=types,
            column_types=types,
            values=values,
            texts=[[_short(value, digits) for value in line] for line in values],
            scale_label=indicator_label(name),
            width_px=width_px,
            row_axis="prompt",
            column_axis="prompt",
        ),
        percent=False,
    )
    count = counted(len(layout.prompts), "prompt")
    label = f"Heat map of {indicator_label(name)} for all pairs of {count}; the numbers are below."
    place = f"map-{name.replace('_', '-')}"
    return figure(pin_rows(to_svg(plot, place, label), place), label, caption, _FILES)


def _short(value: float, digits: int) -> str:
    """Without the zero before the point, which all of them have; nothing for a gray cell."""
    if not np.isfinite(value):
        return ""
    return decimal(value, digits).replace("0.", ".", 1) if abs(value) < 1 else decimal(value, 1)


def _ordered(study: Study, layout: Layout, name: str) -> np.ndarray:
    assert study.similarities is not None
    order = [study.similarities.names.index(prompt) for prompt in layout.prompts]
    return study.similarities.values[name][np.ix_(order, order)].copy()


def _similarity_table(study: Study, layout: Layout, name: str) -> Markup:
    values = _ordered(study, layout, name)
    rows = [
        [prompt, *(significant(value) for value in line)]
        for prompt, line in zip(layout.prompts, values, strict=True)
    ]
    label = indicator_label(name)
    caption = f"{label} of all pairs of prompts"
    whole = table(["prompt", *layout.prompts], rows, caption, source=_FILES)
    return details(f"{label} as a table", whole)


def _plane(study: Study, layout: Layout, name: str) -> Markup | None:
    """The prompts as points, as far apart as they are unlike."""
    alike = _ordered(study, layout, name)
    # A prompt that activates no neuron is like none, and an untrained one is for no task.
    trained = [layout.prompt_types[prompt] != BASELINE for prompt in layout.prompts]
    kept = np.isfinite(np.diag(alike)) & np.array(trained, bool)
    alike = alike[np.ix_(kept, kept)]
    if len(alike) < 3 or not np.isfinite(alike).all():
        return None
    distances = 1 - (alike + alike.T) / 2
    np.fill_diagonal(distances, 0)
    points, share = scale_to_plane(distances)
    names = [prompt for prompt, is_kept in zip(layout.prompts, kept, strict=True) if is_kept]
    types = [layout.prompt_types[prompt] for prompt in names]
    said = indicator_label(name)
    plot = prompt_map(points, names, types, (NO_TYPE,), f" (distance: 1 − {said})")
    label = f"Map of {counted(len(names), 'prompt')} by 1 − {said}; the table has the numbers."
    told = (
        f"A map of the prompts: the farther apart, the smaller {said} (classical multidimensional"
        f" scaling of 1 − {said}; the directions themselves mean nothing). The plane holds"
        f" {percent(share)} of all squared distances"
        + ("." if share > 0.7 else ", so what lies side by side need not be alike.")
    )
    return figure(to_svg(plot, "prompt-map", label), label, told, _FILES)
