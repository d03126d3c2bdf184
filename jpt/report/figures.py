"""Figures of the report, as matplotlib figures and SVG."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path

import matplotlib as mpl
import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from jpt.errors import InputError
from jpt.io.files import atomic_file, read_json
from jpt.report.findings import decimal
from jpt.report.findings import percent as percent_text
from jpt.report.study import Fields
from jpt.results.records import LossCurve
from jpt.results.value_checks import check_score

# --- Style
# Figures never go through pyplot, so no global state changes. One unit is one pixel of the page.

# Colors of text, lines and background. In the page they become CSS variables, which differ in dark
# mode; their odd last digits distinguish them from fixed colors.
INK, MUTED, LINE, PAPER = "#1b1f24", "#5f6975", "#d4d9df", "#fefefe"
_VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", PAPER: "--card"}
# The hues of Okabe and Ito, with a lightness at which all seven stay distinct under every kind of
# color vision, in light and (report.css) dark mode; a test simulates this.
BLUE, ORANGE, GRAY = "#4c5d95", "#c87d10", "#7b8591"
GREEN, PURPLE, SKY, RED = "#107d5a", "#7e3360", "#3299d3", "#b23a12"
COLORS = {
    **{BLUE: "--blue", ORANGE: "--orange", GRAY: "--gray"},
    **{GREEN: "--green", PURPLE: "--purple", SKY: "--sky", RED: "--red"},
}
FONT = 12
SMALL = 11


def new_figure(width_px: float, height_px: float) -> tuple[Figure, Axes]:
    """Return an empty figure and its axes in the style of the page."""
    figure = Figure(figsize=(width_px / 72, height_px / 72), dpi=72)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    axes.tick_params(length=3, color=LINE, labelcolor=MUTED, labelsize=SMALL)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(LINE)
    return figure, axes


def to_svg(figure: Figure, name: str, label: str) -> str:
    """Render a figure as an SVG element for the page."""
    style = {"svg.fonttype": "none", "svg.hashsalt": name, "font.sans-serif": ["DejaVu Sans"]}
    text = io.StringIO()
    with mpl.rc_context(style), _any_glyph():
        figure.savefig(
            text, format="svg", metadata={"Date": None}, bbox_inches="tight", pad_inches=2 / 72
        )
    svg = text.getvalue()
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    # Ids must be unique among all figures of a page.
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'xlink:href="#', f'href="#{name}-', body).replace("xlink:href", "href")
    body = body.replace("url(#", f"url(#{name}-")
    for color, variable in {**_VARIABLES, **COLORS}.items():
        body = re.sub(rf"(fill|stroke): {color}\b", rf"\1: var({variable}, {color})", body)
    # Older versions of matplotlib write one property, later ones two.
    body = re.sub(r"font: ([\w ]*?)([\d.]+)px [^;\"]*", r"font: \1\2px var(--font)", body)
    body = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", body)
    body = re.sub(r"\s*\n\s*", "\n", body)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert box is not None
    width, height = (float(size) for size in box.groups())
    return (
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {width:.2f} {height:.2f}"'
        f' width="{width:.0f}" height="{height:.0f}">{body}'
    )


@contextmanager
def _any_glyph() -> Iterator[None]:
    """Silence warnings on glyphs missing in matplotlib's font: the browser renders the text."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Glyph.*missing")
        yield


def widest(texts: Iterable[Text]) -> float:
    """Return the width of the widest text in pixels."""
    with _any_glyph():
        return max((float(text.get_window_extent().width) for text in texts), default=0.0)


def plain(name: str, longest: int = 26) -> str:
    """Shorten a name to one line for a figure."""
    name = "".join(char if char.isprintable() else " " for char in name)
    if len(name) <= longest:
        return name
    return f"{name[: longest // 2]}…{name[-((longest - 1) // 2) :]}"


