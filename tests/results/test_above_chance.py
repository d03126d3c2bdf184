"""Performance above chance and standard errors, through the commands and compared with loops."""

import csv
import json
import math
import re
import shutil
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
from jpt.results.statistics import score_error
from jpt.testing import write_tiny_backbone
from jpt.types import Prompt, PromptCard, TransferMatrix
from tests.helpers.running import raises
from tests.helpers.toys import json_lines, write_task

pytestmark = pytest.mark.plain_programs

ROWS, OPTIONS, SPLITS = 200, ("--max-tokens", 10), ("train", "validation", "test")
WORDS = "a the film is was good bad dull bright fine great lovely poor awful boring".split()
# Label words between which the tiny model is undecided, so that its predictions vary.
TOML = (
    'name = "{name}"\ntype = "{type}"\nfields = ["text"]\nlabels = ["bad", "good"]\n'
    'template = "{{text}}"\nmetric = "{metric}"\n[label_words]\nbad = "a"\ngood = "good"\n'
)
# Task: type, metric, and the share of rows whose label is not the prediction of its prompt.
TASKS = {
    "mood": ("x", "accuracy", 0.1),
    "macro": ("x", "f1_macro", 0.2),
    "mcc": ("y", "matthews", 0.15),
    "positive": ("y", "f1", 0.2),
    "noise": ("x", "accuracy", 0.5),
}


class Study:
    """Tasks with the same rows, one prompt for each of them and another one."""

    def __init__(self, root: Path) -> None:
        self.root, self.prompts, self.out = root, root / "prompts", root / "out"
        self.model = write_tiny_backbone(root / "model", "bert")
        self.prompts.mkdir()
        rng = np.random.default_rng(0)
        self.texts = [" ".join(rng.choice(WORDS, 6)) for _ in range(ROWS)]
        draft = self._write("draft", "x", "accuracy", np.zeros(ROWS, int))
        self.predictions: dict[str, np.ndarray] = {}
        for seed, names in enumerate((list(TASKS), ["second"])):
            values = np.random.default_rng(seed).normal(0, 0.5, (3, 32)).astype(np.float32)
            for name in names:
                card = PromptCard(str(self.model), name, TASKS.get(name, "y")[0])
                save_prompt(self.prompts / f"{name}.safetensors", Prompt(values, card))
            found = jpt.evaluate(Prompt(values, card), draft, max_tokens=10).predictions
            self.predictions |= dict.fromkeys(names, found)
        self.labels = {
            name: self.predictions[name] ^ (rng.permutation(ROWS) < share * ROWS)
            for name, (_, _, share) in TASKS.items()
        }
        for name, (kind, metric, _) in TASKS.items():
            self._write(name, kind, metric, self.labels[name])

    def _write(self, name: str, kind: str, metric: str, labels: np.ndarray) -> Path:
        names = np.array(["bad", "good"])[labels]
        rows = [{"text": t, "label": n} for t, n in zip(self.texts, names.tolist(), strict=True)]
        toml = TOML.format(name=name, type=kind, metric=metric)
        return write_task(self.root / name, toml=toml, **dict.fromkeys(SPLITS, json_lines(rows)))

    def tasks(self, *names: str) -> str:
        return ",".join(str(self.root / name) for name in names or TASKS)

    def score(self, task: str, prompt: str) -> float:
        return measure(TASKS[task][1], self.predictions[prompt], self.labels[task])

    def chance(self, task: str) -> float:
        constant = (np.full(ROWS, answer) for answer in (0, 1))
        return max(measure(TASKS[task][1], each, self.labels[task]) for each in constant)


def measure(metric: str, predicted: np.ndarray, true: np.ndarray) -> float:
    """Compute a metric of two classes from its definition."""
    if metric == "accuracy":
        return float(np.mean(predicted == true))
    if metric == "matthews":  # of two classes Pearson's correlation
        is_constant = np.ptp(predicted) * np.ptp(true) == 0
        return 0.0 if is_constant else float(np.corrcoef(predicted, true)[0, 1])
    found = [
        2 * np.sum((predicted == c) & (true == c)) / (np.sum(predicted == c) + np.sum(true == c))
        for c in (0, 1)
    ]
    return float(found[1] if metric == "f1" else np.mean(found))


def read_cells(path: Path) -> dict[tuple[str, str], float]:
    """Read a matrix as a dictionary; an empty cell is NaN."""
    with path.open() as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["target_task", "source_prompt", "metric", "value"]
    return {(t, p): float(value or "nan") for t, p, _, value in map(dict.values, lines)}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("above"))


