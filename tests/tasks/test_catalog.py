"""The catalog: tasks, templates and label words as in the paper, and loading by name."""

import json
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import jpt
from jpt.config import SPLITS
from jpt.errors import InputError
from jpt.io.tokenizer import TextTokenizer, load_tokenizer
from jpt.tasks import catalog
from jpt.tasks.catalog import CATALOG, GENERATIVE, REFERENCE_TASKS, load_task, task_names
from jpt.tasks.task import render
from jpt.tasks.verbalizers import label_words

LABELLED = sorted(name for name, task in CATALOG.items() if task.labels)
# The catalog's name of each task whose label words the reference holds, by its name there.
REFERENCE = {name: ours for name, (ours, _) in REFERENCE_TASKS.items() if ours in LABELLED}
MODELS = {
    "roberta": ("roberta-base", "encoder", ("mask",)),
    "bert": ("bert-base-uncased", "encoder", ("mask",)),
    "t5": ("t5-base", "encoder_decoder", ("eos",)),
}

# Where the reference is marked as a slip: un was meant, for its class 0.
SLIPS = [("roberta", "ethicsdeontology"), ("roberta", "ethicsjustice")]
# Classes that the reference calls otherwise.
OUR_LABEL = {"unreasonable (0)": "unreasonable", "reasonable (1)": "reasonable"}
OUR_LABEL |= {name: "paraphrase" for name in ("duplicate", "equivalent")}
OUR_LABEL |= {f"not_{name}": "not_paraphrase" for name in ("duplicate", "equivalent")}


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
    assert len(CATALOG) == 17 and sorted(REFERENCE.values()) == LABELLED and len(LABELLED) == 13
    types = dict(REFERENCE_TASKS.values())
    assert all(task.type == types[name] for name, task in CATALOG.items())


@pytest.mark.parametrize("name", REFERENCE)
def test_classes_are_in_the_papers_order(name: str, reference_folder: Path) -> None:
    classes = read_reference(reference_folder)["classes"][name]
    assert CATALOG[REFERENCE[name]].labels == tuple(OUR_LABEL.get(of, of) for of in classes)


@pytest.mark.parametrize("name", REFERENCE)
@pytest.mark.parametrize("model_type", MODELS)
def test_label_words_and_their_ids_are_the_papers(model_type: str, name: str, reference_folder):
    expected = read_reference(reference_folder)["verbalizers"][model_type][name]
    if (model_type, name) in SLIPS:
        assert expected[0] == {"word": "\u0120la", "id": 897}
        expected = [{"word": "un", "id": 879}, *expected[1:]]
    folder, layout, required = MODELS[model_type]
    tokenizer = tokenizer_of(reference_folder / "tokenizers" / folder, required)
    if model_type == "roberta":
        assert [tokenizer.find(text) for text in ("un", "\u0120la", "conf")] == [879, 897, 17075]
    found = label_words(CATALOG[REFERENCE[name]], tokenizer, model_type, layout)
    assert found.words == tuple((entry["word"],) for entry in expected)
    assert found.ids == tuple(entry["id"] for entry in expected)


BUILTIN_FOLDER = Path(jpt.__file__).parent / "backbones" / "builtin"


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize("backbone", ["bert-small", "bert-medium"])
def test_label_words_are_single_tokens_in_the_builtin_encoders(backbone: str, name: str) -> None:
    folder = BUILTIN_FOLDER / backbone
    found = label_words(CATALOG[name], tokenizer_of(folder, ("mask",)), "bert")
    assert [[len(ids) for ids in of] for of in found.token_ids] == [[1]] * len(found.words)
    assert len(set(found.ids)) == len(CATALOG[name].labels)


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize("scoring", ["phrase", "first_token"])
def test_label_words_are_distinct_in_generating_models(scoring: str, name: str, reference_folder):
    for model_type, layout, folder in (
        ("t5", "encoder_decoder", BUILTIN_FOLDER / "t5-mini"),
        ("gpt2", "decoder", BUILTIN_FOLDER / "gpt2-mini"),
        ("gpt2", "decoder", reference_folder / "tokenizers" / "gpt2"),
    ):
        tokenizer = tokenizer_of(folder, ("eos",))
        found = label_words(CATALOG[name], tokenizer, model_type, layout, scoring)
        assert len(set(found.ids)) == len(CATALOG[name].labels)


@pytest.mark.parametrize("name", CATALOG)
def test_hub_sources_name_every_split_and_label(name: str) -> None:
    task = CATALOG[name]
    assert task.hub is not None
    assert set(task.hub.splits) == set(SPLITS)
    assert set(task.hub.fields) <= {*task.fields, task.answer_field}
    # The hub's rows lack the class conflict.
    missing = {"conflict"} if name in ("laptop", "restaurant") else set()
    assert set(task.hub.labels) == set(task.labels) - missing


