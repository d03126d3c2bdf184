"""Templates and their segments."""

import dataclasses

import pytest

from jpt.errors import InputError
from jpt.tasks.catalog import CATALOG
from jpt.tasks.task import fill_segment, render, template_fields


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
