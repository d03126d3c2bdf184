"""The figure of a masking study shows the numbers of its record; broken records are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jpt.errors import InputError
from jpt.report.figures import mask_figure, plot_shares, read_shares


def mask(*values: float, whole: float) -> dict[str, Any]:
    mean = sum(values) / len(values)
    return {"relative": mean / whole, "runs": [{"value": value} for value in values]}


def record() -> dict[str, Any]:
    first = {"in_task": mask(0.4, whole=0.8), "random": mask(0.6, 0.8, whole=0.8)}
    second = {"in_task": mask(0.3, whole=0.5), "random": mask(0.5, 0.5, whole=0.5)}
    return {
        "backbone": "builtin/x_$y$",
        "layers": [2, 3],
        "masked_neurons": 410,
        "neurons": 2048,
        "targets": {
            "imdb": {"unmasked": 0.8, "majority": 0.4, "masks": first},
            "mnli": {"unmasked": 0.5, "majority": 0.35, "masks": second},
            "zero": {"unmasked": 0.0, "majority": 0.5, "masks": first},
        },
    }


def write(folder: Path, value: Any) -> Path:
    (folder / "mask.json").write_text(json.dumps(value))
    return folder


def test_bars_are_means_over_tasks_and_points_are_the_scores(tmp_path: Path) -> None:
    shares = read_shares(write(tmp_path, record()) / "mask.json")
    axes = plot_shares(shares).axes[0]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([0.55, 0.9375])
    points = [sorted(of.get_offsets()[:, 1].tolist()) for of in axes.collections]
    assert points[0] == pytest.approx([0.5, 0.6]) and points[1] == pytest.approx([0.75, 1, 1, 1])
    assert shares.commonest == pytest.approx((0.5 + 0.7) / 2)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["in_task", "random"]


def test_the_file_is_a_picture_that_says_what_was_masked_and_comes_out_equal(tmp_path) -> None:
    path = mask_figure(write(tmp_path, record()))
    first = path.read_bytes()
    for text in (b"410 of 2048 neurons silent (layers 2-3), builtin/x_$y$", b"55%", b"commonest"):
        assert text in first
    assert mask_figure(tmp_path).read_bytes() == first
    assert mask_figure(tmp_path, tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": {}}, "holds no scores above 0"),
        ({"targets": []}, "targets is .*an object expected"),
        ({"targets": {"a": {"unmasked": "x"}}}, "targets.a.unmasked is 'x'; a number expected"),
        (
            {"targets": {"a": {"unmasked": 1.0, "masks": {"in_task": {"runs": []}}}}},
            "targets.a.masks.own has no relative",
        ),
    ],
)
def test_a_broken_record_is_told_by_file_and_place(tmp_path, change, message) -> None:
    write(tmp_path, {**record(), **change})
    with pytest.raises(InputError, match=rf"mask.json:? .*{message}"):
        mask_figure(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mask.json"]


def test_no_study_and_a_strange_ending_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        mask_figure(tmp_path)
    with pytest.raises(InputError, match=r"give it the ending \.svg, \.png or \.pdf"):
        mask_figure(write(tmp_path, record()), tmp_path / "mask.gif")
