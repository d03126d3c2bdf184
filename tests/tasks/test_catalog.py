"""The paper's tasks against the facts of the authors' code and the rows beside the project."""

import json
from pathlib import Path

import pytest

from jpt.tasks.builtin import BUILTIN, CANDIDATES
from jpt.tasks.catalog import CATALOG
from jpt.tasks.task import SPLITS

# The words of each class, in the paper's class order.
PAPER_WORDS = {
    "sst2": ["negative", "positive"],
    "imdb": ["negative", "positive"],
    "mnli": ["no", "neutral", "yes"],
    "qqp": ["false", "true"],
}


@pytest.mark.parametrize("name", PAPER_WORDS)
@pytest.mark.parametrize("model_type", ["roberta", "bert"])
def test_words_stand_in_the_papers_class_order(name: str, model_type: str) -> None:
    assert list(CATALOG[name].words(model_type).values()) == PAPER_WORDS[name]


@pytest.mark.parametrize("name", PAPER_WORDS)
def test_words_equal_the_reference(name: str, reference_folder: Path) -> None:
    table = json.loads((reference_folder / "reference" / "verbalizers.json").read_text())
    for model_type in ("roberta", "bert"):
        expected = [entry["word"] for entry in table["verbalizers"][model_type][name]]
        assert list(CATALOG[name].words(model_type).values()) == expected


@pytest.mark.parametrize("name", CATALOG)
def test_hub_sources_name_every_split_and_label(name: str) -> None:
    task = CATALOG[name]
    assert task.hub is not None
    assert set(task.hub.splits) == set(SPLITS)
    assert set(task.hub.labels) == set(task.labels)
    assert set(task.hub.fields) <= set(task.fields)


@pytest.mark.parametrize("name", CATALOG)
def test_fields_and_labels_are_those_of_the_rows(name: str, reference_folder: Path) -> None:
    task = CATALOG[name]
    with (reference_folder / "data" / name / "train.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    assert {frozenset(row) for row in rows} == {frozenset((*task.fields, "label"))}
    assert {row["label"] for row in rows} == set(task.labels)


def test_no_class_of_mnli_has_the_number_it_has_in_glue_but_the_middle_one() -> None:
    task = CATALOG["mnli"]
    assert task.labels == tuple(reversed(task.hub.labels))


def test_every_type_of_builtin_task_has_two_tasks_with_the_same_words() -> None:
    by_type: dict[str, set[tuple[str, ...]]] = {}
    count: dict[str, int] = {}
    assert not set(BUILTIN) & set(CANDIDATES)
    for task in BUILTIN.values():
        by_type.setdefault(task.type, set()).add(tuple(task.words("bert").values()))
        count[task.type] = count.get(task.type, 0) + 1
    assert all(len(words) == 1 for words in by_type.values())
    assert min(count.values()) >= 2
    assert len(count) >= 3 and len(BUILTIN) >= 6


def test_two_types_of_builtin_task_never_share_their_words() -> None:
    words = {
        (task.type, tuple(task.words("bert").values())) for task in (BUILTIN | CANDIDATES).values()
    }
    assert len({pair for _, pair in words}) == len({type_ for type_, _ in words})


@pytest.mark.parametrize("name", BUILTIN)
def test_builtin_names_carry_their_prefix(name: str) -> None:
    assert name == BUILTIN[name].name == f"builtin/{BUILTIN[name].short_name}"
