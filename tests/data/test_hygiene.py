"""Warnings about rows that make scores meaningless: one class, shared texts, disputed labels."""

import json
import random
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import jpt
from jpt.data.rows import data_warnings, read_rows
from jpt.errors import DataWarning, InputError
from jpt.tasks.catalog import CATALOG, load_task
from jpt.testing import write_tiny_backbone
from tests.helpers.files import GENERATIVE, SENTIMENT
from tests.helpers.toys import json_lines, write_task

pytestmark = pytest.mark.plain_programs

Rows = list[dict[str, str]]


def rows_of(*texts: str, label: str = "good") -> Rows:
    return [{"text": text, "label": label} for text in texts]


TRAIN = [*rows_of("a fine film", "a great film"), *rows_of("a dull film", label="bad")]
VALIDATION = [*rows_of("a lovely film"), *rows_of("an awful film", label="bad")]
TEST = [*rows_of("the bright film"), *rows_of("the boring film", label="bad")]

ALSO_IN_TRAIN = "have texts that are also in train, so their scores are too high"
CHOSEN = "have texts that are also in validation, so the prompt is chosen by rows that it is then"
CHOSEN += " tested on"
CASES: dict[str, tuple[dict[str, Rows], list[str]]] = {
    "nothing": ({}, []),
    "one class": (
        {"train": rows_of("a", "b", "c")},
        ["all 3 train rows have the label 'good'; nothing can be learned from one class"],
    ),
    "the one class is the other one": (
        {"train": rows_of("a", label="bad"), "validation": rows_of("the", "film")},
        ["all 1 train rows have the label 'bad'; nothing can be learned from one class"],
    ),
    "validation in train": (
        {"validation": [*VALIDATION, TRAIN[0], TRAIN[2]]},
        [f"2 of 4 validation rows {ALSO_IN_TRAIN}"],
    ),
    "both in train, but for outer spaces": (
        {
            "validation": [*VALIDATION, TRAIN[0]],
            "test": [*TEST, TRAIN[2], *rows_of(" a great film ")],
        },
        [f"1 of 3 validation rows and 2 of 4 test rows {ALSO_IN_TRAIN}"],
    ),
    "test is validation": ({"test": VALIDATION}, [f"2 of 2 test rows {CHOSEN}"]),
    "test is validation in another order, and has one more": (
        {"test": [*VALIDATION[::-1], TEST[0]]},
        [f"2 of 3 test rows {CHOSEN}"],
    ),
    "two labels in train": (
        {"train": [*TRAIN, *rows_of("a fine film", label="bad")]},
        ["1 text has more than one label, first 'a fine film' (bad, good)"],
    ),
    "other labels in test": (
        {"test": [*TEST, *rows_of("a fine film", "a great film", label="bad")]},
        [
            f"2 of 4 test rows {ALSO_IN_TRAIN}",
            "2 texts have more than one label, first 'a fine film' (bad, good)",
        ],
    ),
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_backbone(tmp_path_factory.mktemp("backbone") / "bert", "bert")


OPTIONS = ("--steps", 2, "--length", 2, "--max-tokens", 12, "--batch-size", 2)


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop every run before anything compiles."""

    def stop(*arguments: object, **options: object) -> None:
        raise InputError("stopped")

    monkeypatch.setattr("jpt.tuning.tune._run", stop)


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(("changes", "expected"), CASES.values(), ids=CASES)
def test_each_kind_is_one_line_of_tune(changes, expected, tmp_path, run, backbone) -> None:
    splits = {"train": TRAIN, "validation": VALIDATION, "test": TEST, **changes}
    folder = write_task(tmp_path / "mood", **{name: json_lines(of) for name, of in splits.items()})
    out = tmp_path / "run"
    _, _, err = run("tune", "--backbone", backbone, "--task", folder, "--out", out, *OPTIONS)
    assert err.splitlines()[-1] == "jpt: stopped"
    found = [line for line in err.splitlines() if line.startswith("warning:")]
    assert found == [f"warning: task mood: {line}" for line in expected]


@pytest.mark.usefixtures("untrained")
def test_the_same_file_as_validation_and_test(tmp_path: Path, run, backbone: Path) -> None:
    folder = write_task(tmp_path / "mood", train=json_lines(TRAIN), test=json_lines(TEST))
    toml = (folder / "task.toml").read_text()
    (folder / "task.toml").write_text(toml + '[files]\nvalidation = "test.jsonl"\n')
    out = tmp_path / "run"
    _, _, err = run("tune", "--backbone", backbone, "--task", folder, "--out", out, *OPTIONS)
    assert (
        err.count("warning: ") == err.count(f"warning: task mood: 2 of 2 test rows {CHOSEN}") == 1
    )


def test_in_python_it_is_a_warning_of_the_callers_line(backbone: Path) -> None:
    data = {"train": rows_of("a", "b"), "validation": VALIDATION}
    words = {"default": {"bad": "bad", "good": "good"}}
    task = jpt.Task(
        "mood", "sentiment", ("text",), ("bad", "good"), {"encoder": ("{text}",)}, words
    )
    options: dict[str, Any] = {"steps": 1, "length": 2, "max_tokens": 12, "batch_size": 2}
    with pytest.warns(DataWarning, match="all 2 train rows have the label 'good'") as caught:
        jpt.tune(backbone, task, data=data, **options)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jpt.tune(backbone, task, data={**data, "train": TRAIN}, **options)


def by_pairs(splits: dict[str, Rows]) -> dict[str, int]:
    """Count by comparing rows one by one."""
    counts: Counter[str] = Counter()
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        texts = [row["text"] for row in splits[first]]
        counts[f"{second} in {first}"] = sum(row["text"] in texts for row in splits[second])
    labels = defaultdict(set)
    for rows in splits.values():
        for row in rows:
            labels[row["text"]].add(row["label"])
    counts["disputed"] = sum(len(of) > 1 for of in labels.values())
    return counts


def test_counts_are_those_of_a_plain_comparison() -> None:
    for seed in range(50):
        rng = random.Random(seed)
        size = rng.choice((8, 20, 60))
        splits = {
            name: [
                {"text": f"text {rng.randrange(size)}", "label": rng.choice(SENTIMENT.labels)}
                for _ in range(rng.randrange(1, 15))
            ]
            for name in ("train", "validation", "test")
        }
        lines, counts = " | ".join(data_warnings(splits, SENTIMENT)), by_pairs(splits)
        for pair in ("validation in train", "test in train", "test in validation"):
            second, _, first = pair.split()
            share = f"{counts[pair]} of {len(splits[second])} {second} rows"
            part = next((p for p in lines.split(" | ") if f"also in {first}," in p), "")
            assert (share in part) == (counts[pair] > 0)
        texts = f"{counts['disputed']} text{'s have' if counts['disputed'] > 1 else ' has'} more"
        assert (texts in lines) == (counts["disputed"] > 0)
        is_one = len({row["label"] for row in splits["train"]}) == 1
        assert (f"all {len(splits['train'])} train rows" in lines) == is_one


def test_pairs_and_answers() -> None:
    pair = CATALOG["mnli"]
    row = {"premise": "It rains.", "hypothesis": "It is wet.", "label": "entailment"}
    other = {**row, "hypothesis": "It is dry.", "label": "contradiction"}
    assert data_warnings({"train": [row, other], "test": []}, pair) == []
    turned = {**row, "premise": row["hypothesis"], "hypothesis": row["premise"]}
    assert data_warnings({"train": [row, other], "test": [turned]}, pair) == []
    (found,) = data_warnings({"train": [row, other], "test": [turned, row]}, pair)
    assert found.startswith("task mnli: 1 of 2 test rows have texts that are also in train")
    rows = [{"question": "who", "answers": ("a",)}, {"question": "who", "answers": ("b",)}]
    assert data_warnings({"train": rows}, GENERATIVE) == []
    (found,) = data_warnings({"train": rows, "validation": rows}, GENERATIVE)
    assert "2 of 2 validation rows have texts that are also in train" in found


def splits_of(task: jpt.Task) -> dict[str, Sequence[dict[str, str]]]:
    return {name: read_rows(task, name) for name in ("train", "validation", "test")}


def test_built_in_rows_have_no_warning() -> None:
    task = load_task("builtin/rotten_tomatoes")
    assert data_warnings(splits_of(task), task) == []


@pytest.mark.parametrize("name", ["laptop", "mrpc", "sst2", "snli", "nq_open"])
def test_real_rows(name: str, reference_folder: Path) -> None:
    task = load_task(reference_folder / "data" / name)
    splits = splits_of(task)
    assert data_warnings(splits, task) == []
    leaked = {**splits, "test": [*splits["test"], *splits["train"][:7]]}
    (found,) = data_warnings(leaked, task)
    assert f"7 of {len(leaked['test'])} test rows" in found


def test_half_a_million_rows_take_seconds() -> None:
    rows = [
        {"text": f"a film, number {n}", "label": SENTIMENT.labels[n % 2]} for n in range(500_000)
    ]
    splits = {"train": rows, "validation": rows[:1000], "test": rows[-1000:]}
    started_s = time.process_time()
    assert len(data_warnings(splits, SENTIMENT)) == 1
    assert time.process_time() - started_s < 5  # 0.6 s on an idle core


def test_warnings_are_shown_once_and_json_stays_json(tmp_path: Path, run, backbone: Path) -> None:
    folder = write_task(tmp_path / "mood")  # the same rows in each split
    options = (*OPTIONS, "--json", "--seeds", "0,1", "--out", tmp_path / "runs")
    code, out, err = run("tune", "--backbone", backbone, "--task", folder, *options)
    assert code == 0 and json.loads(out.splitlines()[-1])["task"] == "mood"
    line = f"warning: task mood: 42 of 42 validation rows and 42 of 42 test rows {ALSO_IN_TRAIN}\n"
    assert err.count(line) == 1
