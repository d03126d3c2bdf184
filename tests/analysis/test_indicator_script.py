"""One script prints every figure of the reference folder, with ON where there are weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import jpt
from tests.experiments_scripts import load_script
from tests.transfer.test_paper_script import write_roberta


def parts(told: str) -> dict[str, dict[str, list[str]]]:
    """Cells of each table by the name of its part and the first cell of the line."""
    found: dict[str, dict[str, list[str]]] = {}
    for part in told.split("## ")[1:]:
        lines = [line for line in part.splitlines() if line.startswith("| ")]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        found[part.split("\n")[0]] = {line[0]: line[1:] for line in cells}
    return found


def run(capsys: pytest.CaptureFixture[str], *options: object) -> str:
    load_script("paper/indicators.py").main([str(option) for option in options])
    return capsys.readouterr().out


def test_figures_equal_the_stored_ones(
    reference_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = reference_folder / "reference"
    found = parts(run(capsys, "--reference", reference))
    backbones = ["bert-base", "roberta-base", "roberta-large", "t5-base", "t5-small"]
    assert list(found) == [*backbones, "t5-xxl-qqp-snli-steps"]
    stored = json.loads((reference / "expected.json").read_text())
    for backbone, ending in (("roberta-base", "_skip0"), ("t5-base", "")):
        of = stored["backbones"][backbone]
        for name in ("euclidean_concat", "cosine_average"):
            cells = found[backbone][name]
            for place, part in ((0, "all__with_self"), (2, "all__without_self")):
                mean = of["spearman"][part][name + ending]["mean_over_targets"]
                assert float(cells[place]) == pytest.approx(mean, abs=6e-4)
            alike = of["similarity_by_type"][name + ending]
            means = [alike["same_type_mean"], alike["different_type_mean"]]
            assert [float(cell) for cell in cells[6:8]] == pytest.approx(means, abs=6e-5)
    bert = stored["backbones"]["bert-base"]["similarity_by_type"]["cosine_concat_skip0"]
    assert float(found["bert-base"]["cosine_concat"][0]) == pytest.approx(
        bert["same_type_mean"], abs=6e-5
    )
    matrix = reference / "transfer" / "roberta-large.csv"
    prompts = jpt.import_reference(reference / "prompts" / "roberta-large")
    judged = jpt.leave_one_out(jpt.compute_indicators(prompts), matrix).rankings["cosine_average"]
    cells = found["roberta-large"]["cosine_average"]
    assert cells[8] == f"{100 * judged.hits:.0f} %" and cells[9] == f"{100 * judged.regret:.1f}"
    steps = stored["t5_xxl_on_qqp_vs_snli"]
    for step, whole, top in zip(
        steps["steps"],
        steps["wi0"]["on_all_24_layers"],
        steps["wi0"]["on_layers_21_23"],
        strict=True,
    ):
        line = found["t5-xxl-qqp-snli-steps"][str(step)]
        np.testing.assert_allclose([float(cell) for cell in line], [whole, top], atol=6e-4)


def test_missing_folders_are_told(
    reference_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="has none of the folders"):
        run(capsys, "--reference", tmp_path)
    options = ("--reference", reference_folder / "reference", "--backbones", "t5-base")
    told = run(capsys, *options, "--weights", tmp_path)
    assert f"t5-base: no folder {tmp_path / 't5-base'}, so no ON" in told


@pytest.mark.slow
def test_weights_add_the_overlap(
    reference_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_roberta(tmp_path / "roberta-base", reference_folder)
    reference = reference_folder / "reference"
    options = ("--reference", reference, "--backbones", "roberta-base", "--weights", tmp_path)
    told = run(capsys, *options)
    prompts = jpt.import_reference(reference / "prompts" / "roberta-base")
    neurons = jpt.activated_neurons(prompts, backbone=tmp_path / "roberta-base")
    matrix = reference / "transfer" / "roberta-base.csv"
    found = jpt.correlate(jpt.compute_indicators(prompts, neurons), matrix)
    cells = parts(told)["roberta-base"]["neuron_overlap"]
    assert cells[2] == f"{found.excluding_in_task['neuron_overlap'].mean_over_targets:.3f}"
    lead = found.leads["excluding_in_task"]
    assert f"neuron_overlap less {lead.best} (own_out): {lead.over[lead.best].mean:.3f}" in told
