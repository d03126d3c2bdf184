"""The report page of a study, a sweep, a warm start and a projection, and study loading."""

import io
import itertools
import json
import os
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from jpt.errors import InputError
from jpt.indicators.correlation import study_indicators
from jpt.io.files import write_table
from jpt.recipes.interop import import_reference
from jpt.report import figures as plots
from jpt.report import report as reports
from jpt.report.figures import COLORS, HeatMap, contrast, heat_map, stick_rows, strips, to_svg
from jpt.report.findings import find
from jpt.report.report import figure, prepare, sources, summarize, write_report, written_between
from jpt.report.study import commands, order_study, read_study, transfer_pairs, values_at
from jpt.results.prompt_table import write_transfer
from jpt.types import TransferMatrix
from tests.helpers import study as samples
from tests.helpers.running import raises
from tests.helpers.study import ORDERED, Outline, write_run, write_scores, write_transfer_record

Tables = dict[str, list[list[str]]]

# --- Contents of the page


def _build(folder: Path) -> str:
    study, ordering = prepare(folder)
    return reports.build_page(study, ordering, find(study, ordering))


def _notes(folder: Path) -> list[str]:
    study = read_study(folder)
    return reports.notes(study, order_study(study))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return samples.write_study(tmp_path_factory.mktemp("studies") / "study")


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    path = write_report(folder)
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tables(page: str) -> Tables:
    return Outline(page).tables


def test_scores_equal_the_file_in_order_by_type(tables: Tables, page: str) -> None:
    head, *rows = tables["Score of each prompt on each task"]
    baselines = ("random", "in-task prompt", "chance")
    assert head == ["target", "type", "metric", *ORDERED, *baselines]
    assert [row[0] for row in rows] == list(ORDERED)
    index = {name: i for i, name in enumerate((*samples.TASKS, "random"))}
    for row in rows:
        scores = samples.SCORES[index[row[0]]]
        wanted = [scores[index[name]] for name in (*ORDERED, "random", row[0])]
        near = [abs(value - 0.5) <= np.sqrt(value * (1 - value) / 1821) for value in wanted]
        texts = [f"{v:.4f}{'~' if mark else ''}" for v, mark in zip(wanted, near, strict=True)]
        assert row[3:] == [*texts, "0.5000"]
    rows = tables["Score of each prompt above chance relative to the in-task prompt"]
    assert rows[1] == ["imdb", "1.0000", f"{0.31 / 0.4:.4f}", "0.0000", "0.1000", "-0.1250"]
    rows = tables["Score of each prompt relative to the in-task prompt"]
    assert rows[1] == ["imdb", "1.0000", "0.9000", "0.5556", "0.6000", "0.5000"]
    start = page.index('role="img"')
    svg = page[start : page.index("</svg>", start)]
    shown = re.findall(r">([\d.]+~?)</text>", svg)
    every = {f"{100 * value:.1f}" for value in samples.SCORES.ravel()} | {"50.0"}
    assert every <= {text.rstrip("~") for text in shown} and {"50.0~", "51.0~"} <= set(shown)
    assert "untrained" in svg and "chance" in svg and "in-task prompt" in svg
    assert "~: within one standard error of chance" in page


def test_similarities_and_means_by_type(tables: Tables) -> None:
    head, *rows = tables["ON of all pairs of prompts"]
    assert head[1:] == [row[0] for row in rows] == list(ORDERED)
    # imdb is 1 and sst2 is 3 of the file; neuron_overlap is column 4.
    assert rows[0][2] == "0.44" and rows[0][1] == "1"
    assert {f"{name} of all pairs of prompts" for name in ("E_concat", "C_average")} <= set(tables)
    caption = "Mean relative score by target type (rows) and source type, excluding in-task pairs"
    rows = tables[caption]
    assert rows == [["target", "sentiment", "nli"], ["sentiment", "90%", "56%"]]
    rows = tables["Mean similarity of prompt pairs by task type"]
    assert ["ON", "0.75", "0.25", "2", "4"] in rows


def test_correlation_table(tables: Tables) -> None:
    rows = tables["Spearman's rho; the highest value of each column is bold"]
    by_name = {row[0]: row for row in rows}
    assert by_name["C_average"][1:4] == ["4", "+0.20", "±0.02"]
    assert by_name["ON, default layers"][2] == "+0.60"
    low, high = (float(end) for end in by_name["ON, default layers"][4].split(" to "))
    assert 0.55 <= low < 0.6 < high <= 0.65
    assert any(name.endswith("(best window)") for name in by_name)
    assert {"excluding in-task prompts", "including in-task prompts"} <= set(rows[0])


