"""Performance above chance and standard errors, through the commands and compared with loops."""

import csv
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jpt
from jpt.prompts.store import save_prompt
from jpt.results.prompt_table import (
    at_chance,
    chance_notes,
    performance_above_chance,
    read_scores,
    relative_performance,
    write_transfer,
)
from jpt.results.statistics import error_over_seeds
from jpt.testing import write_tiny_backbone
from jpt.types import Prompt, PromptCard, TransferMatrix
from tests.helpers.running import raises
from tests.helpers.toys import json_lines, write_task

pytestmark = pytest.mark.plain_programs

ROWS, OPTIONS = 200, ("--max-tokens", 10)
WORDS = "a the film is was good bad dull bright fine great lovely poor awful boring".split()
# Label words between which the tiny model is undecided, so that its predictions vary.
TOML = (
    'name = "{name}"\ntype = "{type}"\nfields = ["text"]\nlabels = ["bad", "good"]\n'
    'template = "{{text}}"\nmetric = "{metric}"\n[label_words]\nbad = "a"\ngood = "good"\n'
)
# Every task has the rows of the first; their labels are its prompt's predictions, flipped for a
# share of the rows.
METRICS = {"mood": "accuracy", "macro": "f1_macro", "mcc": "matthews", "positive": "f1"}
FLIPPED = {"mood": 0.1, "macro": 0.2, "mcc": 0.15, "positive": 0.2, "noise": 0.5}
TYPES = {"mood": "x", "macro": "x", "mcc": "y", "positive": "y", "noise": "x"}


class Study:
    """Tasks of several metrics, in-task prompts for all of them, and their predictions."""

    def __init__(self, root: Path) -> None:
        self.root, self.prompts, self.out = root, root / "prompts", root / "out"
        self.model = write_tiny_backbone(root / "model", "bert")
        rng = np.random.default_rng(0)
        texts = [" ".join(rng.choice(WORDS, 6)) for _ in range(ROWS)]
        self.predictions: dict[str, Any] = {}
        self.labels: dict[str, Any] = {}
        for seed, name in enumerate(("first", "second")):
            values = np.random.default_rng(seed).normal(0, 0.5, (3, 32)).astype(np.float32)
            self.predictions[name] = self._predict(values, texts)
            for task in TYPES if seed == 0 else ("second",):
                card = PromptCard(str(self.model), task, TYPES.get(task, "y"))
                self.prompts.mkdir(exist_ok=True)
                save_prompt(self.prompts / f"{task}.safetensors", Prompt(values, card))
        for task, share in FLIPPED.items():
            flips = rng.permutation(ROWS) < share * ROWS
            self.labels[task] = self.predictions["first"] ^ flips
            self._write(task, texts)

    def _predict(self, values: np.ndarray, texts: list[str]) -> np.ndarray:
        self.labels["draft"] = np.zeros(ROWS, int)
        task = self._write("draft", texts)
        prompt = Prompt(values, PromptCard(str(self.model), "draft"))
        return jpt.evaluate(prompt, task, max_tokens=10).predictions

    def _write(self, name: str, texts: list[str]) -> Path:
        labels = [("bad", "good")[label] for label in self.labels[name]]
        rows = [{"text": t, "label": label} for t, label in zip(texts, labels, strict=True)]
        metric = METRICS.get(name, "accuracy")
        toml = TOML.format(name=name, type=TYPES.get(name, "x"), metric=metric)
        splits = dict.fromkeys(("train", "validation", "test"), json_lines(rows))
        return write_task(self.root / name, toml=toml, **splits)


def measure(metric: str, predicted: np.ndarray, true: np.ndarray) -> float:
    """Compute a metric of two classes from its definition."""
    pairs = Counter(zip(predicted.tolist(), true.tolist(), strict=True))
    tp, fp, fn, tn = (pairs[pair] for pair in ((1, 1), (1, 0), (0, 1), (0, 0)))
    if metric == "accuracy":
        return (tp + tn) / len(true)
    if metric == "matthews":
        spread = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        return (tp * tn - fp * fn) / math.sqrt(spread) if spread else 0.0
    positive = 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0
    negative = 2 * tn / (2 * tn + fp + fn) if tn + fp + fn else 0.0
    return positive if metric == "f1" else (positive + negative) / 2


