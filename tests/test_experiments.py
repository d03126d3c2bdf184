"""Scripts of experiments/: the torch comparison, paper tables and interrupted runs."""

import csv
import dataclasses
import importlib
import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jpt
from jpt.backbones.registry import FAMILIES
from jpt.io.tensors import write_safetensors
from jpt.io.tokenizer import load_tokenizer
from jpt.testing import write_tiny_backbone
from tests.conftest import ROOT
from tests.helpers.running import load_script
from tests.helpers.toys import write_task

FOLDER = ROOT / "experiments" / "benchmarks" / "against_torch"
KINDS = ("bert", "roberta", "t5", "gpt2", "llama")
STEPS = 6


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("worker", "rows", "torch_models"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("worker")


def test_operations_are_those_of_the_products(worker: ModuleType) -> None:
    left, right = jnp.ones((3, 5)), jnp.ones((7, 5, 5))

    def chain(rows: jax.Array, matrices: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda rows, matrix: (rows @ matrix, None), rows, matrices)[0].sum()

    one = 2 * 3 * 5 * 5
    assert worker.count_flops(jax.make_jaxpr(jax.jit(chain))(left, right).jaxpr) == 7 * one
    back = jax.make_jaxpr(jax.jit(jax.grad(chain)))(left, right).jaxpr
    assert worker.count_flops(back) == 2 * 7 * one  # gradients of the rows alone


def describe(kind: str, folder: Path) -> dict[str, Any]:
    options = {"steps": STEPS, "batch_size": 4, "learning_rate": 1e-2, "length": 5}
    if kind not in ("bert", "roberta"):
        options |= {"objective": "vocabulary", "label_scoring": "first_token"}
    return {
        "model": str(write_tiny_backbone(folder / "model", kind)),
        **{"task": str(write_task(folder / "task")), "data": None, "folder": str(folder)},
        **{"device": "cpu", "options": options},
    }


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS)
def test_both_sides_have_the_same_losses(kind: str, worker: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    case = describe(kind, tmp_path)
    ours = worker.do(worker.jpt_side(case), {"steps": range(STEPS)})["losses"]
    assert max(ours) - min(ours) > 1e-3  # it moves
    for side in ("plain", "tuned") if kind in ("bert", "roberta") else ("peft",):
        other = worker.torch_side({**case, "side": side})
        found = worker.do(other, {"steps": range(STEPS), "flops": True})
        np.testing.assert_allclose(found["losses"], ours, rtol=2e-5)
        assert found["flops"] > 0


def test_the_table_says_what_was_expected_and_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    results = json.loads((FOLDER / "results.json").read_text())["cases"]
    page = importlib.import_module("table").page(results)
    assert page == (FOLDER / "RESULTS.md").read_text()
    lines = [line for lines in results.values() for line in lines]
    assert {"name", "jpt", "torch", "ratio", "expected"} <= set.intersection(*map(set, lines))
    for line in lines:
        assert f"| {line['name']} | {line['jpt']} {line['unit']} |" in page
        low, high = line["spread"]
        assert low <= line["ratio"] <= high


ROWS = 3


def write_roberta(folder: Path, reference: Path) -> Path:
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
    params = jax.tree.map(lambda x: random.normal(0, 0.05, x.shape).astype(np.float32), shapes)
    write_safetensors(folder / "model.safetensors", family.weights.write(params, shape))
    return folder


@pytest.fixture(scope="module")
def weights(reference_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("weights")
    write_roberta(root / "roberta-base", reference_folder)
    return root


@pytest.fixture(scope="module")
def data(reference_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
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


@pytest.mark.long
def test_published_figures_beside_ours(reference_folder, weights, data, tmp_path, capsys) -> None:
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
    mean = float(told.split("over 30 pairs with one metric: ")[1])
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


TORTURE_SCRIPT_FOLDER = ROOT / "experiments" / "reliability"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(TORTURE_SCRIPT_FOLDER))
    yield importlib.import_module("torture")
    for name in ("torture", "killing", "victims"):
        sys.modules.pop(name, None)


def write_run(folder: Path, checkpoints: tuple[int, ...] = (15, 20), **fields: Any) -> Path:
    files = {
        **{"prompt.safetensors": "best", "last.safetensors": "last", "config.json": '{"seed": 0}'},
        "result.json": json.dumps({"validation": {"accuracy": 0.5}, "elapsed_s": 3.0} | fields),
        "metrics.jsonl": '{"step": 10, "loss": 0.5, "elapsed_s": 1.0}\n{"step": 20, "loss": 0.4}\n',
    }
    for number, step in enumerate(checkpoints):
        files[f"checkpoints/{step}/state/d/{number + len(folder.name):032x}"] = str(step)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def differences(script: ModuleType, path: Path) -> list[str]:
    return list(script.find_differences(script.tuning(20), path / "whole", path / "killed"))


def test_clocks_and_moments_of_saves_are_no_differences(script: ModuleType, tmp_path: Path) -> None:
    write_run(tmp_path / "whole")
    write_run(tmp_path / "killed", checkpoints=(17, 20), elapsed_s=9.0)
    assert differences(script, tmp_path) == []


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("last.safetensors", "lasT", "./last.safetensors differs"),
        ("prompt.safetensors", None, "prompt.safetensors: is missing"),
        ("metrics.jsonl", '{"step": 10, "loss": 0.5}\n', "./metrics.jsonl differs"),
        ("result.json", '{"validation": {"accuracy": 0.6}}', "./result.json differs"),
        (".lock", "", ".lock: should not be there"),
        ("checkpoints/25.tmp/state", "", "checkpoints/25.tmp/: should not be there"),
        (".jpt-0.tmp", "", ".jpt-0.tmp: should not be there"),
    ],
)
def test_a_difference_is_told(script, tmp_path, name, text, said) -> None:
    write_run(tmp_path / "whole")
    path = write_run(tmp_path / "killed") / name
    if text is None:
        path.unlink()
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert said in differences(script, tmp_path)


