"""The map of prompts reproduces distances, names hide nothing; panels and costs show their data."""

from __future__ import annotations

import numpy as np
import pytest

from jpt.report.figures import cost_figure, indicator_panel, prompt_map, scale_to_plane, to_svg


def distances(points: np.ndarray) -> np.ndarray:
    return np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1))


@pytest.mark.parametrize("count", [2, 3, 12])
def test_points_of_a_plane_keep_all_their_distances(count: int) -> None:
    points = np.random.default_rng(count).normal(size=(count, 2)) + 5
    found, share = scale_to_plane(distances(points))
    np.testing.assert_allclose(distances(found), distances(points), atol=1e-9)
    assert share == pytest.approx(1) and np.abs(found.mean(0)).max() < 1e-9
    assert found[:, 0].var() >= found[:, 1].var()


def test_of_points_in_space_the_plane_holds_the_two_longest_directions() -> None:
    random = np.random.default_rng(0)
    points = random.normal(size=(20, 4)) * (3, 2, 1, 0.5)
    found, share = scale_to_plane(distances(points))
    singular = np.linalg.svd(points - points.mean(0), compute_uv=False)
    assert share == pytest.approx((singular[:2] ** 2).sum() / (singular**2).sum())
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), singular[:2])


def test_order_and_equal_prompts() -> None:
    points = np.random.default_rng(1).normal(size=(6, 2))
    order = np.random.default_rng(2).permutation(6)
    plain, moved = scale_to_plane(distances(points))[0], scale_to_plane(distances(points[order]))[0]
    np.testing.assert_allclose(moved, plain[order], atol=1e-9)
    nowhere, share = scale_to_plane(np.zeros((3, 3)))
    assert not nowhere.any() and share == 1


def test_each_type_has_its_own_color_and_shape() -> None:
    points = np.random.default_rng(0).random((8, 2))
    types = ["sentiment", "nli", "ethics", "paraphrase", "qa", "summarization", "other", "none"]
    names = [f"task {place}" for place in range(8)]
    figure = prompt_map(points, names, types, ("none",), " (x)")
    groups = figure.axes[0].collections
    looks = [
        (tuple(group.get_facecolor()[0]), group.get_paths()[0].vertices.tobytes())
        for group in groups
    ]
    assert len(set(looks[:6])) == len({look[0] for look in looks[:6]}) == 6
    assert looks[6] == looks[7] and looks[7][0] not in {look[0] for look in looks[:6]}
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == types
    assert "first direction (x)" in to_svg(figure, "a", "x")


def test_names_stand_side_by_side_where_there_is_room() -> None:
    points = np.array([[x, y] for x in (0.0, 1.0, 2.0) for y in (0.0, 1.0, 2.0)])
    names = [f"a task {place}" for place in range(9)]
    figure = prompt_map(points, names, ["nli"] * 9)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_panels_show_every_point_by_group() -> None:
    some = np.array([0.1, 0.2, 0.3])
    groups = {"same type": (some, some + 0.5), "other type": (some[:1], some[:1])}
    axes = indicator_panel(groups, "ON", (0, 1.1)).axes[0]
    assert [len(group.get_offsets()) for group in axes.collections] == [3, 1]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(groups)
    assert axes.get_ylim() == (0, 1.1)


def test_costs_are_in_points_from_top_to_bottom() -> None:
    figure = cost_figure(["ON", "C"], [0.02, 0.05], [(0.01, 0.03), (np.nan, np.nan)], 0.1)
    (dots,) = figure.axes[0].collections
    np.testing.assert_allclose(dots.get_offsets(), [[2, 0], [5, 1]])
    low, high = figure.axes[0].get_ylim()
    assert low > high
    lines = [line.get_xdata() for line in figure.axes[0].lines]
    assert [list(line) for line in lines if len(line) == 2][0] == pytest.approx([1, 3])
    assert "nan" not in to_svg(figure, "a", "x").lower()