@pytest.mark.parametrize("name", CATALOG)
def test_hub_splits_are_disjoint(name: str) -> None:
    rows = [set() for _ in SPLITS]
    for found, slices in zip(rows, CATALOG[name].hub.splits.values(), strict=True):
        for part in slices.split("+"):
            source, _, ends = part.rstrip("]").partition("[")
            start, _, end = ends.partition(":")
            numbers = range(100_000)[int(start or 0) : int(end) if end else None]
            found |= {(source, number) for number in numbers}
    assert all(rows) and sum(map(len, rows)) == len(set.union(*rows))


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
    assert not set(catalog.BUILTIN) & set(catalog.CANDIDATES) and len(catalog.BUILTIN) >= 6
    tasks = [*catalog.BUILTIN.values(), *catalog.CANDIDATES.values()]
    pairs = {(task.type, tuple(task.words("bert").values())) for task in tasks}
    assert len(pairs) == len({type_ for type_, _ in pairs}) == len({of for _, of in pairs})
    counts = Counter(task.type for task in catalog.BUILTIN.values())
    assert min(counts.values()) >= 2 and len(counts) >= 3
    for name, task in catalog.BUILTIN.items():
        assert name == task.name == f"builtin/{task.short_name}"


# Every field; a task reads its own.
ROW = {
    "text": "Good film.", "aspect": "sound", "premise": "It rains.", "hypothesis": "It is wet.",
    "question": "Who won?", "sentence": "Ann did.", "context": "Ann won.", "document": "A\n||\nB",
    "scenario": "I ran.", "excuse": "So I won.", "sentence1": "He left.", "sentence2": "He went.",
}  # fmt: skip
# Segments (+) of encoders, if labelled, | and of encoder-decoders, | and the text of decoders.
TEXTS = {
    "imdb sst2 movie_rationales tweeteval_sentiment": "Good film. | Good film. | Good film.",
    "laptop restaurant": "Good film. sound | Good film. + sound | Good film.\nAspect: sound",
    "mnli snli": "It is wet. + It rains. | hypothesis: It is wet. + [SEP] sentence: premise: "
    "It rains. | Premise: It rains.\nHypothesis: It is wet.",
    "qqp mrpc": "He left. + He went. | He left. + <extra_id_0> He went. | First: He left.\n"
    "Second: He went.",
    "qnli": "Who won? + Ann did. | hypothesis: Who won? + [SEP] sentence: premise: Ann did. | "
    "Question: Who won?\nSentence: Ann did.",
    "deontology": "I ran. + So I won. | I ran. + So I won. | Scenario: I ran.\nExcuse: So I won.",
    "justice": "I ran. | I ran. | I ran.",
    "squad": "context: Ann won. + SEP question: Who won? | Context: Ann won.\nQuestion: Who won?",
    "nq_open": "context: Who won? | Question: Who won?",
    "multi_news": "A\n||\nB | A\n||\nB",
    "samsum": "context: A\n||\nB | A\n||\nB",
}


@pytest.mark.parametrize("name", CATALOG)
def test_text_of_each_layout(name: str) -> None:
    task = CATALOG[name]
    (texts,) = [texts for names, texts in TEXTS.items() if name in names.split()]
    *encoder, encoder_decoder, decoder = texts.split(" | ")
    assert len(encoder) == (not task.is_generative)
    for text in encoder:
        assert render(task, ROW) == tuple(text.split(" + "))
    assert render(task, ROW, "encoder_decoder") == tuple(encoder_decoder.split(" + "))
    # A decoder reads its segments as one text.
    cue = "Summary:" if name in ("multi_news", "samsum") else "Answer:"
    assert "".join(render(task, ROW, "decoder")) == f"{decoder}\n{cue}"


@pytest.mark.parametrize("name", ["laptop", "restaurant"])
def test_t5_reads_the_same_tokens_with_the_aspect_as_a_segment(name: str, reference_folder) -> None:
    tokenizer = tokenizer_of(reference_folder / "tokenizers" / "t5-base", ("eos",))
    rows = list(read_rows(reference_folder, name, "test"))
    for row in rows:
        paper, *segments = tokenizer.encode(
            [f"{row['text']} {row['aspect']}", *render(CATALOG[name], row, "encoder_decoder")]
        )
        assert paper == [token for segment in segments for token in segment]
    assert len(rows) > 300


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


def test_a_plain_word_is_a_name_and_not_a_folder(tmp_path, monkeypatch) -> None:
    (tmp_path / "sst2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_task("sst2").folder is None
    assert load_task("./sst2").folder == Path("sst2")
    assert load_task(Path("sst2")).folder == Path("sst2")
    monkeypatch.chdir(tmp_path / "sst2")
    assert load_task(".").name == "sst2"


def test_unknown_names() -> None:
    for argument, message in (
        ("sst", "unknown task 'sst'; did you mean sst2"),
        ("builtin/imbd", "unknown task 'builtin/imbd'; did you mean builtin/imdb"),
        ("../nowhere/sst2", "folder ../nowhere/sst2 does not exist"),
        (Path("nowhere"), "folder nowhere does not exist"),
        ("", "unknown task ''"),
    ):
        with pytest.raises(InputError, match=message):
            load_task(argument)


def test_arguments_that_are_not_a_task(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "task.toml").write_text(DEFINITION)
    for name, data, message in (
        (tmp_path / "mine", None, "has no task.toml and 'mine' is not a catalog task"),
        (tmp_path / "task.toml", None, "is a file; give a folder"),
        ("builtin/imdb", tmp_path, "omit --data"),
        ("sst2", tmp_path / "none", "does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            load_task(name, data=data)