def strips(groups: Mapping[str, Sequence[float]], y_label: str, x_label: str = "") -> Figure:
    """Plot groups of values as strips of points with a line at the mean."""
    figure, axes = new_figure(272, 210)
    _percent_axis(axes)
    axes.axhline(1, color=LINE, linewidth=1, zorder=0)
    shown = {name: np.array(values) for name, values in groups.items() if len(values)}
    looks = ((BLUE, "o"), (ORANGE, "^"), (GRAY, "s"))
    for x, (values, (color, shape)) in enumerate(zip(shown.values(), looks, strict=False)):
        # Golden-ratio jitter, not random: equal data give equal figures.
        spread = (np.arange(len(values)) * 0.618034 % 1 - 0.5) * 0.5
        y = np.sort(values)
        axes.scatter(x + spread, y, s=16, color=color, marker=shape, alpha=0.7, linewidths=0)
        mean = float(values.mean())
        axes.plot([x - 0.33, x + 0.33], [mean, mean], color=INK, linewidth=2)
        axes.text(x + 0.36, mean, f"{100 * mean:.0f}", color=INK, fontsize=FONT, va="center")
    axes.set_xlim(-0.5, max(len(shown), 1) - 0.3)
    axes.set_xticks(range(len(shown)), list(shown))
    axes.tick_params(axis="x", length=0, labelcolor=INK, labelsize=FONT)
    _label_axes(axes, x_label, y_label)
    return figure


