from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.collections import PolyCollection, QuadMesh
from matplotlib.figure import Figure

from jpt.report.figures import (
    BLUE,
    COLOR_MAP,
    INK,
    HeatMap,
    contrast,
    heat_map,
    learning_curve,
    new_figure,
    plain,
    readable_on,
    strips,
    to_svg,
    window_curve,
)
from jpt.results.records import LossCurve


def _map(values: np.ndarray, names: list[str] | None = None, **options: object) -> HeatMap:
    names = names or [f"t{i}" for i in range(len(values))]
    columns = [f"p{j}" for j in range(values.shape[1])]
    texts = [[f"{value:.1f}" for value in line] for line in values]
    kinds = ["nli"] * (len(columns) // 2) + ["qa"] * (len(columns) - len(columns) // 2)
    return HeatMap(names, columns, ["nli"] * len(names), kinds, values, texts, "scale", **options)


def _texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def _meshes(figure: Figure) -> list[QuadMesh]:
    return [mesh for mesh in figure.axes[0].collections if isinstance(mesh, QuadMesh)]


def _parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def test_svg_is_well_formed_and_loads_nothing() -> None:
    svg = to_svg(heat_map(_map(np.eye(3)), True), "a", 'a "map" & more')
    root = _parse(svg)
    assert root.attrib["aria-label"] == 'a "map" & more'
    assert "http" not in svg and "<script" not in svg and "<metadata" not in svg
    assert float(root.attrib["viewBox"].split()[2]) == pytest.approx(
        float(root.attrib["width"]), abs=1
    )


def test_equal_figures_give_equal_bytes_and_ids_of_two_figures_differ() -> None:
    draw = [to_svg(heat_map(_map(np.eye(3)), True), name, "x") for name in ("a", "a", "b")]
    assert draw[0] == draw[1]
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in draw[1:]]
    assert ids[0] and not ids[0] & ids[1]
    used = set(re.findall(r"url\(#([^)]+)\)", draw[0]))
    assert used <= ids[0]


def test_colors_of_text_follow_the_page_and_fonts_are_large_enough() -> None:
    svg = to_svg(heat_map(_map(np.eye(3)), True), "a", "x")
    assert "DejaVu" not in svg and "var(--font)" in svg
    assert f"var(--ink, {INK})" in svg and "var(--card" in svg
    sizes = [float(size) for size in re.findall(r"font(?:-size)?: [\w ]*?([\d.]+)px", svg)]
    assert len(sizes) > 12 and min(sizes) >= 9


def test_cells_show_their_numbers_and_not_measured_ones_stay_gray() -> None:
    values = np.array([[0.5, np.nan], [1.0, 0.25]])
    figure = heat_map(_map(values), percent=True)
    assert {"0.5", "1.0", "0.2", "t0", "p1", "nli", "qa", "25%", "100%"} <= set(_texts(figure))
    cells = np.ma.getmaskarray(_meshes(figure)[0].get_array()).reshape(values.shape)
    np.testing.assert_array_equal(cells, np.isnan(values))


def test_many_columns_leave_numbers_out_and_stay_readable() -> None:
    figure = heat_map(_map(np.random.default_rng(0).random((40, 100))), percent=True)
    texts = figure.axes[0].texts
    assert {"t39", "p99"} <= set(_texts(figure)) and len(texts) < 200
    assert min(text.get_fontsize() for text in texts) >= 9


def test_twenty_columns_have_numbers_within_the_width_of_a_screen() -> None:
    names = ["a long name of a task"] * 20
    figure = heat_map(_map(np.full((20, 20), 0.123), names), percent=True)
    assert _texts(figure).count("0.1") == 400
    assert figure.get_size_inches()[0] * 72 < 1090


@pytest.mark.parametrize("value", [np.nan, 0.5])
def test_one_cell_without_any_range(value: float) -> None:
    assert "<svg" in to_svg(heat_map(_map(np.array([[value]])), False), "a", "x")


def test_side_columns_stand_beside_the_cells() -> None:
    sides = {
        "side_label": ["untrained", "in_task"],
        "side_texts": [["33"], ["88"]],
        "side_values": np.array([[0.4], [np.nan]]),
    }
    figure = heat_map(_map(np.array([[0.5, 0.6]]), **sides), percent=True)
    assert {"untrained", "in_task", "33", "88"} <= set(_texts(figure))
    assert len(_meshes(figure)) == 2  # cells, the colored side column


