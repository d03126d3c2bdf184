"""Figures of the report, the masking study and the warm-start study."""

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.collections import PolyCollection, QuadMesh
from matplotlib.figure import Figure

from jpt.report import figures as plots
from jpt.report.figures import mask_figure, plain, scale_to_plane, to_svg, warm_start_figure
from jpt.results.records import LossCurve
from tests.helpers.running import raises
from tests.helpers.study import write_warm_start


def distances(points: np.ndarray) -> np.ndarray:
    return np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1))


@pytest.mark.parametrize("count", [2, 3, 12])
def test_scaling_keeps_distances_of_points_in_a_plane(count: int) -> None:
    points = np.random.default_rng(count).normal(size=(count, 2)) + 5
    found, share = scale_to_plane(distances(points))
    np.testing.assert_allclose(distances(found), distances(points), atol=1e-9)
    assert share == pytest.approx(1) and np.abs(found.mean(0)).max() < 1e-9
    assert found[:, 0].var() >= found[:, 1].var()


def test_scaling_of_spread_permuted_and_equal_points() -> None:
    random = np.random.default_rng(0)
    points = random.normal(size=(20, 4)) * (3, 2, 1, 0.5)
    found, share = scale_to_plane(distances(points))
    singular = np.linalg.svd(points - points.mean(0), compute_uv=False)
    assert share == pytest.approx((singular[:2] ** 2).sum() / (singular**2).sum())
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), singular[:2])
    points = np.random.default_rng(1).normal(size=(6, 2))
    order = np.random.default_rng(2).permutation(6)
    plain, moved = scale_to_plane(distances(points))[0], scale_to_plane(distances(points[order]))[0]
    np.testing.assert_allclose(moved, plain[order], atol=1e-9)
    nowhere, share = scale_to_plane(np.zeros((3, 3)))
    assert not nowhere.any() and share == 1


def test_map_of_prompts() -> None:
    points = np.random.default_rng(0).random((8, 2))
    types = ["sentiment", "nli", "ethics", "paraphrase", "qa", "summarization", "other", "none"]
    names = [f"task {i}" for i in range(8)]
    figure = plots.prompt_map(points, names, types, ("none",), " (x)")
    looks = [
        (tuple(group.get_facecolor()[0]), group.get_paths()[0].vertices.tobytes())
        for group in figure.axes[0].collections
    ]
    assert len(set(looks[:6])) == len({look[0] for look in looks[:6]}) == 6
    assert looks[6] == looks[7] and looks[7][0] not in {look[0] for look in looks[:6]}
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == types
    assert "MDS dimension 1 (x)" in _svg(figure)
    points = np.array([[x, y] for x in (0.0, 1.0, 2.0) for y in (0.0, 1.0, 2.0)])
    names = [f"a task {i}" for i in range(9)]
    figure = plots.prompt_map(points, names, ["nli"] * 9)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_indicator_panel_and_regrets() -> None:
    some = np.array([0.1, 0.2, 0.3])
    groups = {"same type": (some, some + 0.5), "other type": (some[:1], some[:1])}
    axes = plots.indicator_panel(groups, "ON", (0, 1.1)).axes[0]
    assert [len(group.get_offsets()) for group in axes.collections] == [3, 1]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(groups)
    assert axes.get_ylim() == (0, 1.1)
    figure = plots.regret_figure(["ON", "C"], [0.02, 0.05], [(0.01, 0.03), (np.nan, np.nan)], 0.1)
    (dots,) = figure.axes[0].collections
    np.testing.assert_allclose(dots.get_offsets(), [[2, 0], [5, 1]])
    low, high = figure.axes[0].get_ylim()
    assert low > high
    lines = [line.get_xdata() for line in figure.axes[0].lines]
    assert [list(line) for line in lines if len(line) == 2][0] == pytest.approx([1, 3])
    assert "nan" not in _svg(figure).lower()


