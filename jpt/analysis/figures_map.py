"""A map of the prompts: points in a plane, as far apart as the prompts are unlike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jpt.analysis.plots import (
    BLUE,
    FONT,
    GRAY,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    SMALL,
    new_figure,
    plain,
)

_LOOKS = tuple(
    zip((BLUE, ORANGE, GREEN, PURPLE, SKY, RED), ("o", "^", "s", "D", "v", "P"), strict=True)
)
_REST = (GRAY, "X")
"""Of types after the sixth, and of prompts without one."""
_LETTER_PX, _LINE_PX, _CLEAR_PX = 6.2, 13.0, 7.0
_SMALL_UP_TO = 10


def scale_to_plane(
    distances: Float64[np.ndarray, "K K"],
) -> tuple[Float64[np.ndarray, "K 2"], float]:
    """Places things in a plane by their distances (classical multidimensional scaling)."""
    count = len(distances)
    center = np.eye(count) - 1 / count
    inner = -0.5 * center @ (distances**2) @ center
    values, vectors = np.linalg.eigh((inner + inner.T) / 2)
    lengths = np.zeros(2)
    directions = np.zeros((count, 2))
    kept = min(2, count)
    lengths[:kept] = values[::-1][:kept].clip(0)
    directions[:, :kept] = vectors[:, ::-1][:, :kept]
    # The sign of a direction is free: the point that lies farthest out is put on the right, on top.
    for column in directions.T:
        farthest = int(np.argmax(np.abs(column).round(9)))
        column *= -1 if column[farthest] < 0 else 1
    total = float(np.abs(values).sum())
    share = float(lengths.sum()) / total if total > 0 else 1.0
    return directions * np.sqrt(lengths), share


def prompt_map(
    points: Float64[np.ndarray, "K 2"],
    names: Sequence[str],
    types: Sequence[str],
    unknown: Sequence[str] = (),
    axis_label: str = "",
) -> Figure:
    """Draws prompts as points with their names, each type by its own color and shape."""
    small = len(names) <= _SMALL_UP_TO
    width, height = (290, 250) if small else (600, 400)
    figure, axes = new_figure(width, height)
    _set_limits(axes, points, width / height)
    looks = iter(_LOOKS)
    for kind in dict.fromkeys(types):
        color, shape = _REST if kind in unknown else next(looks, _REST)
        own = points[[each == kind for each in types]]
        axes.scatter(
            *own.T, s=46, color=color, marker=shape, linewidths=0, label=plain(kind), zorder=2
        )
    _name_points(axes, points, names, (width, height))
    axes.set_xlabel(f"first direction{axis_label}", color=MUTED, fontsize=FONT, parse_math=False)
    axes.set_ylabel("second direction, same scale", color=MUTED, fontsize=FONT)
    axes.locator_params(nbins=5)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3 if small else 6,
        frameon=False,
        fontsize=FONT,
        labelcolor=INK,
        handletextpad=0.2,
        columnspacing=1.2,
        borderaxespad=0.2,
    )
    return figure


def _set_limits(axes: Axes, points: Float64[np.ndarray, "K 2"], ratio: float) -> None:
    """Room around all points, and one scale for both directions."""
    low, high = points.min(0), points.max(0)
    middle = (low + high) / 2
    half = max((high[0] - low[0]) / 2, (high[1] - low[1]) / 2 * ratio, 1e-9) * 1.22
    axes.set_xlim(middle[0] - half, middle[0] + half)
    axes.set_ylim(middle[1] - half / ratio, middle[1] + half / ratio)


def _name_points(
    axes: Axes,
    points: Float64[np.ndarray, "K 2"],
    names: Sequence[str],
    size: tuple[float, float],
) -> None:
    """Writes each name beside its point, where it hides no point and no other name."""
    low = np.array([axes.get_xlim()[0], axes.get_ylim()[0]])
    high = np.array([axes.get_xlim()[1], axes.get_ylim()[1]])
    pixels = (points - low) / (high - low) * np.array(size)
    taken = [np.array([*(at - 5), *(at + 5)]) for at in pixels]
    for at, name in zip(pixels, names, strict=True):
        text = plain(name, 20)
        boxes = list(_places(at, _LETTER_PX * len(text)))
        costs = [_hidden(box, taken, size) for box, _, _ in boxes]
        box, anchor, side = boxes[int(np.argmin(costs))]
        taken.append(box)
        axes.text(
            *(low + anchor / np.array(size) * (high - low)),
            text,
            color=INK,
            fontsize=SMALL,
            ha=side,
            va="center",
            parse_math=False,
            zorder=3,
        )


def _places(
    at: Float64[np.ndarray, "2"], length: float
) -> Iterator[tuple[Float64[np.ndarray, "4"], Float64[np.ndarray, "2"], str]]:
    """Where a name can stand: its box, the point it hangs on, and on which side."""
    for distance in (1.0, 1.9, 2.8):
        step_x, step_y = _CLEAR_PX + 1, _LINE_PX * distance
        for x, y, side in (
            (step_x, 0.0, "left"),
            (-step_x, 0.0, "right"),
            (0.0, step_y, "center"),
            (0.0, -step_y, "center"),
            (step_x, 0.8 * step_y, "left"),
            (step_x, -0.8 * step_y, "left"),
            (-step_x, 0.8 * step_y, "right"),
            (-step_x, -0.8 * step_y, "right"),
        ):
            anchor = at + (x, y)
            left = anchor[0] - {"left": 0, "center": length / 2, "right": length}[side]
            bottom = anchor[1] - _LINE_PX / 2
            yield np.array([left, bottom, left + length, bottom + _LINE_PX]), anchor, side


def _hidden(
    box: Float64[np.ndarray, "4"],
    taken: Sequence[Float64[np.ndarray, "4"]],
    size: tuple[float, float],
) -> float:
    """How much of other things a box would hide, in square pixels, or stick out of the figure."""
    others = np.array(taken)
    wide = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    tall = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    out = max(0.0, -box[0]) + max(0.0, box[2] - size[0]) + max(0.0, -box[1])
    out += max(0.0, box[3] - size[1])
    return float((wide.clip(0) * tall.clip(0)).sum()) + _LINE_PX * out
