"""Figures with a course: how runs learned, and how a correlation changes with depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jpt.analysis.plots import BLUE, FONT, GRAY, INK, LINE, MUTED, ORANGE, SMALL, new_figure, plain
from jpt.analysis.runs import Curve

_WIDTH_PX = 200


def learning_curve(curve: Curve, metric: str, majority: float, best_step: int | None) -> Figure:
    """Draws score and loss of one run, one above the other."""
    figure, top = new_figure(_WIDTH_PX, 190)
    top.set_position((0, 0.52, 1, 0.48))
    bottom = figure.add_axes((0, 0, 1, 0.36), sharex=top)
    _copy_style(top, bottom)
    top.plot(curve.steps, curve.score, color=BLUE, linewidth=1.8, solid_capstyle="round")
    if np.isfinite(majority):
        top.axhline(majority, color=GRAY, linewidth=1, linestyle=(0, (4, 3)))
    _mark_best(top, curve, best_step)
    bottom.plot(curve.train_steps, curve.train_loss, color=GRAY, linewidth=0.8)
    bottom.plot(curve.steps, curve.loss, color=ORANGE, linewidth=1.8, solid_capstyle="round")
    top.tick_params(labelbottom=False)
    top.set_title(plain(metric), loc="left", color=MUTED, fontsize=SMALL, pad=4, parse_math=False)
    bottom.set_title("loss (nats)", loc="left", color=MUTED, fontsize=SMALL, pad=4)
    bottom.set_xlabel("training step", color=MUTED, fontsize=SMALL)
    for axes in (top, bottom):
        axes.locator_params(axis="y", nbins=4)
    bottom.locator_params(axis="x", nbins=5)
    top.margins(y=0.15)
    return figure


def window_curve(
    windows: Sequence[tuple[int, int]],
    lines: Mapping[str, Sequence[float]],
    band: Sequence[tuple[float, float]] = (),
) -> Figure:
    """Draws a correlation by the layers whose neurons are compared."""
    figure, axes = new_figure(272, 190)
    axes.axhline(0, color=LINE, linewidth=1, zorder=0)
    places = range(len(windows))
    if len(band) == len(windows):
        low, high = np.array(band).T
        axes.fill_between(places, low, high, color=BLUE, alpha=0.16, linewidth=0, zorder=0.5)
    for (name, values), color, shape in zip(lines.items(), (BLUE, GRAY), ("o", "s"), strict=False):
        axes.plot(
            places, values, color=color, linewidth=1.8, marker=shape, markersize=4.5, label=name
        )
    every = -(-len(windows) // 6)
    shown = [place for place in places if (len(windows) - 1 - place) % every == 0]
    axes.set_xticks(shown, [f"{windows[p][0]}–{windows[p][1]}" for p in shown])
    axes.set_xlabel("layers (0 is next to the input)", color=MUTED, fontsize=FONT)
    axes.set_ylabel("Spearman's rho, mean over tasks", color=MUTED, fontsize=FONT)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        frameon=False,
        fontsize=FONT,
        labelcolor=INK,
        columnspacing=1.2,
        handlelength=1.4,
        borderaxespad=0.2,
    )
    return figure


def _mark_best(axes: Axes, curve: Curve, best_step: int | None) -> None:
    """A dot on the scoring that the prompt was taken from, its score beside it."""
    at = np.flatnonzero(curve.steps == best_step) if best_step is not None else np.array([], int)
    if not at.size or not np.isfinite(curve.score[at[0]]):
        return
    x, y = curve.steps[at[0]], curve.score[at[0]]
    axes.plot([x], [y], marker="o", markersize=5, color=BLUE)
    axes.annotate(
        f"{y:.3f}",
        (x, y),
        xytext=(0, 6),
        textcoords="offset points",
        color=INK,
        fontsize=SMALL,
        ha="right" if x > curve.steps.mean() else "left",
    )


def _copy_style(source: Axes, other: Axes) -> None:
    other.patch.set_visible(False)
    other.tick_params(length=3, color=LINE, labelcolor=MUTED, labelsize=SMALL)
    for side, spine in other.spines.items():
        spine.set_visible(source.spines[side].get_visible())
        spine.set_color(LINE)