@pytest.fixture
def command(run: Callable[..., Any]) -> Callable[..., str]:
    def type_it(*arguments: object) -> str:
        code, stdout, stderr = run(*arguments)
        assert code == 0, stderr
        return stdout

    return type_it


@pytest.fixture
def text(command: Callable[..., str], study: Study) -> str:
    """Output of ``jpt transfer``, from the second time on from its cells."""
    arguments = ("--prompts", study.prompts, "--tasks", study.tasks(), "--out", study.out)
    return command("transfer", *arguments, *OPTIONS)


@pytest.fixture
def record(text: str, study: Study) -> dict[str, Any]:
    return json.loads((study.out / "transfer.json").read_text())


# --- jpt transfer


def test_chance_and_standard_errors_of_every_metric(record: dict[str, Any], study: Study) -> None:
    scores, errors = (
        read_cells(study.out / name) for name in ("transfer.csv", "standard_errors.csv")
    )
    assert set(errors) == set(scores)
    for task, (_, metric, _) in TASKS.items():
        target = record["targets"][task]
        assert target["chance"] == pytest.approx(study.chance(task), abs=1e-12)
        for prompt in ("mood", "second"):
            predicted, value = study.predictions[prompt], study.score(task, prompt)
            assert scores[task, prompt] == pytest.approx(value, abs=1e-12)
            error = score_error(metric, predicted, study.labels[task])  # compared with scipy
            assert target["standard_errors"][prompt] == errors[task, prompt] == error
    assert record["targets"]["mcc"]["chance"] == 0


def test_both_relative_scores_are_in_files_record_and_text(
    text: str, record: dict[str, Any], study: Study
) -> None:
    scores = read_cells(study.out / "transfer.csv")
    files = {"above chance": "above_chance", "as in the paper": "relative"}
    for label, name in files.items():
        cells = read_cells(study.out / f"{name}.csv")
        assert set(cells) == set(scores)
        groups: dict[str, list[float]] = {"same_type": [], "different_type": [], "random": []}
        for (task, prompt), value in cells.items():
            chance = study.chance(task) if name == "above_chance" else 0
            expected = (scores[task, prompt] - chance) / (scores[task, task] - chance)
            if task == "noise" and chance:  # its own prompt is at chance
                assert math.isnan(value)
                continue
            assert value == pytest.approx(expected, abs=1e-12)
            is_same = TASKS[task][0] == TASKS.get(prompt, "y")[0]
            kind = "same_type" if is_same else "different_type"
            if prompt not in (task, "none"):
                groups["random" if prompt == "random" else kind].append(value)
        means = [np.mean(values) for values in groups.values()]
        found = [record[f"{name}_transfer"][f"{kind}_mean"] for kind in groups]
        assert found == pytest.approx(means, abs=1e-12)
        (line,) = [line for line in text.splitlines() if line.startswith(f"{label}  ")]
        shown = [float(cell) for cell in line.removeprefix(label).split()]
        assert shown[:3] == pytest.approx(means, abs=6e-4)
        assert f"by task type, {label}" in text
    tasks = [study.root / task for task in TASKS]
    result = jpt.transfer_matrix(study.prompts, tasks, study.out, max_tokens=10)
    assert result.scores == {}, "read from its cells"
    for name in files.values():
        cells = list(read_cells(study.out / f"{name}.csv").values())
        np.testing.assert_array_equal(getattr(result, name).values.ravel(), cells)
    assert "noise,second,accuracy,\n" in (study.out / "above_chance.csv").read_text()
    (note,) = [note for note in record["notes"] if "chance" in note]
    assert note.startswith("noise: in-task accuracy 0.500 is not more than two standard errors (2")
    assert max(map(len, text.splitlines())) <= 80


def test_cells_at_chance_are_marked(text: str, record: dict[str, Any], study: Study) -> None:
    scores, shown = read_cells(study.out / "transfer.csv"), {task: [] for task in TASKS}
    for line in text.partition("* in-task prompt")[0].splitlines():
        if not line.startswith(" "):
            shown[line.split()[0]] += line.split()[1:]
    for task, target in record["targets"].items():
        wanted = []
        for prompt, error in target["standard_errors"].items():
            value = scores[task, prompt]
            mark = "~" if abs(value - target["chance"]) <= error else ""
            wanted.append(f"{value:.3f}{'*' * (task == prompt)}{mark}")
        assert shown[task] == [*wanted, f"{target['chance']:.3f}"]
    assert "~ within one standard error of chance" in text