def resampled_error(metric: str, predicted: np.ndarray, true: np.ndarray) -> float:
    rng = np.random.default_rng(1)
    samples = (rng.integers(0, len(true), len(true)) for _ in range(2000))
    return float(np.std([measure(metric, predicted[rows], true[rows]) for rows in samples]))


def read_cells(path: Path) -> dict[tuple[str, str], float]:
    """Read a matrix as a dictionary; an empty cell is NaN."""
    with path.open() as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["target_task", "source_prompt", "metric", "value"]
    return {
        (line["target_task"], line["source_prompt"]): float(line["value"] or "nan")
        for line in lines
    }


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("above"))


def transfer(run: Callable[..., Any], study: Study, out: Path, *tasks: str, **options: Any) -> str:
    words = [study.root / task for task in tasks or TYPES]
    prompts = options.get("prompts", study.prompts)
    command = ("transfer", "--prompts", prompts, "--tasks", ",".join(map(str, words)))
    code, stdout, stderr = run(*command, "--out", out, *OPTIONS)
    assert code == 0, stderr
    return stdout


@pytest.fixture
def text(run: Callable[..., Any], study: Study) -> str:
    return transfer(run, study, study.out)  # the second time from its cells


# --- jpt transfer


def test_chance_and_standard_errors_of_every_metric(text: str, study: Study) -> None:
    targets = json.loads((study.out / "transfer.json").read_text())["targets"]
    scores = read_cells(study.out / "transfer.csv")
    errors = read_cells(study.out / "standard_errors.csv")
    assert set(errors) == set(scores)
    for task, true in ((task, study.labels[task]) for task in TYPES):
        metric = METRICS.get(task, "accuracy")
        constant = [measure(metric, np.full(ROWS, answer), true) for answer in (0, 1)]
        assert targets[task]["chance"] == pytest.approx(max(constant), abs=1e-12)
        for prompt, predictions in (("mood", "first"), ("second", "second")):
            predicted = study.predictions[predictions]
            value = measure(metric, predicted, true)
            assert scores[task, prompt] == pytest.approx(value, abs=1e-12)
            error = errors[task, prompt]
            assert targets[task]["standard_errors"][prompt] == error
            if metric == "accuracy":
                assert error == pytest.approx(math.sqrt(value * (1 - value) / ROWS), abs=1e-12)
            else:
                assert error == pytest.approx(resampled_error(metric, predicted, true), rel=0.1)
    assert targets["mcc"]["chance"] == 0


def test_scores_above_chance_are_blank_near_chance(text: str, study: Study) -> None:
    record = json.loads((study.out / "transfer.json").read_text())
    scores = read_cells(study.out / "transfer.csv")
    above = read_cells(study.out / "above_chance.csv")
    relative = read_cells(study.out / "relative.csv")
    assert set(above) == set(scores) == set(relative)
    for (task, prompt), value in scores.items():
        chance = record["targets"][task]["chance"]
        lead = scores[task, task] - chance
        assert relative[task, prompt] == value / scores[task, task]
        if task == "noise":
            assert lead <= 2 * record["targets"][task]["standard_errors"][task]
            assert math.isnan(above[task, prompt])
        else:
            assert above[task, prompt] == pytest.approx((value - chance) / lead, abs=1e-12)
    assert above["mood", "mood"] == 1
    notes = [note for note in record["notes"] if "chance" in note]
    assert [note.split(":")[0] for note in notes] == ["noise"]
    for pair in (("noise", "second"), ("noise", "random")):
        assert f"{pair[0]},{pair[1]},accuracy,\n" in (study.out / "above_chance.csv").read_text()


