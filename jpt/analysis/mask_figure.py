"""The figure of a masking study: what is left of the score under each kind of mask."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from jpt.analysis.json_fields import Fields
from jpt.analysis.plots import BLUE, FONT, GRAY, INK, LINE, MUTED, SMALL, new_figure, plain
from jpt.errors import InputError
from jpt.files.atomic import atomic_file
from jpt.files.reading import read_json

RECORD, FIGURE = "mask.json", "mask.svg"
_CURE = "jpt mask"
_LABELS = {
    "own": "own",
    "random": "random",
    "other": "other\ntasks'",
    "common": "common\nto all",
    "specific": "specific\nto this",
}
_KINDS = ("svg", "png", "pdf")


@dataclass(frozen=True)
class MaskedShares:
    """What a masking study found, as shares of the scores without a mask."""

    # by kind of mask, one number a task: its mean over draws and sources
    kinds: Mapping[str, Sequence[float]]
    spread: Mapping[str, Sequence[float]]  # by kind of mask, every single score of every task
    # what answering with the commonest class would leave, mean over the tasks; NaN where it is not
    # known
    commonest: float
    title: str  # what was masked


def mask_figure(folder: str | Path, out: str | Path | None = None) -> Path:
    """Draws what is left of the scores under each kind of mask: means as bars, scores as points.

    Args:
        folder: of the study, with its ``mask.json``.
        out: the file, its ending says the format; by default ``mask.svg`` in the folder.

    Returns:
        The file.

    Raises:
        InputError: there is no study, it is broken, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> from jpt.files.atomic import write_json
        >>> study = Path(tempfile.mkdtemp())
        >>> own = {"relative": 0.75, "runs": [{"value": 0.6}]}
        >>> target = {"unmasked": 0.8, "majority": 0.5, "masks": {"own": own}}
        >>> write_json(study / RECORD, {"silent_neurons": 4, "neurons": 20, "layers": [0, 1],
        ...     "targets": {"mood": target}})
        >>> mask_figure(study).name
        'mask.svg'
    """
    shares = read_shares(Path(folder) / RECORD)
    target = Path(folder) / FIGURE if out is None else Path(out)
    kind = target.suffix.lstrip(".").lower()
    if kind not in _KINDS:
        raise InputError(f"the figure's file is {target}; give it the ending .svg, .png or .pdf")
    figure = draw_shares(shares)
    with mpl.rc_context({"svg.hashsalt": "mask", "svg.fonttype": "none"}):
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
    """Reads what a figure of masks shows."""
    fields = Fields(read_json(path), path, _CURE)
    kinds: dict[str, list[float]] = {}
    spread: dict[str, list[float]] = {}
    commonest = []
    for _, target in fields.fields("targets").each():
        whole = target.number("unmasked")
        if not whole > 0:
            continue
        commonest.append(target.number("majority") / whole)
        for kind, mask in target.fields("masks").each():
            share = mask.number("relative")
            if math.isnan(share):
                raise InputError(
                    f"{path}: {mask.place} has no relative; make it again with {_CURE}"
                )
            kinds.setdefault(kind, []).append(share)
            runs = mask.value.get("runs") or []
            values = [Fields(run, path, _CURE, mask.place).number("value") for run in runs]
            spread.setdefault(kind, []).extend(value / whole for value in values)
    if not kinds:
        raise InputError(f"{path} holds no scores above 0; make it again with {_CURE}")
    known = [value for value in commonest if not math.isnan(value)]
    return MaskedShares(kinds, spread, float(np.mean(known or [math.nan])), _title(fields))


def _title(fields: Fields) -> str:
    layers = fields.value.get("layers") or []
    told = "-".join(str(layer) for layer in dict.fromkeys(layers))
    silent, of = fields.count("silent_neurons"), fields.count("neurons")
    backbone = plain(fields.text("backbone") or "", 40)
    return f"{silent} of {of} neurons silent (layers {told}){f', {backbone}' if backbone else ''}"


def draw_shares(shares: MaskedShares) -> Figure:
    """Draws bars of means with a point for every score."""
    figure, axes = new_figure(80 + 84 * len(shares.kinds), 240)
    axes.axhline(1, color=LINE, linewidth=1, zorder=0)
    for place, (kind, values) in enumerate(shares.kinds.items()):
        mean = float(np.mean(values))
        color = BLUE if kind == "own" else GRAY
        axes.bar(place, mean, width=0.62, color=color, alpha=0.55, linewidth=0, zorder=1)
        points = np.sort(np.asarray(shares.spread[kind], float))
        # Spread by a golden ratio, not by chance: the same points stand at the same places.
        sideways = (np.arange(len(points)) * 0.618034 % 1 - 0.5) * 0.4
        axes.scatter(place + sideways, points, s=13, color=INK, alpha=0.5, linewidths=0, zorder=3)
        # At the foot of the bar, where no point hides it.
        axes.text(
            place, 0.02, f"{100 * mean:.0f}%", color=INK, fontsize=FONT, ha="center", zorder=4
        )
    right = len(shares.kinds) - 0.5
    if not math.isnan(shares.commonest):
        axes.axhline(shares.commonest, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=2)
        axes.text(
            right + 0.04,
            shares.commonest,
            "commonest\nanswer alone",
            color=MUTED,
            fontsize=SMALL,
            va="center",
        )
    axes.text(right + 0.04, 1, "no mask", color=MUTED, fontsize=SMALL, va="center")
    axes.set_xlim(-0.5, right)
    axes.set_ylim(bottom=min(0.0, *(min(points) for points in shares.spread.values())))
    labels = [_LABELS.get(kind, plain(kind)) for kind in shares.kinds]
    axes.set_xticks(range(len(labels)), labels)
    axes.tick_params(axis="x", length=0, labelcolor=INK, labelsize=FONT)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    axes.set_ylabel("score, share of that without a mask", color=MUTED, fontsize=FONT)
    axes.set_xlabel("which neurons are silent", color=MUTED, fontsize=FONT)
    axes.set_title(shares.title, loc="left", color=INK, fontsize=FONT, parse_math=False, pad=12)
    return figure