def test_choices_and_masks(page: str, tables: Tables) -> None:
    head, *rows = tables["Source selection by each ranking; regret and gain in points"]
    by_name = dict((row[0], row[1:]) for row in rows)
    assert head[1:] == ["n tasks", "hit rate", "regret", "gain over random", "95% CI"]
    assert by_name["ON"] == ["4", "100%", "0.0", "+10.0", "+9.6 to +10.4"]
    assert by_name["E_concat"] == ["4", "0%", "3.0", "+7.0", "+6.6 to +7.4"]
    assert by_name["random"][:3] == ["4", "33%", "10.0"] and "same type" in by_name
    head, *rows = tables["Source selected by each ranking, and its regret in points"]
    assert [row[0] for row in rows] == list(ORDERED)
    row = dict(zip(head, rows[0], strict=True))
    assert row["best source (score)"] == "sst2 (80.0)" and row["random"] == "−10.0"
    assert row["ON"] == "sst2 ✓" and row["C_concat"] == "sst2, mnli −3.4"
    assert page.index('id="choice"') > page.index('id="correlation"')
    head, *rows = tables["Score (accuracy) by kind of mask"]
    assert head == ["task", "type", "no mask", "in-task", "random", "chance"]
    assert rows[0] == ["mnli", "nli", "0.800", "0.464", "0.736", "0.500"]
    rows = tables["Score relative to no mask, by task type and kind of mask"]
    assert ["nli", "60%", "90%"] in rows
    assert "5 of the 24 neurons in layers 0 to 3 are masked" in page


@pytest.mark.usefixtures("no_figures")
def test_with_and_without_row_0(reference_folder: Path, tmp_path: Path) -> None:
    reference = reference_folder / "reference"
    prompts = import_reference(reference / "prompts" / "roberta-base", tmp_path / "prompts")
    matrix = tmp_path / "transfer.csv"
    matrix.write_bytes((reference / "transfer" / "roberta-base.csv").read_bytes())
    study = study_indicators(prompts, tmp_path, transfer=matrix)
    tables = Outline(_build(tmp_path)).tables
    head = "Row 0 of these prompts is trained but never read by their model"
    rho = {row[0]: row[1:] for row in tables[f"Mean rho over targets. {head}"]}
    correlations = study.correlation.excluding_in_task
    for name, label in (("cosine_concat", "C_concat"), ("euclidean_average", "E_average")):
        records = correlations[name], correlations[f"{name}_with_row0"]
        means = [f"{of.mean_over_targets:+.2f}" for of in records]
        assert rho[label][:2] == means
    regret_rows = {row[0]: row[1:] for row in tables[head]}
    of = study.choices["rankings"]
    for name, label in (("cosine_concat", "C_concat"), ("cosine_average", "C_average")):
        regrets = [of[each]["regret"] for each in (name, f"{name}_with_row0")]
        assert regret_rows[label][2:] == [f"{100 * regret:.1f}" for regret in regrets]


def test_prompts_settings_methods_and_dates(page, tables, folder, tmp_path) -> None:
    rows = tables["Prompts; scores on validation"]
    assert [row[0] for row in rows[1:]] == list(ORDERED)
    wanted = ["builtin/imdb", "sentiment", "accuracy", "0.812", "0.500", "40 / 40", "12 s"]
    assert rows[1][1:] == wanted
    for text in ("seed 3", "jax 0.10.2", "1 x cpu", "7,284 of test", "seed 7, init random"):
        assert text in page
    assert "<code>jpt transfer --prompts study/prompts --out study</code>" in page
    assert page.count('id="curve-') >= 4
    part = page[page.index('id="provenance"') : page.index('id="notes"')]
    for text in ("Spearman", "arXiv 2111.06719", "jax 0.10.2", "1 x cpu", "page created by"):
        assert text in part, text
    assert re.search(r"<dd>\d{4}-\d\d-\d\d \d\d:\d\d( to [\d: -]+)? UTC</dd>", part)
    (tmp_path / "transfer.csv").write_bytes((folder / "transfer.csv").read_bytes())
    part = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Spearman" not in part[part.index('id="provenance"') :]


def test_header_and_axes(page: str) -> None:
    header = page[page.index("<header") : page.index("</header>")]
    assert 4 < header.count("<li>") <= 7
    assert header.count("agrees with the paper") == 5 and "Prompt transfer on builtin/" in header
    links = re.findall(r'class="where" href="#(\w+)"|href="#(\w+)" class="where"', header)
    assert len(links) == header.count("<li>")
    figures = re.findall(r'<svg [^>]*role="img".*?</svg>', page, flags=re.S)
    named = ("target task", "source prompt", "prompt", "training step", "loss (nats)", "accuracy")
    for label in (*named, "relative score", "masked neurons", "source selected by"):
        assert any(f">{label}</text>" in svg for svg in figures), label