def test_cells_are_shapes_until_there_are_too_many() -> None:
    few, many = (np.random.default_rng(0).random((n, n)) for n in (3, 70))
    assert "<image" not in to_svg(heat_map(_map(few), True), "a", "x")
    svg = to_svg(heat_map(_map(many), True), "a", "x")
    assert "<image" in svg and len(svg) < 200_000


def test_the_scale_runs_from_the_lowest_to_the_highest_color() -> None:
    figure = heat_map(_map(np.array([[0.5, 1.0], [0.7, 0.2]])), percent=True)
    (ramp,) = [each for each in figure.axes[0].collections if isinstance(each, PolyCollection)]
    colors = COLOR_MAP(ramp.norm(ramp.get_array()))
    np.testing.assert_array_equal(colors[[0, -1]], COLOR_MAP([0.0, 1.0]))
    assert (ramp.norm.vmin, ramp.norm.vmax) == (0.2, 1.0)
    rights = [path.vertices[:, 0].max() for path in ramp.get_paths()]
    assert len(set(rights)) == 1 and len(rights) > 30  # each lies on the one before


def test_own_cell_is_framed() -> None:
    framed = heat_map(_map(np.eye(2), outlined=frozenset({(0, 0)})), True).axes[0].patches
    assert len(framed) == len(heat_map(_map(np.eye(2)), True).axes[0].patches) + 1


def test_text_in_every_color_has_contrast() -> None:
    for color in COLOR_MAP(np.linspace(0, 1, 50)):
        assert contrast(readable_on(color), color) >= 4.5


def test_color_map_grows_darker_all_the_way() -> None:
    gray = COLOR_MAP(np.linspace(0, 1, 64))[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(gray) < 1e-3).all() and gray[0] - gray[-1] > 0.6


def test_names_are_neither_markup_nor_mathematics() -> None:
    svg = to_svg(heat_map(_map(np.eye(1), ["<b>$x_1$</b> & 語"]), True), "a", "x")
    assert "&lt;b&gt;$x_1$&lt;/b&gt; &amp; 語" in svg
    _parse(svg)


def test_long_names_and_control_signs() -> None:
    assert plain("short") == "short" and plain("a\x00b\n") == "a b "
    assert len(plain("x" * 300)) == 26


def test_strip_line_is_the_mean() -> None:
    figure = strips({"same": [0.9, 0.7], "none": [], "other": [0.5]}, "y")
    lines = [line for line in figure.axes[0].lines if line.get_linewidth() == 2]
    assert [float(line.get_ydata()[0]) for line in lines] == pytest.approx([0.8, 0.5])
    assert _texts(figure) == ["80", "50"]


def _curve(**changes: np.ndarray) -> LossCurve:
    steps = np.array([10.0, 20.0, 30.0])
    parts = {"train_steps": steps, "train_loss": steps / 30, "steps": steps, "loss": steps / 40}
    return LossCurve(**{**parts, "score": np.array([0.5, 0.8, 0.7]), **changes})


def test_learning_curve_marks_the_kept_step() -> None:
    figure = learning_curve(_curve(), "accuracy", 0.5, 20)
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [float(dot.get_xdata()[0]) for dot in dots] == [20]
    assert _texts(figure) == ["0.800"]


def test_learning_curve_with_gaps() -> None:
    empty = np.array([])
    only_train = _curve(steps=empty, loss=empty, score=empty)
    for curve, best in ((only_train, 20), (_curve(score=np.full(3, np.nan)), None)):
        svg = to_svg(learning_curve(curve, "$f_1$", np.nan, best), "a", "x")
        assert "$f_1$" in svg
        _parse(svg)


def test_window_curve_keeps_gaps() -> None:
    windows = [(i, i + 2) for i in range(22)]
    figure = window_curve(windows, {"own prompts left out": [np.nan] + [0.5] * 21})
    line = figure.axes[0].lines[1]
    assert np.isnan(line.get_ydata()[0]) and line.get_color() == BLUE
    assert len(figure.axes[0].get_xticks()) < 10


def test_figures_leave_the_settings_of_matplotlib_alone() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    to_svg(new_figure(50, 50)[0], "a", "x")
    assert dict(mpl.rcParams) == before
