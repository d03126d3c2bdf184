"""What there is: tasks and backbones as tables, one task in full."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jpt.backbones.families import FAMILIES, find_family
from jpt.backbones.registry import (
    BUILTIN,
    PREFIX,
    backbone_names,
    load_backbone,
    read_config,
)
from jpt.data.encode import encode_split
from jpt.data.sources import read_rows
from jpt.tasks.builtin import BUILTIN as BUILTIN_TASKS
from jpt.tasks.builtin import CANDIDATES
from jpt.tasks.catalog import CATALOG
from jpt.tasks.registry import load_task
from jpt.tasks.task import Task
from jpt.tasks.templates import render
from jpt.tasks.verbalizers import label_ids

SHOWN_ROWS = 3
SHOWN_LETTERS = 300

Listing = tuple[dict[str, Any], str]


def list_tasks() -> Listing:
    """Lists every task that has a name.

    Returns:
        The record for ``--json``, and a table.

    Example:
        >>> record, text = list_tasks()
        >>> "builtin/imdb" in text
        True
    """
    tasks = [*BUILTIN_TASKS.values(), *CATALOG.values()]
    rows = [
        (
            task.name,
            task.type,
            ", ".join(
                label if label == word else f"{label} '{word}'"
                for label, word in task.words("bert").items()
            ),
            "every installation" if task.is_builtin else "--data DIR or the hub",
        )
        for task in tasks
    ]
    record = {"tasks": [_task_record(task) for task in tasks]}
    table = _table(("task", "type", "labels and their words", "rows from"), rows)
    more = ", ".join(name.removeprefix("builtin/") for name in CANDIDATES)
    return record, f"{table}\nFor larger backbones there are also, after builtin/: {more}"


def _task_record(task: Task) -> dict[str, Any]:
    return {
        "name": task.name,
        "type": task.type,
        "fields": list(task.fields),
        "labels": list(task.labels),
        "template": list(task.template("encoder")),
        "label_words": task.words("bert"),
        "metric": task.metric,
    }


def list_backbones() -> Listing:
    """Lists the built-in backbones.

    Returns:
        The record for ``--json``, and a table.

    Example:
        >>> record, text = list_backbones()
        >>> record["backbones"][0]["name"].startswith("builtin/")
        True
    """
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
    rows = [tuple(str(value) for value in record.values()) for record in records]
    heads = ("backbone", "type", "layout", "layers", "width", "vocabulary", "positions", "MB")
    kinds = ", ".join(dict.fromkeys(family.name for family in FAMILIES.values()))
    hint = f"\nA folder of weights or a hub id works in their place; families: {kinds}."
    return {"backbones": records}, _table(heads, rows) + hint


def describe_task(
    name: str | Path, backbone: str | Path | None, max_tokens: int, data: Path | None
) -> Listing:
    """Shows one task: template, label words, and with a backbone ids, lengths and rows.

    Args:
        name: of the task, or its folder.
        backbone: whose vocabulary is used.
        max_tokens: longest text in tokens.
        data: folder of the task's rows.

    Returns:
        The record for ``--json``, and the text.

    Example:
        >>> record, text = describe_task("builtin/imdb", None, 128, None)
        >>> record["labels"]
        ['negative', 'positive']
    """
    task = load_task(name, data)
    record = _task_record(task)
    lines = [
        f"{task.name} ({task.type}), metric {task.metric}",
        f"  fields    {', '.join(task.fields)}",
    ]
    if backbone is None:
        words = ", ".join(f"{label} '{word}'" for label, word in task.words("bert").items())
        template = f"  template  {' | '.join(task.template('encoder'))}"
        return record, "\n".join([*lines, template, f"  labels    {words}"])
    details, more = _describe_on(task, backbone, max_tokens)
    return {**record, **details}, "\n".join([*lines, *more])


def _describe_on(
    task: Task, backbone: str | Path, max_tokens: int
) -> tuple[dict[str, Any], list[str]]:
    """Shows what a backbone makes of a task."""
    model = load_backbone(backbone)
    layout, template = model.layout, task.template(model.layout)
    words = label_ids(task, model.tokenizer, model.model_type, layout)
    pairs = zip(task.labels, words.words, words.ids, strict=True)
    rows = read_rows(task, "train")
    split = encode_split(rows, task, model.tokenizer, max_tokens, layout)
    lengths = split.lengths
    balance = Counter(row["label"] for row in rows)
    record = {
        "backbone": model.name,
        "template": list(template),
        "label_words": dict(zip(task.labels, words.words, strict=True)),
        "label_ids": list(words.ids),
        "train_rows": len(rows),
        "balance": dict(balance),
        "mean_tokens": round(float(lengths.mean()), 1),
        "longest_tokens": int(lengths.max()),
        "cut_rows": split.cut_rows,
    }
    lines = [
        f"  template  {' | '.join(template)}",
        "  labels    " + ", ".join(f"{label} '{word}' = {token}" for label, word, token in pairs),
        "  train     " + ", ".join(f"{count} {label}" for label, count in balance.items()),
        f"  tokens    mean {record['mean_tokens']}, longest {record['longest_tokens']}, "
        f"{split.cut_rows} rows cut to {max_tokens}",
    ]
    for number, row in enumerate(rows[:SHOWN_ROWS]):
        ids = split.tokens[split.offsets[number] : split.offsets[number + 1]]
        text = " | ".join(text.strip() for text in render(task, row, layout))[:SHOWN_LETTERS]
        pieces = " ".join(model.tokenizer.piece(token) for token in ids)[:SHOWN_LETTERS]
        lines += [f"  row {number}     [{row['label']}] {text}", f"            {pieces}"]
    return record, lines


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lays out columns as wide as their longest cell."""
    columns = list(zip(heads, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (heads, *rows)
    ]
    return "\n".join(lines)
