"""The figure of a warm-start study shows the means and the range of its curves."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import jpt
from jpt.report.figures import plot_curves, warm_start_figure

STEPS = [0, 10, 20]


def write_study(folder: Path, **changes: object) -> Path:
    runs = [
        {"run": name, "seed": seed, "curve": {"steps": STEPS, "values": values}}
        for name, seed, values in (
            ("vanilla", 0, [0.5, 0.6, 0.7]),
            ("vanilla", 1, [0.4, 0.7, 0.8]),
            ("im$db$<b>", 0, [0.6, 0.8, 0.8]),
            ("im$db$<b>", 1, [0.7, 0.7, 0.9]),
        )
    ]
    record = {"task": "mood", "metric": "accuracy", "backbone": "bert", "runs": runs, **changes}
    (folder / "warm_start.json").write_text(json.dumps(record))
    return folder


def test_the_file_is_an_image_with_names_of_axes_and_runs(tmp_path: Path) -> None:
    path = warm_start_figure(write_study(tmp_path))
    assert path == tmp_path / "warm_start.svg"
    root = ElementTree.fromstring(path.read_text())
    assert root.tag.endswith("svg")
    texts = {text.text for text in root.iter() if text.tag.endswith("text")}
    assert {"training step", "accuracy on validation", "vanilla", "im$db$<b>"} <= texts
    assert any("mood on bert, mean and range of 2 seeds" in (text or "") for text in texts)
    before = path.read_bytes()
    warm_start_figure(tmp_path)
    assert path.read_bytes() == before
    png = warm_start_figure(tmp_path, tmp_path / "curves.png")
    assert png.read_bytes()[:4] == b"\x89PNG"


def test_lines_are_means_and_bands_the_range() -> None:
    values = np.array([[0.5, 0.6, 0.7], [0.4, 0.7, 0.8]])
    curves = {"vanilla": (np.array(STEPS), values), "one": (np.array(STEPS), values[:1])}
    axes = plot_curves(curves, "mood", "accuracy", "bert").axes[0]
    assert [line.get_label() for line in axes.lines] == ["vanilla", "one"]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.45, 0.65, 0.75])
    np.testing.assert_allclose(axes.lines[1].get_ydata(), values[0])
    (band,) = axes.collections  # one seed has no range
    edge = band.get_paths()[0].vertices
    assert (edge[edge[:, 0] == 10, 1].min(), edge[edge[:, 0] == 10, 1].max()) == (0.6, 0.7)
    colors = {line.get_color() for line in axes.lines}
    assert len(colors) == 2


def test_many_runs_are_told_apart() -> None:
    curve = np.array(STEPS), np.array([[0.5, 0.6, 0.7]])
    axes = plot_curves({f"run {n}": curve for n in range(13)}, "m", "accuracy", "b").axes[0]
    looks = {(line.get_color(), str(line._dash_pattern)) for line in axes.lines}
    assert len(looks) == 13


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": []}, "holds no runs; make it again with jpt warm-start"),
        ({"runs": [3]}, "a run"),
        ({"runs": [{"run": "a", "curve": {"steps": [0], "values": []}}]}, "not scored at the same"),
        ({"runs": [{"run": "a"}]}, "curve"),
        ({"task": 5}, "task"),
    ],
)
def test_a_broken_record_is_told(tmp_path: Path, changes, message: str) -> None:
    with pytest.raises(jpt.InputError, match=message):
        warm_start_figure(write_study(tmp_path, **changes))
    assert not (tmp_path / "warm_start.svg").exists()


def test_a_file_of_no_known_kind(tmp_path: Path) -> None:
    with pytest.raises(jpt.InputError, match="give it the ending .svg, .png or .pdf"):
        warm_start_figure(write_study(tmp_path), tmp_path / "curves.bmp")