def _map(values: np.ndarray, names: list[str] | None = None, **options: object) -> plots.HeatMap:
    names = names or [f"t{i}" for i in range(len(values))]
    columns = [f"p{j}" for j in range(values.shape[1])]
    texts = [[f"{value:.1f}" for value in line] for line in values]
    kinds = ["nli"] * (len(columns) // 2) + ["qa"] * (len(columns) - len(columns) // 2)
    rows = ["nli"] * len(names)
    return plots.HeatMap(names, columns, rows, kinds, values, texts, "scale", **options)


def _plot(values: object, names: list[str] | None = None, **options: object) -> Figure:
    return plots.heat_map(_map(np.array(values), names, **options), percent=True)


def _svg(figure: Figure, name: str = "a") -> str:
    return to_svg(figure, name, "x")


def _texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def _collections(figure: Figure, kind: type) -> list:
    return [each for each in figure.axes[0].collections if isinstance(each, kind)]


def test_svg_is_well_formed_and_deterministic() -> None:
    svg = to_svg(_plot(np.eye(3)), "a", 'a "map" & more')
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"] == 'a "map" & more'
    assert "http" not in svg and "<script" not in svg and "<metadata" not in svg
    width = float(root.attrib["viewBox"].split()[2])
    assert width == pytest.approx(float(root.attrib["width"]), abs=1)
    plots = [to_svg(_plot(np.eye(3)), name, "x") for name in ("a", "a", "b")]
    assert plots[0] == plots[1]
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in plots[1:]]
    assert ids[0] and not ids[0] & ids[1]
    used = set(re.findall(r"url\(#([^)]+)\)", plots[0]))
    assert used <= ids[0]


def test_texts_and_names() -> None:
    svg = _svg(_plot(np.eye(3)))
    assert "DejaVu" not in svg and "var(--font)" in svg
    assert f"var(--ink, {plots.INK})" in svg and "var(--card" in svg
    sizes = [float(size) for size in re.findall(r"font(?:-size)?: [\w ]*?([\d.]+)px", svg)]
    assert len(sizes) > 12 and min(sizes) >= 9
    svg = _svg(_plot(np.eye(1), ["<b>$x_1$</b> & 語"]))
    assert "&lt;b&gt;$x_1$&lt;/b&gt; &amp; 語" in svg
    ElementTree.fromstring(svg)
    assert plain("short") == "short" and plain("a\x00b\n") == "a b "
    assert len(plain("x" * 300)) == 26


def test_cells_side_columns_and_frames() -> None:
    values = np.array([[0.5, np.nan], [1.0, 0.25]])
    figure = _plot(values)
    assert {"0.5", "1.0", "0.2", "t0", "p1", "nli", "qa", "25%", "100%"} <= set(_texts(figure))
    cells = np.ma.getmaskarray(_collections(figure, QuadMesh)[0].get_array()).reshape(values.shape)
    np.testing.assert_array_equal(cells, np.isnan(values))
    sides = {"side_label": ["untrained", "in_task"], "side_texts": [["33"], ["88"]]}
    sides["side_values"] = np.array([[0.4], [np.nan]])
    figure = _plot(np.array([[0.5, 0.6]]), **sides)
    assert {"untrained", "in_task", "33", "88"} <= set(_texts(figure))
    assert len(_collections(figure, QuadMesh)) == 2  # cells, the colored side column
    framed = _plot(np.eye(2), outlined=frozenset({(0, 0)})).axes[0].patches
    assert len(framed) == len(_plot(np.eye(2)).axes[0].patches) + 1


def test_large_heat_maps() -> None:
    figure = _plot(np.random.default_rng(0).random((40, 100)))
    texts = figure.axes[0].texts
    assert {"t39", "p99"} <= set(_texts(figure)) and len(texts) < 200
    assert min(text.get_fontsize() for text in texts) >= 9
    names = ["a long name of a task"] * 20
    figure = _plot(np.full((20, 20), 0.123), names)
    assert _texts(figure).count("0.1") == 400
    assert figure.get_size_inches()[0] * 72 < 1090
    few, many = (np.random.default_rng(0).random((n, n)) for n in (3, 70))
    assert "<image" not in _svg(_plot(few))
    svg = _svg(_plot(many))
    assert "<image" in svg and len(svg) < 200_000


@pytest.mark.parametrize("value", [np.nan, 0.5])
def test_single_cell(value: float) -> None:
    assert "<svg" in _svg(plots.heat_map(_map(np.array([[value]])), False))


