"""Figures of a study as matplotlib figures, and as SVG that follows the colors of a page.

Figures are built from objects, never through pyplot, so nothing global is touched. One unit is one
pixel of a page: what is drawn at 11 is read at 11 pixels.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

# Colors of text, lines and ground. In a page they become variables, which a dark page sets
# otherwise; the odd last digits tell them from colors that stay as they are.
INK, MUTED, LINE, PAPER = "#1b1f24", "#5f6975", "#d4d9df", "#fefefe"
_VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", PAPER: "--card"}
# The hues of Okabe and Ito, moved in lightness until every kind of color vision tells all seven
# apart, on a light page and (report.css) on a dark one; a test simulates them.
BLUE, ORANGE, GRAY = "#4c5d95", "#c87d10", "#7b8591"
GREEN, PURPLE, SKY, RED = "#107d5a", "#7e3360", "#3299d3", "#b23a12"
COLORS = {
    **{BLUE: "--blue", ORANGE: "--orange", GRAY: "--gray"},
    **{GREEN: "--green", PURPLE: "--purple", SKY: "--sky", RED: "--red"},
}
FONT = 12
SMALL = 11


def new_figure(width_px: float, height_px: float) -> tuple[Figure, Axes]:
    """Makes an empty figure with one set of axes in the style of the page."""
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
    """Draws a figure as an SVG element for a page."""
    style = {"svg.fonttype": "none", "svg.hashsalt": name, "font.sans-serif": ["DejaVu Sans"]}
    text = io.StringIO()
    with mpl.rc_context(style), _any_sign():
        figure.savefig(
            text, format="svg", metadata={"Date": None}, bbox_inches="tight", pad_inches=2 / 72
        )
    svg = text.getvalue()
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    # Several figures stand in one page, so their ids must differ.
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
def _any_sign() -> Iterator[None]:
    """Text is drawn by the reader's browser, which has more signs than matplotlib's font."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Glyph.*missing")
        yield


def widest(texts: Iterable[Text]) -> float:
    """Measures texts of a figure."""
    with _any_sign():
        return max((float(text.get_window_extent().width) for text in texts), default=0.0)


def plain(name: str, longest: int = 26) -> str:
    """Makes a name fit for a figure: one line, not too long."""
    name = "".join(char if char.isprintable() else " " for char in name)
    if len(name) <= longest:
        return name
    return f"{name[: longest // 2]}…{name[-((longest - 1) // 2) :]}"


def strips(groups: Mapping[str, Sequence[float]], y_label: str, x_label: str = "") -> Figure:
    """Draws groups of numbers side by side: every number a point, their mean a line."""
    figure, axes = new_figure(272, 210)
    _percent_axis(axes)
    axes.axhline(1, color=LINE, linewidth=1, zorder=0)
    shown = {name: np.array(values) for name, values in groups.items() if len(values)}
    looks = ((BLUE, "o"), (ORANGE, "^"), (GRAY, "s"))
    for place, (values, (color, shape)) in enumerate(zip(shown.values(), looks, strict=False)):
        # Spread by a golden ratio, not by chance: the same points stand at the same places.
        spread = (np.arange(len(values)) * 0.618034 % 1 - 0.5) * 0.5
        axes.scatter(
            place + spread,
            np.sort(values),
            s=16,
            color=color,
            marker=shape,
            alpha=0.7,
            linewidths=0,
        )
        mean = float(values.mean())
        axes.plot([place - 0.33, place + 0.33], [mean, mean], color=INK, linewidth=2)
        axes.text(place + 0.36, mean, f"{100 * mean:.0f}", color=INK, fontsize=FONT, va="center")
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
