"""Heat maps of tasks and prompts in groups by type, drawn pixel by pixel of the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jpt.analysis.pinned import GROUND, NAME
from jpt.analysis.plots import FONT, INK, LINE, MUTED, PAPER, SMALL, new_figure, plain, widest
from jpt.analysis.wording import decimal
from jpt.analysis.wording import percent as percent_text

# Light to dark in one sweep of lightness, so that it reads in gray and in every color vision; the
# ends are cut so that a cell never melts into a white or a black page.
COLOR_MAP = ListedColormap(mpl.colormaps["YlGnBu"](np.linspace(0.06, 0.97, 256)))
_LETTER_PX = 6.8  # mean width of a letter at 12 pixels
_NUMBERS_UP_TO = 26  # with more columns the cells are too small for numbers
_SHAPES_UP_TO = 4000  # with more cells the page would be slow; they become a picture
_SCALE_STEPS = 48
_BLACK, _WHITE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class HeatMap:
    """What a heat map shows."""

    rows: Sequence[str]  # labels from top to bottom
    columns: Sequence[str]  # labels from left to right
    row_types: Sequence[str]  # the group of each row; equal neighbors are one group
    column_types: Sequence[str]  # the group of each column
    values: Float64[np.ndarray, "N K"]  # what the colors tell; NaN leaves a cell gray
    texts: Sequence[Sequence[str]]  # what stands in the cells; shown where cells are large enough
    scale_label: str  # what the color tells, beside its scale
    outlined: frozenset[tuple[int, int]] = frozenset()  # cells with a frame
    side_label: Sequence[str] = ()  # what stands in the columns on the right, one label each
    side_texts: Sequence[Sequence[str]] = ()  # the texts of each of them
    # the colors of each of them; NaN for text alone
    side_values: Float64[np.ndarray, "M N"] | None = None
    width_px: float = 1090  # what the whole may take up
    row_axis: str = ""  # what the rows are
    column_axis: str = ""  # what the columns are


def heat_map(table: HeatMap, percent: bool) -> Figure:
    """Draws a heat map."""
    cell_x, cell_y = _cell_size(table)
    side_px = max(cell_x, 46) if table.side_label else 0
    norm = _scale(table.values, table.side_values)
    width = len(table.columns) * cell_x + len(table.side_label) * (side_px + 2) + 12
    height = len(table.rows) * cell_y
    figure, axes = new_figure(width, height)
    axes.axis("off")
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    numbers = len(table.columns) <= _NUMBERS_UP_TO and _fits(table.texts, cell_x)
    _draw_cells(axes, table.values, (0, 0), (cell_x, cell_y), norm)
    if numbers:
        _write(axes, table.values, table.texts, (0, 0), (cell_x, cell_y), norm)
    _separate(axes, table, cell_x, cell_y)
    _outline(axes, table, cell_x, cell_y, norm)
    _label_rows(axes, table, cell_y, width - 4)
    top = _label_columns(axes, table, cell_x, height)
    _name_columns(axes, table, cell_x, height)
    left = len(table.columns) * cell_x + 12
    for index, label in enumerate(table.side_label):
        at = left + index * (side_px + 2)
        colors = table.side_values[index] if table.side_values is not None else None
        column = np.full(len(table.rows), np.nan) if colors is None else colors
        if np.isfinite(column).any():
            _draw_cells(axes, column[:, None], (at, 0), (side_px, cell_y), norm)
        texts = [[text] for text in table.side_texts[index]]
        _write(axes, column[:, None], texts, (at, 0), (side_px, cell_y), norm)
        _slanted(axes, at + side_px / 2, height + 6, label, MUTED, side_px)
    _draw_scale(axes, norm, top - 22, table.scale_label, percent)
    return figure


def _cell_size(table: HeatMap) -> tuple[float, float]:
    labels = max((len(plain(name)) for name in table.rows), default=1) * _LETTER_PX
    types = max((len(name) for name in table.row_types), default=0) * _LETTER_PX
    side = len(table.side_label) * 50 + 12
    free = (table.width_px - labels - types - 40 - side) / max(len(table.columns), 1)
    cell_x = float(np.clip(free, 12, 72))
    return cell_x, float(np.clip(cell_x * 0.8, 12, 32))


def _fits(texts: Sequence[Sequence[str]], cell_x: float) -> bool:
    longest = max((len(text) for line in texts for text in line), default=0)
    return longest * _LETTER_PX + 2 <= cell_x


def _scale(values: Float64[np.ndarray, "N K"], side: np.ndarray | None) -> Normalize:
    """From the smallest to the largest value; two equal ends are moved apart."""
    every = values if side is None else np.concatenate([values.ravel(), side.ravel()])
    every = every[np.isfinite(every)]
    low, high = (float(every.min()), float(every.max())) if every.size else (0.0, 1.0)
    return Normalize(low, high if high > low else low + 1)


def _draw_cells(
    axes: Axes,
    values: Float64[np.ndarray, "N K"],
    origin: tuple[float, float],
    cell: tuple[float, float],
    norm: Normalize,
) -> None:
    (x, y), (cell_x, cell_y), (n_rows, n_columns) = origin, cell, values.shape
    right, bottom = x + n_columns * cell_x, y + n_rows * cell_y
    axes.add_patch(Rectangle((x, y), right - x, bottom - y, color=LINE, linewidth=0))
    mesh = axes.pcolormesh(
        np.linspace(x, right, n_columns + 1),
        np.linspace(y, bottom, n_rows + 1),
        np.ma.masked_invalid(values),
        cmap=COLOR_MAP,
        norm=norm,
        linewidth=0,
        zorder=1,
    )
    mesh.set_rasterized(values.size > _SHAPES_UP_TO)
    gap = 1.5 if min(cell) > 20 else 0.5
    style = {"colors": PAPER, "linewidth": gap, "zorder": 2}
    axes.vlines(x + np.arange(n_columns + 1) * cell_x, y, bottom, **style)
    axes.hlines(y + np.arange(n_rows + 1) * cell_y, x, right, **style)


def _write(
    axes: Axes,
    values: Float64[np.ndarray, "N K"],
    texts: Sequence[Sequence[str]],
    origin: tuple[float, float],
    cell: tuple[float, float],
    norm: Normalize,
) -> None:
    size = min(FONT, cell[1] - 1)
    for i, line in enumerate(texts):
        for j, text in enumerate(line):
            x, y = origin[0] + (j + 0.5) * cell[0], origin[1] + (i + 0.5) * cell[1]
            color = readable_on(COLOR_MAP(norm(values[i, j]))) if _told(values[i, j]) else INK
            axes.text(x, y, text, color=color, fontsize=size, ha="center", va="center", zorder=4)


def readable_on(color: Sequence[float]) -> tuple[float, float, float]:
    """Chooses black or white, whichever is easier to read on a color."""
    return max((_BLACK, _WHITE), key=lambda text: contrast(text, color))


def contrast(one: Sequence[float], other: Sequence[float]) -> float:
    """Computes the contrast of two colors as WCAG 2 defines it."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(color: Sequence[float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _told(value: float) -> bool:
    return bool(np.isfinite(value))


