"""Tasks: label words, labels, templates, and one-line errors for parts that do not fit."""

from __future__ import annotations

import dataclasses

import pytest

from jpt.errors import InputError
from jpt.tasks.catalog import CATALOG
from jpt.tasks.task import HubSource, Task, fill_segment, render, template_fields

MOOD = Task(
    name="mood",
    type="sentiment",
    fields=("text",),
    labels=("bad", "good"),
    templates={"encoder": ("{text}",)},
    label_words={"default": {"bad": "terrible", "good": "great"}, "roberta": {"good": "nice"}},
)
DIGEST = Task(
    name="digest",
    type="summarization",
    fields=("text",),
    labels=(),
    templates={"encoder_decoder": ("text: {text}",)},
    metric="rougeL",
    answer_field="summary",
    answer_tokens=40,
)


def test_words_of_one_model_type_replace_the_default_ones() -> None:
    assert MOOD.words("bert") == {"bad": ("terrible",), "good": ("great",)}
    assert MOOD.words("roberta") == {"bad": ("terrible",), "good": ("nice",)}
    words = {**MOOD.label_words, "t5": {"bad": ("poor", "awful")}}
    task = dataclasses.replace(MOOD, label_words=words)
    assert task.words("t5") == {"bad": ("poor", "awful"), "good": ("great",)}
    swapped = dataclasses.replace(MOOD, labels=("good", "bad"))
    assert list(swapped.words("bert")) == ["good", "bad"]


@pytest.mark.parametrize(
    ("value", "label"),
    [
        *(("entailment", "entailment"), (0, "entailment"), (2, "contradiction"), ("1", "neutral")),
        *((other, None) for other in (3, -1, None, "yes", True, 1.0)),
    ],
)
def test_labels_and_class_numbers_of_the_hub(value: object, label: str | None) -> None:
    assert CATALOG["mnli"].label_of(value) == label


def test_labels_that_are_numbers_or_truth_values() -> None:
    hub = HubSource("a/b", None, {}, labels=("1", "0"))
    task = dataclasses.replace(
        MOOD, labels=("0", "1"), label_words={"default": {"0": "no", "1": "yes"}}, hub=hub
    )
    assert task.label_of(0) == "0"
    assert task.label_of("1") == "1"
    words = {"default": {"false": "no", "true": "yes"}}
    task = dataclasses.replace(MOOD, labels=("false", "true"), label_words=words)
    assert task.label_of(True) == "true"
    assert task.label_of("false") == "false"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields": (), "templates": {}}, "has no fields"),
        ({"labels": ("bad",)}, "has 1 labels"),
        ({"labels": ("bad", "good", "bad")}, "'bad' more than once"),
        ({"label_words": {}}, "has no label words"),
        ({"label_words": {"default": {"bad": "terrible"}}}, "no label word for 'good'"),
        ({"label_words": {"default": {"bad": "a", "good": "b", "so": "c"}}}, "'so'"),
        ({"label_words": {**MOOD.label_words, "bert": {"so": "c"}}}, "'so'"),
        ({"templates": {"encoder": ("{text} {title}",)}}, "names the field 'title'"),
        ({"templates": {"encoder": ()}}, "0 segments"),
        ({"templates": {"decoder": ("{text}",)}}, "no encoder template"),
        ({"templates": {"encoder": ("{text.x}",)}}, "only a plain field name"),
        ({"templates": {"encoder": ("a", "b", "c")}}, "3 segments"),
        ({"templates": {**MOOD.templates, "encodr": ("{text}",)}}, "unknown layout 'encodr'"),
        ({"label_words": {"default": {"bad": "a", "good": ()}}}, "words of 'good' .* are \\(\\)"),
        ({"metric": "bleu"}, "metric 'bleu' of task mood is for generated answers, which it"),
        ({"metric": "blue"}, "metric 'blue' of task mood is unknown"),
        ({"max_tokens": 0}, "max_tokens of task mood is 0"),
        ({"max_tokens": "128"}, "max_tokens of task mood is '128'"),
        ({"max_tokens": True}, "max_tokens of task mood is True"),
        ({"label_field": "text"}, "field 'text' both as text and as target"),
    ],
)
def test_invalid_classification_task(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(MOOD, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ("bad", "good")}, "has both labels and an answer to generate"),
        ({"label_words": {"default": {}, "t5": {}}}, "has both labels and an answer to generate"),
        ({"answer_tokens": None}, "answer_tokens of task digest is None"),
        ({"answer_tokens": 0}, "answer_tokens of task digest is 0"),
        ({"answer_tokens": True}, "answer_tokens of task digest is True"),
        ({"answer_field": "text"}, "field 'text' both as text and as target"),
        ({"metric": "accuracy"}, "metric 'accuracy' of task digest is for labels"),
        ({"templates": {"decoder": ("{text}",)}}, "has no encoder_decoder template"),
        ({"templates": {**DIGEST.templates, "encoder": ("{text}",)}}, "encoders cannot generate"),
    ],
)
def test_invalid_generative_task(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(DIGEST, **changes)


def test_generative_decoder_template_derives_from_encoder_decoder() -> None:
    assert DIGEST.is_generative and not MOOD.is_generative
    assert DIGEST.words("t5") == {}
    assert DIGEST.template("encoder_decoder") == ("text: {text}",)
    assert DIGEST.template("decoder") == ("text: {text}", "Answer:")
    templates = {**DIGEST.templates, "decoder": ("{text}", "In short:")}
    assert dataclasses.replace(DIGEST, templates=templates).template("decoder") == (
        "{text}",
        "In short:",
    )


def test_f1_needs_two_labels_and_names_may_have_a_prefix() -> None:
    with pytest.raises(InputError, match="needs 2 labels, the task has 3"):
        dataclasses.replace(CATALOG["mnli"], metric="f1")
    task = dataclasses.replace(MOOD, name="builtin/mood")
    assert (task.short_name, task.is_builtin) == ("mood", True)
    assert (MOOD.short_name, MOOD.is_builtin) == ("mood", False)


# --- Templates


def test_segments() -> None:
    assert fill_segment(" {text}\n", {"text": "\tone two "}) == "one two"
    assert fill_segment("{{{text}}} {{}}", {"text": "a"}) == "{a} {}"
    assert template_fields("{{text}}") == ()
    assert render(CATALOG["sst2"], {"text": "a {text} of {{braces}} {0}"}) == (
        "a {text} of {{braces}} {0}",
    )


@pytest.mark.parametrize(
    "segment",
    ["{text", "text}", "{}", "{0}", "{text.upper}", "{text[0]}", "{text!r}", "{text:>3}", "{a b}"],
)
def test_only_a_plain_name_stands_in_braces(segment: str) -> None:
    with pytest.raises(InputError, match="template"):
        template_fields(segment)


@pytest.mark.parametrize(
    ("layout", "pair", "single"),
    [
        ("encoder", ("It is wet.", "It rains."), ("a",)),
        (
            "encoder_decoder",
            ("hypothesis: It is wet.", "[SEP] sentence: premise: It rains."),
            ("a",),
        ),
        (
            "decoder",
            ("Premise: It rains.", "\nHypothesis: It is wet.", "\nAnswer:"),
            ("a", "\nAnswer:"),
        ),
    ],
)
def test_rendering(layout: str, pair: tuple[str, ...], single: tuple[str, ...]) -> None:
    row = {"premise": "It rains.", "hypothesis": "It is wet."}
    assert render(CATALOG["mnli"], row, layout) == pair
    assert render(CATALOG["sst2"], {"text": "a"}, layout) == single
