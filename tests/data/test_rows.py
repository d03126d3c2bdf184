"""The checks of rows: labels in each form, answers, messages of one line, and the checksum."""

import time
from decimal import Decimal

import numpy as np
import pytest

from jpt.data.rows import check_row, find_label, rows_checksum, show
from jpt.errors import InputError
from jpt.tasks.task import Task
from tests.data.row_files import GENERATIVE, SENTIMENT


def own_task(*labels: str) -> Task:
    words = {label: "word" for label in labels}
    return Task("own", "own", ("text",), labels, {"encoder": ("{text}",)}, {"default": words})


NUMBERS, TRUTHS, RATINGS = own_task("0", "1"), own_task("false", "true"), own_task("0.5", "1.0")
ANSWERS = own_task("None", "Some")


@pytest.mark.parametrize(
    ("task", "value", "label"),
    [
        *((NUMBERS, one, "1") for one in (1, 1.0, "1", "1.0", "1.00", True, "True", np.int8(1))),
        *((NUMBERS, one, "1") for one in (np.float32(1), np.True_, np.str_("1"), Decimal("1.0"))),
        *((NUMBERS, zero, "0") for zero in (0, 0.0, -0.0, False, "false", np.uint8(0))),
        *((TRUTHS, true, "true") for true in (True, "true", "True", "TRUE", np.True_)),
        *((TRUTHS, other, None) for other in (1, "1", 1.0, "yes")),
        *((SENTIMENT, one, "positive") for one in (1, 1.0, "1", "1.0", True, "positive")),
        *((RATINGS, one, "1.0") for one in (1.0, "1.0", np.float64(1))),
        *((NUMBERS, none, None) for none in (2, -1, 0.5, "0.5", "1.5", "1.", "1,0", "", " 1")),
        *((NUMBERS, none, None) for none in (float("nan"), float("inf"), Decimal("NaN"))),
        *((NUMBERS, none, None) for none in (Decimal("sNaN"), Decimal("Infinity"), [1], b"1")),
        *((NUMBERS, none, None) for none in (np.array([1]), None)),
        (ANSWERS, None, None),
        (ANSWERS, "None", "None"),
    ],
)
def test_labels_in_every_form(task: Task, value: object, label: str | None) -> None:
    assert find_label(value, task) == label


def test_absurd_numbers_are_no_labels() -> None:
    for absurd in (10**5000, "9" * 5000, "1" * 5000 + ".0", Decimal("1e5000"), 1e300):
        assert find_label(absurd, SENTIMENT) is None
        assert find_label(absurd, NUMBERS) is None


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([], "field 'answers' has no answer; give at least one"),
        ({"text": [], "answer_start": []}, "field 'answers' has no answer"),
        ({"answer_start": [1]}, "field 'answers' has answer_start but no 'text'"),
        ({}, "field 'answers' has nothing but no 'text'"),
        ("", "field 'answers' is empty"),
        (["a", "  "], "answer 2 of field 'answers' is empty"),
        (["a", None], "answer 2 of field 'answers' is null; it must be text"),
        ([["a"]], "answer 1 of field 'answers' is of type list; it must be text"),
        (["a", "\ud83d"], "answer 2 of field 'answers' has half a character"),
        (7, "field 'answers' is of type int; it must be a text or a list of texts"),
        (None, "field 'answers' is null"),
    ],
)
def test_wrong_answers_are_named(answers: object, message: str) -> None:
    with pytest.raises(InputError, match=r"^a\.jsonl:7: " + message):
        check_row({"question": "q", "answers": answers}, GENERATIVE, "a.jsonl:7")


def test_answers_under_another_name_and_answers_twice() -> None:
    from dataclasses import replace

    task = replace(GENERATIVE, answer_field="summary")
    row = check_row({"question": "q", "summary": ["a", "a"], "answers": "no"}, task, "row 1")
    assert row == {"question": "q", "answers": ("a", "a")}
    with pytest.raises(InputError, match="field 'summary' is missing; the row has question"):
        check_row({"question": "q"}, task, "row 1")


def test_messages_stay_short_and_in_one_line() -> None:
    row = {f"a\nlong name {number} " + "x" * 300: 1 for number in range(500)}
    with pytest.raises(InputError) as caught:
        check_row(row, SENTIMENT, "row 1")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500
    assert "488 more" in str(caught.value)


def test_anything_can_be_shown() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    assert show(Broken()) == "of type Broken"
    assert show(nested) == "of type list"
    assert show("x" * 10**6) == "'" + "x" * 59 + "..."


ROWS = [{"text": "a", "label": "b"}, {"text": "c", "label": "d"}]

OTHERS = [
    ROWS[::-1],
    ROWS[:1],
    [*ROWS, ROWS[0]],
    [{"text": "b", "label": "a"}, ROWS[1]],
    [{"text": "a", "answers": ("b",)}, ROWS[1]],
    [{"text": "a", "label": ("b",)}, ROWS[1]],
    [{"text": 'a","label":"b', "label": ""}, ROWS[1]],
    [{"text": "a\n", "label": "b"}, ROWS[1]],
    [{"texta": "", "label": "b"}, ROWS[1]],
    [],
]


def test_the_checksum_is_of_the_content() -> None:
    turned = [dict(reversed(row.items())) for row in ROWS]
    assert rows_checksum(turned) == rows_checksum(iter(ROWS)) == rows_checksum(ROWS)
    assert len({rows_checksum(rows) for rows in (ROWS, *OTHERS)}) == 1 + len(OTHERS)
    split, joined = {"answers": ("a", "b")}, {"answers": ("ab",)}
    assert rows_checksum([split]) != rows_checksum([joined])


def test_the_checksum_stays_the_same_over_versions() -> None:
    # Token caches and resumed runs depend on it. `printf '{"label": "b", "text": "\\u00e9"}\n'
    # | sha256sum` gives these digits.
    assert rows_checksum([{"text": "é", "label": "b"}]) == "5ce4a4c6d5562fee"


def test_the_checksum_is_quick() -> None:
    rows = [{"text": f"a short text, number {n}", "label": "positive"} for n in range(50_000)]
    begin = time.perf_counter()
    rows_checksum(rows)
    assert time.perf_counter() - begin < 1.0  # 0.08 s on an idle core
