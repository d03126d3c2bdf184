"""Small figures of indicators: what each says of a move, and what it costs to choose by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure

from jpt.analysis.plots import (
    BLUE,
    FONT,
    GRAY,
    INK,
    LINE,
    MUTED,
    ORANGE,
    SMALL,
    new_figure,
    plain,
)

_LOOKS = ((BLUE, "o"), (ORANGE, "^"), (GRAY, "s"))
_ROW_PX = 26


def indicator_panel(
    groups: Mapping[str, tuple[Float64[np.ndarray, "M"], Float64[np.ndarray, "M"]]],
    x_label: str,
    y_limits: tuple[float, float],
) -> Figure:
    """Draws what an indicator says of each move against what came of it."""
    figure, axes = new_figure(196, 150)
    axes.axhline(1, color=LINE, linewidth=1, zorder=0)
    n_points = sum(len(x) for x, _ in groups.values())
    for (name, (x, y)), (color, shape) in zip(groups.items(), _LOOKS, strict=False):
        axes.scatter(
            x,
            y,
            s=16 if n_points < 500 else 6,
            marker=shape,
            alpha=0.7,
            color=color,
            linewidths=0,
            label=name,
            rasterized=n_points > 1000,  # so many shapes would make the page slow
        )
    axes.set_ylim(*y_limits)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    axes.locator_params(nbins=4)
    axes.set_xlabel(x_label, color=MUTED, fontsize=FONT, parse_math=False)
    axes.set_ylabel("score relative to own", color=MUTED, fontsize=SMALL)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.04, 1),
        ncols=3,
        frameon=False,
        fontsize=SMALL,
        labelcolor=INK,
        handletextpad=0.1,
        markerscale=1.5,
        columnspacing=0.8,
        borderaxespad=0.1,
    )
    return figure


def cost_figure(
    names: Sequence[str],
    costs: Sequence[float],
    bounds: Sequence[tuple[float, float]],
    chance: float,
) -> Figure:
    """Draws what choosing by each indicator costs, with intervals, beside a choice by chance."""
    figure, axes = new_figure(200, _ROW_PX * max(len(names), 2))
    places = np.arange(len(names))
    for place, (low, high) in zip(places, bounds, strict=True):
        axes.plot([100 * low, 100 * high], [place, place], color=GRAY, linewidth=2, zorder=1)
    axes.scatter(
        100 * np.array(costs), places, s=34, color=BLUE, linewidths=0, zorder=2, clip_on=False
    )
    axes.axvline(100 * chance, color=ORANGE, linewidth=1.4, linestyle=(0, (4, 3)), zorder=0)
    axes.text(
        100 * chance, -0.75, "by chance", color=MUTED, fontsize=SMALL, ha="center", va="bottom"
    )
    axes.set_ylim(len(names) - 0.5, -0.6)
    axes.set_xlim(left=0)
    axes.set_yticks(places, [plain(name) for name in names])
    axes.tick_params(axis="y", length=0, labelcolor=INK, labelsize=FONT)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel("mean cost against the best, points", color=MUTED, fontsize=FONT)
    axes.set_ylabel("source taken by", color=MUTED, fontsize=FONT)
    return figure