def test_both_relative_scores_are_in_record_and_text(text: str, study: Study) -> None:
    record = json.loads((study.out / "transfer.json").read_text())
    files = {"above_chance": "above_chance.csv", "relative": "relative.csv"}
    for measure_, name in files.items():
        cells = read_cells(study.out / name)
        same, other = [], []
        for (task, prompt), value in cells.items():
            if prompt in ("random", "none", task) or math.isnan(value):
                continue
            is_same = TYPES[task] == TYPES.get(prompt, "y")
            (same if is_same else other).append(value)
        means = record[f"{measure_}_transfer"]
        assert means["same_type_mean"] == pytest.approx(np.mean(same), abs=1e-12)
        assert means["different_type_mean"] == pytest.approx(np.mean(other), abs=1e-12)
        random = np.nanmean([cells[task, "random"] for task in TYPES])
        assert means["random_mean"] == pytest.approx(random, abs=1e-12)
        label = {"above_chance": "above chance", "relative": "as in the paper"}[measure_]
        (line,) = [line for line in text.splitlines() if line.startswith(f"{label}  ")]
        shown = [float(cell) for cell in line.removeprefix(label).split()]
        expected = [means[f"{n}_mean"] for n in ("same_type", "different_type", "random")]
        assert shown[:3] == pytest.approx(expected, abs=6e-4)
        assert f"by task type, {label}" in text
    assert "~ within one standard error of chance" in text
    assert max(map(len, text.splitlines())) <= 80


def test_cells_at_chance_are_marked(text: str, study: Study) -> None:
    matrix = read_scores(study.out / "transfer.csv")
    targets = json.loads((study.out / "transfer.json").read_text())["targets"]
    lines = [line for line in text.splitlines() if not line.startswith(" ")]
    blocks = [line.split() for line in lines if line.split()[0] in TYPES]
    shown = {task: [] for task in TYPES}
    for name, *cells in blocks[: len(TYPES) * 3]:
        shown[name] += cells
    for row, task in enumerate(matrix.targets):
        for column, prompt in enumerate(matrix.prompts):
            value, of = matrix.values[row, column], targets[task]
            near = abs(value - of["chance"]) <= of["standard_errors"][prompt]
            assert shown[task][column] == f"{value:.3f}{'*' * (task == prompt)}{'~' * bool(near)}"
            assert at_chance(matrix)[row, column] == near
        assert float(shown[task][len(matrix.prompts)]) == pytest.approx(of["chance"], abs=6e-4)


def test_in_python(text: str, study: Study) -> None:
    tasks = [study.root / task for task in TYPES]
    found = jpt.transfer_matrix(study.prompts, tasks, study.out, max_tokens=10)
    assert found.scores == {}, "read from its cells"
    cells = read_cells(study.out / "above_chance.csv")
    values = [[cells[t, p] for p in found.matrix.prompts] for t in found.matrix.targets]
    np.testing.assert_array_equal(found.above_chance.values, values)
    matrix = jpt.read_transfer(study.out / "transfer.csv")
    np.testing.assert_array_equal(matrix.chance, found.matrix.chance)
    np.testing.assert_array_equal(matrix.errors, found.matrix.errors)
    score = jpt.evaluate(
        jpt.load_prompt(study.prompts / "macro.safetensors"), tasks[1], max_tokens=10
    )
    assert score.chance == found.record["targets"]["macro"]["chance"]
    assert score.standard_error == found.record["targets"]["macro"]["standard_errors"]["macro"]


