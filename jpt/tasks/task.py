"""A task: fields, template, label words and where its rows come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from string import Formatter
from typing import Any

from jpt.errors import InputError, unknown_name
from jpt.tasks.metrics import METRICS, TEXT_METRICS

# --- Segments of a template: text with ``{field}`` where a row's field goes


@lru_cache(maxsize=256)
def _parse(segment: str) -> tuple[tuple[str, str | None], ...]:
    """Splits a segment into (literal text, field or None); nothing but plain names is allowed."""
    # ``str.format`` itself is not used: it would also follow attributes and indices.
    try:
        parts = list(Formatter().parse(segment))
    except ValueError as error:
        raise InputError(f"template {segment!r} is broken: {error}; write {{field}}") from None
    for _, name, form, conversion in parts:
        if name is not None and (not name.isidentifier() or form or conversion):
            raise InputError(
                f"template {segment!r} has {{{name}}}; only a plain field name can stand in "
                "braces (write {{ and }} for braces themselves)"
            )
    return tuple((literal, name) for literal, name, _, _ in parts)


def template_fields(segment: str) -> tuple[str, ...]:
    """Lists the fields that a segment names."""
    return tuple(name for _, name in _parse(segment) if name is not None)


def fill_segment(segment: str, row: Mapping[str, str]) -> str:
    """Puts the fields of a row into a segment and takes the blanks around it off."""
    parts = _parse(segment)
    return "".join(literal + ("" if name is None else row[name]) for literal, name in parts).strip()


# --- What a task is: its fields, labels, templates, label words and metric, as plain data


BUILTIN_PREFIX = "builtin/"

MAX_SEGMENTS = 2
"""A model reads one text or a pair."""

ANSWER_CUE = "Answer:"
"""What decoders read between the text and the answer."""

LAYOUTS = ("encoder", "encoder_decoder", "decoder")
"""The layouts of models that a task has templates for."""

PARQUET_BRANCH = "refs/convert/parquet"
"""Where the hub keeps its own copies of data sets; each configuration is a folder there."""


@dataclass(frozen=True)
class HubSource:
    """Where a task's rows are on the Hugging Face hub, and how they are numbered there.

    Attributes:
        path: id of the dataset.
        config: name of its configuration, where it has several.
        splits: for each split of ours, which rows of the hub's (in the slicing language of
            ``datasets``); where the hub hides the labels of a test split, its validation split
            is scored and validation is cut from the end of train.
        labels: the task's label for each class number of the hub.
        fields: the hub's name of a field, where it differs from the task's.
        revision: branch, tag or commit of the dataset.
        form: how rows become ours: ``"plain"``, or one of :data:`jpt.data.rows.FORMS`.
    """

    path: str
    config: str | None
    splits: Mapping[str, str]
    labels: tuple[str, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)
    revision: str = "main"
    form: str = "plain"


@dataclass(frozen=True)
class Task:
    """One task, whatever its rows come from: labels to tell apart, or an answer to write.

    Attributes:
        name: what the user calls it and cards record.
        type: the kind of skill it asks for; tasks of one type are compared with each other.
        fields: names of the text fields of a row.
        labels: the classes in the order of their numbers; none where the answer is written.
        templates: for each layout of models, the segments of text with ``{field}`` in them; the
            encoders' must be there, where the answer is written the encoder-decoders', see
            :meth:`template` for the others.
        label_words: the word or the words that stand for each label: ``"default"``, and by model
            type where it differs there.
        metric: the measure that decides: a name out of :data:`jpt.tasks.metrics.METRICS`, of a
            written answer one out of :data:`jpt.tasks.metrics.TEXT_METRICS`.
        hub: where its rows are on the hub, if they are.
        folder: the folder its rows are read from, if they are read from one.
        files: the file of each split in that folder, where it is not ``SPLIT.jsonl``.
        label_field: the field of a row that holds its label.
        answer_field: the field of a row that holds the answer to be written, or several answers
            that are all right.
        answer_tokens: the most tokens that a written answer has.
        max_tokens: longest text in tokens that suits the task, where nothing else is asked for.
        rows: the rows of each split, where they are given and not read.

    Raises:
        InputError: labels, words, templates or metric do not fit each other.

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
        """Whether the answer is a text that the model writes, and no label."""
        return self.answer_field is not None

    @property
    def base_layout(self) -> str:
        """The layout whose template the others derive from; encoders write no text."""
        return "encoder_decoder" if self.is_generative else "encoder"

    @property
    def short_name(self) -> str:
        """The name without ``builtin/``, as it stands in tables."""
        return self.name.removeprefix(BUILTIN_PREFIX)

    @property
    def is_builtin(self) -> bool:
        """Whether its rows are made from the text that every installation has."""
        return self.name.startswith(BUILTIN_PREFIX)

    def template(self, layout: str) -> tuple[str, ...]:
        """Gives the segments of text that a kind of model reads.

        A task that says nothing of a kind gets the encoders' segments, one whose answer is written
        the encoder-decoders'; for decoders, which read on from where the text ends, with
        `ANSWER_CUE` behind them.

        Args:
            layout: ``"encoder"``, ``"encoder_decoder"`` or ``"decoder"``.

        Returns:
            The segments; one without a ``{field}`` is never cut.

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
        """Gives the label words for a kind of model.

        Args:
            model_type: the model type of a Hugging Face config, for instance ``"roberta"``.

        Returns:
            The words of each label, in the order of the labels; nothing where the answer is
            written.
        """
        own = self.label_words.get(model_type, {})
        words = {label: own.get(label, self.label_words["default"][label]) for label in self.labels}
        return {label: (of,) if isinstance(of, str) else tuple(of) for label, of in words.items()}

    def label_of(self, value: object) -> str | None:
        """Finds the label that a value in the data means.

        Args:
            value: a label as text, or a class number of the hub.

        Returns:
            One of the task's labels, or None when the value means none of them.

        Example:
            >>> Task("a", "b", ("text",), ("0", "1"), {"encoder": ("{text}",)},
            ...      {"default": {"0": "no", "1": "yes"}}).label_of(1)
            '1'
        """
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if text in self.labels:
            return text
        if self.hub is not None and text.isdecimal() and int(text) < len(self.hub.labels):
            return self.hub.labels[int(text)]
        return None


def _check_target(task: Task) -> None:
    target = task.answer_field or task.label_field
    if target in task.fields:
        raise InputError(
            f"task {task.name} has the field {target!r} both to be read and as what is asked for; "
            "leave it out of fields"
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
            f"task {task.name} has labels and an answer to be written ({task.answer_field}); "
            "a task has one of the two"
        )
    if not _is_count(task.answer_tokens):
        raise InputError(
            f"answer_tokens of task {task.name} is {task.answer_tokens!r}; say how many tokens an "
            "answer has at most, for instance 20"
        )


def _check_labels(task: Task) -> None:
    if len(task.labels) < 2:
        raise InputError(f"task {task.name} has {len(task.labels)} labels; it needs 2 or more")
    repeated = sorted({label for label in task.labels if task.labels.count(label) > 1})
    if repeated:
        raise InputError(f"task {task.name} names the label {repeated[0]!r} more than once")


def _check_words(task: Task) -> None:
    if "default" not in task.label_words:
        raise InputError(f"task {task.name} has no label words; give one word for each label")
    for model_type, words in task.label_words.items():
        unknown = sorted(set(words) - set(task.labels))
        if unknown:
            raise InputError(
                f"task {task.name} has a label word for {unknown[0]!r}, which is none of its "
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
                f"task {task.name} has an encoder template, but its answer is written, which "
                "encoders cannot do; give one for encoder_decoder"
            )
        # Each segment of an encoder has a separator behind it; the others may have cues between.
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
            (METRICS, "labels") if task.is_generative else (TEXT_METRICS, "written answers")
        )
        state = f"for {kind}, which it has not" if task.metric in others else "not known"
        raise InputError(
            f"metric {task.metric!r} of task {task.name} is {state}; "
            f"choose one of {', '.join(sorted(known))}"
        )
    if task.metric == "f1" and len(task.labels) != 2:
        raise InputError(
            f"metric 'f1' of task {task.name} is for 2 labels, the task has {len(task.labels)}; "
            "use f1_macro"
        )


# --- Templates: the text that a model of some family reads for a row


def render(task: Task, row: Mapping[str, str], layout: str = "encoder") -> tuple[str, ...]:
    """Fills a task's template with the fields of one row."""
    # Blanks around a segment are taken off: the text of a byte-pair vocabulary starts without a
    # leading space, as in the paper's code. In decoders, which read all segments as one text, each
    # but the first stands on a line of its own.
    first, *others = [fill_segment(segment, row) for segment in task.template(layout)]
    lead = "\n" if layout == "decoder" else ""
    return (first, *(lead + text for text in others))
