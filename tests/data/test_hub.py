"""Rows from the hub: slices of local data sets, conversions, and errors without network."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call

import pytest

from jpt.data.rows import describe_hub_split, read_hub_rows, read_rows, with_rows
from jpt.errors import DataWarning
from jpt.tasks.catalog import CATALOG
from jpt.tasks.task import PARQUET_BRANCH, HubSource
from tests.helpers.files import refusal


@pytest.fixture
def quiet_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_slices_fields_and_class_numbers(tmp_path: Path, quiet_cache: None) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    for name in ("train", "test"):
        rows = [{"sentence": f"{name} {i}", "label": i % 2, "idx": i} for i in range(10)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    splits = {"train": "train[2:-2]", "validation": "train[:2]+train[-2:]", "test": "test"}
    labels, fields = ("negative", "positive"), {"text": "sentence"}
    hub = HubSource(str(folder), None, splits, labels=labels, fields=fields)
    task = replace(CATALOG["sst2"], hub=hub)
    texts = {s: [row["text"] for row in read_rows(task, s)] for s in hub.splits}
    assert texts["train"] == [f"train {i}" for i in range(2, 8)]
    assert texts["validation"] == ["train 0", "train 1", "train 8", "train 9"]
    assert texts["test"] == [f"test {i}" for i in range(10)]
    assert [row["label"] for row in read_rows(task, "train")][:2] == ["negative", "positive"]


def give(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]]) -> Mock:
    import datasets

    load_dataset = Mock(return_value=rows)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("jpt.data.rows._is_reachable", lambda address: True)
    return load_dataset


def test_rows_without_label_or_text_are_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs = [("a", "b", 0), ("a", "c", -1), ("", "d", 1)]
    pairs += [("a", " ", 1), ("a", "e", 2), ("a", None, 2)]
    load_dataset = give(
        monkeypatch, [{"premise": p, "hypothesis": h, "label": n} for p, h, n in pairs]
    )
    with pytest.warns(DataWarning, match="snli plain_text test: 3 of 6 rows have an empty text"):
        found = [row["hypothesis"] for _, row in read_hub_rows(CATALOG["snli"], "test")]
    assert found == ["b", "c", "e"]
    with pytest.warns(DataWarning, match="test, row 1: no label .* in 1 of 3 rows, which are dro"):
        labels = [row["label"] for row in read_rows(CATALOG["snli"], "test")]
    assert labels == ["entailment", "contradiction"]
    request = {"name": "plain_text", "split": "test", "revision": "main"}
    assert load_dataset.call_args_list[0] == call("stanfordnlp/snli", **request)


def test_errors_of_hub_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, [{"sentence": "Fine.", "label": -1}])
    with refusal("glue sst2 validation has 1 rows, but no label"):
        read_rows(CATALOG["sst2"], "test")
    give(monkeypatch, [{"premise": "a", "conclusion": "b", "label": 0}])
    with refusal("'hypothesis' is missing"):
        read_rows(CATALOG["snli"], "test")


@pytest.mark.parametrize("name", ["laptop", "restaurant"])
def test_signs_become_labels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = ("1", -1, 0.0, None, 1.0)
    given = [{"text": "a", "aspect": "b", "label": label, "from": 3} for label in labels]
    give(monkeypatch, given)
    for task in (CATALOG[name], with_rows(CATALOG[name], {"train": given})):
        with pytest.warns(DataWarning, match="train.*, row [34]: no label .* 1 of 5 rows"):
            rows = read_rows(task, "train")
        found = [row["label"] for row in rows]
        assert found == ["positive", "negative", "neutral", "positive"]
        assert rows[0] == {"text": "a", "aspect": "b", "label": "positive"}


ANSWERS = {"text": ["x", "y"], "answer_start": [1]}
SQUAD = {"context": "c", "question": "q", "answers": ANSWERS}


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("squad", SQUAD, {"question": "q", "context": "c", "answers": ("x", "y")}),
        ("nq_open", {"question": "q", "answer": ["x"]}, {"question": "q", "answers": ("x",)}),
        ("samsum", {"dialogue": "d", "summary": "s"}, {"document": "d", "answers": ("s",)}),
        ("multi_news", {"document": "d", "summary": "s"}, {"document": "d", "answers": ("s",)}),
        ("qqp", {"question1": "a", "question2": "b", "label": 1}, "paraphrase"),
        ("mrpc", {"sentence1": "a", "sentence2": "b", "label": 0}, "not_paraphrase"),
        ("qnli", {"question": "a", "sentence": "b", "label": 0}, "entailment"),
        ("imdb", {"text": "a", "label": 0}, "negative"),
        ("movie_rationales", {"review": "a", "label": 1, "evidences": ["a"]}, "positive"),
        ("tweeteval_sentiment", {"text": "a", "label": 1}, "neutral"),
        ("deontology", {"scenario": "a", "excuse": "b", "label": 0}, "unreasonable"),
        ("justice", {"scenario": "a", "label": 1}, "reasonable"),
    ],
)
def test_hub_rows_are_converted(name: str, row: dict[str, Any], expected: object, monkeypatch):
    give(monkeypatch, [{**row, "idx": 7}])
    (found,) = read_rows(CATALOG[name], "test")
    if isinstance(expected, str):
        expected = {**{field: found[field] for field in CATALOG[name].fields}, "label": expected}
    assert found == expected


SUMMARIES = {
    "samsum": [("d", ""), (None, "s"), ("d", "s"), ("d", None), ("\n", "s")],
    "multi_news": [("", "s"), ("d", []), ("d", "s"), ("d", ["", " "]), ("d", {"text": []})],
}


@pytest.mark.parametrize(("name", "rows"), SUMMARIES.items())
def test_rows_without_document_or_summary_are_dropped(name, rows, monkeypatch) -> None:
    field = CATALOG[name].hub.fields.get("document", "document")
    give(monkeypatch, [{field: document, "summary": summary} for document, summary in rows])
    with pytest.warns(DataWarning, match="4 of 5 rows have an empty text and are dropped"):
        (row,) = read_rows(CATALOG[name], "train")
    assert row == {"document": "d", "answers": ("s",)}


def test_one_configuration_of_a_parquet_copy_is_read(tmp_path: Path, quiet_cache: None) -> None:
    import datasets

    # The hub's layout: CONFIGURATION/SPLIT/0000.parquet.
    for config, columns in (("deontology", {"excuse": ["x"] * 4}), ("justice", {})):
        for split in ("train", "validation", "test"):
            file = tmp_path / "ethics" / config / split / "0000.parquet"
            file.parent.mkdir(parents=True)
            texts = [f"{config} {split} {number}" for number in range(4)]
            rows = datasets.Dataset.from_dict({"label": [0, 1, 1, 0], "scenario": texts} | columns)
            rows.to_parquet(str(file))
    for name in ("deontology", "justice"):
        splits = {"train": "train[:-1]", "validation": "train[-1:]", "test": "validation"}
        hub = replace(CATALOG[name].hub, path=str(tmp_path / "ethics"), splits=splits)
        assert hub.revision == PARQUET_BRANCH and hub.config == name
        task = replace(CATALOG[name], hub=hub)
        texts = {split: [row["scenario"] for row in read_rows(task, split)] for split in splits}
        assert texts["train"] == [f"{name} train {number}" for number in range(3)]
        assert texts["validation"] == [f"{name} train 3"]
        assert texts["test"] == [f"{name} validation {number}" for number in range(4)]


def test_without_network_a_folder_is_requested(quiet_cache: None) -> None:
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    with refusal("nyu-mll/glue qqp .*test.jsonl .*--data DIR") as caught:
        list(read_hub_rows(CATALOG["qqp"], "test"))
    assert "sentence1, sentence2, label" in str(caught.value)
    with refusal("question, context, answers: --data DIR"):
        list(read_hub_rows(CATALOG["squad"], "test"))
    assert (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE) == before


def test_parts_of_the_hub_have_a_short_name() -> None:
    assert describe_hub_split(CATALOG["mnli"].hub, "test") == "nyu-mll/glue mnli validation_matched"
    assert describe_hub_split(CATALOG["imdb"].hub, "test") == "stanfordnlp/imdb test"