def test_several_seeds(run: Callable[..., Any], study: Study, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts"
    for seed, name in enumerate(("mood", "second")):
        found = jpt.load_prompt(study.prompts / f"{name}.safetensors")
        card = PromptCard(str(study.model), "mood", "x", seed=seed)
        folder = prompts / "mood" / f"seed-{seed}"
        folder.mkdir(parents=True)
        save_prompt(folder / "prompt.safetensors", Prompt(found.values, card))
    transfer(run, study, tmp_path / "out", "mood", prompts=prompts)
    true = study.labels["mood"]
    values = [float(np.mean(study.predictions[n] == true)) for n in ("first", "second")]
    rows = np.mean([value * (1 - value) / ROWS for value in values])
    error = math.sqrt(rows + np.var(values, ddof=1) / 2)
    assert read_cells(tmp_path / "out" / "standard_errors.csv")["mood", "mood"] == pytest.approx(
        error, abs=1e-12
    )
    # An older record has the scores of the seeds, but no errors.
    path = tmp_path / "out" / "transfer.json"
    path.write_text(json.dumps(as_older(json.loads(path.read_text()))))
    matrix = read_scores(tmp_path / "out" / "transfer.csv")
    assert matrix.errors is not None and matrix.errors[0, 0] == pytest.approx(error, abs=1e-12)


@pytest.mark.slow
def test_generated_answers(run: Callable[..., Any], tmp_path: Path) -> None:
    model = write_tiny_backbone(tmp_path / "model", "t5")
    toml = (
        'name = "echo"\ntype = "copy"\nfields = ["text"]\ntemplate = "{text}"\n'
        'answer = "word"\nanswer_tokens = 4\nmetric = "token_f1"\n'
    )
    prompt = np.random.default_rng(0).normal(0, 0.5, (3, 32)).astype(np.float32)
    rows = [{"text": f"{word} film", "word": word} for word in WORDS[:8]]
    task = write_task(tmp_path / "echo", toml=toml, **dict.fromkeys(SPLITS, json_lines(rows)))
    card = PromptCard(str(model), "echo", "copy", "encoder_decoder")
    answers = [row.prediction for row in jpt.evaluate(Prompt(prompt, card), task).generated]
    # Half of the rows ask for what the model generates.
    rows = [
        {"text": f"{word} film", "word": answers[number] if number % 2 else word}
        for number, word in enumerate(WORDS[:8])
    ]
    write_task(task, toml=toml, **dict.fromkeys(SPLITS, json_lines(rows)))
    save_prompt(tmp_path / "prompts.safetensors", Prompt(prompt, card))
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts.safetensors").rename(tmp_path / "prompts" / "echo.safetensors")
    command = ("transfer", "--prompts", tmp_path / "prompts", "--tasks", task, "--no-random")
    code, _, stderr = run(*command, "--no-untouched", "--out", tmp_path / "out")
    assert code == 0, stderr
    by_row = [float(a == row["word"]) for a, row in zip(answers, rows, strict=True)]
    (target,) = json.loads((tmp_path / "out" / "transfer.json").read_text())["targets"].values()
    assert target["chance"] == 0 and target["majority"] is None
    error = target["standard_errors"]["echo"]
    assert error == pytest.approx(np.std(by_row) / math.sqrt(len(by_row)), rel=0.1)
    above = read_cells(tmp_path / "out" / "above_chance.csv")
    relative = read_cells(tmp_path / "out" / "relative.csv")
    assert above == relative, "chance is 0"


# --- Other commands


def test_masked_scores_above_chance(run: Callable[..., Any], study: Study, tmp_path: Path) -> None:
    tasks = ",".join(str(study.root / task) for task in ("mood", "mcc", "noise"))
    command = ("mask", "--prompts", study.prompts, "--tasks", tasks, "--random-draws", 1)
    options = ("--kinds", "in_task,random", *OPTIONS)
    code, stdout, stderr = run(*command, "--out", tmp_path, *options)
    assert code == 0, stderr
    record = json.loads((tmp_path / "mask.json").read_text())
    means = {"relative": [], "above_chance": []}
    for task, target in record["targets"].items():
        metric, true = METRICS.get(task, "accuracy"), study.labels[task]
        whole = measure(metric, study.predictions["first"], true)
        chance = max(measure(metric, np.full(ROWS, answer), true) for answer in (0, 1))
        assert (target["unmasked"], target["chance"]) == pytest.approx((whole, chance), abs=1e-12)
        masked = target["masks"]["in_task"]
        assert masked["relative"] == masked["value"] / whole
        means["relative"].append(masked["relative"])
        if task == "noise":
            assert masked["above_chance"] is None
            continue
        above = (masked["value"] - chance) / (whole - chance)
        assert masked["above_chance"] == pytest.approx(above, abs=1e-12)
        means["above_chance"].append(above)
    for name, values in means.items():
        assert record[f"{name}_by_kind"]["in_task"] == pytest.approx(np.mean(values), abs=1e-12)
    assert "Mean score above chance relative to the unmasked score" in stdout
    assert "Mean score relative to the unmasked score" in stdout
    assert any(note.startswith("noise: unmasked score not more") for note in record["notes"])
    code, stdout, stderr = run("report", tmp_path)
    mean = f"leaves {100 * np.mean(means['above_chance']):.0f}% of the score above chance"
    assert code == 0 and mean in stdout, stderr


def test_correlations_with_ties(
    run: Callable[..., Any], text: str, study: Study, tmp_path: Path
) -> None:
    files = ("--prompts", study.prompts, "--transfer", study.out / "transfer.csv")
    code, stdout, stderr = run("indicators", *files, "--out", tmp_path, "--json")
    assert code == 0, stderr
    record = json.loads(stdout.splitlines()[-1])
    stored = json.loads((tmp_path / "correlation.json").read_text())
    for part in ("including_in_task_tied", "excluding_in_task_tied"):
        assert record[part] == stored[part] and set(stored[part]) == set(record[part[:-5]])
    types = json.loads((tmp_path / "types.json").read_text())
    whole = json.loads((study.out / "transfer.json").read_text())
    assert types["above_chance_by_type"] == whole["above_chance_by_type"]


SPLITS = ("train", "validation", "test")

# --- Files of older versions


def as_older(record: dict[str, Any]) -> dict[str, Any]:
    for target in record["targets"].values():
        del target["chance"], target["standard_errors"]
    kept = ("above_chance_transfer", "above_chance_by_type")
    return {name: value for name, value in record.items() if name not in kept}


@pytest.fixture
def older(text: str, study: Study, tmp_path: Path) -> Path:
    folder = tmp_path / "older"
    shutil.copytree(study.out, folder)
    shutil.copytree(study.prompts, folder / "prompts")
    for name in ("above_chance.csv", "standard_errors.csv"):
        (folder / name).unlink()
    record = as_older(json.loads((folder / "transfer.json").read_text()))
    (folder / "transfer.json").write_text(json.dumps(record))
    lines = [json.loads(line) for line in (folder / "cells.jsonl").read_text().splitlines()]
    for line in lines:
        del line["chance"], line["standard_error"]
    (folder / "cells.jsonl").write_text(json_lines(lines))
    return folder


def test_an_older_study_is_read(run: Callable[..., Any], study: Study, older: Path) -> None:
    matrix, new = read_scores(older / "transfer.csv"), read_scores(study.out / "transfer.csv")
    assert matrix.chance is not None and new.chance is not None
    for row, metric in enumerate(matrix.metrics):
        known = metric == "accuracy"
        np.testing.assert_array_equal(matrix.chance[row], new.chance[row] if known else np.nan)
        found, wanted = matrix.errors[row], new.errors[row]
        np.testing.assert_allclose(found, wanted if known else np.full_like(wanted, np.nan))
    in_task = {task: task for task in TYPES}
    notes = chance_notes(matrix, in_task)
    unknown = "macro: chance level or standard error of its f1_macro is unknown"
    assert any(unknown in note for note in notes)
    code, stdout, stderr = run("report", older)
    assert code == 0, stderr
    assert "Above chance, zero-shot transfer reaches" in stdout
    command = ("indicators", "--prompts", older / "prompts", "--transfer", older / "transfer.csv")
    code, stdout, stderr = run(*command, "--out", older)
    assert code == 0 and "tied" in stdout, stderr


def test_older_cells_are_completed_or_scored_again(
    run: Callable[..., Any], study: Study, older: Path
) -> None:
    before = (older / "cells.jsonl").read_text().splitlines()
    transfer(run, study, older)
    again = [json.loads(line) for line in (older / "cells.jsonl").read_text().splitlines()]
    scored = {line["target_task"] for line in again[len(before) :]}
    assert scored == {"macro", "mcc", "positive"}, "for accuracy, rows and majority are enough"
    for name in ("above_chance.csv", "standard_errors.csv"):
        assert read_cells(older / name) == pytest.approx(read_cells(study.out / name), nan_ok=True)


def test_a_matrix_without_record_has_no_chance(run, study: Study, text: str, tmp_path) -> None:
    shutil.copy(study.out / "transfer.csv", tmp_path)
    matrix = read_scores(tmp_path / "transfer.csv")
    assert matrix.chance is None and not at_chance(matrix).any()
    assert np.isnan(performance_above_chance(matrix).values).all()
    assert np.isfinite(relative_performance(matrix).values).all()
    assert chance_notes(matrix, {"mood": "mood"}) == []
    code, stdout, _ = run("report", tmp_path)
    assert code == 0 and "chance" not in stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chance": "high"}, "expected a number from -1 to 1 at targets.mood.chance, got 'high'"),
        ({"chance": 2}, "at targets.mood.chance, got 2; regenerate it with jpt transfer"),
        ({"chance": 0.5, "standard_errors": {"mood": -1}}, "standard_errors.mood, got -1"),
    ],
)
def test_invalid_records(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    matrix = TransferMatrix(("mood",), ("mood",), np.array([[0.7]]), ("accuracy",))
    write_transfer(tmp_path / "transfer.csv", matrix)
    (tmp_path / "transfer.json").write_text(json.dumps({"targets": {"mood": change}}))
    raises(jpt.read_transfer, tmp_path / "transfer.csv", match=message)


# --- Numbers


def test_the_formula_and_its_limits() -> None:
    targets = ("clear", "near", "below", "unknown", "without")
    prompts = (*targets[:4], "other")
    scores = np.full((5, 5), 0.6)
    scores[[0, 1, 2, 3], [0, 1, 2, 3]] = 0.8, 0.625, 0.25, 0.8
    errors = np.full((5, 5), 0.0625)
    errors[3, 3] = np.nan
    chance = np.full(5, 0.5)
    matrix = TransferMatrix(targets, prompts, scores, ("accuracy",) * 5, chance, errors)
    in_task = {name: name for name in targets[:4]}
    found = performance_above_chance(matrix, in_task).values
    np.testing.assert_allclose(found[0], [1, *[1 / 3] * 4])
    assert np.isnan(found[1:]).all(), "near: exactly two standard errors; below: under chance"
    notes = chance_notes(matrix, in_task)
    assert [note.split(":")[0] for note in notes] == ["near", "below", "unknown"]
    assert "0.625 is not more than two standard errors (0.062) above chance (0.500)" in notes[0]
    exact = TransferMatrix(
        ("a",), ("a",), np.ones((1, 1)), ("accuracy",), np.ones(1), np.zeros((1, 1))
    )
    assert np.isnan(performance_above_chance(exact).values).all(), "one class only"
    assert at_chance(exact).all()


def test_errors_over_seeds() -> None:
    assert error_over_seeds([0.7], [0.1]) == 0.1
    assert error_over_seeds([0.7, 0.7], [0.1, 0.1]) == pytest.approx(0.1)
    found = error_over_seeds([0.6, 0.7, 0.9], [0.01, 0.02, 0.03])
    spread = np.std([0.6, 0.7, 0.9], ddof=1) / math.sqrt(3)
    assert found == pytest.approx(math.hypot(spread, math.sqrt(0.0014 / 3)))