def test_color_scale_and_contrast() -> None:
    figure = _plot(np.array([[0.5, 1.0], [0.7, 0.2]]))
    (ramp,) = _collections(figure, PolyCollection)
    colors = plots.COLOR_MAP(ramp.norm(ramp.get_array()))
    np.testing.assert_array_equal(colors[[0, -1]], plots.COLOR_MAP([0.0, 1.0]))
    assert (ramp.norm.vmin, ramp.norm.vmax) == (0.2, 1.0)
    rights = [path.vertices[:, 0].max() for path in ramp.get_paths()]
    assert len(set(rights)) == 1 and len(rights) > 30  # each lies on the one before
    for color in plots.COLOR_MAP(np.linspace(0, 1, 50)):
        assert plots.contrast(plots.readable_on(color), color) >= 4.5


def test_strips_and_window_curve() -> None:
    figure = plots.strips({"same": [0.9, 0.7], "none": [], "other": [0.5]}, "y")
    lines = [line for line in figure.axes[0].lines if line.get_linewidth() == 2]
    assert [float(line.get_ydata()[0]) for line in lines] == pytest.approx([0.8, 0.5])
    assert _texts(figure) == ["80", "50"]
    windows = [(i, i + 2) for i in range(22)]
    figure = plots.window_curve(windows, {"excluding in-task prompts": [np.nan] + [0.5] * 21})
    line = figure.axes[0].lines[1]
    assert np.isnan(line.get_ydata()[0]) and line.get_color() == plots.BLUE
    assert len(figure.axes[0].get_xticks()) < 10


def _curve(**changes: np.ndarray) -> LossCurve:
    steps = np.array([10.0, 20.0, 30.0])
    parts = {"train_steps": steps, "train_loss": steps / 30, "steps": steps, "loss": steps / 40}
    return LossCurve(**{**parts, "score": np.array([0.5, 0.8, 0.7]), **changes})


def test_learning_curve() -> None:
    figure = plots.learning_curve(_curve(), "accuracy", 0.5, 20)
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [float(dot.get_xdata()[0]) for dot in dots] == [20]
    assert _texts(figure) == ["0.800"]  # at the best step
    empty = np.array([])
    only_train = _curve(steps=empty, loss=empty, score=empty)
    for curve, best in ((only_train, 20), (_curve(score=np.full(3, np.nan)), None)):
        svg = _svg(plots.learning_curve(curve, "$f_1$", np.nan, best))
        assert "$f_1$" in svg
        ElementTree.fromstring(svg)


def test_matplotlib_settings_do_not_change() -> None:
    before = dict(mpl.rcParams)
    _svg(plots.new_figure(50, 50)[0])
    assert dict(mpl.rcParams) == before


def mask(*values: float, whole: float) -> dict[str, Any]:
    mean = sum(values) / len(values)
    return {"relative": mean / whole, "runs": [{"value": value} for value in values]}


def record() -> dict[str, Any]:
    first = {"in_task": mask(0.4, whole=0.8), "random": mask(0.6, 0.8, whole=0.8)}
    second = {"in_task": mask(0.3, whole=0.5), "random": mask(0.5, 0.5, whole=0.5)}
    return {
        **{"backbone": "builtin/x_$y$", "layers": [2, 3], "masked_neurons": 410, "neurons": 2048},
        "targets": {
            "imdb": {"unmasked": 0.8, "chance": 0.4, "masks": first},
            "mnli": {"unmasked": 0.5, "chance": 0.35, "masks": second},
            "zero": {"unmasked": 0.0, "chance": 0.5, "masks": first},
        },
    }


def write(folder: Path, value: Any) -> Path:
    (folder / "mask.json").write_text(json.dumps(value))
    return folder


