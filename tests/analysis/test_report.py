from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from jpt.errors import InputError
from jpt.indicators.correlation import study_indicators
from jpt.recipes.interop import import_reference
from jpt.report.findings import find
from jpt.report.report import build_page, notes, prepare, write_report
from jpt.report.study import order_study, read_study
from tests.analysis.sample_study import (
    ORDERED,
    SCORES,
    TASKS,
    PageReader,
    write_correlations,
    write_indicators,
    write_run,
    write_scores,
    write_study,
    write_transfer_facts,
)


def _build(folder: Path) -> str:
    study, layout = prepare(folder)
    return build_page(study, layout, find(study, layout))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("studies") / "study")


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    path = write_report(folder)
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tables(page: str) -> dict[str, list[list[str]]]:
    return PageReader(page).tables


def test_scores_equal_the_file_in_order_by_type(tables: dict[str, list[list[str]]]) -> None:
    head, *rows = tables["Score of each prompt on each task"]
    own = ["random", "own prompt", "majority"]
    assert head == ["target", "type", "metric", *ORDERED, *own]
    assert [row[0] for row in rows] == list(ORDERED)
    place = {name: index for index, name in enumerate((*TASKS, "random"))}
    for row in rows:
        scores = SCORES[place[row[0]]]
        wanted = [f"{scores[place[name]]:.4f}" for name in (*ORDERED, "random", row[0])]
        assert row[3:] == [*wanted, "0.5000"]


def test_relative_scores_equal_the_file(tables: dict[str, list[list[str]]]) -> None:
    rows = tables["Score of each prompt over the score of the task's own prompt"]
    assert rows[1] == ["imdb", "1.0000", "0.9000", "0.5556", "0.6000", "0.5000"]


def test_matrix_is_drawn_with_its_numbers(page: str) -> None:
    start = page.index('role="img"')
    svg = page[start : page.index("</svg>", start)]
    drawn = re.findall(r">([\d.]+)</text>", svg)
    every = {f"{100 * value:.1f}" for value in SCORES.ravel()} | {"50.0"}
    assert every <= set(drawn)
    assert "untrained" in svg and "majority" in svg and "own prompt" in svg


def test_similarities_equal_the_file(tables: dict[str, list[list[str]]]) -> None:
    head, *rows = tables["ON of all pairs of prompts"]
    assert head[1:] == [row[0] for row in rows] == list(ORDERED)
    # imdb is 1 and sst2 is 3 of the file; neuron_overlap is column 4.
    assert rows[0][2] == "0.44" and rows[0][1] == "1"
    assert {f"{name} of all pairs of prompts" for name in ("E_concat", "C_average")} <= set(tables)


def test_correlation_table(tables: dict[str, list[list[str]]]) -> None:
    rows = tables["Spearman's rho; the highest of each column is bold"]
    by_name = {row[0]: row for row in rows}
    assert by_name["C_average"][1:4] == ["4", "+0.20", "±0.02"]
    assert by_name["ON, default layers"][2] == "+0.60"
    low, high = (float(end) for end in by_name["ON, default layers"][4].split(" to "))
    assert 0.55 <= low < 0.6 < high <= 0.65
    assert any(name.endswith("(best window)") for name in by_name)
    assert "own prompts left out" in rows[0] and "own prompts included" in rows[0]


def test_means_by_type(tables: dict[str, list[list[str]]]) -> None:
    rows = tables["Mean relative score by type of target (rows) and of source, own pairs left out"]
    assert rows == [["target", "sentiment", "nli"], ["sentiment", "90%", "56%"]]
    alike = tables["Mean similarity of pairs of prompts, by type of task"]
    assert ["ON", "0.75", "0.25", "2", "4"] in alike


