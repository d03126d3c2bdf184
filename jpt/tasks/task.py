"""Task definition: fields, templates, label words and data source."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np

from jpt.errors import InputError, unknown_name
from jpt.tasks.metrics import METRICS, TEXT_METRICS

# --- Template segments: text with ``{field}``


@lru_cache(maxsize=256)
def _parse(segment: str) -> tuple[tuple[str, str | None], ...]:
    """Split a segment into (literal text, field or None)."""
    # Not ``str.format``, which would also follow attributes and indices.
    try:
        parts = list(Formatter().parse(segment))
    except ValueError as error:
        raise InputError(f"template {segment!r} is broken: {error}; write {{field}}") from None
    for _, name, form, conversion in parts:
        if name is not None and (not name.isidentifier() or form or conversion):
            raise InputError(
                f"template {segment!r} has {{{name}}}; only a plain field name can be in braces "
                "(write {{ and }} for literal braces)"
            )
    return tuple((literal, name) for literal, name, _, _ in parts)


def template_fields(segment: str) -> tuple[str, ...]:
    """Return the fields of a segment."""
    return tuple(name for _, name in _parse(segment) if name is not None)


def fill_segment(segment: str, row: Mapping[str, str]) -> str:
    """Fill the fields of a row into a segment and strip it."""
    return _fill(segment, row).strip()


def _fill(segment: str, row: Mapping[str, str]) -> str:
    parts = _parse(segment)
    return "".join(literal + ("" if name is None else row[name]) for literal, name in parts)


def literal_spans(segment: str, row: Mapping[str, str]) -> list[tuple[int, int]]:
    """Return where the segment's own text stands once it is filled."""
    filled = _fill(segment, row)
    end, spans = len(filled.lstrip()) - len(filled), []
    for literal, name in _parse(segment):
        spans.append((end, end + len(literal)))
        end += len(literal) + (0 if name is None else len(row[name]))
    return spans


def literal_text(segment: str) -> str:
    """Return the segment's own text, without its fields."""
    return " ".join(literal for literal, _ in _parse(segment))


# --- Tasks


BUILTIN_PREFIX = "builtin/"

MAX_SEGMENTS = 2
"""Models read one text or a pair."""

ANSWER_CUE = "Answer:"
"""Text that decoders read before the answer."""

LAYOUTS = ("encoder", "encoder_decoder", "decoder")
"""Layouts of models, each with a template."""

PARQUET_BRANCH = "refs/convert/parquet"
"""Branch of the hub's parquet copies; each configuration is a folder in it."""


@dataclass(frozen=True)
class HubSource:
    """Rows of a task on the Hugging Face hub.

    Attributes:
        path: Id of the dataset.
        config: Name of its configuration, if it has several.
        splits: Rows of each split, in the slicing syntax of ``datasets``.
        labels: The task's label for each class number of the hub.
        fields: The hub's names of fields that differ from the task's.
        revision: Branch, tag or commit of the dataset.
        form: Selection of rows: one of `jpt.data.rows.FORMS`.
        first_number: Class number of the first label.
    """

    path: str
    config: str | None
    splits: Mapping[str, str]
    labels: tuple[str, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)
    revision: str = "main"
    form: str = "plain"
    first_number: int = 0


