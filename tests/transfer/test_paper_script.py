"""The authors' prompts on a model of real shape: their figures stand beside what evaluate gives."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jpt
from jpt.backbones.registry import FAMILIES
from jpt.io.tensors import write_safetensors
from jpt.io.tokenizer import load_tokenizer
from tests.experiments_scripts import load_script

ROWS = 3


def write_roberta(folder: Path, reference: Path) -> Path:
    """A roberta-base of two layers with random weights and the real vocabulary."""
    shutil.copytree(reference / "tokenizers" / "roberta-base", folder)
    config = json.loads((reference / "configs" / "roberta-base.json").read_text())
    config["num_hidden_layers"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    family = FAMILIES["roberta"]
    shape, ids = family.config(config), load_tokenizer(folder, family.special_tokens).ids
    module = family.module(shape, ids, jnp.dtype("float32"), 0.0, "dots")
    tokens, lengths = jnp.ones((1, 3), jnp.int32), jnp.array([3])
    shapes = jax.eval_shape(module.init, jax.random.key(0), tokens, lengths)["params"]
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: random.normal(0, 0.05, leaf.shape).astype(np.float32), shapes
    )
    write_safetensors(folder / "model.safetensors", family.weights.write(params, shape))
    return folder


@pytest.fixture(scope="module")
def weights(reference_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("weights")
    write_roberta(root / "roberta-base", reference_folder)
    return root


@pytest.fixture(scope="module")
def data(reference_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first rows of two tasks."""
    root = tmp_path_factory.mktemp("data")
    for task in ("sst2", "deontology"):
        (root / task).mkdir()
        lines = (reference_folder / "data" / task / "test.jsonl").read_text().splitlines()[:ROWS]
        (root / task / "test.jsonl").write_text("\n".join(lines) + "\n")
    return root


def run(weights: Path, data: Path, reference: Path, out: Path, *more: str) -> None:
    script = load_script("paper/transfer.py")
    options = ["--reference", reference / "reference", "--weights", weights, "--data", data]
    script.main([*map(str, [*options, "--out", out]), "--eval-batch-size", "4", *more])


@pytest.mark.slow
def test_published_figures_beside_ours(
    reference_folder: Path, weights: Path, data: Path, tmp_path: Path, capsys
) -> None:
    run(weights, data, reference_folder, tmp_path, "--backbones", "roberta-base")
    told = capsys.readouterr().out
    lines = [line for line in told.splitlines() if line.startswith("| ")][1:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    with (reference_folder / "reference" / "transfer" / "roberta-base.csv").open() as file:
        published = {
            (row["target_task"], row["source_prompt"]): f"{float(row['value']):.4f}"
            for row in csv.DictReader(file)
            if row["target_task"] in ("sst2", "ethicsdeontology")
        }
    assert {(cell[0], cell[1]): cell[3] for cell in cells} == published
    assert len(cells) == 2 * 15  # the random prompt among them
    model = jpt.load_backbone(weights / "roberta-base")
    prompts = jpt.import_reference(reference_folder / "reference" / "prompts" / "roberta-base")
    tasks = {name: jpt.load_task(name, data / name) for name in ("sst2", "deontology")}
    words = {**tasks["deontology"].label_words, "roberta": {"unreasonable": " la"}}
    tasks["deontology"] = dataclasses.replace(tasks["deontology"], label_words=words)
    assert model.tokenizer.word_tokens(" la") == [897]
    given = load_script("paper/transfer.py").task_as_released("deontology", data, " la")
    assert given.words("roberta") == tasks["deontology"].words("roberta")
    ours = {(cell[0], cell[1]): float(cell[5]) for cell in cells}
    names = {"sst2": "sst2", "ethicsdeontology": "deontology"}
    options = {"backbone": model, "max_tokens": 130, "eval_batch_size": 4}
    for target, source in [("sst2", "imdb"), ("ethicsdeontology", "qqp"), ("sst2", "random")]:
        score = jpt.evaluate(prompts[source], tasks[names[target]], **options)
        assert score.rows == ROWS
        assert ours[target, source] == pytest.approx(score.value, abs=5e-5)
    differences = [abs(float(cell[5]) - float(cell[3])) for cell in cells]
    mean = float(told.split("over 30 pairs of one measure: ")[1])
    assert mean == pytest.approx(np.mean(differences), abs=1e-4)


@pytest.mark.slow
def test_only_what_was_asked_for(reference_folder, weights, data, tmp_path, capsys) -> None:
    run(weights, data, reference_folder, tmp_path, "--tasks", "sst2")
    told = capsys.readouterr().out
    assert "roberta-large: no folder" in told and told.count("| sst2 |") >= 15
    assert "ethicsdeontology | " not in "".join(
        line.split("|")[1] + "| " for line in told.splitlines() if line.startswith("| ")
    )
    with pytest.raises(SystemExit, match="has no folder of"):
        run(weights, tmp_path, reference_folder, tmp_path, "--backbones", "roberta-base")