def _percent_axis(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")


def _label_axes(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label, color=MUTED, fontsize=FONT, parse_math=False)
    axes.set_ylabel(y_label, color=MUTED, fontsize=FONT, parse_math=False)


# --- Learning curves and correlation by layer

_WIDTH_PX = 200


def learning_curve(curve: LossCurve, metric: str, chance: float, best_step: int | None) -> Figure:
    """Plot score and loss of one run."""
    figure, top = new_figure(_WIDTH_PX, 190)
    top.set_position((0, 0.52, 1, 0.48))
    bottom = figure.add_axes((0, 0, 1, 0.36), sharex=top)
    _copy_style(top, bottom)
    top.plot(curve.steps, curve.score, color=BLUE, linewidth=1.8, solid_capstyle="round")
    if np.isfinite(chance):
        top.axhline(chance, color=GRAY, linewidth=1, linestyle=(0, (4, 3)))
    _mark_best_step(top, curve, best_step)
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
    """Plot the correlation of ON with transfer by layer window."""
    figure, axes = new_figure(272, 190)
    axes.axhline(0, color=LINE, linewidth=1, zorder=0)
    positions = range(len(windows))
    if len(band) == len(windows):
        low, high = np.array(band).T
        axes.fill_between(positions, low, high, color=BLUE, alpha=0.16, linewidth=0, zorder=0.5)
    for (name, values), color, shape in zip(lines.items(), (BLUE, GRAY), ("o", "s"), strict=False):
        axes.plot(
            positions, values, color=color, linewidth=1.8, marker=shape, markersize=4.5, label=name
        )
    every = -(-len(windows) // 6)
    shown = [x for x in positions if (len(windows) - 1 - x) % every == 0]
    axes.set_xticks(shown, [f"{windows[x][0]}–{windows[x][1]}" for x in shown])
    axes.set_xlabel("layers (layer 0 is next to the input)", color=MUTED, fontsize=FONT)
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


def _mark_best_step(axes: Axes, curve: LossCurve, best_step: int | None) -> None:
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


# --- Indicators

_INDICATOR_LOOKS = ((BLUE, "o"), (ORANGE, "^"), (GRAY, "s"))
_ROW_PX = 26


def indicator_panel(
    groups: Mapping[str, tuple[Float64[np.ndarray, "M"], Float64[np.ndarray, "M"]]],
    x_label: str,
    y_limits: tuple[float, float],
) -> Figure:
    """Plot the relative score of each pair by the value of an indicator."""
    figure, axes = new_figure(196, 150)
    axes.axhline(1, color=LINE, linewidth=1, zorder=0)
    n_points = sum(len(x) for x, _ in groups.values())
    for (name, (x, y)), (color, shape) in zip(groups.items(), _INDICATOR_LOOKS, strict=False):
        axes.scatter(
            x,
            y,
            s=16 if n_points < 500 else 6,
            marker=shape,
            alpha=0.7,
            color=color,
            linewidths=0,
            label=name,
            rasterized=n_points > 1000,  # this many shapes slow down the page
        )
    axes.set_ylim(*y_limits)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    axes.locator_params(nbins=4)
    axes.set_xlabel(x_label, color=MUTED, fontsize=FONT, parse_math=False)
    axes.set_ylabel("relative score", color=MUTED, fontsize=SMALL)
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


def regret_figure(
    names: Sequence[str],
    regrets: Sequence[float],
    bounds: Sequence[tuple[float, float]],
    chance: float,
) -> Figure:
    """Plot the regret of each indicator with its interval, and that of a random source."""
    figure, axes = new_figure(200, _ROW_PX * max(len(names), 2))
    rows = np.arange(len(names))
    for y, (low, high) in zip(rows, bounds, strict=True):
        axes.plot([100 * low, 100 * high], [y, y], color=GRAY, linewidth=2, zorder=1)
    axes.scatter(
        100 * np.array(regrets), rows, s=34, color=BLUE, linewidths=0, zorder=2, clip_on=False
    )
    axes.axvline(100 * chance, color=ORANGE, linewidth=1.4, linestyle=(0, (4, 3)), zorder=0)
    axes.text(100 * chance, -0.75, "random", color=MUTED, fontsize=SMALL, ha="center", va="bottom")
    axes.set_ylim(len(names) - 0.5, -0.6)
    axes.set_xlim(left=0)
    axes.set_yticks(rows, [plain(name) for name in names])
    axes.tick_params(axis="y", length=0, labelcolor=INK, labelsize=FONT)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel("mean regret, points", color=MUTED, fontsize=FONT)
    axes.set_ylabel("source selected by", color=MUTED, fontsize=FONT)
    return figure


# --- Map of prompts

_MAP_LOOKS = tuple(
    zip((BLUE, ORANGE, GREEN, PURPLE, SKY, RED), ("o", "^", "s", "D", "v", "P"), strict=True)
)
_REST = (GRAY, "X")  # types after the sixth, and prompts without a type
_MAP_LETTER_PX, _LINE_PX, _CLEAR_PX = 6.2, 13.0, 7.0
_SMALL_UP_TO = 10


def scale_to_plane(
    distances: Float64[np.ndarray, "K K"],
) -> tuple[Float64[np.ndarray, "K 2"], float]:
    """Return points and explained share of classical multidimensional scaling to the plane."""
    count = len(distances)
    center = np.eye(count) - 1 / count
    inner = -0.5 * center @ (distances**2) @ center
    values, vectors = np.linalg.eigh((inner + inner.T) / 2)
    lengths = np.zeros(2)
    directions = np.zeros((count, 2))
    kept = min(2, count)
    lengths[:kept] = values[::-1][:kept].clip(0)
    directions[:, :kept] = vectors[:, ::-1][:, :kept]
    # Directions have no sign: put the farthest point on the right and on top.
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
    """Plot prompts as named points, with a color and marker per type."""
    small = len(names) <= _SMALL_UP_TO
    width, height = (290, 250) if small else (600, 400)
    figure, axes = new_figure(width, height)
    _set_limits(axes, points, width / height)
    looks = iter(_MAP_LOOKS)
    for kind in dict.fromkeys(types):
        color, shape = _REST if kind in unknown else next(looks, _REST)
        group = points[[each == kind for each in types]]
        axes.scatter(
            *group.T, s=46, color=color, marker=shape, linewidths=0, label=plain(kind), zorder=2
        )
    _name_points(axes, points, names, (width, height))
    axes.set_xlabel(f"MDS dimension 1{axis_label}", color=MUTED, fontsize=FONT, parse_math=False)
    axes.set_ylabel("MDS dimension 2, same scale", color=MUTED, fontsize=FONT)
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
    """Set limits with a margin and equal scales."""
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
    """Label each point where the label hides the least."""
    low = np.array([axes.get_xlim()[0], axes.get_ylim()[0]])
    high = np.array([axes.get_xlim()[1], axes.get_ylim()[1]])
    pixels = (points - low) / (high - low) * np.array(size)
    taken = [np.array([*(at - 5), *(at + 5)]) for at in pixels]
    for at, name in zip(pixels, names, strict=True):
        text = plain(name, 20)
        boxes = list(_label_boxes(at, _MAP_LETTER_PX * len(text)))
        costs = [_hidden_area(box, taken, size) for box, _, _ in boxes]
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


def _label_boxes(
    at: Float64[np.ndarray, "2"], length: float
) -> Iterator[tuple[Float64[np.ndarray, "4"], Float64[np.ndarray, "2"], str]]:
    """Yield candidate boxes of a label with anchor and alignment."""
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


def _hidden_area(
    box: Float64[np.ndarray, "4"],
    taken: Sequence[Float64[np.ndarray, "4"]],
    size: tuple[float, float],
) -> float:
    """Area of other items that a box hides, plus a penalty for leaving the figure."""
    others = np.array(taken)
    wide = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    tall = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    out = max(0.0, -box[0]) + max(0.0, box[2] - size[0]) + max(0.0, -box[1])
    out += max(0.0, box[3] - size[1])
    return float((wide.clip(0) * tall.clip(0)).sum()) + _LINE_PX * out


# --- Sticky row names of a heat map

BACKGROUND = "row-background"
NAME = "row-name"


def stick_rows(svg: str, name: str) -> str:
    """Overlay a heat map with a copy of its row names that stays visible when it scrolls."""
    # The copy references the names in the figure, which itself does not change.
    background = re.search(rf'<g id="{name}-{BACKGROUND}">\s*<path d="([^"]+)"', svg)
    height = re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', svg)
    if background is None or height is None:
        return svg
    edge = max(float(x) for x in re.findall(r"[ML] ([\d.]+)", background[1]))
    names = re.findall(rf'<g id="({name}-{NAME}-\w+)">', svg)
    # A second background, shifted left, covers the margin of the figure.
    copies = f'<use href="#{name}-{BACKGROUND}" transform="translate(-9 0)"/>'
    copies += "".join(f'<use href="#{each}"/>' for each in (f"{name}-{BACKGROUND}", *names))
    copy = (
        f'<svg class="sticky" aria-hidden="true" viewBox="0 0 {edge:.2f} {height[1]}"'
        f' width="{edge:.2f}" height="{float(height[1]):.0f}">{copies}</svg>'
    )
    figure = svg.replace("<svg ", f'<svg style="margin-left:-{edge:.2f}px" ', 1)
    return f'<div class="map">{copy}{figure}</div>'


# --- Heat maps

# Monotonic in lightness, so that it reads in gray and with every color vision; the ends are cut so
# that cells stay distinct from a white or black page.
COLOR_MAP = ListedColormap(mpl.colormaps["YlGnBu"](np.linspace(0.06, 0.97, 256)))
_HEAT_MAP_LETTER_PX = 6.8  # mean letter width at 12 pixels
_NUMBERS_UP_TO = 26  # columns; beyond that, cells are too small for numbers
_SHAPES_UP_TO = 4000  # cells; beyond that, they are rasterized
_SCALE_STEPS = 48
_BLACK, _WHITE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class HeatMap:
    """Contents of a heat map."""

    rows: Sequence[str]  # labels from top to bottom
    columns: Sequence[str]  # labels from left to right
    row_types: Sequence[str]  # equal neighbors form a group
    column_types: Sequence[str]
    values: Float64[np.ndarray, "N K"]  # colors; NaN leaves a cell gray
    texts: Sequence[Sequence[str]]  # shown if cells are large enough
    scale_label: str
    outlined: frozenset[tuple[int, int]] = frozenset()  # framed cells
    side_label: Sequence[str] = ()  # labels of the columns on the right
    side_texts: Sequence[Sequence[str]] = ()
    side_values: Float64[np.ndarray, "M N"] | None = None  # colors; NaN for text alone
    width_px: float = 1090
    row_axis: str = ""
    column_axis: str = ""


def heat_map(table: HeatMap, percent: bool) -> Figure:
    """Plot a heat map."""
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
    _plot_cells(axes, table.values, (0, 0), (cell_x, cell_y), norm)
    if numbers:
        _write_texts(axes, table.values, table.texts, (0, 0), (cell_x, cell_y), norm)
    _separate_types(axes, table, cell_x, cell_y)
    _outline(axes, table, cell_x, cell_y, norm)
    _label_rows(axes, table, cell_y, width - 4)
    top = _label_columns(axes, table, cell_x, height)
    _label_column_axis(axes, table, cell_x, height)
    left = len(table.columns) * cell_x + 12
    for index, label in enumerate(table.side_label):
        x = left + index * (side_px + 2)
        colors = table.side_values[index] if table.side_values is not None else None
        column = np.full(len(table.rows), np.nan) if colors is None else colors
        if np.isfinite(column).any():
            _plot_cells(axes, column[:, None], (x, 0), (side_px, cell_y), norm)
        texts = [[text] for text in table.side_texts[index]]
        _write_texts(axes, column[:, None], texts, (x, 0), (side_px, cell_y), norm)
        _slanted(axes, x + side_px / 2, height + 6, label, MUTED, side_px)
    _plot_scale(axes, norm, top - 22, table.scale_label, percent)
    return figure


def _cell_size(table: HeatMap) -> tuple[float, float]:
    labels = max((len(plain(name)) for name in table.rows), default=1) * _HEAT_MAP_LETTER_PX
    types = max((len(name) for name in table.row_types), default=0) * _HEAT_MAP_LETTER_PX
    side = len(table.side_label) * 50 + 12
    free = (table.width_px - labels - types - 40 - side) / max(len(table.columns), 1)
    cell_x = float(np.clip(free, 12, 72))
    return cell_x, float(np.clip(cell_x * 0.8, 12, 32))


def _fits(texts: Sequence[Sequence[str]], cell_x: float) -> bool:
    longest = max((len(text) for line in texts for text in line), default=0)
    return longest * _HEAT_MAP_LETTER_PX + 2 <= cell_x


def _scale(values: Float64[np.ndarray, "N K"], side: np.ndarray | None) -> Normalize:
    """Normalize from the smallest to the largest value."""
    every = values if side is None else np.concatenate([values.ravel(), side.ravel()])
    every = every[np.isfinite(every)]
    low, high = (float(every.min()), float(every.max())) if every.size else (0.0, 1.0)
    return Normalize(low, high if high > low else low + 1)


def _plot_cells(
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


def _write_texts(
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
            color = readable_on(COLOR_MAP(norm(values[i, j]))) if np.isfinite(values[i, j]) else INK
            axes.text(x, y, text, color=color, fontsize=size, ha="center", va="center", zorder=4)


def readable_on(color: Sequence[float]) -> tuple[float, float, float]:
    """Return black or white, whichever has more contrast."""
    return max((_BLACK, _WHITE), key=lambda text: contrast(text, color))


def contrast(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the WCAG 2 contrast ratio of two colors."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(color: Sequence[float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _groups(types: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """Yield name, start and end of each run of equal types."""
    start = 0
    for end in range(1, len(types) + 1):
        if end == len(types) or types[end] != types[start]:
            yield types[start], start, end
            start = end


def _separate_types(axes: Axes, table: HeatMap, cell_x: float, cell_y: float) -> None:
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
            edgecolor=readable_on(COLOR_MAP(norm(value))) if np.isfinite(value) else INK,
            linewidth=1.2,
            zorder=5,
        )
        axes.add_patch(box)


def _label_rows(axes: Axes, table: HeatMap, cell_y: float, right: float) -> None:
    """Label rows on the left and types on the right, so that a phone shows more of the cells."""
    # The group ids and the background are for stick_rows.
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
    box.set(linewidth=0, zorder=0, clip_on=False, gid=BACKGROUND)
    axes.add_patch(box)
    for name, start, end in _groups(table.row_types):
        axes.vlines(
            right, start * cell_y + 3, end * cell_y - 3, colors=MUTED, linewidth=1, clip_on=False
        )
        middle = (start + end) / 2 * cell_y
        _text(axes, right + 6, middle, name, MUTED, SMALL, ha="left", va="center")


def _label_columns(axes: Axes, table: HeatMap, cell_x: float, height: float) -> float:
    """Label columns below and types above; return the top y in use."""
    for j, name in enumerate(table.columns):
        _slanted(axes, (j + 0.5) * cell_x, height + 6, plain(name), INK, cell_x)
    groups = list(_groups(table.column_types))
    fits = all(
        len(name) * _HEAT_MAP_LETTER_PX * SMALL / FONT <= (end - start) * cell_x - 4
        for name, start, end in groups
    )
    for name, start, end in groups:
        axes.hlines(
            -6, start * cell_x + 3, end * cell_x - 3, colors=MUTED, linewidth=1, clip_on=False
        )
        middle = (start + end) / 2 * cell_x
        if fits:
            _text(axes, middle, -11, name, MUTED, SMALL, ha="center", va="bottom")
        else:
            _text(axes, middle - 3, -10, name, MUTED, SMALL, ha="left", va="bottom", rotation=35)
    longest = max((len(name) for name, _, _ in groups), default=0) * _HEAT_MAP_LETTER_PX
    return -26.0 if fits else -22 - 0.6 * longest


def _label_column_axis(axes: Axes, table: HeatMap, cell_x: float, height: float) -> None:
    if not table.column_axis:
        return
    longest = max((len(plain(name)) for name in table.columns), default=0) * _HEAT_MAP_LETTER_PX
    below = height + 10 + longest * (1.0 if cell_x < 18 else 0.72)
    middle = len(table.columns) * cell_x / 2
    _text(axes, middle, below, table.column_axis, MUTED, SMALL, ha="center", va="top")


def _slanted(axes: Axes, x: float, y: float, label: str, color: str, pitch: float) -> None:
    """Label a column: slanted, or vertical where columns are narrow."""
    narrow = pitch < 18
    size = min(FONT, pitch)
    style = {"rotation": 90, "ha": "center"} if narrow else {"rotation": 45, "ha": "right"}
    shift = 0 if narrow else 4
    _text(axes, x + shift, y, label, color, size, va="top", rotation_mode=None, **style)


def _plot_scale(axes: Axes, norm: Normalize, y: float, label: str, percent: bool) -> None:
    """Plot the color scale above the figure, with labels at its ends and middle."""
    width, thick = 170, 9
    # Each step extends to the end of the scale and the next covers it: no visible seams.
    starts = np.linspace(0, width, _SCALE_STEPS, endpoint=False)
    boxes = [[(x, y), (width, y), (width, y + thick), (x, y + thick)] for x in starts]
    ramp = PolyCollection(boxes, array=np.linspace(norm.vmin, norm.vmax, _SCALE_STEPS))
    ramp.set(cmap=COLOR_MAP, norm=norm, linewidth=0, clip_on=False)
    axes.add_collection(ramp, autolim=False)
    ticks = np.linspace(norm.vmin, norm.vmax, 3)
    digits = 2 if ticks[2] - ticks[0] >= 0.1 else 3
    sides = ("left", "center", "right")
    for x, value, side in zip((0, width / 2, width), ticks, sides, strict=True):
        text = percent_text(value) if percent else decimal(value, digits)
        _text(axes, x, y - 3, text, MUTED, SMALL, ha=side, va="bottom")
    _text(axes, width + 10, y + thick / 2, label, INK, FONT, ha="left", va="center")


def _text(
    axes: Axes, x: float, y: float, text: str, color: str, size: float, **style: object
) -> None:
    axes.text(x, y, text, color=color, fontsize=size, clip_on=False, parse_math=False, **style)


# --- Figure of a masking study

MASK_RECORD, MASK_FIGURE = "mask.json", "mask.svg"
_MASK_COMMAND = "jpt mask"
_MASK_LABELS = {
    "in_task": "in-task",
    "random": "random",
    "other": "other\ntasks'",
    "common": "common\nto all",
    "specific": "task-\nspecific",
}


@dataclass(frozen=True)
class MaskedShares:
    """Results of a masking study, relative to the scores without a mask."""

    # kind of mask -> relative score of each task, mean over samples and sources
    kinds: Mapping[str, Sequence[float]]
    spread: Mapping[str, Sequence[float]]  # kind of mask -> single scores of all tasks
    chance: float  # chance level, mean over tasks; NaN if unknown
    title: str


def mask_figure(folder: str | Path, out: str | Path | None = None) -> Path:
    """Plot the scores under each kind of mask: means as bars, single scores as points.

    Args:
        folder: Folder with ``mask.json``.
        out: Output file, .svg, .png or .pdf. Default: ``mask.svg`` in the folder.

    Returns:
        Path of the file.

    Raises:
        InputError: ``mask.json`` is missing or invalid, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> from jpt.io.files import write_json
        >>> study = Path(tempfile.mkdtemp())
        >>> in_task = {"relative": 0.75, "runs": [{"value": 0.6}]}
        >>> target = {"unmasked": 0.8, "chance": 0.5, "masks": {"in_task": in_task}}
        >>> write_json(study / MASK_RECORD, {"masked_neurons": 4, "neurons": 20, "layers": [0, 1],
        ...     "targets": {"mood": target}})
        >>> mask_figure(study).name
        'mask.svg'
    """
    shares = read_shares(Path(folder) / MASK_RECORD)
    target = Path(folder) / MASK_FIGURE if out is None else Path(out)
    return _save(plot_shares(shares), target, "mask")


def _save(figure: Figure, target: Path, salt: str) -> Path:
    kind = target.suffix.lstrip(".").lower()
    if kind not in ("svg", "png", "pdf"):
        raise InputError(f"{target}: expected a figure file ending in .svg, .png or .pdf")
    with mpl.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        with atomic_file(target) as file:
            figure.savefig(
                file,
                format=kind,
                dpi=144 if kind == "png" else 72,
                bbox_inches="tight",
                pad_inches=0.12,
                facecolor="white",
                metadata={"Date": None} if kind == "svg" else None,
            )
    return target


def read_shares(path: str | Path) -> MaskedShares:
    """Load the relative scores of ``mask.json``."""
    fields = Fields(read_json(path), path, _MASK_COMMAND)
    kinds: dict[str, list[float]] = {}
    spread: dict[str, list[float]] = {}
    chance = []
    for _, target in fields.fields("targets").each():
        metric = target.text("metric")
        unmasked = target.number("unmasked", metric)
        if not unmasked > 0:
            continue
        chance.append(target.number("chance") / unmasked)
        for kind, mask in target.fields("masks").each():
            share = mask.number("relative")
            if math.isnan(share):
                raise InputError(
                    f"{path}: {mask.key} has no relative; regenerate it with {_MASK_COMMAND}"
                )
            kinds.setdefault(kind, []).append(share)
            runs = mask.value.get("runs") or []
            read = [Fields(run, path, _MASK_COMMAND, mask.key) for run in runs]
            values = [run.number("value", metric) for run in read]
            spread.setdefault(kind, []).extend(value / unmasked for value in values)
    if not kinds:
        raise InputError(f"{path} has no score above 0; regenerate it with {_MASK_COMMAND}")
    known = [value for value in chance if not math.isnan(value)]
    return MaskedShares(kinds, spread, float(np.mean(known or [math.nan])), _title(fields))


def _title(fields: Fields) -> str:
    layers = fields.value.get("layers") or []
    layer_text = "-".join(str(layer) for layer in dict.fromkeys(layers))
    masked, total = fields.count("masked_neurons"), fields.count("neurons")
    backbone = plain(fields.text("backbone") or "", 40)
    text = f"{masked} of {total} neurons masked (layers {layer_text})"
    return text + (f", {backbone}" if backbone else "")


def plot_shares(shares: MaskedShares) -> Figure:
    """Plot means as bars and single scores as points."""
    figure, axes = new_figure(80 + 84 * len(shares.kinds), 240)
    axes.axhline(1, color=LINE, linewidth=1, zorder=0)
    for x, (kind, values) in enumerate(shares.kinds.items()):
        mean = float(np.mean(values))
        color = BLUE if kind == "in_task" else GRAY
        axes.bar(x, mean, width=0.62, color=color, alpha=0.55, linewidth=0, zorder=1)
        points = np.sort(np.asarray(shares.spread[kind], float))
        # Golden-ratio jitter, not random: equal data give equal figures.
        sideways = (np.arange(len(points)) * 0.618034 % 1 - 0.5) * 0.4
        axes.scatter(x + sideways, points, s=13, color=INK, alpha=0.5, linewidths=0, zorder=3)
        # At the foot of the bar, where no point hides it.
        axes.text(x, 0.02, f"{100 * mean:.0f}%", color=INK, fontsize=FONT, ha="center", zorder=4)
    right = len(shares.kinds) - 0.5
    if not math.isnan(shares.chance):
        axes.axhline(shares.chance, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=2)
        axes.text(
            right + 0.04,
            shares.chance,
            "chance\nlevel",
            color=MUTED,
            fontsize=SMALL,
            va="center",
        )
    axes.text(right + 0.04, 1, "no mask", color=MUTED, fontsize=SMALL, va="center")
    axes.set_xlim(-0.5, right)
    axes.set_ylim(bottom=min(0.0, *(min(points) for points in shares.spread.values())))
    labels = [_MASK_LABELS.get(kind, plain(kind)) for kind in shares.kinds]
    axes.set_xticks(range(len(labels)), labels)
    axes.tick_params(axis="x", length=0, labelcolor=INK, labelsize=FONT)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    axes.set_ylabel("score relative to no mask", color=MUTED, fontsize=FONT)
    axes.set_xlabel("masked neurons", color=MUTED, fontsize=FONT)
    axes.set_title(shares.title, loc="left", color=INK, fontsize=FONT, parse_math=False, pad=12)
    return figure


# --- Figure of a warm-start study

WARM_START_RECORD, WARM_START_FIGURE = "warm_start.json", "warm_start.svg"
_WARM_START_COMMAND = "jpt warm-start"
# The vanilla run is gray; the others differ in color and marker.
_COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED)
_MARKERS = ("^", "s", "D", "v", "P", "X")
_DASHES = ("-", (0, (5, 2)), (0, (2, 1.5)))

# run name -> steps, scores by seed
Curves = dict[str, tuple[Float64[np.ndarray, "N"], Float64[np.ndarray, "S N"]]]


def warm_start_figure(folder: str | Path, out: str | Path | None = None) -> Path:
    """Plot the validation score of each start over training: mean and range over seeds.

    Args:
        folder: Folder with ``warm_start.json``.
        out: Output file, .svg, .png or .pdf. Default: ``warm_start.svg`` in the folder.

    Returns:
        Path of the file.

    Raises:
        InputError: ``warm_start.json`` is missing or invalid, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> from jpt.io.files import write_json
        >>> study = Path(tempfile.mkdtemp())
        >>> run = {"run": "vanilla", "curve": {"steps": [0, 5], "values": [0.5, 0.6]}}
        >>> write_json(study / WARM_START_RECORD, {"runs": [run]})
        >>> warm_start_figure(study).name
        'warm_start.svg'
    """
    path = Path(folder) / WARM_START_RECORD
    fields = Fields(read_json(path), path, _WARM_START_COMMAND)
    curves = read_curves(fields, path)
    labels = [fields.text(name) for name in ("task", "metric", "backbone")]
    figure = plot_curves(curves, *(label or "" for label in labels))
    target = Path(folder) / WARM_START_FIGURE if out is None else Path(out)
    return _save(figure, target, "warm start")


def read_curves(fields: Fields, path: Path) -> Curves:
    """Group the curves of ``warm_start.json`` by run."""
    runs: dict[str, list[tuple[list[float], list[float]]]] = {}
    for run in fields.value.get("runs") or []:
        curve = Fields(run, path, _WARM_START_COMMAND, "a run").value.get("curve")
        pair = Fields(curve, path, _WARM_START_COMMAND, "the curve of a run").value
        steps, values = pair.get("steps") or [], pair.get("values") or []
        metric, cure = fields.text("metric") or "", f"regenerate it with {_WARM_START_COMMAND}"
        for value in values:
            check_score(path, metric, value, cure)
        runs.setdefault(str(run.get("run")), []).append((steps, values))
    if not runs:
        raise InputError(f"{path} has no runs; regenerate it with {_WARM_START_COMMAND}")
    found: Curves = {}
    for name, seeds in runs.items():
        steps = seeds[0][0]
        if not steps or any(one != steps or len(values) != len(steps) for one, values in seeds):
            raise InputError(
                f"{path}: the seeds of {name} were evaluated at different steps; regenerate it with"
                f" {_WARM_START_COMMAND}"
            )
        found[name] = np.array(steps, float), np.array([values for _, values in seeds], float)
    return found


def plot_curves(curves: Curves, task: str, metric: str, backbone: str) -> Figure:
    """Plot mean curves with a band from the lowest to the highest seed."""
    figure, axes = new_figure(420, 260)
    for number, (name, (steps, values)) in enumerate(curves.items()):
        color = GRAY if number == 0 else _COLORS[(number - 1) % len(_COLORS)]
        marker = _MARKERS[(number - 1) % len(_MARKERS)] if number else "o"
        dashes = _DASHES[(number - 1) // len(_COLORS) % len(_DASHES)] if number else "-"
        if len(values) > 1:
            axes.fill_between(
                steps, values.min(0), values.max(0), color=color, alpha=0.16, linewidth=0
            )
        line = axes.plot(steps, values.mean(0), color=color, linewidth=2, linestyle=dashes)[0]
        line.set(label=plain(name), marker=marker, markersize=5, markevery=-(-len(steps) // 12))
    axes.set_xlim(left=0)
    axes.set_xlabel("training step", color=MUTED, fontsize=FONT)
    axes.set_ylabel(f"validation {metric}", color=MUTED, fontsize=FONT, parse_math=False)
    seeds = max(len(values) for _, values in curves.values())
    band = f", mean and range over {seeds} seeds" if seeds > 1 else ""
    title = f"{plain(task, 40)} on {plain(backbone, 40)}{band}"
    axes.set_title(title, loc="left", color=INK, fontsize=FONT, parse_math=False)
    _legend(axes)
    return figure


def _legend(axes: Axes) -> None:
    legend = axes.legend(loc="best", frameon=False, fontsize=FONT, labelcolor=INK)
    for text in legend.get_texts():
        text.set_parse_math(False)