@dataclass(frozen=True)
class Task:
    """Classification or generative task.

    Attributes:
        name: Name in commands and prompt cards.
        type: Task type, the skill it needs, for instance ``"sentiment"``.
        fields: Names of the text fields of a row.
        labels: Classes in the order of their numbers; empty in generative tasks.
        templates: Segments of text with ``{field}`` by layout. ``"encoder"`` is required, in
            generative tasks ``"encoder_decoder"``; see `template` for the others.
        label_words: Word or words of each label (the verbalizer), under ``"default"`` and under
            model types for which they differ.
        metric: Main metric, from `jpt.tasks.metrics.METRICS`, in generative tasks from
            `jpt.tasks.metrics.TEXT_METRICS`.
        hub: Source of the rows on the hub.
        folder: Folder of the rows.
        files: File of each split in that folder, if it is not ``SPLIT.jsonl``.
        label_field: Field of a row with its label.
        answer_field: Field of a row with the answer to generate, or several correct ones.
        answer_tokens: Longest generated answer in tokens.
        max_tokens: Longest text in tokens, unless an option sets it.
        rows: Rows of each split, if they are given in Python.

    Raises:
        InputError: Labels, words, templates or metric do not fit each other.

    Example:
        >>> Task("mood", "sentiment", ("text",), ("bad", "good"), {"encoder": ("{text}",)},
        ...      {"default": {"bad": "terrible", "good": ("great", "fine")}}).words("bert")
        {'bad': ('terrible',), 'good': ('great', 'fine')}
    """

    name: str
    type: str
    fields: tuple[str, ...]
    labels: tuple[str, ...]
    templates: Mapping[str, tuple[str, ...]]
    label_words: Mapping[str, Mapping[str, str | tuple[str, ...]]] = field(default_factory=dict)
    metric: str = "accuracy"
    hub: HubSource | None = None
    folder: Path | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    label_field: str = "label"
    answer_field: str | None = None
    answer_tokens: int | None = None
    max_tokens: int | None = None
    rows: Mapping[str, Sequence[Mapping[str, Any]]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.fields:
            raise InputError(f"task {self.name} has no fields; name the text fields of its rows")
        _check_target(self)
        if self.is_generative:
            _check_answer(self)
        else:
            _check_labels(self)
            _check_words(self)
        _check_templates(self)
        _check_metric(self)

    @property
    def is_generative(self) -> bool:
        """Whether the answer is generated text instead of a label."""
        return self.answer_field is not None

    @property
    def base_layout(self) -> str:
        """Layout whose template the others derive from."""
        return "encoder_decoder" if self.is_generative else "encoder"

    @property
    def short_name(self) -> str:
        """Name without ``builtin/``, as in tables."""
        return self.name.removeprefix(BUILTIN_PREFIX)

    @property
    def is_builtin(self) -> bool:
        """Whether its rows are built in."""
        return self.name.startswith(BUILTIN_PREFIX)

    def template(self, layout: str) -> tuple[str, ...]:
        """Return the template of a layout.

        It defaults to the template of `base_layout`; for decoders `ANSWER_CUE` is appended.

        Args:
            layout: ``"encoder"``, ``"encoder_decoder"`` or ``"decoder"``.

        Returns:
            The segments; those without a ``{field}`` are never truncated.

        Example:
            >>> Task("a", "b", ("text",), ("0", "1"), {"encoder": ("{text}",)},
            ...      {"default": {"0": "no", "1": "yes"}}).template("decoder")
            ('{text}', 'Answer:')
        """
        if layout in self.templates:
            return self.templates[layout]
        cue = (ANSWER_CUE,) if layout == "decoder" else ()
        return (*self.templates[self.base_layout], *cue)

    def words(self, model_type: str) -> dict[str, tuple[str, ...]]:
        """Return the label words of a model type.

        Args:
            model_type: Model type of a Hugging Face config, for instance ``"roberta"``.

        Returns:
            The words of each label, in the order of the labels; empty in generative tasks.
        """
        words = {**self.label_words.get("default", {}), **self.label_words.get(model_type, {})}
        found = {label: words[label] for label in self.labels}
        return {label: (of,) if isinstance(of, str) else tuple(of) for label, of in found.items()}

    def label_of(self, value: object) -> str | None:
        """Return the label of a value in the data, the same from the hub, files and Python.

        Args:
            value: A label as text or number; a class number, which is a position in `labels` and
                in the paper's tasks the hub's number; or, with two classes, a truth value. Class
                numbers may be ``1``, ``1.0``, ``"1"`` or ``"1.0"``. If labels are numbers
                themselves, numbers are labels only.

        Returns:
            One of the task's labels, or None.

        Example:
            >>> task = Task("a", "b", ("text",), ("bad", "good"), {"encoder": ("{text}",)},
            ...             {"default": {"bad": "no", "good": "yes"}})
            >>> task.label_of("good"), task.label_of(1), task.label_of("0.0"), task.label_of(2)
            ('good', 'good', 'bad', None)
        """
        value = _plain(value)
        if isinstance(value, str) and value in self.labels:
            return value
        numbers, truth = self.class_numbers, _truth(value)
        if truth is None:
            number = _number(value)
            return None if number is None else numbers.get(number)
        named = [label for label in self.labels if label.lower() == str(bool(truth)).lower()]
        return named[0] if named else numbers.get(truth) if set(numbers) == {0, 1} else None

    @property
    def class_numbers(self) -> Mapping[Decimal, str]:
        """The label of each class number in the data."""
        hub = self.hub if self.hub is not None and self.hub.labels else None
        numbered = None if hub is None else (hub.first_number, tuple(hub.labels))
        return _class_numbers(tuple(self.labels), numbered)

    def is_unlabelled(self, value: object) -> bool:
        """Return whether a value in the data means that a row has no label."""
        value = _plain(value)
        if self.label_of(value) is not None:
            return False
        if isinstance(value, str):
            text = value.strip()
            is_near = text.lower() in (label.lower() for label in self.labels)
            return (text in MISSING and not is_near) or _number(text) == -1
        is_missing = value is None or type(value).__name__ in ("NAType", "NaTType")
        is_nan = isinstance(value, float | Decimal) and str(value).lower().endswith("nan")
        return is_missing or is_nan or _number(value) == -1

    def describe_numbers(self, value: object) -> str:
        """Return why a number or truth value is no label, as the end of a message."""
        numbers, truth = self.class_numbers, _truth(_plain(value))
        if truth is None and not is_number(value):
            return ""
        if truth is not None and numbers and set(numbers) != {0, 1}:
            return "; a truth value stands for class 0 or 1 of two"
        if not numbers:
            first, second = self.labels
            return f"; 1 could mean {first!r}, or class 1, which is {second!r}: write the label"
        if any(_number(label) is not None for label in self.labels):
            return "; as labels are numbers, a number is a label and not a position"
        kind = "positions in labels" if self.hub is None else "those of the hub"
        listed = ", ".join(f"{number} {label}" for number, label in list(numbers.items())[:8])
        return f"; class numbers are {kind}: {listed}{', ...' if len(numbers) > 8 else ''}"


# --- Labels in data

MISSING = frozenset(
    "|#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a"
    "|nan|null".split("|")
)
"""Texts that pandas reads as a missing value, the empty one included."""

_DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_TRUTHS = {"false": Decimal(0), "true": Decimal(1)}
# Labels whose second one, class 1, is what a 1 or True would not be taken for.
_INVERTED = (("true", "false"), ("yes", "no"))


def _plain(value: Any) -> Any:
    """Return a number of NumPy as a number of Python."""
    return value.item() if isinstance(value, np.generic) else value


def is_number(value: object) -> bool:
    """Return whether a value in the data is a number, or the text of one."""
    return _number(_plain(value)) is not None


def _truth(value: object) -> Decimal | None:
    if isinstance(value, bool):
        return Decimal(value)
    return _TRUTHS.get(value.lower()) if isinstance(value, str) else None


def _number(value: object) -> Decimal | None:
    """Return the number of a number or of its text, or None."""
    if isinstance(value, str):
        return Decimal(value) if _DECIMAL.fullmatch(value) else None
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    return number if number.is_finite() else None


@lru_cache(maxsize=256)
def _class_numbers(
    labels: tuple[str, ...], hub: tuple[int, tuple[str, ...]] | None
) -> Mapping[Decimal, str]:
    """Return the label of each class number; none where 0 and 1 could mean either label."""
    own = {number: label for label in labels if (number := _number(label)) is not None}
    if own:
        return own
    if hub is None and tuple(label.lower() for label in labels) in _INVERTED:
        return {}
    first, numbered = hub or (0, labels)
    return {Decimal(number): label for number, label in enumerate(numbered, first)}


def _check_target(task: Task) -> None:
    target = task.answer_field or task.label_field
    if target in task.fields:
        raise InputError(
            f"task {task.name} has the field {target!r} both as text and as target; remove it "
            "from fields"
        )
    if task.max_tokens is not None and not _is_count(task.max_tokens):
        raise InputError(
            f"max_tokens of task {task.name} is {task.max_tokens!r}; give a whole number of "
            "tokens, for instance 128"
        )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check_answer(task: Task) -> None:
    if task.labels or task.label_words:
        raise InputError(
            f"task {task.name} has both labels and an answer to generate ({task.answer_field}); "
            "use one of the two"
        )
    if not _is_count(task.answer_tokens):
        raise InputError(
            f"answer_tokens of task {task.name} is {task.answer_tokens!r}; give the longest answer "
            "in tokens, for instance 20"
        )


def _check_labels(task: Task) -> None:
    if len(task.labels) < 2:
        raise InputError(f"task {task.name} has {len(task.labels)} labels; give 2 or more")
    for label in task.labels:
        if not isinstance(label, str):
            raise InputError(
                f"label {label!r} of task {task.name} is of type {type(label).__name__}; write it "
                f"as text, {str(label)!r}"
            )
    repeated = sorted({label for label in task.labels if task.labels.count(label) > 1})
    if repeated:
        raise InputError(f"task {task.name} has the label {repeated[0]!r} more than once")
    seen: dict[Decimal, str] = {}
    for label in task.labels:
        number = _number(label)
        if number is not None and seen.setdefault(number, label) != label:
            raise InputError(
                f"labels {seen[number]!r} and {label!r} of task {task.name} are the same number; "
                "remove one of the two"
            )


def _check_words(task: Task) -> None:
    if "default" not in task.label_words:
        raise InputError(f"task {task.name} has no label words; give one word for each label")
    for model_type, words in task.label_words.items():
        unknown = sorted(set(words) - set(task.labels))
        if unknown:
            raise InputError(
                f"task {task.name} has a label word for {unknown[0]!r}, which is not one of its "
                f"labels ({', '.join(task.labels)})"
            )
        missing = [label for label in task.labels if label not in words]
        if model_type == "default" and missing:
            raise InputError(
                f"task {task.name} has no label word for {', '.join(map(repr, missing))}; "
                "give one word for each label"
            )
        for label, given in words.items():
            of = (given,) if isinstance(given, str) else given
            if not of or not all(isinstance(word, str) and word.strip() for word in of):
                raise InputError(
                    f"the label words of {label!r} of task {task.name} are {given!r}; give a word, "
                    "or a list of words"
                )


def _check_templates(task: Task) -> None:
    base = task.base_layout
    if base not in task.templates:
        raise InputError(f"task {task.name} has no {base} template; the others derive from it")
    for family, segments in task.templates.items():
        if family not in LAYOUTS:
            raise unknown_name("layout", family, LAYOUTS)
        if family == "encoder" and task.is_generative:
            raise InputError(
                f"task {task.name} has an encoder template, but encoders cannot generate its "
                "answer; give a template for encoder_decoder"
            )
        # In an encoder, each segment ends with a separator; the other layouts may have cues.
        cues = 0 if family == "encoder" else sum(not template_fields(text) for text in segments)
        if not 1 <= len(segments) - cues <= MAX_SEGMENTS:
            raise InputError(
                f"the {family} template of task {task.name} has {len(segments) - cues} segments; "
                f"give 1 or {MAX_SEGMENTS}"
            )
        for segment in segments:
            unknown = [name for name in template_fields(segment) if name not in task.fields]
            if unknown:
                raise InputError(
                    f"template {segment!r} of task {task.name} names the field {unknown[0]!r}; "
                    f"its fields are {', '.join(task.fields)}"
                )


def _check_metric(task: Task) -> None:
    known = TEXT_METRICS if task.is_generative else METRICS
    if task.metric not in known:
        others, kind = (
            (METRICS, "labels") if task.is_generative else (TEXT_METRICS, "generated answers")
        )
        state = f"for {kind}, which it does not have" if task.metric in others else "unknown"
        raise InputError(
            f"metric {task.metric!r} of task {task.name} is {state}; "
            f"choose one of {', '.join(sorted(known))}"
        )
    if task.metric == "f1" and len(task.labels) != 2:
        raise InputError(
            f"metric 'f1' of task {task.name} needs 2 labels, the task has {len(task.labels)}; "
            "use f1_macro"
        )


# --- Rendering

LEADS = {"encoder": "", "encoder_decoder": "", "decoder": "\n"}
"""Text before each segment but the first, by layout."""


def render(task: Task, row: Mapping[str, str], layout: str = "encoder") -> tuple[str, ...]:
    """Fill a task's template with the fields of a row; each decoder segment is a line."""
    # Stripped, so that byte-pair vocabularies see no leading space, as in the paper's code.
    first, *others = [fill_segment(segment, row) for segment in task.template(layout)]
    return (first, *(LEADS[layout] + text for text in others))
