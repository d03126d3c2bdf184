"""DOC"""

from __future__ import annotations

import dataclasses

import pytest

from jpt.errors import InputError
from jpt.tasks.catalog import CATALOG
from jpt.tasks.task import HubSource, Task, fill_segment, render, template_fields

# --- task

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


def test_a_label_may_have_several_words() -> None:
    words = {**MOOD.label_words, "t5": {"bad": ("poor", "awful")}}
    task = dataclasses.replace(MOOD, label_words=words)
    assert task.words("t5") == {"bad": ("poor", "awful"), "good": ("great",)}
    assert task.words("bert")["bad"] == ("terrible",)


def test_words_stand_in_the_order_of_the_labels() -> None:
    swapped = dataclasses.replace(MOOD, labels=("good", "bad"))
    assert list(swapped.words("bert")) == ["good", "bad"]


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("entailment", "entailment"),
        (0, "entailment"),
        (2, "contradiction"),
        ("1", "neutral"),
        (3, None),
        (-1, None),
        (None, None),
        ("yes", None),
        (True, None),
        (1.0, None),
    ],
)
def test_labels_and_class_numbers_of_the_hub(value: object, label: str | None) -> None:
    assert CATALOG["mnli"].label_of(value) == label


def test_labels_that_are_numbers_are_not_class_numbers_of_the_hub() -> None:
    hub = HubSource("a/b", None, {}, labels=("1", "0"))
    task = dataclasses.replace(
        MOOD, labels=("0", "1"), label_words={"default": {"0": "no", "1": "yes"}}, hub=hub
    )
    assert task.label_of(0) == "0"
    assert task.label_of("1") == "1"


def test_true_and_false_as_labels() -> None:
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
        ({"templates": {"encoder": ("a", "b", "c")}}, "3 segments"),
        ({"templates": {**MOOD.templates, "encodr": ("{text}",)}}, "unknown layout 'encodr'"),
        ({"label_words": {"default": {"bad": "a", "good": ()}}}, "words of 'good' .* are \\(\\)"),
        ({"metric": "bleu"}, "metric 'bleu' of task mood is for written answers, which it has not"),
        ({"metric": "blue"}, "metric 'blue' of task mood is not known"),
        ({"max_tokens": 0}, "max_tokens of task mood is 0"),
        ({"max_tokens": "128"}, "max_tokens of task mood is '128'"),
        ({"max_tokens": True}, "max_tokens of task mood is True"),
        ({"label_field": "text"}, "field 'text' both to be read and as what is asked for"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(MOOD, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ("bad", "good")}, "has labels and an answer to be written"),
        ({"label_words": {"default": {}, "t5": {}}}, "has labels and an answer to be written"),
        ({"answer_tokens": None}, "answer_tokens of task digest is None"),
        ({"answer_tokens": 0}, "answer_tokens of task digest is 0"),
        ({"answer_tokens": True}, "answer_tokens of task digest is True"),
        ({"answer_field": "text"}, "field 'text' both to be read and as what is asked for"),
        ({"metric": "accuracy"}, "metric 'accuracy' of task digest is for labels"),
        ({"templates": {"decoder": ("{text}",)}}, "has no encoder_decoder template"),
        ({"templates": {**DIGEST.templates, "encoder": ("{text}",)}}, "encoders cannot do"),
    ],
)
def test_parts_of_a_written_task_that_do_not_fit_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(DIGEST, **changes)


def test_a_written_task_derives_its_decoder_template_from_that_of_encoder_decoders() -> None:
    assert DIGEST.is_generative and not MOOD.is_generative
    assert DIGEST.words("t5") == {}
    assert DIGEST.template("encoder_decoder") == ("text: {text}",)
    assert DIGEST.template("decoder") == ("text: {text}", "Answer:")
    own = {**DIGEST.templates, "decoder": ("{text}", "In short:")}
    assert dataclasses.replace(DIGEST, templates=own).template("decoder") == own["decoder"]


def test_f1_of_the_positive_class_needs_two_labels() -> None:
    with pytest.raises(InputError, match="2 labels, the task has 3"):
        dataclasses.replace(CATALOG["mnli"], metric="f1")


def test_names_in_tables_have_no_prefix() -> None:
    task = dataclasses.replace(MOOD, name="builtin/mood")
    assert (task.short_name, task.is_builtin) == ("mood", True)
    assert (MOOD.short_name, MOOD.is_builtin) == ("mood", False)


# --- templates


def test_the_hypothesis_comes_first() -> None:
    row = {"premise": "It rains.", "hypothesis": "It is wet."}
    assert render(CATALOG["mnli"], row) == ("It is wet.", "It rains.")


def test_text_in_the_row_is_never_read_as_a_template() -> None:
    assert render(CATALOG["sst2"], {"text": "a {text} of {{braces}} {0}"}) == (
        "a {text} of {{braces}} {0}",
    )


def test_blanks_around_a_segment_are_taken_off() -> None:
    assert fill_segment(" {text}\n", {"text": "\tone two "}) == "one two"


def test_doubled_braces_stand_for_one() -> None:
    assert fill_segment("{{{text}}} {{}}", {"text": "a"}) == "{a} {}"
    assert template_fields("{{text}}") == ()


@pytest.mark.parametrize(
    "segment",
    ["{text", "text}", "{}", "{0}", "{text.upper}", "{text[0]}", "{text!r}", "{text:>3}", "{a b}"],
)
def test_only_a_plain_name_stands_in_braces(segment: str) -> None:
    with pytest.raises(InputError, match="template"):
        template_fields(segment)


def test_a_decoder_reads_each_segment_on_a_line_and_then_the_cue() -> None:
    row = {"premise": "It rains.", "hypothesis": "It is wet."}
    expected = ("Premise: It rains.", "\nHypothesis: It is wet.", "\nAnswer:")
    assert render(CATALOG["mnli"], row, "decoder") == expected
    assert render(CATALOG["sst2"], {"text": "a"}, "decoder") == ("a", "\nAnswer:")


def test_t5_reads_the_words_of_the_papers_template() -> None:
    row = {"premise": "It rains.", "hypothesis": "It is wet."}
    expected = ("hypothesis: It is wet.", "[SEP] sentence: premise: It rains.")
    assert render(CATALOG["mnli"], row, "encoder_decoder") == expected
    assert render(CATALOG["sst2"], {"text": "a"}, "encoder_decoder") == ("a",)


def test_a_task_needs_the_template_the_others_derive_from() -> None:
    with pytest.raises(InputError, match="no encoder template"):
        dataclasses.replace(CATALOG["sst2"], templates={"decoder": ("{text}",)})


def test_a_task_with_a_broken_template_cannot_be_made() -> None:
    with pytest.raises(InputError, match="only a plain field name"):
        dataclasses.replace(CATALOG["sst2"], templates={"encoder": ("{text.x}",)})
