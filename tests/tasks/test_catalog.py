"""The catalog: tasks, templates and label words as in the paper, and loading by name."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import jpt
from jpt.config import SPLITS
from jpt.data.rows import FORMS
from jpt.errors import InputError
from jpt.io.tokenizer import TextTokenizer, load_tokenizer
from jpt.tasks.catalog import (
    BUILTIN,
    CANDIDATES,
    CATALOG,
    GENERATIVE,
    REFERENCE_TASKS,
    load_task,
    task_names,
)
from jpt.tasks.task import render
from jpt.tasks.verbalizers import label_words

# The catalog's name of each task whose label words the reference holds, by its name there.
REFERENCE = {
    name: ours
    for name, (ours, _) in REFERENCE_TASKS.items()
    if ours in CATALOG and CATALOG[ours].labels
}
LABELLED = sorted(REFERENCE.values())
MODELS = {
    "roberta": ("roberta-base", "encoder", ("mask",)),
    "bert": ("bert-base-uncased", "encoder", ("mask",)),
    "t5": ("t5-base", "encoder_decoder", ("eos",)),
}

# Where the reference is marked as a slip: what was meant, for its class 0.
SLIPS = {
    ("roberta", "ethicsdeontology"): {"word": "un", "id": 879},
    ("roberta", "ethicsjustice"): {"word": "un", "id": 879},
}

# Classes that the reference calls otherwise.
OUR_LABEL = {
    "unreasonable (0)": "unreasonable",
    "reasonable (1)": "reasonable",
    "not_duplicate": "not_paraphrase",
    "duplicate": "paraphrase",
    "not_equivalent": "not_paraphrase",
    "equivalent": "paraphrase",
}


@cache
def read_reference(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "reference" / "verbalizers.json").read_text(encoding="utf-8"))


@cache
def tokenizer_of(folder: Path, required: tuple[str, ...]) -> TextTokenizer:
    return load_tokenizer(folder, required)


def read_rows(folder: Path, task: str, split: str) -> Iterator[dict[str, Any]]:
    with (folder / "data" / task / f"{split}.jsonl").open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def test_the_catalog_has_the_papers_17_tasks(reference_folder: Path) -> None:
    folders = {path.name for path in (reference_folder / "data").iterdir() if path.is_dir()}
    assert set(CATALOG) == folders
    assert all(name == task.name for name, task in CATALOG.items())
    assert {task.name for task in GENERATIVE} == folders - set(LABELLED)
    assert len(CATALOG) == 17 and len(LABELLED) == 13
    types = dict(REFERENCE_TASKS.values())
    assert all(task.type == types[name] for name, task in CATALOG.items())


@pytest.mark.parametrize("name", REFERENCE)
def test_classes_are_in_the_papers_order(name: str, reference_folder: Path) -> None:
    classes = read_reference(reference_folder)["classes"][name]
    assert CATALOG[REFERENCE[name]].labels == tuple(OUR_LABEL.get(of, of) for of in classes)


@pytest.mark.parametrize("name", REFERENCE)
@pytest.mark.parametrize("model_type", MODELS)
def test_label_words_and_their_ids_are_the_papers(
    model_type: str, name: str, reference_folder: Path
) -> None:
    expected = read_reference(reference_folder)["verbalizers"][model_type][name]
    if (model_type, name) in SLIPS:
        assert expected[0] == {"word": "\u0120la", "id": 897}
        expected = [SLIPS[model_type, name], *expected[1:]]
    folder, layout, required = MODELS[model_type]
    tokenizer = tokenizer_of(reference_folder / "tokenizers" / folder, required)
    if model_type == "roberta":
        assert [tokenizer.find(text) for text in ("un", "\u0120la", "conf")] == [879, 897, 17075]
    found = label_words(CATALOG[REFERENCE[name]], tokenizer, model_type, layout)
    assert found.words == tuple((entry["word"],) for entry in expected)
    assert found.ids == tuple(entry["id"] for entry in expected)


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize("backbone", ["bert-small", "bert-medium"])
def test_label_words_are_single_tokens_in_the_builtin_encoders(backbone: str, name: str) -> None:
    folder = Path(jpt.__file__).parent / "backbones" / "builtin" / backbone
    found = label_words(CATALOG[name], tokenizer_of(folder, ("mask",)), "bert")
    assert [[len(ids) for ids in of] for of in found.token_ids] == [[1]] * len(found.words)
    assert len(set(found.ids)) == len(CATALOG[name].labels)


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize("scoring", ["phrase", "first_token"])
def test_label_words_are_distinct_in_generating_models(
    scoring: str, name: str, reference_folder: Path
) -> None:
    builtin = Path(jpt.__file__).parent / "backbones" / "builtin"
    for model_type, layout, folder in (
        ("t5", "encoder_decoder", builtin / "t5-mini"),
        ("gpt2", "decoder", builtin / "gpt2-mini"),
        ("gpt2", "decoder", reference_folder / "tokenizers" / "gpt2"),
    ):
        tokenizer = tokenizer_of(folder, ("eos",))
        found = label_words(CATALOG[name], tokenizer, model_type, layout, scoring)
        assert len(set(found.ids)) == len(CATALOG[name].labels)


@pytest.mark.parametrize("name", CATALOG)
def test_hub_sources_name_every_split_and_label(name: str) -> None:
    task = CATALOG[name]
    assert task.hub is not None and task.hub.form in FORMS
    assert set(task.hub.splits) == set(SPLITS)
    assert set(task.hub.fields) <= {*task.fields, task.answer_field}
    # The hub's rows lack the class conflict.
    missing = {"conflict"} if name in ("laptop", "restaurant") else set()
    assert set(task.hub.labels) == set(task.labels) - missing


@pytest.mark.parametrize("name", CATALOG)
def test_hub_splits_are_disjoint(name: str) -> None:
    # Rows of a hub split of 100,000 rows.
    rows = {
        split: {
            (part.partition("[")[0], row) for part in slices.split("+") for row in rows_of(part)
        }
        for split, slices in CATALOG[name].hub.splits.items()
    }
    assert all(rows.values())
    assert sum(map(len, rows.values())) == len(set.union(*rows.values()))


def rows_of(part: str) -> range:
    start, _, end = part.partition("[")[2].rstrip("]").partition(":")
    return range(100_000)[int(start) if start else None : int(end) if end else None]


@pytest.mark.parametrize("name", CATALOG)
def test_fields_and_labels_are_those_of_the_rows(name: str, reference_folder: Path) -> None:
    task = CATALOG[name]
    names, labels = {*task.fields, task.answer_field or "label"}, set()
    for split in ("validation", "test"):
        for row in read_rows(reference_folder, name, split):
            assert set(row) == names
            assert all(row[field].strip() for field in task.fields)
            labels.add(row.get("label"))
    missing = {"conflict"} if name in ("laptop", "restaurant") else set()
    assert labels == ({None} if task.is_generative else set(task.labels) - missing)


def test_class_order_metrics_and_lengths_are_the_papers() -> None:
    for name in ("mnli", "snli", "qnli"):  # in reverse order of the hub's
        assert CATALOG[name].labels == tuple(reversed(CATALOG[name].hub.labels))
    lengths = {"squad": 20, "nq_open": 20, "multi_news": 30, "samsum": 50}
    assert {task.name: task.answer_tokens for task in GENERATIVE} == lengths
    assert {(task.metric, task.max_tokens) for task in GENERATIVE} == {("bleu", 384)}
    for name in LABELLED:
        task = CATALOG[name]
        assert (task.metric, task.max_tokens, task.answer_tokens) == ("accuracy", None, None)


def test_builtin_tasks_share_label_words_within_their_type_only() -> None:
    assert not set(BUILTIN) & set(CANDIDATES) and len(BUILTIN) >= 6
    words = {name: tuple(t.words("bert").values()) for name, t in (BUILTIN | CANDIDATES).items()}
    pairs = {(task.type, words[name]) for name, task in (BUILTIN | CANDIDATES).items()}
    assert len(pairs) == len({type_ for type_, _ in pairs}) == len({of for _, of in pairs})
    counts = Counter(task.type for task in BUILTIN.values())
    assert min(counts.values()) >= 2 and len(counts) >= 3
    for name, task in BUILTIN.items():
        assert name == task.name == f"builtin/{task.short_name}"


# --- Templates

REVIEW = {"text": "A fine film."}
PART = {"text": "Nice screen, poor sound.", "aspect": "sound"}
WEATHER = {"premise": "It rains.", "hypothesis": "It is wet."}
TOWER = {"question": "How tall is it?", "sentence": "It was built in 1889."}
RACE = {"scenario": "I run a race.", "excuse": "So I should train."}
DESERT = {"scenario": "I deserve a car because I paid for it."}
TWINS = {"sentence1": "He left.", "sentence2": "He went away."}
PASSAGE = {"question": "Who won?", "context": "Ann won the race."}

FILM = (REVIEW, ("A fine film.",), ("A fine film.",), "A fine film.\nAnswer:")
ASPECT = (
    PART,
    ("Nice screen, poor sound. sound",),
    ("Nice screen, poor sound.", "sound"),
    "Nice screen, poor sound.\nAspect: sound\nAnswer:",
)
RAIN = (
    WEATHER,
    ("It is wet.", "It rains."),
    ("hypothesis: It is wet.", "[SEP] sentence: premise: It rains."),
    "Premise: It rains.\nHypothesis: It is wet.\nAnswer:",
)
SAME = (
    TWINS,
    ("He left.", "He went away."),
    ("He left.", "<extra_id_0> He went away."),
    "First: He left.\nSecond: He went away.\nAnswer:",
)
# For each task a row, then the text of encoders, encoder-decoders and decoders.
TEXTS = {
    **dict.fromkeys(("imdb", "sst2", "movie_rationales", "tweeteval_sentiment"), FILM),
    **dict.fromkeys(("laptop", "restaurant"), ASPECT),
    **dict.fromkeys(("mnli", "snli"), RAIN),
    **dict.fromkeys(("qqp", "mrpc"), SAME),
    "qnli": (
        TOWER,
        ("How tall is it?", "It was built in 1889."),
        ("hypothesis: How tall is it?", "[SEP] sentence: premise: It was built in 1889."),
        "Question: How tall is it?\nSentence: It was built in 1889.\nAnswer:",
    ),
    "deontology": (
        RACE,
        ("I run a race.", "So I should train."),
        ("I run a race.", "So I should train."),
        "Scenario: I run a race.\nExcuse: So I should train.\nAnswer:",
    ),
    "justice": (
        DESERT,
        ("I deserve a car because I paid for it.",),
        ("I deserve a car because I paid for it.",),
        "I deserve a car because I paid for it.\nAnswer:",
    ),
    "squad": (
        PASSAGE,
        None,
        ("context: Ann won the race.", "SEP question: Who won?"),
        "Context: Ann won the race.\nQuestion: Who won?\nAnswer:",
    ),
    "nq_open": (
        {"question": "who won the race"},
        None,
        ("context: who won the race",),
        "Question: who won the race\nAnswer:",
    ),
    "multi_news": (
        {"document": "Rain fell.\n|||||\nThe race was off."},
        None,
        ("Rain fell.\n|||||\nThe race was off.",),
        "Rain fell.\n|||||\nThe race was off.\nSummary:",
    ),
    "samsum": (
        {"document": "Ann: I won!\nBob: Well done."},
        None,
        ("context: Ann: I won!\nBob: Well done.",),
        "Ann: I won!\nBob: Well done.\nSummary:",
    ),
}


@pytest.mark.parametrize("name", CATALOG)
def test_text_of_each_layout(name: str) -> None:
    task = CATALOG[name]
    row, encoder, encoder_decoder, decoder = TEXTS[name]
    assert (encoder is None) == task.is_generative
    if encoder is not None:
        assert render(task, row) == encoder
    assert render(task, row, "encoder_decoder") == encoder_decoder
    # A decoder reads its segments as one text.
    assert "".join(render(task, row, "decoder")) == decoder


@pytest.mark.parametrize("name", ["laptop", "restaurant"])
def test_t5_reads_the_same_tokens_with_the_aspect_as_a_segment(
    name: str, reference_folder: Path
) -> None:
    tokenizer = load_tokenizer(reference_folder / "tokenizers" / "t5-base", ("eos",))
    lines = (reference_folder / "data" / name / "test.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        paper, *segments = tokenizer.encode(
            [f"{row['text']} {row['aspect']}", *render(CATALOG[name], row, "encoder_decoder")]
        )
        assert paper == [token for segment in segments for token in segment]
    assert len(rows) > 300


# --- Loading

DEFINITION = """
type = "sentiment"
fields = ["text"]
labels = ["bad", "good"]
label_words = {bad = "terrible", good = "great"}
"""


def test_names_and_folders(tmp_path: Path) -> None:
    assert all(load_task(name).name == name for name in task_names())
    assert load_task("sst2").folder is None
    assert load_task("sst2", data=tmp_path).folder == tmp_path
    folder = tmp_path / "mnli"  # has the definition of the catalog task
    folder.mkdir()
    task = load_task(str(folder) + "/")
    assert (task.name, task.folder) == ("mnli", folder)
    assert task.labels == load_task("mnli").labels
    (folder / "task.toml").write_text(DEFINITION)
    assert load_task(folder).labels == ("bad", "good")
    assert load_task(folder, data=tmp_path).folder == tmp_path


def test_a_plain_word_is_a_name_and_not_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sst2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_task("sst2").folder is None
    assert load_task("./sst2").folder == Path("sst2")
    assert load_task(Path("sst2")).folder == Path("sst2")
    monkeypatch.chdir(tmp_path / "sst2")
    assert load_task(".").name == "sst2"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("sst", "unknown task 'sst'; did you mean sst2"),
        ("builtin/imbd", "unknown task 'builtin/imbd'; did you mean builtin/imdb"),
        ("../nowhere/sst2", "folder ../nowhere/sst2 does not exist"),
        (Path("nowhere"), "folder nowhere does not exist"),
        ("", "unknown task ''"),
    ],
)
def test_unknown_names(argument: str | Path, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_task(argument)


def test_arguments_that_are_not_a_task(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="has no task.toml and 'mine' is not a catalog task"):
        load_task(tmp_path / "mine")
    (tmp_path / "task.toml").write_text(DEFINITION)
    with pytest.raises(InputError, match="is a file; give a folder"):
        load_task(tmp_path / "task.toml")
    with pytest.raises(InputError, match="omit --data"):
        load_task("builtin/imdb", data=tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        load_task("sst2", data=tmp_path / "none")
