"""The figure of a warm-start study: how fast each start learns."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jpt.analysis.json_fields import Fields
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
    new_figure,
    plain,
)
from jpt.errors import InputError
from jpt.files.atomic import atomic_file
from jpt.files.reading import read_json

RECORD, FIGURE = "warm_start.json", "warm_start.svg"
_CURE = "jpt warm-start"
# The vanilla run is gray; each of the others has a color and a sign of its own.
_COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED)
_SIGNS = ("^", "s", "D", "v", "P", "X")
_DASHES = ("-", (0, (5, 2)), (0, (2, 1.5)))

Curves = dict[str, tuple[Float64[np.ndarray, "N"], Float64[np.ndarray, "S N"]]]
"""Steps, and scores by seed, by the name of the run."""


def warm_start_figure(folder: str | Path, out: str | Path | None = None) -> Path:
    """Draws the validation score of each start over training: mean of the seeds, and their range.

    Args:
        folder: of the study, with its ``warm_start.json``.
        out: the file, its ending says the format; by default ``warm_start.svg`` in the folder.

    Returns:
        The file.

    Raises:
        InputError: there is no study, it is broken, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> from jpt.files.atomic import write_json
        >>> study = Path(tempfile.mkdtemp())
        >>> run = {"run": "vanilla", "curve": {"steps": [0, 5], "values": [0.5, 0.6]}}
        >>> write_json(study / RECORD, {"runs": [run]})
        >>> warm_start_figure(study).name
        'warm_start.svg'
    """
    path = Path(folder) / RECORD
    fields = Fields(read_json(path), path, _CURE)
    curves = read_curves(fields, path)
    labels = [fields.text(name) for name in ("task", "metric", "backbone")]
    figure = draw_curves(curves, *(label or "" for label in labels))
    target = Path(folder) / FIGURE if out is None else Path(out)
    kind = target.suffix.lstrip(".").lower()
    if kind not in ("svg", "png", "pdf"):
        raise InputError(f"the figure's file is {target}; give it the ending .svg, .png or .pdf")
    with mpl.rc_context({"svg.hashsalt": "warm start", "svg.fonttype": "none"}):
        with atomic_file(target) as file:
            figure.savefig(
                file,
                format=kind,
                dpi=72 if kind != "png" else 144,
                bbox_inches="tight",
                pad_inches=0.12,
                facecolor="white",
                metadata={"Date": None} if kind == "svg" else None,
            )
    return target


def read_curves(fields: Fields, path: Path) -> Curves:
    """Takes the curves of a record, the seeds of a run together."""
    runs: dict[str, list[tuple[list[float], list[float]]]] = {}
    for run in fields.value.get("runs") or []:
        curve = Fields(run, path, _CURE, "a run").value.get("curve")
        pair = Fields(curve, path, _CURE, "the curve of a run").value
        steps, values = pair.get("steps") or [], pair.get("values") or []
        runs.setdefault(str(run.get("run")), []).append((steps, values))
    if not runs:
        raise InputError(f"{path} holds no runs; make it again with {_CURE}")
    found: Curves = {}
    for name, seeds in runs.items():
        steps = seeds[0][0]
        if not steps or any(one != steps or len(values) != len(steps) for one, values in seeds):
            raise InputError(
                f"{path}: the seeds of {name} are not scored at the same steps; make it again with"
                f" {_CURE}"
            )
        found[name] = np.array(steps, float), np.array([values for _, values in seeds], float)
    return found


def draw_curves(curves: Curves, task: str, metric: str, backbone: str) -> Figure:
    """Draws curves with a band from the lowest to the highest seed."""
    figure, axes = new_figure(420, 260)
    for number, (name, (steps, values)) in enumerate(curves.items()):
        color = GRAY if number == 0 else _COLORS[(number - 1) % len(_COLORS)]
        sign = _SIGNS[(number - 1) % len(_SIGNS)] if number else "o"
        dashes = _DASHES[(number - 1) // len(_COLORS) % len(_DASHES)] if number else "-"
        if len(values) > 1:
            axes.fill_between(
                steps, values.min(0), values.max(0), color=color, alpha=0.16, linewidth=0
            )
        line = axes.plot(steps, values.mean(0), color=color, linewidth=2, linestyle=dashes)[0]
        line.set(label=plain(name), marker=sign, markersize=5, markevery=-(-len(steps) // 12))
    axes.set_xlim(left=0)
    axes.set_xlabel("training step", color=MUTED, fontsize=FONT)
    axes.set_ylabel(f"{metric} on validation", color=MUTED, fontsize=FONT, parse_math=False)
    seeds = max(len(values) for _, values in curves.values())
    band = f", mean and range of {seeds} seeds" if seeds > 1 else ""
    title = f"{plain(task, 40)} on {plain(backbone, 40)}{band}"
    axes.set_title(title, loc="left", color=INK, fontsize=FONT, parse_math=False)
    _legend(axes)
    return figure


def _legend(axes: Axes) -> None:
    legend = axes.legend(loc="best", frameon=False, fontsize=FONT, labelcolor=INK)
    for text in legend.get_texts():
        text.set_parse_math(False)
