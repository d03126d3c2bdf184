"""List tasks and backbones, and show what a model reads."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jpt.backbones.registry import (
    BUILTIN,
    FAMILIES,
    PREFIX,
    backbone_names,
    find_family,
    load_backbone,
    read_config,
)
from jpt.config import TuneOptions
from jpt.data.encode import EncodedSplit
from jpt.data.rows import describe_hub_split, read_rows
from jpt.recipes.library import COLUMNS, wrap
from jpt.tasks.catalog import BUILTIN as BUILTIN_TASKS
from jpt.tasks.catalog import CANDIDATES, CATALOG, load_task
from jpt.tasks.task import Task, render
from jpt.tuning.bound_task import BoundTask, bind, resolve_options

SHOWN_ROWS = 3
SHOWN_LETTERS = 300
_INDENT = 12  # of the values of one task

Listing = tuple[dict[str, Any], str]


def list_tasks() -> Listing:
    """List all named tasks."""
    tasks = [*BUILTIN_TASKS.values(), *CATALOG.values()]
    rows = [(task.name, task.type, task.metric, _answers(task)) for task in tasks]
    record = {"tasks": [_task_record(task) for task in tasks]}
    table = _table(("task", "type", "metric", "label words"), rows)
    more = ", ".join(name.removeprefix("builtin/") for name in CANDIDATES)
    hints = [
        "Rows of builtin/ tasks are included in the installation; others come from --data DIR or"
        " the hub. 'jpt tasks NAME' shows a task in full.",
        f"Additional builtin/ tasks for larger backbones: {more}",
    ]
    return record, "\n".join([table, *(line for hint in hints for line in wrap(hint))])


def _answers(task: Task) -> str:
    """Return BERT's label words, or the maximum answer length."""
    if task.is_generative:
        return f"generated, at most {task.answer_tokens} tokens"
    return ", ".join("/".join(words) for words in task.words("bert").values())


def _words(task: Task) -> str:
    """Return the labels with BERT's label words, or the maximum answer length."""
    if task.is_generative:
        return _answers(task)
    return ", ".join(
        label if (label,) == words else f"{label} " + "/".join(f"'{word}'" for word in words)
        for label, words in task.words("bert").items()
    )


def _task_record(task: Task) -> dict[str, Any]:
    record = {
        "name": task.name,
        "type": task.type,
        "metric": task.metric,
        "fields": list(task.fields),
        "templates": {layout: list(segments) for layout, segments in task.templates.items()},
        "hub": None if task.hub is None else describe_hub_split(task.hub, "train"),
    }
    if task.is_generative:
        return record | {"answer_field": task.answer_field, "answer_tokens": task.answer_tokens}
    words = {kind: task.words(kind) for kind in task.label_words if kind != "default"}
    return record | {
        "labels": list(task.labels),
        "label_words": {"default": task.words("default"), **words},
    }


def list_backbones() -> Listing:
    """List the built-in backbones."""
    records = []
    for name in backbone_names():
        folder = BUILTIN / name.removeprefix(PREFIX)
        config = read_config(folder)
        family = find_family(config, name)
        shape = family.config(config)
        size = sum(path.stat().st_size for path in folder.iterdir())
        records.append(
            {
                "name": name,
                "model_type": config["model_type"],
                "layout": family.layout,
                "layers": shape.layers,
                "width": shape.width,
                "vocabulary": shape.vocabulary,
                "positions": shape.positions,
                "size_mb": round(size / 1e6, 1),
            }
        )
    shown = [key for key in records[0] if key != "model_type"]  # part of the name
    rows = [tuple(str(record[key]) for key in shown) for record in records]
    heads = ("backbone", "layout", "layers", "width", "vocabulary", "positions", "MB")
    kinds = ", ".join(dict.fromkeys(family.name for family in FAMILIES.values()))
    hint = f"A folder of weights or a hub id works, too; families: {kinds}."
    return {"backbones": records}, "\n".join([_table(heads, rows), *wrap(hint)])


