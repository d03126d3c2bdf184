"""Tasks, templates and label words."""

import dataclasses
from collections.abc import Iterable
from dataclasses import replace

import pytest

from jpt.errors import InputError
from jpt.tasks.catalog import CATALOG
from jpt.tasks.task import HubSource, Task, fill_segment, render, template_fields
from jpt.tasks.verbalizers import label_words

WORDS = {"default": {"bad": "terrible", "good": "great"}, "roberta": {"good": "nice"}}
MOOD = Task("mood", "sentiment", ("text",), ("bad", "good"), {"encoder": ("{text}",)}, WORDS)
DIGEST = Task(
    "digest", "summarization", ("text",), (), {"encoder_decoder": ("text: {text}",)}, {}, "rougeL",
    answer_field="summary", answer_tokens=40,
)  # fmt: skip


def test_words_of_one_model_type_replace_the_default_ones() -> None:
    assert MOOD.words("bert") == {"bad": ("terrible",), "good": ("great",)}
    assert MOOD.words("roberta") == {"bad": ("terrible",), "good": ("nice",)}
    words = {**MOOD.label_words, "t5": {"bad": ("poor", "awful")}}
    task = replace(MOOD, label_words=words)
    assert task.words("t5") == {"bad": ("poor", "awful"), "good": ("great",)}
    swapped = replace(MOOD, labels=("good", "bad"))
    assert list(swapped.words("bert")) == ["good", "bad"]


def test_labels_and_class_numbers_of_the_hub() -> None:
    for value, label in (
        *(("entailment", "entailment"), (0, "entailment"), (2, "contradiction"), ("1", "neutral")),
        *((one, "neutral") for one in (1, 1.0, "1.0")),
        *((other, None) for other in (3, -1, None, "yes", True)),
    ):
        assert CATALOG["mnli"].label_of(value) == label


def test_labels_that_are_numbers_or_truth_values() -> None:
    hub, words = HubSource("a/b", None, {}, labels=("1", "0")), {"0": "no", "1": "yes"}
    task = replace(MOOD, labels=("0", "1"), label_words={"default": words}, hub=hub)
    assert (task.label_of(0), task.label_of("1")) == ("0", "1")
    words = {"default": {"false": "no", "true": "yes"}}
    task = replace(MOOD, labels=("false", "true"), label_words=words)
    assert (task.label_of(True), task.label_of("false")) == ("true", "false")


def test_invalid_parts() -> None:
    for task, changes, message in (
        (MOOD, {"fields": (), "templates": {}}, "has no fields"),
        (MOOD, {"labels": ("bad",)}, "has 1 labels"),
        (MOOD, {"labels": ("bad", "good", "bad")}, "'bad' more than once"),
        (MOOD, {"label_words": {}}, "has no label words"),
        (MOOD, {"label_words": {"default": {"bad": "terrible"}}}, "no label word for 'good'"),
        (MOOD, {"label_words": {"default": {"bad": "a", "good": "b", "so": "c"}}}, "'so'"),
        (MOOD, {"label_words": {**MOOD.label_words, "bert": {"so": "c"}}}, "'so'"),
        (MOOD, {"templates": {"encoder": ("{text} {title}",)}}, "names the field 'title'"),
        (MOOD, {"templates": {"encoder": ()}}, "0 segments"),
        (MOOD, {"templates": {"decoder": ("{text}",)}}, "no encoder template"),
        (MOOD, {"templates": {"encoder": ("{text.x}",)}}, "only a plain field name"),
        (MOOD, {"templates": {"encoder": ("a", "b", "c")}}, "3 segments"),
        (MOOD, {"templates": {**MOOD.templates, "encodr": ("{text}",)}}, "unknown layout 'encodr'"),
        (MOOD, {"label_words": {"default": {"bad": "a", "good": ()}}}, r"of 'good' .* are \(\)"),
        (MOOD, {"metric": "bleu"}, "metric 'bleu' of task mood is for generated answers, which it"),
        (MOOD, {"metric": "blue"}, "metric 'blue' of task mood is unknown"),
        (MOOD, {"max_tokens": 0}, "max_tokens of task mood is 0"),
        (MOOD, {"max_tokens": "128"}, "max_tokens of task mood is '128'"),
        (MOOD, {"max_tokens": True}, "max_tokens of task mood is True"),
        (MOOD, {"label_field": "text"}, "field 'text' both as text and as target"),
        (DIGEST, {"labels": ("bad", "good")}, "has both labels and an answer to generate"),
        (DIGEST, {"label_words": {"default": {}, "t5": {}}}, "has both labels and an answer"),
        (DIGEST, {"answer_tokens": None}, "answer_tokens of task digest is None"),
        (DIGEST, {"answer_tokens": 0}, "answer_tokens of task digest is 0"),
        (DIGEST, {"answer_tokens": True}, "answer_tokens of task digest is True"),
        (DIGEST, {"answer_field": "text"}, "field 'text' both as text and as target"),
        (DIGEST, {"metric": "accuracy"}, "metric 'accuracy' of task digest is for labels"),
        (DIGEST, {"templates": {"decoder": ("{text}",)}}, "has no encoder_decoder template"),
        (DIGEST, {"templates": {**DIGEST.templates, "encoder": ("{text}",)}}, "encoders cannot"),
    ):
        with pytest.raises(InputError, match=message):
            replace(task, **changes)