def test_choices(page: str, tables: dict[str, list[list[str]]]) -> None:
    head, *rows = tables["What the first source of each ranking is worth; costs in points"]
    by_name = dict((row[0], row[1:]) for row in rows)
    assert head[1:] == ["n tasks", "is the best", "cost", "saved against chance", "95% interval"]
    assert by_name["ON"] == ["4", "100%", "0.0", "+10.0", "+9.6 to +10.4"]
    assert by_name["E_concat"] == ["4", "0%", "3.0", "+7.0", "+6.6 to +7.4"]
    assert by_name["by chance"][:3] == ["4", "33%", "10.0"] and "same type" in by_name
    caption = "The source that each ranking takes, and how many points below the best it scores"
    head, *rows = tables[caption]
    assert [row[0] for row in rows] == list(ORDERED)
    row = dict(zip(head, rows[0], strict=True))
    assert row["best source (score)"] == "sst2 (80.0)" and row["by chance"] == "−10.0"
    assert row["ON"] == "sst2 ✓" and row["C_concat"] == "sst2, mnli −3.4"
    assert page.index('id="choice"') > page.index('id="correlation"')


def test_masks(page: str, tables: dict[str, list[list[str]]]) -> None:
    head, *rows = tables["Scores (accuracy) under each kind of mask"]
    assert head == ["task", "type", "no mask", "in_task", "random", "commonest"]
    assert rows[0] == ["mnli", "nli", "0.800", "0.464", "0.736", "0.500"]
    alike = tables["What is left of the scores, by type of task and kind of mask"]
    assert ["nli", "60%", "90%"] in alike
    assert "5 of the 24 neurons of layers 0 to 3 are silent" in page


@pytest.mark.usefixtures("no_figures")
def test_row_0_in_and_out(reference_folder: Path, tmp_path: Path) -> None:
    reference = reference_folder / "reference"
    prompts = import_reference(reference / "prompts" / "roberta-base", tmp_path / "prompts")
    matrix = tmp_path / "transfer.csv"
    matrix.write_bytes((reference / "transfer" / "roberta-base.csv").read_bytes())
    study = study_indicators(prompts, tmp_path, transfer=matrix)
    tables = PageReader(_build(tmp_path)).tables
    head = "Row 0 of these prompts is trained but never read by their model"
    rho = {row[0]: row[1:] for row in tables[f"Mean rho over targets. {head}"]}
    out = study.correlation.excluding_in_task
    for name, label in (("cosine_concat", "C_concat"), ("euclidean_average", "E_average")):
        plain, whole = out[name], out[f"{name}_with_row0"]
        means = [f"{of.mean_over_targets:+.2f}" for of in (plain, whole)]
        assert rho[label][:2] == means
    costs = {row[0]: row[1:] for row in tables[head]}
    of = study.choices["rankings"]
    for name, label in (("cosine_concat", "C_concat"), ("cosine_average", "C_average")):
        regrets = [of[each]["regret"] for each in (name, f"{name}_with_row0")]
        assert costs[label][2:] == [f"{100 * regret:.1f}" for regret in regrets]


def test_prompts_and_settings(page: str, tables: dict[str, list[list[str]]]) -> None:
    rows = tables["The prompts; scores are on validation"]
    assert [row[0] for row in rows[1:]] == list(ORDERED)
    wanted = ["builtin/imdb", "sentiment", "accuracy", "0.812", "0.500", "40 / 40", "12 s"]
    assert rows[1][1:] == wanted
    for told in ("seed 3", "jax 0.10.2", "1 x cpu", "7,284 of test", "seed 7, init random"):
        assert told in page
    assert "<code>jpt transfer --prompts study/prompts --out study</code>" in page
    assert page.count('id="curve-') >= 4


def test_summary_has_two_to_seven_sentences_and_verdicts(page: str) -> None:
    header = page[page.index("<header") : page.index("</header>")]
    assert 2 <= header.count("<li>") <= 7
    assert header.count("agrees with the paper") == 5 and "Prompt transfer on builtin/" in header