def test_equal_files_give_equal_bytes(folder: Path, page: str) -> None:
    assert write_report(folder).read_text(encoding="utf-8") == page
    assert [path.name for path in folder.glob("*.html*")] == ["report.html"]


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def render(_: Figure, target: io.StringIO, **__: object) -> None:
        target.write('<svg viewBox="0 0 1 1"></svg>')

    monkeypatch.setattr(Figure, "savefig", render)


MISSING = {
    "transfer": ("transfer.csv", "transfer.json"),
    "neurons": ("neurons.npz",),
    "indicators": ("indicators.csv", "correlation.json", "types.json", "choice.json"),
    "mask": ("mask.json",),
}


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("name", "command"), [(name, command) for command, names in MISSING.items() for name in names]
)
def test_missing_part_is_shown_with_its_command(tmp_path: Path, name: str, command: str) -> None:
    samples.write_study(tmp_path)
    (tmp_path / name).unlink()
    lines = re.findall(r'<p class="missing">(.*?)</p>', _build(tmp_path))
    assert [line for line in lines if name in line and f"<code>jpt {command} --prompts" in line]


@pytest.mark.usefixtures("no_figures")
def test_prompts_alone_and_differing_settings(tmp_path: Path) -> None:
    write_run(tmp_path / "prompts" / "imdb", "imdb", finished=False)
    page = _build(tmp_path)
    assert "No findings yet" in page and "Unfinished runs" in page
    assert page.count('class="missing"') >= 4
    for name in ("imdb", "sst2"):
        write_run(tmp_path / "prompts" / name, name)
    config = tmp_path / "prompts" / "imdb" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "seed": 4}))
    page = _build(tmp_path)
    assert "seed (3, 4)" in page and "length 20" in page


def test_names_are_escaped(tmp_path: Path) -> None:
    name = '<b>x</b> & "y" \'$z_1$'
    line = name.replace('"', '""')
    text = f'target_task,source_prompt,metric,value\nimdb,"{line}",<i>acc</i>,0.5\n'
    (tmp_path / "transfer.csv").write_text(text)
    write_transfer_record(tmp_path, notes=["<script>alert(1)</script>"], command="<u>jpt</u>")
    page = _build(tmp_path)
    tags = [tag for tag, _ in Outline(page).tags]
    assert not set(tags) & {"b", "i", "u"} and tags.count("script") == 1
    assert "&lt;b&gt;x&lt;/b&gt; &amp;" in page and "&lt;script&gt;" in page


@pytest.mark.usefixtures("no_figures")
def test_missing_pairs(tmp_path: Path) -> None:
    scores = samples.SCORES.copy()
    scores[1, 0] = np.nan
    write_scores(tmp_path, scores)
    write_transfer_record(tmp_path)
    page = _build(tmp_path)
    assert Outline(page).tables["Score of each prompt on each task"][1][5] == "–"
    assert "Not measured: 1 pair of task and prompt" in page
    assert "Gray: not measured" in page


def test_relative_scores_are_of_the_scores_whatever_other_files_say(tmp_path: Path) -> None:
    write_scores(tmp_path)
    write_transfer_record(tmp_path)
    text = "target_task,source_prompt,metric,value\nimdb,sst2,accuracy,9.5\n"
    for name in ("relative.csv", "above_chance.csv"):
        (tmp_path / name).write_text(text)
    found = prepare(tmp_path)[0].performance
    lead = np.diag(samples.SCORES)[:, None]
    np.testing.assert_array_equal(found["relative"].values, samples.SCORES / lead)
    above = (samples.SCORES - 0.5) / (lead - 0.5)
    np.testing.assert_allclose(found["above_chance"].values, above, atol=1e-14)
    write_transfer_record(tmp_path, targets={"imdb": {"task": "imdb", "in_task_prompt": None}})
    assert prepare(tmp_path)[0].performance == {}
    assert "No target has an in-task prompt" in _build(tmp_path)


def test_one_prompt_only(tmp_path: Path) -> None:
    text = "target_task,source_prompt,metric,value\nimdb,imdb,accuracy,{}\n"
    (tmp_path / "transfer.csv").write_text(text.format(0.75))
    samples.write_indicators(tmp_path, ("imdb",))
    page = _build(tmp_path)
    assert ">75.0</text>" in page and "1 prompt · 1 target task" in page


@pytest.mark.usefixtures("no_figures")
def test_undefined_correlations(tmp_path: Path) -> None:
    samples.write_study(tmp_path)
    samples.write_correlations(tmp_path, overlap=None)
    lines = [line for line in _notes(tmp_path) if "constant" in line]
    assert any("neuron_overlap (excluding in-task prompts)" in line for line in lines)
    page = _build(tmp_path)
    assert "is undefined" in page
    rows = Outline(page).tables["Spearman's rho; the highest value of each column is bold"]
    assert [row[2] for row in rows if row[0] == "ON, default layers"] == ["–"]