def test_generative_decoder_template_derives_from_encoder_decoder() -> None:
    assert DIGEST.is_generative and not MOOD.is_generative and DIGEST.words("t5") == {}
    assert DIGEST.template("encoder_decoder") == ("text: {text}",)
    assert DIGEST.template("decoder") == ("text: {text}", "Answer:")
    templates = {**DIGEST.templates, "decoder": ("{text}", "In short:")}
    task = replace(DIGEST, templates=templates)
    assert task.template("decoder") == templates["decoder"]


def test_f1_needs_two_labels_and_names_may_have_a_prefix() -> None:
    with pytest.raises(InputError, match="needs 2 labels, the task has 3"):
        replace(CATALOG["mnli"], metric="f1")
    task = replace(MOOD, name="builtin/mood")
    assert (task.short_name, task.is_builtin) == ("mood", True)
    assert (MOOD.short_name, MOOD.is_builtin) == ("mood", False)


def test_segments() -> None:
    assert fill_segment(" {text}\n", {"text": "\tone two "}) == "one two"
    assert fill_segment("{{{text}}} {{}}", {"text": "a"}) == "{a} {}"
    assert template_fields("{{text}}") == ()
    text = "a {text} of {{braces}} {0}"
    assert render(CATALOG["sst2"], {"text": text}) == (text,)


@pytest.mark.parametrize(
    "segment",
    ["{text", "text}", "{}", "{0}", "{text.upper}", "{text[0]}", "{text!r}", "{text:>3}", "{a b}"],
)
def test_only_a_plain_name_stands_in_braces(segment: str) -> None:
    with pytest.raises(InputError, match="template"):
        template_fields(segment)


def test_each_segment_of_a_decoder_is_a_line() -> None:
    row = {"premise": "It rains.", "hypothesis": "It is wet."}
    segments = ("Premise: It rains.", "\nHypothesis: It is wet.", "\nAnswer:")
    assert render(CATALOG["mnli"], row, "decoder") == segments
    assert render(CATALOG["sst2"], {"text": "a"}, "decoder") == ("a", "\nAnswer:")


TOKENS = ["[UNK]", "no", "neutral", "yes", "con", "##tra"]


class SmallVocabulary:
    """Has the tokens above; "contra" is two of them, and everything else is unknown."""

    unknown = 0

    def word_tokens(self, word: str) -> list[int]:
        if word == "contra":
            return [4, 5]
        return [TOKENS.index(word)] if word in TOKENS else [0]

    def token_text(self, token: int) -> str:
        return TOKENS[token]

    def check_ids(self, ids: Iterable[int], where: str) -> None:
        assert where.startswith("label word ")


class SharedStarts(SmallVocabulary):
    def word_tokens(self, word: str) -> list[int]:
        return {"contra": [4, 5], "conno": [4, 1], "con": [4]}.get(word) or [3]


def with_words(*words: str | tuple[str, ...]) -> Task:
    task = CATALOG["mnli"]
    return dataclasses.replace(
        task, label_words={"default": dict(zip(task.labels, words, strict=True))}
    )


def test_ids_are_in_label_order() -> None:
    found = label_words(CATALOG["mnli"], SmallVocabulary(), "bert")
    assert found.words == (("no",), ("neutral",), ("yes",))
    assert found.token_ids == (((1,),), ((2,),), ((3,),)) and found.ids == (1, 2, 3)


def test_several_words_per_label_and_tokens_per_word() -> None:
    with pytest.raises(InputError, match="2 tokens"):
        label_words(with_words(("no", "con"), "contra", "yes"), SmallVocabulary(), "bert")
    task = with_words("no", "contra", ("yes", "neutral"))
    found = label_words(task, SmallVocabulary(), "t5", "encoder_decoder")
    assert found.token_ids == (((1,),), ((4, 5),), ((3,), (2,)))
    assert found.ids == (1, 4, 3)


def test_words_with_a_common_start() -> None:
    task = with_words("contra", "conno", "yes")
    found = label_words(task, SharedStarts(), "t5", "encoder_decoder", "phrase")
    assert found.token_ids == (((4, 5),), ((4, 1),), ((3,),))
    with pytest.raises(InputError, match=r"start with 'con', id 4\); .*label_scoring phrase"):
        label_words(task, SharedStarts(), "t5", "encoder_decoder", "first_token")
    # The longer of the two can never be more probable than its beginning.
    with pytest.raises(InputError, match="'contra' and 'con' both start with 'con'"):
        label_words(with_words("contra", "con", "yes"), SharedStarts(), "t5", "encoder_decoder")


def test_unusable_words() -> None:
    for words, message in (
        (("contra", "neutral", "yes"), r"2 tokens in this vocabulary \('con', '##tra'\)"),
        (("no", "neutral", "sure"), r"'sure' for 'entailment' .* not in this vocabulary"),
        (("no", "neutral", "no"), r"'contradiction' and 'entailment' .* start with 'no', id 1\)"),
    ):
        with pytest.raises(InputError, match=message):
            label_words(with_words(*words), SmallVocabulary(), "bert")