def test_figures_have_words_for_those_who_do_not_see_them(page: str) -> None:
    drawn = [attributes for tag, attributes in PageReader(page).tags if tag == "svg"]
    figures = [attributes for attributes in drawn if "aria-hidden" not in attributes]
    # Heat maps, the map of prompts, windows, panels of indicators, costs, masks, strips, runs.
    assert len(figures) == 6 + 1 + 1 + 5 + 1 + 1 + 1 + 4
    assert all(len(figure["aria-label"] or "") > 20 for figure in figures)


def test_equal_files_give_equal_bytes(folder: Path, page: str) -> None:
    assert write_report(folder).read_text(encoding="utf-8") == page
    assert [path.name for path in folder.glob("*.html*")] == ["report.html"]


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are built and not drawn, which takes most of the time."""

    def draw(_: Figure, target: io.StringIO, **__: object) -> None:
        target.write('<svg viewBox="0 0 1 1"></svg>')

    monkeypatch.setattr(Figure, "savefig", draw)


MISSING = [
    ("transfer.csv", "jpt transfer --prompts"),
    ("relative.csv", "jpt transfer --prompts"),
    ("transfer.json", "jpt transfer --prompts"),
    ("neurons.npz", "jpt neurons --prompts"),
    ("indicators.csv", "jpt indicators --prompts"),
    ("correlation.json", "jpt indicators --prompts"),
    ("types.json", "jpt indicators --prompts"),
    ("choice.json", "jpt indicators --prompts"),
    ("mask.json", "jpt mask --prompts"),
]


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(("name", "command"), MISSING)
def test_missing_part_is_said_with_its_command(tmp_path: Path, name: str, command: str) -> None:
    write_study(tmp_path)
    (tmp_path / name).unlink()
    page = _build(tmp_path)
    said = re.findall(r'<p class="missing">(.*?)</p>', page)
    assert [line for line in said if name in line and f"<code>{command}" in line]


@pytest.mark.usefixtures("no_figures")
def test_prompts_alone(tmp_path: Path) -> None:
    write_run(tmp_path / "prompts" / "imdb", "imdb", finished=False)
    page = _build(tmp_path)
    assert "Nothing can be concluded yet" in page and "Not finished" in page
    assert page.count('class="missing"') >= 4


def test_names_are_escaped(tmp_path: Path) -> None:
    name = '<b>x</b> & "y" \'$z_1$'
    line = name.replace('"', '""')
    text = f'target_task,source_prompt,metric,value\nimdb,"{line}",<i>acc</i>,0.5\n'
    (tmp_path / "transfer.csv").write_text(text)
    write_transfer_facts(tmp_path, notes=["<script>alert(1)</script>"], command="<u>jpt</u>")
    page = _build(tmp_path)
    tags = [tag for tag, _ in PageReader(page).tags]
    assert not set(tags) & {"b", "i", "u"} and tags.count("script") == 1
    assert "&lt;b&gt;x&lt;/b&gt; &amp;" in page and "&lt;script&gt;" in page


@pytest.mark.usefixtures("no_figures")
def test_pairs_that_were_not_measured(tmp_path: Path) -> None:
    scores = SCORES.copy()
    scores[1, 0] = np.nan
    write_scores(tmp_path, scores)
    write_transfer_facts(tmp_path)
    page = _build(tmp_path)
    assert PageReader(page).tables["Score of each prompt on each task"][1][5] == "–"
    assert "1 pair of task and prompt were not measured" in page.replace("was", "were")
    assert "Gray: not measured" in page


def test_relative_scores_are_computed_where_the_file_is_missing(tmp_path: Path) -> None:
    write_scores(tmp_path)
    wanted = prepare(tmp_path)[0].relative
    (tmp_path / "relative.csv").unlink()
    found = prepare(tmp_path)[0]
    assert found.computed_relative and wanted is not None and found.relative is not None
    np.testing.assert_array_equal(found.relative.values, wanted.values)
    write_transfer_facts(tmp_path, targets={"imdb": {"task": "imdb", "in_task_prompt": None}})
    assert prepare(tmp_path)[0].relative is None
    assert "no target has an own prompt" in _build(tmp_path)


def test_one_prompt_only(tmp_path: Path) -> None:
    text = "target_task,source_prompt,metric,value\nimdb,imdb,accuracy,{}\n"
    (tmp_path / "transfer.csv").write_text(text.format(0.75))
    (tmp_path / "relative.csv").write_text(text.format(1.0))
    write_indicators(tmp_path, ("imdb",))
    page = _build(tmp_path)
    assert ">75.0</text>" in page and "1 prompt · 1 target task" in page


@pytest.mark.usefixtures("no_figures")
def test_constant_columns_are_said(tmp_path: Path) -> None:
    write_study(tmp_path)
    write_correlations(tmp_path, overlap=None)
    study = read_study(tmp_path)
    said = [line for line in notes(study, order_study(study)) if "constant" in line]
    assert any("neuron_overlap (own_out)" in line for line in said)
    page = _build(tmp_path)
    assert "is not defined" in page
    rows = PageReader(page).tables["Spearman's rho; the highest of each column is bold"]
    assert [row[2] for row in rows if row[0] == "ON, default layers"] == ["–"]


def test_notes_of_the_commands_are_shown(tmp_path: Path) -> None:
    write_study(tmp_path)
    note = "imdb (own_out): no Spearman with neuron_overlap: all sources score the same"
    files = ("correlation.json", "types.json", "transfer.json", "choice.json", "mask.json")
    for name in files:
        path = tmp_path / name
        path.write_text(json.dumps({**json.loads(path.read_text()), "notes": [note, name]}))
    study = read_study(tmp_path)
    said = notes(study, order_study(study))
    assert sorted(said) == sorted([note, *files])


def test_target_without_own_prompt_is_said(tmp_path: Path) -> None:
    write_scores(tmp_path)
    targets = {name: {"task": name, "in_task_prompt": name} for name in TASKS[:3]}
    write_transfer_facts(tmp_path, targets={**targets, "sst2": {"task": "sst2"}})
    study = read_study(tmp_path)
    assert "without own prompt: sst2." in " ".join(notes(study, order_study(study)))
    write_transfer_facts(tmp_path, targets=targets, notes=["sst2 has no prompt of its own: so"])
    study = read_study(tmp_path)
    assert len([line for line in notes(study, order_study(study)) if "sst2" in line]) == 1


def test_prompts_that_do_not_match_are_said(tmp_path: Path) -> None:
    write_scores(tmp_path)
    write_indicators(tmp_path, ("imdb", "other"))
    study = read_study(tmp_path)
    said = " ".join(notes(study, order_study(study)))
    assert "transfer.csv has prompts that indicators.csv has not: mnli, qnli, sst2" in said
    assert "indicators.csv has prompts that transfer.csv has not: other" in said


@pytest.mark.usefixtures("no_figures")
def test_settings_that_differ_are_told_apart(tmp_path: Path) -> None:
    for name in ("imdb", "sst2"):
        write_run(tmp_path / "prompts" / name, name)
    config = tmp_path / "prompts" / "imdb" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "seed": 4}))
    page = _build(tmp_path)
    assert "seed (3, 4)" in page and "length 20" in page


def test_wrong_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no study"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_page_that_cannot_be_written(tmp_path: Path) -> None:
    write_scores(tmp_path)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(InputError, match=r"report\.html"):
        write_report(tmp_path)


@pytest.mark.usefixtures("no_figures")
def test_analysis_reads_the_reference_matrices(reference_folder: Path, tmp_path: Path) -> None:
    for name in ("roberta-base", "t5-base"):
        source = reference_folder / "reference" / "transfer" / f"{name}.csv"
        (tmp_path / "transfer.csv").write_bytes(source.read_bytes())
        page = _build(tmp_path)
        assert "There is no relative.csv; relative scores are computed" in page
        assert "reaches 77%" in page or "reaches 83%" in page
        assert len(PageReader(page).tables["Score of each prompt on each task"]) >= 15