def test_several_seeds(command: Callable[..., str], study: Study, tmp_path: Path) -> None:
    for seed, name in enumerate(("mood", "second")):
        values = jpt.load_prompt(study.prompts / f"{name}.safetensors").values
        folder = tmp_path / "prompts" / "mood" / f"seed-{seed}"
        folder.mkdir(parents=True)
        card = PromptCard(str(study.model), "mood", "x", seed=seed)
        save_prompt(folder / "prompt.safetensors", Prompt(values, card))
    arguments = ("--prompts", tmp_path / "prompts", "--tasks", study.tasks("mood"))
    command("transfer", *arguments, "--out", tmp_path / "out", *OPTIONS)
    values = [study.score("mood", name) for name in ("mood", "second")]
    of_rows = np.mean([value * (1 - value) / ROWS for value in values])
    error = math.sqrt(of_rows + np.var(values, ddof=1) / 2)
    found = read_cells(tmp_path / "out" / "standard_errors.csv")["mood", "mood"]
    assert found == pytest.approx(error, abs=1e-12)


@pytest.mark.slow
def test_generated_answers(command: Callable[..., str], tmp_path: Path) -> None:
    model = write_tiny_backbone(tmp_path / "model", "t5")
    toml = (
        'name = "echo"\ntype = "copy"\nfields = ["text"]\ntemplate = "{text}"\n'
        'answer = "word"\nanswer_tokens = 4\nmetric = "token_f1"\n'
    )
    values = np.random.default_rng(0).normal(0, 0.5, (3, 32)).astype(np.float32)
    prompt = Prompt(values, PromptCard(str(model), "echo", "copy", "encoder_decoder"))
    (tmp_path / "prompts").mkdir()
    save_prompt(tmp_path / "prompts" / "echo.safetensors", prompt)
    rows = [{"text": f"{word} film", "word": word} for word in WORDS[:8]]
    task = write_task(tmp_path / "echo", toml=toml, **dict.fromkeys(SPLITS, json_lines(rows)))
    answers = [row.prediction for row in jpt.evaluate(prompt, task).generated]
    for row, answer in list(zip(rows, answers, strict=True))[::2]:
        row["word"] = answer  # half of the rows ask for what the model generates
    write_task(task, toml=toml, **dict.fromkeys(SPLITS, json_lines(rows)))
    arguments = ("--prompts", tmp_path / "prompts", "--tasks", task, "--out", tmp_path)
    command("transfer", *arguments, "--no-random", "--no-untouched")
    by_row = [float(a == row["word"]) for a, row in zip(answers, rows, strict=True)]
    (target,) = json.loads((tmp_path / "transfer.json").read_text())["targets"].values()
    assert target["chance"] == 0 and target["majority"] is None
    error = np.std(by_row) / math.sqrt(len(by_row))
    assert target["standard_errors"]["echo"] == pytest.approx(error, abs=1e-12)
    files = [(tmp_path / f"{name}.csv").read_text() for name in ("above_chance", "relative")]
    assert files[0] == files[1], "chance is 0"


# --- Other commands


def test_masked_scores_above_chance(
    command: Callable[..., str], study: Study, tmp_path: Path
) -> None:
    arguments = ("--prompts", study.prompts, "--tasks", study.tasks("mood", "mcc", "noise"))
    options = ("--random-draws", 1, "--kinds", "in_task,random", *OPTIONS)
    stdout = command("mask", *arguments, "--out", tmp_path, *options)
    record = json.loads((tmp_path / "mask.json").read_text())
    above, whole = [], []
    for task, target in record["targets"].items():
        score, chance, masked = study.score(task, task), study.chance(task), target["masks"]
        assert (target["unmasked"], target["chance"]) == pytest.approx((score, chance), abs=1e-12)
        value, relative, found = map(masked["in_task"].get, ("value", "relative", "above_chance"))
        assert relative == pytest.approx(value / score, abs=1e-12)
        expected = (value - chance) / (score - chance)
        assert found == (None if task == "noise" else pytest.approx(expected, abs=1e-12))
        if task != "noise":
            above.append(found)
            whole.append(relative)
    assert record["above_chance_by_kind"]["in_task"] == pytest.approx(np.mean(above), abs=1e-12)
    for label in ("Mean score above chance relative to", "Mean score relative to"):
        assert f"{label} the unmasked score" in stdout
    assert any(note.startswith("noise: unmasked score not more") for note in record["notes"])
    # Both shares are of the same two tasks.
    text = f"leaves {100 * np.mean(above):.0f}% of the score above chance on average over 2 tasks"
    assert f"{text} ({100 * np.mean(whole):.0f}% of the whole score)" in command("report", tmp_path)