def _groups(types: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """Name, first and last place + 1 of each run of equal types."""
    start = 0
    for place in range(1, len(types) + 1):
        if place == len(types) or types[place] != types[start]:
            yield types[start], start, place
            start = place


def _separate(axes: Axes, table: HeatMap, cell_x: float, cell_y: float) -> None:
    """Broad gaps between types."""
    width, height = len(table.columns) * cell_x, len(table.rows) * cell_y
    style = {"colors": PAPER, "linewidth": 4, "zorder": 3}
    for _, start, _ in list(_groups(table.column_types))[1:]:
        axes.vlines(start * cell_x, 0, height, **style)
    for _, start, _ in list(_groups(table.row_types))[1:]:
        axes.hlines(start * cell_y, 0, width, **style)


def _outline(axes: Axes, table: HeatMap, cell_x: float, cell_y: float, norm: Normalize) -> None:
    inset = 2.5 if cell_x > 20 else 1.5
    for i, j in sorted(table.outlined):
        value = table.values[i, j]
        box = Rectangle(
            (j * cell_x + inset, i * cell_y + inset),
            cell_x - 2 * inset,
            cell_y - 2 * inset,
            fill=False,
            edgecolor=readable_on(COLOR_MAP(norm(value))) if _told(value) else INK,
            linewidth=1.2,
            zorder=5,
        )
        axes.add_patch(box)


def _label_rows(axes: Axes, table: HeatMap, cell_y: float, right: float) -> None:
    """Labels on the left; types on the right, so that a phone shows more of the cells."""
    # They have names by which a page finds them, and a ground of their own: see pinned.py.
    left = {"ha": "right", "clip_on": False, "parse_math": False}
    texts = [
        axes.text(
            -7, (i + 0.5) * cell_y, plain(name), color=INK, fontsize=min(FONT, cell_y), **left
        )
        for i, name in enumerate(table.rows)
    ]
    for text in texts:
        text.set_va("center")
    if table.row_axis:
        texts.append(
            axes.text(-7, -9, table.row_axis, color=MUTED, fontsize=SMALL, va="bottom", **left)
        )
    for i, text in enumerate(texts):
        text.set_gid(f"{NAME}-{i}")
    wide = widest(texts) + 12
    top = -24 if table.row_axis else 0
    box = Rectangle((-wide, top), wide - 1, len(table.rows) * cell_y - top, color=PAPER)
    box.set(linewidth=0, zorder=0, clip_on=False, gid=GROUND)
    axes.add_patch(box)
    for name, start, end in _groups(table.row_types):
        axes.vlines(
            right, start * cell_y + 3, end * cell_y - 3, colors=MUTED, linewidth=1, clip_on=False
        )
        middle = (start + end) / 2 * cell_y
        _text(axes, right + 6, middle, name, MUTED, SMALL, ha="left", va="center")


def _label_columns(axes: Axes, table: HeatMap, cell_x: float, height: float) -> float:
    """Labels below, types above; gives the y above which nothing stands yet."""
    for j, name in enumerate(table.columns):
        _slanted(axes, (j + 0.5) * cell_x, height + 6, plain(name), INK, cell_x)
    groups = list(_groups(table.column_types))
    room = all(
        len(name) * _LETTER_PX * SMALL / FONT <= (end - start) * cell_x - 4
        for name, start, end in groups
    )
    for name, start, end in groups:
        axes.hlines(
            -6, start * cell_x + 3, end * cell_x - 3, colors=MUTED, linewidth=1, clip_on=False
        )
        middle = (start + end) / 2 * cell_x
        if room:
            _text(axes, middle, -11, name, MUTED, SMALL, ha="center", va="bottom")
        else:
            _text(axes, middle - 3, -10, name, MUTED, SMALL, ha="left", va="bottom", rotation=35)
    longest = max((len(name) for name, _, _ in groups), default=0) * _LETTER_PX
    return -26.0 if room else -22 - 0.6 * longest


def _name_columns(axes: Axes, table: HeatMap, cell_x: float, height: float) -> None:
    """What the columns are, below the longest of their labels."""
    if not table.column_axis:
        return
    longest = max((len(plain(name)) for name in table.columns), default=0) * _LETTER_PX
    below = height + 10 + longest * (1.0 if cell_x < 18 else 0.72)
    middle = len(table.columns) * cell_x / 2
    _text(axes, middle, below, table.column_axis, MUTED, SMALL, ha="center", va="top")


def _slanted(axes: Axes, x: float, y: float, label: str, color: str, pitch: float) -> None:
    """A label below a column: slanted, or upright where columns are narrow."""
    narrow = pitch < 18
    size = min(FONT, pitch)
    turn = {"rotation": 90, "ha": "center"} if narrow else {"rotation": 45, "ha": "right"}
    shift = 0 if narrow else 4
    _text(axes, x + shift, y, label, color, size, va="top", rotation_mode=None, **turn)


def _draw_scale(axes: Axes, norm: Normalize, y: float, label: str, percent: bool) -> None:
    """A bar of all colors above the figure, its ends and middle told."""
    width, thick = 170, 9
    # Each step of the ramp reaches to its end, and the next lies on it: no seams show between them.
    starts = np.linspace(0, width, _SCALE_STEPS, endpoint=False)
    boxes = [[(x, y), (width, y), (width, y + thick), (x, y + thick)] for x in starts]
    ramp = PolyCollection(boxes, array=np.linspace(norm.vmin, norm.vmax, _SCALE_STEPS))
    ramp.set(cmap=COLOR_MAP, norm=norm, linewidth=0, clip_on=False)
    axes.add_collection(ramp, autolim=False)
    places = np.linspace(norm.vmin, norm.vmax, 3)
    digits = 2 if places[2] - places[0] >= 0.1 else 3
    sides = ("left", "center", "right")
    for place, value, side in zip((0, width / 2, width), places, sides, strict=True):
        told = percent_text(value) if percent else decimal(value, digits)
        _text(axes, place, y - 3, told, MUTED, SMALL, ha=side, va="bottom")
    _text(axes, width + 10, y + thick / 2, label, INK, FONT, ha="left", va="center")


def _text(
    axes: Axes, x: float, y: float, text: str, color: str, size: float, **style: object
) -> None:
    axes.text(x, y, text, color=color, fontsize=size, clip_on=False, parse_math=False, **style)