def describe_task(
    name: str | Path, backbone: str | Path | None, max_tokens: int | None, data: Path | None
) -> Listing:
    """Show one task: template and label words; with a backbone also token ids, lengths and rows."""
    task = load_task(name, data)
    record = _task_record(task)
    lines = [
        f"{task.name} ({task.type}), metric {task.metric}",
        f"  fields    {', '.join(task.fields)}",
    ]
    if backbone is None:
        lines += [f"  template  {' | '.join(of)}  ({kind})" for kind, of in task.templates.items()]
        return record, _fitted([*lines, f"  answer    {_words(task)}"])
    details, more = _describe_on(task, backbone, max_tokens)
    return {**record, **details}, _fitted([*lines, *more])


def _describe_on(
    task: Task, backbone: str | Path, max_tokens: int | None
) -> tuple[dict[str, Any], list[str]]:
    """Return record and lines of a task as a backbone reads it."""
    model = load_backbone(backbone)
    bound = bind(task, model, resolve_options(TuneOptions(max_tokens=max_tokens), model, task))
    rows = read_rows(task, "train")
    split = bound.split("train")
    lengths, template = split.lengths, task.template(model.layout)
    record = {
        "backbone": model.name,
        "template": list(template),
        "train_rows": len(rows),
        "mean_tokens": round(float(lengths.mean()), 1),
        "longest_tokens": int(lengths.max()),
        "cut_rows": split.cut_rows,
        "content": split.content,
    }
    lines = [
        f"  template  {' | '.join(template)}",
        f"  answer    {bound.describe_label_words()}",
        f"  train     {_balance(record, rows, bound, split)}",
        f"  tokens    mean {record['mean_tokens']}, longest {record['longest_tokens']}, "
        f"{split.cut_rows} rows cut to {bound.batching.max_tokens}",
    ]
    return record, lines + _examples(rows, bound, split)


def _balance(
    record: dict[str, Any],
    rows: Sequence[Mapping[str, Any]],
    bound: BoundTask,
    split: EncodedSplit,
) -> str:
    """Describe the label balance, or the lengths of generated answers."""
    if split.answers is not None:
        mean = float(np.diff(split.answers.offsets).mean())
        record |= {"mean_answer_tokens": round(mean, 1), "cut_answers": split.answers.cut_rows}
        return (
            f"{len(rows)} rows, mean answer {mean:.1f} tokens, {split.answers.cut_rows} cut to "
            f"{bound.answer_tokens}"
        )
    words, counts = bound.label_words, Counter(row["label"] for row in rows)
    labels = bound.task.labels
    record |= {
        "label_words": dict(zip(labels, words.words, strict=True)),
        "label_ids": words.token_ids,
        "balance": {label: counts[label] for label in labels},
    }
    return ", ".join(f"{counts[label]} {label}" for label in labels)


def _examples(
    rows: Sequence[Mapping[str, Any]], bound: BoundTask, split: EncodedSplit
) -> list[str]:
    """Return the first rows: answer, text, and tokens as the model reads them."""
    model, lines = bound.backbone, []
    for number, row in enumerate(rows[:SHOWN_ROWS]):
        ids = split.tokens[split.offsets[number] : split.offsets[number + 1]]
        segments = render(bound.task, row, model.layout)
        text = " | ".join(text.strip() for text in segments)[:SHOWN_LETTERS]
        text_tokens = " ".join(model.tokenizer.token_text(token) for token in ids)[:SHOWN_LETTERS]
        answer = row["answers"][0] if split.answers is not None else row["label"]
        lines += [
            f"  row {number}     [{answer[:SHOWN_LETTERS]}] {text}",
            f"            {text_tokens}",
        ]
    return lines


def _fitted(lines: Sequence[str]) -> str:
    """Wrap long lines, indented to the column of the values."""
    return "\n".join(
        part
        for line in lines
        for part in textwrap.wrap(
            line, COLUMNS, subsequent_indent=" " * _INDENT, drop_whitespace=True
        )
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align columns; the last one wraps."""
    columns = list(zip(heads, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    front = sum(widths[:-1]) + 2 * len(widths[:-1])
    lines = []
    for *cells, last in (heads, *rows):
        left = "".join(f"{cell:<{width + 2}}" for cell, width in zip(cells, widths, strict=False))
        first, *others = textwrap.wrap(last, max(COLUMNS - front, 20)) or [""]
        lines += [f"{left}{first}".rstrip(), *(" " * front + other for other in others)]
    return "\n".join(lines)
