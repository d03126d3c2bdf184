"""Task definition: fields, templates, label words and data source."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property, lru_cache
from pathlib import Path
from string import Formatter
from typing import Any

from jpt.errors import InputError, shorten, unknown_name
from jpt.tasks.metrics import METRICS, TEXT_METRICS

# --- Template segments: text with ``{field}``


@lru_cache(maxsize=256)
def segment_parts(segment: str) -> tuple[tuple[str, str | None], ...]:
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
    return tuple(name for _, name in segment_parts(segment) if name is not None)


def fill_segment(segment: str, row: Mapping[str, str]) -> str:
    """Fill the fields of a row into a segment and strip it."""
    parts = segment_parts(segment)
    return "".join(literal + ("" if name is None else row[name]) for literal, name in parts).strip()


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
        drop_empty: Whether rows with an empty text are dropped; else they are an error.
        first_number: Class number of the first label.
    """

    path: str
    config: str | None
    splits: Mapping[str, str]
    labels: tuple[str, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)
    revision: str = "main"
    drop_empty: bool = False
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
        return self._readings.get(_reading(value))

    @cached_property
    def _readings(self) -> dict[str | Decimal | None, str]:
        """The label of each text, number and truth value in the data."""
        own = {_reading(label): label for label in self.labels}
        hub = self.hub if self.hub is not None and self.hub.labels else None
        numbers = {of: label for of, label in own.items() if isinstance(of, Decimal)}
        is_inverted = hub is None and tuple(map(str.lower, self.labels[:2])) in INVERTED
        if not numbers and not is_inverted:
            first, labels = (hub.first_number, hub.labels) if hub else (0, self.labels)
            numbers = {Decimal(number): label for number, label in enumerate(labels, first)}
        truths = {}
        if set(numbers) == {0, 1} and own.keys().isdisjoint(TRUTHS):
            truths = {truth: numbers[Decimal(of)] for of, truth in enumerate(TRUTHS)}
        return {**truths, **numbers, **own}

    @property
    def numbered(self) -> dict[Decimal, str]:
        """The label of each number in the data."""
        return {of: label for of, label in self._readings.items() if isinstance(of, Decimal)}

    def is_unlabelled(self, value: object) -> bool:
        """Return whether a value in the data means that a row has no label."""
        reading = _reading(value)
        if reading in self._readings:
            return False
        if not isinstance(reading, str):
            return reading == -1
        text = reading.strip()
        return text in MISSING and text.lower() not in map(str.lower, self.labels)

    def describe_numbers(self, value: object) -> str:
        """Return why a number or truth value is no label, as the end of a message."""
        if not is_number(value) and _reading(value) not in TRUTHS:
            return ""
        if not self.numbered:
            first, second = self.labels[:2]
            return f"; 1 could mean {first!r}, or class 1, which is {second!r}: write the label"
        if any(map(is_number, self.labels)):
            return "; as labels are numbers, a number is a label and not a position"
        listed = [f"{number} {label}" for number, label in self.numbered.items()]
        return f"; class numbers: {shorten(listed)}"


# --- Labels in data

MISSING = frozenset(
    "|#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a"
    "|nan|null".split("|")
)
"""Texts that pandas reads as a missing value, and those of a missing value in Python."""

TRUTHS = ("false", "true")

INVERTED = (("true", "false"), ("yes", "no"))
"""Labels whose second one, class 1, is what a 1 or True would not be taken for."""

_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")


def _reading(value: object) -> str | Decimal | None:
    """Return the number, the truth value in lower case, or else the text of a value in the data."""
    try:
        text = str(value)
    except Exception:  # absurd numbers, absurd nesting
        return None
    if text in MISSING and not isinstance(value, str):
        return ""
    if _NUMBER.fullmatch(text):
        return Decimal(text)
    return text.lower() if text.lower() in TRUTHS else text


def is_number(value: object) -> bool:
    """Return whether a value in the data is a number, or the text of one."""
    return isinstance(_reading(value), Decimal)


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
    seen: dict[object, str] = {}
    for label in task.labels:
        if seen.setdefault(_reading(label), label) != label:
            raise InputError(
                f"labels {seen[_reading(label)]!r} and {label!r} of task {task.name} mean the same "
                "in the data; remove one of the two"
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


def render(task: Task, row: Mapping[str, str], layout: str = "encoder") -> tuple[str, ...]:
    """Fill a task's template with the fields of a row; each decoder segment is a line."""
    # Stripped, so that byte-pair vocabularies see no leading space, as in the paper's code.
    first, *others = [fill_segment(segment, row) for segment in task.template(layout)]
    lead = "\n" if layout == "decoder" else ""
    return (first, *(lead + text for text in others))