def test_notes_of_the_commands_are_shown(tmp_path: Path) -> None:
    samples.write_study(tmp_path)
    note = "imdb: no Spearman with neuron_overlap: all sources score the same"
    files = ("correlation.json", "types.json", "transfer.json", "choice.json", "mask.json")
    for name in files:
        path = tmp_path / name
        path.write_text(json.dumps({**json.loads(path.read_text()), "notes": [note, name]}))
    assert sorted(_notes(tmp_path)) == sorted([note, *files])


def test_notes_on_targets_and_prompts(tmp_path: Path) -> None:
    write_scores(tmp_path)
    targets = {name: {"task": name, "in_task_prompt": name} for name in samples.TASKS[:3]}
    write_transfer_record(tmp_path, targets={**targets, "sst2": {"task": "sst2"}})
    assert "No in-task prompt, relative scores undefined: sst2." in _notes(tmp_path)
    write_transfer_record(tmp_path, targets=targets, notes=["sst2 has no in-task prompt: so"])
    assert len([line for line in _notes(tmp_path) if "sst2" in line]) == 1
    write_scores(tmp_path)
    samples.write_indicators(tmp_path, ("imdb", "other"))
    text = " ".join(_notes(tmp_path))
    assert "Prompts of transfer.csv missing in indicators.csv: mnli, qnli, sst2" in text
    assert "Prompts of indicators.csv missing in transfer.csv: other" in text


def test_page_that_cannot_be_written(tmp_path: Path) -> None:
    raises(write_report, tmp_path, match="holds no study")
    assert list(tmp_path.iterdir()) == []
    write_scores(tmp_path)
    (tmp_path / "report.html").mkdir()
    raises(write_report, tmp_path, match=r"report\.html")


@pytest.mark.usefixtures("no_figures")
def test_reference_matrices(reference_folder: Path, tmp_path: Path) -> None:
    for name in ("roberta-base", "t5-base"):
        source = reference_folder / "reference" / "transfer" / f"{name}.csv"
        (tmp_path / "transfer.csv").write_bytes(source.read_bytes())
        page = _build(tmp_path)
        assert "reaches 77%" in page or "reaches 83%" in page
        assert len(Outline(page).tables["Score of each prompt on each task"]) >= 15


# --- Colors


# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB; linear RGB to XYZ.
NUMBERS = """
protanopia 0.152286 1.052583 -0.204868 0.114503 0.786281 0.099216 -0.003882 -0.048116 1.051998
deuteranopia 0.367322 0.860646 -0.227968 0.280085 0.672501 0.047413 -0.011820 0.042940 0.968881
tritanopia 1.255528 -0.076749 -0.178779 -0.078411 0.930809 0.147602 0.004733 0.691367 0.303900
xyz 0.4124564 0.3575761 0.1804375 0.2126729 0.7151522 0.0721750 0.0193339 0.1191920 0.9503041
"""
VISIONS = {
    name: np.array(numbers, float).reshape(3, 3)
    for name, *numbers in map(str.split, NUMBERS.strip().splitlines())
}
TO_XYZ = VISIONS.pop("xyz")
VISIONS["normal"] = np.eye(3)
NAMES = ("blue", "orange", "green", "purple", "sky", "red", "gray")