def test_correlations_and_types_have_both(
    command: Callable[..., str], record: dict[str, Any], study: Study, tmp_path: Path
) -> None:
    files = ("--prompts", study.prompts, "--transfer", study.out / "transfer.csv")
    printed = command("indicators", *files, "--out", tmp_path, "--json").splitlines()[-1]
    stored = json.loads((tmp_path / "correlation.json").read_text())
    for part in ("including_in_task", "excluding_in_task"):
        assert json.loads(printed)[f"{part}_tied"] == stored[f"{part}_tied"]
        assert set(stored[f"{part}_tied"]) == set(stored[part])
    types = json.loads((tmp_path / "types.json").read_text())
    for name in ("above_chance_by_type", "relative_by_type"):
        assert types[name] == record[name]


# --- Files without levels, or with invalid ones


def test_files_of_older_versions(
    command: Callable[..., str], text: str, study: Study, tmp_path: Path
) -> None:
    record = json.loads((study.out / "transfer.json").read_text())
    for target in record["targets"].values():
        del target["chance"], target["standard_errors"]
    (tmp_path / "transfer.json").write_text(json.dumps(record))
    cells = (study.out / "cells.jsonl").read_text()
    for part in (', "settings": "tuned"', r', "chance": [-\d.e]+, "standard_error": [-\d.e]+'):
        cells, count = re.subn(part, "", cells)
        assert count == 40
    (tmp_path / "cells.jsonl").write_text(cells)
    shutil.copy(study.out / "transfer.csv", tmp_path)
    matrix = read_scores(tmp_path / "transfer.csv")
    assert matrix.chance is None and not at_chance(matrix).any()
    assert np.isnan(performance_above_chance(matrix).values).all()
    assert np.isfinite(relative_performance(matrix).values).all()
    assert chance_notes(matrix, {"mood": "mood"}) == []
    assert command("report", tmp_path).startswith("Zero-shot transfer reaches")
    arguments = ("--prompts", study.prompts, "--tasks", study.tasks(), "--out", tmp_path)
    again = command("transfer", *arguments, *OPTIONS)
    assert again.splitlines()[:-1] == text.splitlines()[:-1], "scored anew"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chance": "high"}, "target mood: expected a number from -1 to 1 for chance, got 'high'"),
        ({"chance": 2}, "for chance, got 2; run jpt transfer again"),
        ({"chance": 0.5, "standard_errors": {"mood": -1}}, "for standard_error, got -1"),
    ],
)
def test_invalid_records(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    matrix = TransferMatrix(("mood",), ("mood",), np.array([[0.7]]), ("accuracy",))
    write_transfer(tmp_path / "transfer.csv", matrix)
    targets = {"mood": {"metric": "accuracy", **change}}
    (tmp_path / "transfer.json").write_text(json.dumps({"targets": targets}))
    raises(jpt.read_transfer, tmp_path / "transfer.csv", match=message)


@pytest.mark.parametrize("name", ["relative", "above_chance", "standard_errors"])
def test_other_matrices_are_no_scores(
    run: Callable[..., Any], text: str, study: Study, name: str
) -> None:
    files = ("--prompts", study.prompts, "--transfer", study.out / f"{name}.csv")
    code, _, stderr = run("indicators", *files, "--out", study.root / "indicators")
    assert code == 2 and f"{name}.csv: expected scores, got what was computed" in stderr


def test_the_limits_of_the_formula() -> None:
    targets = ("clear", "near", "below", "unknown", "without")
    scores, errors = np.full((5, 5), 0.6), np.full((5, 5), 0.0625)
    scores[[0, 1, 2, 3], [0, 1, 2, 3]] = 0.8, 0.625, 0.25, 0.8
    errors[3, 3] = np.nan
    levels = (("accuracy",) * 5, np.full(5, 0.5), errors)
    matrix = TransferMatrix(targets, (*targets[:4], "other"), scores, *levels)
    in_task = {name: name for name in targets[:4]}
    found = performance_above_chance(matrix, in_task).values
    np.testing.assert_allclose(found[0], [1, *[1 / 3] * 4])
    assert np.isnan(found[1:]).all(), "near: exactly two standard errors; below: under chance"
    notes = chance_notes(matrix, in_task)
    assert [note.split(":")[0] for note in notes] == ["near", "below", "unknown"]
    assert "0.625 is not more than two standard errors (2 x 0.062) above chance" in notes[0]
    assert "unknown: chance level or standard error of its accuracy is unknown" in notes[2]
    one = np.ones((1, 1))
    exact = TransferMatrix(("a",), ("a",), one, ("accuracy",), np.ones(1), 0 * one)
    assert np.isnan(performance_above_chance(exact).values).all(), "one class only"
    assert at_chance(exact).all()