def test_lines_done_again_are_a_loss(script: ModuleType, tmp_path: Path) -> None:
    kind, out = script.tuning(20), tmp_path / "run"
    write_run(out, checkpoints=(10,))
    (out / "result.json").unlink()
    checkpoints = script.Checkpoints(kind, out)
    before = checkpoints.reached()
    kept = script.kept_lines(kind, out, before)
    assert before == {0: 10.0} and [line["step"] for line in kept["."]] == [10]
    log = out / "metrics.jsonl"
    log.write_text(log.read_text().splitlines()[0] + '\n{"step": 20, "loss": 0.3}\n')
    assert script.find_losses(kind, out, checkpoints, before, kept) == []
    log.write_text(log.read_text().replace('"elapsed_s": 1.0', '"elapsed_s": 1.5'))
    assert "lost lines" in script.find_losses(kind, out, checkpoints, before, kept)[0]
    (out / "checkpoints" / "10").rename(out / "checkpoints" / "5")
    assert "went from 10.0 back to 5.0" in script.find_losses(kind, out, checkpoints, before, {})[0]


def test_kills_have_their_shares_and_take_turns(script: ModuleType) -> None:
    kills, again, other = (script.plan_kills(50, random.Random(seed)) for seed in (3, 3, 4))
    assert kills == again != other
    phases = Counter(kill.phase for kill in kills)
    assert phases == {"start": 5, "steps": 20, "save": 15, "results": 10}
    for phase, count in phases.items():
        killed = sum(kill.phase == phase and kill.signal.name == "SIGKILL" for kill in kills)
        assert abs(2 * killed - count) <= 1
    assert len(script.plan_kills(2, random.Random(0))) == 2


@pytest.mark.long
def test_two_kills_of_each_kind(tmp_path: Path) -> None:
    command = [sys.executable, str(TORTURE_SCRIPT_FOLDER / "torture.py"), "--out"]
    command += [str(tmp_path / "out"), "--kills", "2", "--steps", "60"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    record = json.loads((tmp_path / "out" / "torture.json").read_text())
    for name in ("tune", "sweep"):
        assert sum(record[name]["kills"].values()) == 2 and record[name]["wrong"] == []
        assert record[name]["starts"] > 2
    assert "2 kills of" in ended.stdout


def parts(told: str) -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = {}
    for part in told.split("## ")[1:]:
        lines = [line for line in part.splitlines() if line.startswith("| ")]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        found[part.split("\n")[0]] = {line[0]: line[1:] for line in cells}
    return found


def indicator_script_run(capsys: pytest.CaptureFixture[str], *options: object) -> str:
    load_script("paper/indicators.py").main([str(option) for option in options])
    return capsys.readouterr().out


def test_figures_equal_the_stored_ones(reference_folder, capsys) -> None:
    reference = reference_folder / "reference"
    found = parts(indicator_script_run(capsys, "--reference", reference))
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
    given = float(found["bert-base"]["cosine_concat"][0])
    assert given == pytest.approx(bert["same_type_mean"], abs=6e-5)
    matrix = reference / "transfer" / "roberta-large.csv"
    prompts = jpt.import_reference(reference / "prompts" / "roberta-large")
    judged = jpt.leave_one_out(jpt.compute_indicators(prompts), matrix).rankings["cosine_average"]
    cells = found["roberta-large"]["cosine_average"]
    assert cells[8] == f"{100 * judged.hits:.0f} %" and cells[9] == f"{100 * judged.regret:.1f}"
    steps = stored["t5_xxl_on_qqp_vs_snli"]
    overlaps = [steps["wi0"][name] for name in ("on_all_24_layers", "on_layers_21_23")]
    for step, whole, top in zip(steps["steps"], *overlaps, strict=True):
        line = found["t5-xxl-qqp-snli-steps"][str(step)]
        np.testing.assert_allclose([float(cell) for cell in line], [whole, top], atol=6e-4)


def test_missing_folders_are_told(reference_folder, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit, match="contains none of the folders"):
        indicator_script_run(capsys, "--reference", tmp_path)
    options = ("--reference", reference_folder / "reference", "--backbones", "t5-base")
    told = indicator_script_run(capsys, *options, "--weights", tmp_path)
    assert f"t5-base: no folder {tmp_path / 't5-base'}, ON skipped" in told


@pytest.mark.slow
def test_weights_add_the_overlap(reference_folder, tmp_path, capsys) -> None:
    write_roberta(tmp_path / "roberta-base", reference_folder)
    reference = reference_folder / "reference"
    options = ("--reference", reference, "--backbones", "roberta-base", "--weights", tmp_path)
    told = indicator_script_run(capsys, *options)
    prompts = jpt.import_reference(reference / "prompts" / "roberta-base")
    neurons = jpt.activated_neurons(prompts, backbone=tmp_path / "roberta-base")
    matrix = reference / "transfer" / "roberta-base.csv"
    found = jpt.correlate(jpt.compute_indicators(prompts, neurons), matrix)
    cells = parts(told)["roberta-base"]["neuron_overlap"]
    assert cells[2] == f"{found.excluding_in_task['neuron_overlap'].mean_over_targets:.3f}"
    lead = found.leads["excluding_in_task"]
    mean = f"{lead.over[lead.best].mean:.3f}"
    assert f"neuron_overlap minus {lead.best} (excluding_in_task): {mean}" in told