def rgb(text: str) -> np.ndarray:
    return np.array([int(text[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def lab(colors: np.ndarray, vision: str = "normal") -> np.ndarray:
    """CIELAB (white D65) of colors [N, 3] in 0 to 1 under a color vision."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    seen = (linear @ VISIONS[vision].T).clip(0, 1) @ TO_XYZ.T / (0.95047, 1.0, 1.08883)
    root = np.where(seen > (6 / 29) ** 3, np.cbrt(seen), seen / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = root.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def variables(theme: str) -> dict[str, str]:
    style = files("jpt.report").joinpath("report.css").read_text(encoding="utf-8")
    parts = dict(zip(("light", "dark", "print"), style.split(":root {")[1:], strict=True))
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", parts[theme].split("}")[0]))


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("theme", ["light", "dark", "print"])
def test_colors_are_distinct_under_every_color_vision(theme: str, vision: str) -> None:
    colors = variables(theme)
    seen = lab(np.array([rgb(colors[name]) for name in NAMES]), vision)
    distances = {
        pair: float(np.linalg.norm(seen[pair[0]] - seen[pair[1]]))
        for pair in itertools.combinations(range(len(NAMES)), 2)
    }
    # 2.3 is just noticeable; small markers need several times that.
    assert len(distances) == 21 and min(distances.values()) >= 17.5


@pytest.mark.parametrize("theme", ["light", "dark", "print"])
def test_markers_and_text_have_contrast(theme: str) -> None:
    colors = {name: rgb(color) for name, color in variables(theme).items()}
    assert all(contrast(colors[name], colors["card"]) >= 3 for name in NAMES)
    pairs = [("ink", "card"), ("muted", "card"), ("blue", "card"), ("ink", "tint")]
    for text, background in (*pairs, *((kind, f"{kind}-bg") for kind in ("good", "bad", "open"))):
        assert contrast(colors[text], colors[background]) >= 4.5, (text, background)


def test_colors_of_standalone_figures_and_lab() -> None:
    light = variables("light")
    found = {name.removeprefix("--"): color for color, name in COLORS.items()}
    assert found == {name: light[name] for name in NAMES}
    assert variables("print") == light | {"page": "#ffffff"}
    wanted = [[100, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]]
    found = lab(np.array([[1.0, 1, 1], [1, 0, 0], [0, 0, 1]]))
    np.testing.assert_allclose(found, wanted, atol=0.05)


@pytest.mark.parametrize("vision", VISIONS)
def test_heat_map_colors_are_monotonic_under_every_color_vision(vision: str) -> None:
    lightness = lab(plots.COLOR_MAP(np.linspace(0, 1, 64))[:, :3], vision)[:, 0]
    assert (np.diff(lightness) < 0).all() and lightness[0] - lightness[-1] > 70


def test_figures_do_not_rely_on_color_alone() -> None:
    groups = {"same": [0.1, 0.2], "other": [0.3, 0.4], "untrained": [0.5]}
    shapes = [each.get_paths()[0] for each in strips(groups, "y").axes[0].collections]
    assert len({shape.vertices.tobytes() for shape in shapes}) == 3
    curves = {f"start {n}": (np.arange(9.0), np.full((1, 9), n / 9)) for n in range(7)}
    lines = plots.plot_curves(curves, "mood", "accuracy", "bert").axes[0].lines
    assert len({line.get_marker() for line in lines}) == 7
    assert all(line.get_label().startswith("start ") for line in lines)


def write_sweep(folder: Path) -> Path:
    folder.mkdir()
    runs, settings = [], []
    for rate, value in ((0.01, 0.75), (0.1, 0.5)):
        setting = f"imdb+learning_rate={rate}"
        where = {"task": "imdb", "backbone": "bert"}
        for seed in (0, 1):
            run = f"{setting}/seed-{seed}"
            write_run(folder / "runs" / run, "imdb")
            row = {"run": run, "setting": setting, "state": "done", **where, "seed": seed}
            runs.append({**row, "metric": "accuracy", "validation": value, "elapsed_s": 9.5})
        row = {"setting": setting, **where, "metric": "accuracy", "seeds": 2}
        numbers = {"validation": value, "validation_std": 0.01, "best": rate == 0.01}
        settings.append({**row, **numbers, "test": value, "test_std": 0.02})
    for name, rows in (("runs.csv", runs), ("settings.csv", settings)):
        write_table(folder / name, list(rows[0]), [list(row.values()) for row in rows])
    record = {"versions": {"jax": "0.10.2"}, "machine": "Linux x86_64, 2 cores"}
    (folder / "sweep.json").write_text(json.dumps(record))
    return folder


def _read_page(folder: Path) -> tuple[str, Outline]:
    page = write_report(folder).read_text(encoding="utf-8")
    outline = samples.assert_page_is_sound(page, folder)
    assert_sources_are_named(outline)
    return page, outline


def test_page_of_a_sweep(tmp_path: Path) -> None:
    page, outline = _read_page(write_sweep(tmp_path / "sweep"))
    for text in ("jax 0.10.2", "Linux x86_64, 2 cores", "steps 40", "results written", "UTC"):
        assert text in page, text
    assert {"settings.csv", "runs.csv", "sweep.json", "runs/"} <= set(outline.links)


def test_page_of_a_warm_start(tmp_path: Path) -> None:
    folder = samples.write_warm_start(tmp_path / "warm")
    page, outline = _read_page(folder)
    tables = outline.tables
    scores = {row[0]: row[1:] for row in tables["Mean accuracy; step 0 and best on validation"]}
    assert scores["imdb"] == ["2", "0.500", "0.805", "0.805", "+10.0", "+9.0 to +11.0"]
    assert scores["vanilla"][-2:] == ["–", "–"]
    speeds = tables["Speed-up over random initialization"]
    assert speeds[1] == ["imdb", "2.00x", "1.99 to 2.01", "4.00x", "3.99 to 4.01"]
    assert speeds[2][3:] == ["not reached", "–"]
    first, second = summarize(folder)
    assert "converges in 50% of the steps" in first and "initialization in 25% of the" in first
    start = (
        "Compared with random initialization, a warm start from imdb changes the final accuracy by"
    )
    assert first.startswith(f"{start} +10.0 points (95% CI +9.0 to +11.0), converges")
    assert "never reaches" in second and "200%" in second
    for text in ("Gain: final less final.", "steps 10", "so it is", "jax 0.10.2", "1 x cpu"):
        assert text in page, text
    (folder / "warm_start.json").write_text('{"runs": [], "task": 3}')
    raises(write_report, folder, match="jpt warm-start")


def test_page_check_finds_faults(folder: Path, page: str) -> None:
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
            samples.assert_page_is_sound(broken, folder)


def assert_sources_are_named(outline: Outline) -> None:
    assert outline.figures and all("figcaption" in tags for tags in outline.figures)
    assert all("a" in tags for tags in outline.figures)
    kinds = [a.get("class") for tag, a in outline.tags if tag in ("div", "p")]
    n_tables = sum(tag == "table" for tag, _ in outline.tags)
    assert n_tables == kinds.count("table") > 0
    named = [kinds[i : i + 3] for i, kind in enumerate(kinds) if kind == "table"]
    assert all("source" in next_ones for next_ones in named)


def test_page_is_sound_and_names_its_files(folder: Path, page: str) -> None:
    outline = samples.assert_page_is_sound(page, folder)
    assert_sources_are_named(outline)
    assert len(outline.ids) > 20
    wanted = {"transfer.csv", "indicators.csv", "correlation.json", "choice.json"}
    wanted |= {"types.json", "mask.json", "transfer.json", "prompts/imdb/metrics.jsonl"}
    assert wanted <= set(outline.links)
    figures = [of for tag, of in outline.tags if tag == "svg" and "aria-hidden" not in of]
    # Heat maps, map of prompts, windows, indicator panels, regrets, masks, strips, runs.
    assert len(figures) == 6 + 1 + 1 + 5 + 1 + 1 + 1 + 4
    assert all(len(figure["aria-label"] or "") > 20 for figure in figures)


def test_dates_are_those_of_the_files(tmp_path: Path) -> None:
    for name, at in (("a", 0), ("b", 86_400)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (at, at))
    files_of = [tmp_path / name for name in ("a", "b", "none")]
    assert written_between(files_of) == "1970-01-01 00:00 to 1970-01-02 00:00 UTC"
    assert written_between(files_of[:1]) == "1970-01-01 00:00 UTC"


def test_names_of_files_are_escaped_in_links() -> None:
    links = sources(['a "b"/c#d.csv', "x.csv", "x.csv"])
    assert links is not None
    assert links.count("<a ") == 2 and 'href="a%20%22b%22/c%23d.csv"' in links
    assert sources([]) is None
    assert "Data:" not in figure("<svg></svg>", "a map", "Seen.")
    page = reports.whole_page(
        "x", reports.table(["a", "b"], [["</script>", reports.value_cell("–", float("nan"))]], "t")
    )
    assert Outline(page).faults == [] and "data-sort" not in page.partition("<script>")[0]


def test_sticky_row_names() -> None:
    names = ["a short one", "one that is much longer 語"]
    shown = HeatMap(names, ["p"], ["nli"] * 2, ["qa"], np.eye(2)[:, :1], [["1"], ["0"]], "scale")
    svg = to_svg(heat_map(shown, percent=True), "m", "x")
    sticky = stick_rows(svg, "m")
    outline = Outline(sticky)
    assert outline.faults == [] and len(set(outline.ids)) == len(outline.ids)
    copy, whole = re.findall(r"<svg .*?</svg>", sticky, flags=re.S)
    used = re.findall(r'<use href="#([\w-]+)"/>', copy)
    assert used == ["m-row-background", "m-row-name-0", "m-row-name-1"]
    assert set(used) <= set(outline.ids)
    # As wide as the names and not wider: it covers no cell.
    (wide,) = re.findall(r'viewBox="0 0 ([\d.]+)', copy)
    cells = float(re.search(r'QuadMesh_1">\s*<path d="M ([\d.]+)', whole)[1])
    ends = [float(x) for x in re.findall(r"text-anchor: end[^>]* x=\"([\d.]+)\"", whole)[:2]]
    assert max(ends) < float(wide) <= cells and f"margin-left:-{wide}px" in whole
    svg = to_svg(plots.prompt_map(np.eye(2), ["a", "b"], ["x", "y"]), "m", "x")
    assert stick_rows(svg, "m") == svg  # no rows


def write_projection(folder: Path) -> Path:
    folder.mkdir()
    targets = ("sst2", "imdb", "mnli")
    values = np.array(
        [  # in_task, random, task, untrained, warm, vanilla
            [0.90, 0.50, 0.88, 0.51, 0.91, 0.60],
            [0.80, 0.52, 0.70, 0.50, 0.75, 0.65],
            [0.60, 0.30, 0.34, 0.33, 0.45, 0.41],
        ]
    )
    names = ("in_task", "random", "task", "untrained", "warm", "vanilla")
    scores = TransferMatrix(targets, names, values, ("accuracy",) * 3)
    write_transfer(folder / "projection.csv", scores)
    scored = {"metric": "accuracy", "majority": 0.5, "rows": 100, "split": "test"}
    record = {
        **{"source_backbone": "small<b>", "target_backbone": "large", "length": 20, "seed": 0},
        **{"targets": dict.fromkeys(targets, scored), "trained_on": {"task": ["sst2"]}},
        **{"projectors": {"task": "runs/p (task on sst2)"}, "split": "test"},
        **{"warm_start": "task", "warm_steps": 25, "versions": {"jax": "0.10.2"}},
    }
    (folder / "projection.json").write_text(json.dumps(record))
    return folder


def test_page_of_projected_prompts(tmp_path: Path) -> None:
    folder = write_projection(tmp_path / "table")
    page, _ = _read_page(folder)
    means = {row[0]: row[1:] for row in Outline(page).tables["Mean score over tasks"]}
    assert means["task"] == ["64.0%", "88.0%", "52.0%"]
    assert means["in_task"] == ["76.7%", "–", "–"]
    projected, tuned = summarize(folder)
    assert "“task” reach 88.0% on 1 training task (in-task 90.0%, random 50.0%)" in projected
    assert "52.0% on 2 unseen tasks (in-task 70.0%, random 41.0%)" in projected
    assert "25 training steps the score is 70.3% from" in tuned and "by “task” and 55.3%" in tuned
    for text in ("small&lt;b&gt;", "runs/p (task on sst2)", "sst2 100 of test", "jax 0.10.2"):
        assert text in page, text
    record = json.loads((folder / "projection.json").read_text())
    del record["targets"]["mnli"]
    (folder / "projection.json").write_text(json.dumps(record))
    raises(write_report, folder, match="no entry for target mnli .* jpt project evaluate")


# --- Loading a study


def test_all_parts_are_loaded(folder: Path) -> None:
    study = read_study(folder)
    assert study.transfer is not None and study.transfer.prompts == (*samples.TASKS, "random")
    assert study.neurons == (4, 4, 6)
    assert study.record is not None and study.record.targets["imdb"].rows == 1821
    assert study.record.random_start == {"seed": "7", "init": "random"}
    assert study.similarities is not None
    overlap = study.similarities.values["neuron_overlap"]
    assert overlap.shape == (4, 4) and overlap[0, 1] == pytest.approx(0.14) and overlap[2, 2] == 1
    assert study.correlations is not None
    assert study.correlations.excluding_in_task["neuron_overlap"].mean_over_targets == 0.6
    assert study.types is not None and list(study.types.by_type) == ["relative"]
    assert study.types.similarity["cosine_concat"].n_different == 4
    run = read_study(folder).prompts["imdb"]
    assert run.finished and run.metric == "accuracy" and run.score == 0.8125
    assert (run.steps, run.best_step, run.elapsed_s, run.chance) == (40, 40, 12.4, 0.5)
    assert run.curve is not None
    np.testing.assert_array_equal(run.curve.train_loss, [0.7, 0.5])
    np.testing.assert_array_equal(run.curve.score, [0.6, 0.8125])


def test_prompt_files_and_unfinished_runs(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "imdb")
    (tmp_path / "prompts").mkdir()
    (tmp_path / "run" / "prompt.safetensors").rename(tmp_path / "prompts" / "a.safetensors")
    prompt = read_study(tmp_path).prompts["a"]
    assert prompt.finished and prompt.curve is None and prompt.best_step == 40
    write_run(tmp_path / "prompts" / "imdb", "imdb", finished=False)
    run = read_study(tmp_path).prompts["imdb"]
    assert not run.finished and run.metric == "accuracy" and np.isnan(run.score)
    assert run.curve is not None and list(run.curve.steps) == [20, 40]
    assert run.card is not None and run.card.task == "builtin/imdb"


def test_ordering_and_transfer_pairs(folder: Path) -> None:
    study, ordering = prepare(folder)
    assert ordering.targets == ordering.sources == ordering.prompts == ORDERED
    assert ordering.every == (*ORDERED, "random")
    values = values_at(study.performance["relative"], ordering.targets, ordering.sources)
    np.testing.assert_array_equal(np.diag(values), 1)
    assert ordering.prompt_types["random"] == "untrained"
    found = transfer_pairs(study, ordering, "relative")
    assert len(found) == 12 and all(pair.source not in (pair.target, "random") for pair in found)
    by_pair = {(pair.target, pair.source): pair for pair in found}
    assert by_pair["imdb", "sst2"].score == pytest.approx(0.9)
    assert by_pair["imdb", "sst2"].same_type and not by_pair["imdb", "qnli"].same_type


def test_in_task_prompts_and_tasks_without_a_type(tmp_path: Path) -> None:
    text = "target_task,source_prompt,metric,value\nmine,mine,f1,0.5\nimdb,mine,accuracy,0.5\n"
    (tmp_path / "transfer.csv").write_text(text)
    ordering = order_study(read_study(tmp_path))
    assert ordering.targets == ("imdb", "mine") and ordering.target_types["mine"] == "no type"
    write_scores(tmp_path)
    ordering = order_study(read_study(tmp_path))
    assert ordering.in_task == {name: name for name in samples.TASKS}
    assert ordering.targets == ORDERED
    write_transfer_record(tmp_path, targets={"imdb": {"task": "imdb", "in_task_prompt": "sst2"}})
    assert order_study(read_study(tmp_path)).in_task == {"imdb": "sst2"}


def test_paths_of_a_study(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    for name, message in (
        ("", "holds no study.*jpt quickstart"),
        ("no", "does not exist; pass the folder"),
        ("a.txt", "is a file; pass the folder"),
    ):
        raises(read_study, tmp_path / name, match=message)
    assert "'my study/prompts'" in commands(Path("my study"))["transfer"]


RUN = "prompts/imdb/"
PAIRS = "prompt_a,prompt_b,x\n"
# file, new content or (old, new) text, error message
INVALID: list[tuple[str, str | tuple[str, str], str]] = [
    ("transfer.json", "{", "is not JSON.*line 1"),
    ("transfer.json", "[]", r"an object at the top level, got \[\]"),
    ("transfer.json", ('"majority": 0.5', '"majority": "x"'), "mnli.majority, got 'x'; .*transfer"),
    ("transfer.json", ('"notes": []', '"notes": [1]'), "a list of strings at"),
    ("transfer.json", ("1821", "true"), "an integer at .*rows, got True"),
    ("correlation.json", "{}", "an object at excluding_in_task, got None"),
    ("correlation.json", '{"excluding_in_task": {"a": 3}}', "in_task.a, got 3; .*jpt indicators"),
    ("choice.json", '{"targets": 1}', "an object at targets, got 1; .*jpt indicators"),
    ("mask.json", ('"unmasked": 0.8', '"unmasked": "x"'), "unmasked, got 'x'"),
    ("mask.json", '{"layers": [0]}', "list of two numbers at .*jpt mask"),
    ("types.json", ("0.75", '"x"'), "a number at .*same_type_mean, got 'x'"),
    ("transfer.csv", "a,b\n1,2\n", "lacks target_task"),
    ("neurons.npz", "PK", "make it with jpt neurons"),
    ("indicators.csv", PAIRS, "but no rows; regenerate it"),
    ("indicators.csv", PAIRS + "a,b,1\na,b,1\n", "line 3: second row for a and b"),
    ("indicators.csv", PAIRS + "a,b,much\n", "line 2: x is 'much'; expected a number"),
    (RUN + "result.json", "nothing", "is not JSON"),
    (RUN + "metrics.jsonl", '{"loss": 1}\n', "line 1: no step"),
    (RUN + "metrics.jsonl", "{a\n", "line 1 is not JSON"),
    (RUN + "metrics.jsonl", '{"step": 1', "is incomplete"),
    (RUN + "prompt.safetensors", "x", "prompt.safetensors"),
]


@pytest.mark.parametrize(("name", "content", "message"), INVALID)
def test_invalid_file_is_named(tmp_path: Path, name: str, content, message: str) -> None:
    path = samples.write_study(tmp_path) / name
    if isinstance(content, tuple):
        text = path.read_text()
        assert content[0] in text
        content = text.replace(*content, 1)
    path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_study(tmp_path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


def test_missing_pairs_and_text_columns(tmp_path: Path) -> None:
    (tmp_path / "indicators.csv").write_text("prompt_a,prompt_b,type_a,x\na,b,nli,0.5\n")
    similarities = read_study(tmp_path).similarities
    assert similarities is not None and list(similarities.values) == ["x"]
    np.testing.assert_array_equal(similarities.values["x"], [[np.nan, 0.5], [np.nan, np.nan]])


def test_types_of_the_reference_matrix(reference_folder: Path, tmp_path: Path) -> None:
    source = reference_folder / "reference" / "transfer" / "roberta-base.csv"
    (tmp_path / "transfer.csv").write_bytes(source.read_bytes())
    samples.write_indicators(tmp_path, ("imdb", "sst2"))
    study = read_study(tmp_path)
    ordering = order_study(study)
    kinds = [ordering.target_types[name] for name in ordering.targets]
    assert kinds == ["sentiment"] * 6 + ["nli"] * 4 + ["ethics"] * 2 + ["paraphrase"] * 2
    assert set(study.similarities.values) == set(samples.INDICATORS)