def test_mask_figure(tmp_path: Path) -> None:
    shares = plots.read_shares(write(tmp_path, record()) / "mask.json")
    axes = plots.plot_shares(shares).axes[0]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([0.55, 0.9375])
    points = [sorted(of.get_offsets()[:, 1].tolist()) for of in axes.collections]
    assert points[0] == pytest.approx([0.5, 0.6]) and points[1] == pytest.approx([0.75, 1, 1, 1])
    assert shares.chance == pytest.approx((0.5 + 0.7) / 2)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["in-task", "random"]
    path = mask_figure(write(tmp_path, record()))
    first = path.read_bytes()
    for text in (b"410 of 2048 neurons masked (layers 2-3), builtin/x_$y$", b"55%", b"chance"):
        assert text in first
    assert mask_figure(tmp_path).read_bytes() == first
    assert mask_figure(tmp_path, tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": {}}, "no score above 0"),
        ({"targets": []}, "expected an object at targets"),
        ({"targets": {"a": {"unmasked": "x"}}}, "a number at targets.a.unmasked, got 'x'"),
        ({"targets": {"a": {"unmasked": 1.0, "masks": {"x": {"runs": []}}}}}, "x has no relative"),
    ],
)
def test_invalid_mask_record(tmp_path: Path, change, message: str) -> None:
    write(tmp_path, {**record(), **change})
    raises(mask_figure, tmp_path, match=rf"mask.json:? .*{message}")
    assert [path.name for path in tmp_path.iterdir()] == ["mask.json"]


def test_figures_without_a_study_or_with_an_unknown_ending(tmp_path: Path) -> None:
    raises(mask_figure, tmp_path, match="there is no such file")
    ending = r"expected a figure file ending in \.svg, \.png or \.pdf"
    raises(mask_figure, write(tmp_path, record()), tmp_path / "mask.gif", match=ending)
    raises(warm_start_figure, write_warm_start(tmp_path), tmp_path / "curves.bmp", match=ending)


def test_warm_start_figure_files(tmp_path: Path) -> None:
    record = write_warm_start(tmp_path) / "warm_start.json"
    record.write_text(record.read_text().replace('"imdb"', '"im$db$<b>"'))
    path = warm_start_figure(tmp_path)
    assert path == tmp_path / "warm_start.svg"
    root = ElementTree.fromstring(path.read_text())
    assert root.tag.endswith("svg")
    texts = {text.text for text in root.iter() if text.tag.endswith("text")}
    assert {"training step", "validation accuracy", "vanilla", "im$db$<b>"} <= texts
    assert any("sst2 on bert, mean and range over 2 seeds" in (text or "") for text in texts)
    before = path.read_bytes()
    warm_start_figure(tmp_path)
    assert path.read_bytes() == before
    png = warm_start_figure(tmp_path, tmp_path / "curves.png")
    assert png.read_bytes()[:4] == b"\x89PNG"


def test_warm_start_figure_shows_mean_and_range() -> None:
    values = np.array([[0.5, 0.6, 0.7], [0.4, 0.7, 0.8]])
    steps = np.array([0, 10, 20])
    curves = {"vanilla": (steps, values), "one": (steps, values[:1])}
    axes = plots.plot_curves(curves, "mood", "accuracy", "bert").axes[0]
    assert [line.get_label() for line in axes.lines] == ["vanilla", "one"]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.45, 0.65, 0.75])
    np.testing.assert_allclose(axes.lines[1].get_ydata(), values[0])
    (band,) = axes.collections  # one seed has no range
    edge = band.get_paths()[0].vertices
    assert (edge[edge[:, 0] == 10, 1].min(), edge[edge[:, 0] == 10, 1].max()) == (0.6, 0.7)
    curve = steps, values[:1]
    axes = plots.plot_curves({f"run {n}": curve for n in range(13)}, "m", "accuracy", "b").axes[0]
    looks = {(line.get_color(), str(line._dash_pattern)) for line in axes.lines}
    assert len(looks) == 13


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": []}, "has no runs; regenerate it with jpt warm-start"),
        ({"runs": [3]}, "a run"),
        ({"runs": [{"run": "a", "curve": {"steps": [0], "values": []}}]}, "at different steps"),
        ({"runs": [{"run": "a"}]}, "curve"),
        ({"task": 5}, "task"),
    ],
)
def test_invalid_warm_start_record(tmp_path: Path, changes, message: str) -> None:
    raises(warm_start_figure, write_warm_start(tmp_path, **changes), match=message)
    assert not (tmp_path / "warm_start.svg").exists()
