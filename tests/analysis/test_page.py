"""The page is sound HTML that loads nothing, says where its numbers stand, and is for all eyes."""

from __future__ import annotations

import itertools
import json
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from jpt.errors import InputError
from jpt.io.files import write_table
from jpt.report.figures import (
    COLOR_MAP,
    COLORS,
    HeatMap,
    contrast,
    heat_map,
    pin_rows,
    plot_curves,
    prompt_map,
    strips,
    to_svg,
)
from jpt.report.report import (
    figure,
    sources,
    summarize,
    table,
    value_cell,
    whole_page,
    write_report,
    written_between,
)
from jpt.results.prompt_table import write_transfer
from jpt.types import TransferMatrix
from tests.analysis.page_checks import Outline, assert_page_is_sound
from tests.analysis.sample_study import PageReader, write_run, write_study

# Machado, Oliveira and Fernandes (2009), severity 1: linear RGB as such eyes see it.
VISIONS = {
    "usual": np.eye(3),
    "no red cones": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "no green cones": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "no blue cones": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
NAMES = ("blue", "orange", "green", "purple", "sky", "red", "gray")


def rgb(text: str) -> np.ndarray:
    return np.array([int(text[place : place + 2], 16) for place in (1, 3, 5)]) / 255


def lab(colors: np.ndarray, vision: str = "usual") -> np.ndarray:
    """CIELAB (white D65) of colors [N, 3] from 0 to 1, as the named eyes see them."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    seen = (linear @ VISIONS[vision].T).clip(0, 1) @ TO_XYZ.T / (0.95047, 1.0, 1.08883)
    root = np.where(seen > (6 / 29) ** 3, np.cbrt(seen), seen / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = root.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def variables(theme: str) -> dict[str, str]:
    """The colors of the page by name: light, dark, or printed."""
    style = files("jpt.report").joinpath("report.css").read_text(encoding="utf-8")
    parts = dict(zip(("light", "dark", "print"), style.split(":root {")[1:], strict=True))
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", parts[theme].split("}")[0]))


def test_lab_of_known_colors() -> None:
    wanted = [[100, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]]
    found = lab(np.array([[1.0, 1, 1], [1, 0, 0], [0, 0, 1]]))
    np.testing.assert_allclose(found, wanted, atol=0.05)


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("theme", ["light", "dark", "print"])
def test_every_kind_of_color_vision_tells_the_colors_apart(theme: str, vision: str) -> None:
    """2.3 can just be noticed; side by side in small signs it takes several times that."""
    told = variables(theme)
    seen = lab(np.array([rgb(told[name]) for name in NAMES]), vision)
    distances = {
        pair: float(np.linalg.norm(seen[pair[0]] - seen[pair[1]]))
        for pair in itertools.combinations(range(len(NAMES)), 2)
    }
    assert len(distances) == 21 and min(distances.values()) >= 17.5


@pytest.mark.parametrize("theme", ["light", "dark", "print"])
def test_signs_and_text_stand_out_from_the_ground(theme: str) -> None:
    told = variables(theme)
    card = rgb(told["card"])
    assert all(contrast(rgb(told[name]), card) >= 3 for name in NAMES)
    for text, ground in (("ink", "card"), ("muted", "card"), ("blue", "card"), ("ink", "tint")):
        assert contrast(rgb(told[text]), rgb(told[ground])) >= 4.5, (text, ground)
    for kind in ("good", "bad", "open"):
        assert contrast(rgb(told[kind]), rgb(told[f"{kind}-ground"])) >= 4.5, kind


def test_figures_alone_have_the_colors_of_the_light_page() -> None:
    told = variables("light")
    assert {name.removeprefix("--"): color for color, name in COLORS.items()} == {
        name: told[name] for name in NAMES
    }
    assert variables("print") == told | {"page": "#ffffff"}


@pytest.mark.parametrize("vision", VISIONS)
def test_heat_maps_grow_darker_for_all_eyes(vision: str) -> None:
    lightness = lab(COLOR_MAP(np.linspace(0, 1, 64))[:, :3], vision)[:, 0]
    assert (np.diff(lightness) < 0).all() and lightness[0] - lightness[-1] > 70


def test_no_figure_tells_things_apart_by_color_alone() -> None:
    groups = {"same": [0.1, 0.2], "other": [0.3, 0.4], "untrained": [0.5]}
    shapes = [drawn.get_paths()[0] for drawn in strips(groups, "y").axes[0].collections]
    assert len({shape.vertices.tobytes() for shape in shapes}) == 3
    curves = {f"start {n}": (np.arange(9.0), np.full((1, 9), n / 9)) for n in range(7)}
    lines = plot_curves(curves, "mood", "accuracy", "bert").axes[0].lines
    assert len({line.get_marker() for line in lines}) == 7
    assert all(line.get_label().startswith("start ") for line in lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("pages") / "study")


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def sweep_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("pages") / "sweep")


def write_sweep(folder: Path) -> Path:
    """A sweep of two settings over two seeds, as its files have it."""
    folder.mkdir()
    runs, settings = [], []
    for rate, value in ((0.01, 0.75), (0.1, 0.5)):
        setting = f"imdb+learning_rate={rate}"
        place = {"task": "imdb", "backbone": "bert"}
        for seed in (0, 1):
            run = f"{setting}/seed-{seed}"
            write_run(folder / "runs" / run, "imdb")
            told = {"run": run, "setting": setting, "state": "done", **place, "seed": seed}
            runs.append({**told, "metric": "accuracy", "validation": value, "elapsed_s": 9.5})
        told = {"setting": setting, **place, "metric": "accuracy", "seeds": 2}
        numbers = {"validation": value, "validation_std": 0.01, "best": rate == 0.01}
        settings.append({**told, **numbers, "test": value, "test_std": 0.02})
    write_table(folder / "runs.csv", list(runs[0]), [list(row.values()) for row in runs])
    write_table(
        folder / "settings.csv", list(settings[0]), [list(row.values()) for row in settings]
    )
    record = {"versions": {"jax": "0.10.2"}, "machine": "Linux x86_64, 2 cores"}
    (folder / "sweep.json").write_text(json.dumps(record))
    return folder


def test_page_of_a_study_is_sound(folder: Path, page: str) -> None:
    outline = assert_page_is_sound(page, folder)
    assert len(outline.ids) > 20


def test_page_of_a_sweep_is_sound(sweep_folder: Path) -> None:
    page = write_report(sweep_folder).read_text(encoding="utf-8")
    outline = assert_page_is_sound(page, sweep_folder)
    assert_all_parts_are_told(outline)
    for told in ("jax 0.10.2", "Linux x86_64, 2 cores", "steps 40", "results written", "UTC"):
        assert told in page, told
    assert {"settings.csv", "runs.csv", "sweep.json", "runs/"} <= set(outline.links)


def write_warm_start(folder: Path) -> Path:
    """A warm start from two prompts over two seeds, as its record has it."""
    runs = []
    for name, lift in (("vanilla", 0.0), ("imdb", 0.1), ("mnli", -0.1)):
        for seed in (0, 1):
            values = [0.5, 0.6 + lift, 0.7 + lift + seed / 100]
            scores = {"at_start": 0.5, "best": values[-1], "final": values[-1]}
            curve = {"steps": [0, 5, 10], "values": values}
            runs.append({"run": name, "seed": seed, **scores, "curve": curve})
    means = {"imdb": (2.0, 4.0, 0.1), "mnli": (0.5, None, -0.1)}
    kinds = ("convergence_speed_up", "comparable_speed_up", "gain")
    record = {
        **{"task": "sst2", "backbone": "bert", "metric": "accuracy", "seeds": [0, 1]},
        **{"final_split": "test", "runs": runs, "notes": ["so it is"], "device": "1 x cpu"},
        **{"definitions": {"gain": "final less final"}, "settings": {"steps": 10}},
        "comparisons": {
            name: {
                kind: {"mean": mean, "low": mean and mean - 0.01, "high": mean and mean + 0.01}
                for kind, mean in zip(kinds, values, strict=True)
            }
            for name, values in means.items()
        },
        "sources": {"imdb": {}, "mnli": {}},
        "versions": {"jax": "0.10.2"},
    }
    folder.mkdir()
    (folder / "warm_start.json").write_text(json.dumps(record))
    (folder / "curves.csv").write_text("run,seed,step,value\n")
    return folder


def test_page_of_a_warm_start(tmp_path: Path) -> None:
    folder = write_warm_start(tmp_path / "warm")
    page = write_report(folder).read_text(encoding="utf-8")
    assert_all_parts_are_told(assert_page_is_sound(page, folder))
    tables = PageReader(page).tables
    scores = {row[0]: row[1:] for row in tables["Mean accuracy; at step 0 and best on validation"]}
    assert scores["imdb"] == ["2", "0.500", "0.805", "0.805", "+10.0", "+9.0 to +11.0"]
    assert scores["vanilla"][-2:] == ["–", "–"]
    speeds = tables["Speed-ups against the random start"]
    assert speeds[1] == ["imdb", "2.00 times", "1.99 to 2.01", "4.00 times", "3.99 to 4.01"]
    assert speeds[2][3:] == ["not reached", "–"]
    first, second = summarize(folder)
    assert "converges in 50% of the steps" in first and "25% of the steps it took" in first
    assert "+10.0 points" in first and "never reaches" in second and "200%" in second
    for told in ("Gain: final less final.", "steps 10", "so it is", "jax 0.10.2", "1 x cpu"):
        assert told in page, told
    (folder / "warm_start.json").write_text('{"runs": [], "task": 3}')
    with pytest.raises(InputError, match="jpt warm-start"):
        write_report(folder)


def test_an_unsound_page_is_noticed(folder: Path, page: str) -> None:
    breaks = (
        page.replace("</section>", "", 1),
        page.replace('<p class="source">', '<p class="source"><p>', 1),
        page.replace('href="#types"', 'href="#nowhere"'),
        page.replace('href="transfer.csv"', 'href="gone.csv"'),
        page.replace("<main>", '<main><img src="x.png">'),
        page.replace("<main>", '<main><a href="https://a.org">a</a>'),
        page.replace("<main>", "<main><script>1</script>"),
        page.replace('id="types"', 'id="transfer"'),
    )
    for broken in breaks:
        assert broken != page
        with pytest.raises(AssertionError):
            assert_page_is_sound(broken, folder)


def assert_all_parts_are_told(outline: Outline) -> None:
    """Asserts that every figure has a caption, and every figure and table names its files."""
    assert outline.figures and all("figcaption" in tags for tags in outline.figures)
    assert all("a" in tags for tags in outline.figures)
    told = [a.get("class") for tag, a in outline.tags if tag in ("div", "p")]
    n_tables = sum(tag == "table" for tag, _ in outline.tags)
    assert n_tables == told.count("tabled") > 0
    after = told + [None]
    named = [after[i : i + 3] for i, kind in enumerate(told) if kind == "tabled"]
    assert all("source" in next_ones for next_ones in named)


def test_every_figure_and_table_says_where_its_numbers_stand(page: str) -> None:
    outline = Outline(page)
    assert_all_parts_are_told(outline)
    wanted = {"transfer.csv", "relative.csv", "indicators.csv", "correlation.json", "choice.json"}
    wanted |= {"types.json", "mask.json", "transfer.json", "prompts/imdb/metrics.jsonl"}
    assert wanted <= set(outline.links)


def test_axes_have_names(page: str) -> None:
    drawn = re.findall(r'<svg [^>]*role="img".*?</svg>', page, flags=re.S)
    named = ("target task", "source prompt", "prompt", "training step", "loss (nats)", "accuracy")
    for label in (*named, "score relative to own", "which neurons are silent", "source taken by"):
        assert any(f">{label}</text>" in svg for svg in drawn), label


def test_sentences_lead_to_their_numbers(page: str) -> None:
    header = page[page.index("<header") : page.index("</header>")]
    links = re.findall(r'class="where" href="#(\w+)"|href="#(\w+)" class="where"', header)
    assert len(links) == header.count("<li>") > 4


def test_methods_versions_and_dates(folder: Path, page: str) -> None:
    part = page[page.index('id="provenance"') : page.index('id="notes"')]
    for told in ("Spearman", "arXiv 2111.06719", "jax 0.10.2", "1 x cpu", "page made by"):
        assert told in part, told
    assert re.search(r"<dd>\d{4}-\d\d-\d\d \d\d:\d\d( to [\d: -]+)? UTC</dd>", part)
    alone = write_study_part(folder.parent / "alone", folder)
    part = write_report(alone).read_text(encoding="utf-8")
    assert "Spearman" not in part[part.index('id="provenance"') :]


def write_study_part(folder: Path, whole: Path) -> Path:
    """A study that has only its matrix."""
    folder.mkdir()
    (folder / "transfer.csv").write_bytes((whole / "transfer.csv").read_bytes())
    return folder


def test_dates_are_those_of_the_files(tmp_path: Path) -> None:
    import os

    for name, at in (("a", 0), ("b", 86_400)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (at, at))
    files_of = [tmp_path / name for name in ("a", "b", "none")]
    assert written_between(files_of) == "1970-01-01 00:00 to 1970-01-02 00:00 UTC"
    assert written_between(files_of[:1]) == "1970-01-01 00:00 UTC"


def test_names_of_files_are_escaped_in_links() -> None:
    told = sources(['a "b"/c#d.csv', "x.csv", "x.csv"])
    assert told is not None
    assert told.count("<a ") == 2 and 'href="a%20%22b%22/c%23d.csv"' in told
    assert sources([]) is None
    assert "Numbers" not in figure("<svg></svg>", "a map", "Seen.")
    whole = whole_page("x", table(["a", "b"], [["</script>", value_cell("–", float("nan"))]], "t"))
    assert Outline(whole).faults == [] and "data-sort" not in whole.partition("<script>")[0]


def test_names_of_rows_stay_in_sight() -> None:
    names = ["a short one", "one that is much longer 語"]
    shown = HeatMap(names, ["p"], ["nli"] * 2, ["qa"], np.eye(2)[:, :1], [["1"], ["0"]], "scale")
    svg = to_svg(heat_map(shown, percent=True), "m", "x")
    pinned = pin_rows(svg, "m")
    outline = Outline(pinned)
    assert outline.faults == [] and len(set(outline.ids)) == len(outline.ids)
    copy, whole = re.findall(r"<svg .*?</svg>", pinned, flags=re.S)
    used = re.findall(r'<use href="#([\w-]+)"/>', copy)
    assert used == ["m-row-ground", "m-row-name-0", "m-row-name-1"]
    assert set(used) <= set(outline.ids)
    # As wide as what it hides: no name sticks out, and no cell lies below it.
    (wide,) = re.findall(r'viewBox="0 0 ([\d.]+)', copy)
    cells = float(re.search(r'QuadMesh_1">\s*<path d="M ([\d.]+)', whole)[1])
    ends = [float(x) for x in re.findall(r"text-anchor: end[^>]* x=\"([\d.]+)\"", whole)[:2]]
    assert max(ends) < float(wide) <= cells and f"margin-left:-{wide}px" in whole


def test_a_figure_without_rows_is_left_alone() -> None:
    svg = to_svg(prompt_map(np.eye(2), ["a", "b"], ["x", "y"]), "m", "x")
    assert pin_rows(svg, "m") == svg


def write_projection(folder: Path) -> Path:
    """Two tasks of one type and one of another, a projector trained on the first of them."""
    folder.mkdir()
    targets = ("sst2", "imdb", "mnli")
    values = np.array(
        [  # own, random, task, untrained, warm, vanilla
            [0.90, 0.50, 0.88, 0.51, 0.91, 0.60],
            [0.80, 0.52, 0.70, 0.50, 0.75, 0.65],
            [0.60, 0.30, 0.34, 0.33, 0.45, 0.41],
        ]
    )
    names = ("in_task", "random", "task", "untrained", "warm", "vanilla")
    scores = TransferMatrix(targets, names, values, ("accuracy",) * 3)
    write_transfer(folder / "projection.csv", scores)
    told = {"metric": "accuracy", "majority": 0.5, "rows": 100, "split": "test"}
    record = {
        **{"source_backbone": "small<b>", "target_backbone": "large", "length": 20, "seed": 0},
        **{"targets": dict.fromkeys(targets, told), "trained_on": {"task": ["sst2"]}},
        **{"projectors": {"task": "runs/p (task on sst2)"}, "split": "test"},
        **{"warm_start": "task", "warm_steps": 25, "versions": {"jax": "0.10.2"}},
    }
    (folder / "projection.json").write_text(json.dumps(record))
    return folder


def test_page_of_projected_prompts(tmp_path: Path) -> None:
    folder = write_projection(tmp_path / "table")
    page = write_report(folder).read_text(encoding="utf-8")
    assert_all_parts_are_told(assert_page_is_sound(page, folder))
    means = {row[0]: row[1:] for row in PageReader(page).tables["Mean score over tasks"]}
    assert means["task"] == ["64.0%", "88.0%", "52.0%"]
    assert means["in_task"] == ["76.7%", "–", "–"]
    projected, tuned = summarize(folder)
    assert "“task” score 88.0% on the task it was trained on (own 90.0%, random 50.0%)" in projected
    assert "52.0% on the 2 tasks it was not trained on (own 70.0%, random 41.0%)" in projected
    assert tuned.startswith(
        "25 steps of tuning end at 70.3% from the prompts of “task” and at 55.3%"
    )
    for told in ("small&lt;b&gt;", "runs/p (task on sst2)", "sst2 100 of test", "jax 0.10.2"):
        assert told in page, told
    record = json.loads((folder / "projection.json").read_text())
    del record["targets"]["mnli"]
    (folder / "projection.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="does not tell mnli .* jpt project evaluate"):
        write_report(folder)
