"""The model card of a library of prompts: what it holds and how to use it, in a few lines."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from jpt.backbones.registry import PREFIX
from jpt.prompts.own import short_task
from jpt.recipes.prompt_library import LibraryPrompt, file_of
from jpt.tasks.task import BUILTIN_PREFIX

README = "README.md"

MARK = "<!-- Written by `jpt prompts push`. Without this line it leaves the page to you. -->"
"""Stands in a page that was written here and may be written anew."""

_TAGS = ("jpt", "soft-prompt", "prompt-tuning")


def write_readme(repository: str, entries: Sequence[LibraryPrompt]) -> bytes:
    """Writes the page; equal prompts give equal bytes."""
    first = min(entries, key=lambda entry: entry.name)
    count = f"{len(entries)} soft prompt{'' if len(entries) == 1 else 's'}"
    lines = [
        *_front_matter(entries),
        MARK,
        "",
        f"# {repository.split('/')[-1]}",
        "",
        f"{count} for frozen language models, tuned with jpt. Each file holds the rows of one"
        " prompt and a card that says how it was made; `prompts.json` lists them all.",
        "",
        "```",
        f"jpt prompts pull {repository} --out prompts",
        f"jpt prompts show {_quoted(f'prompts/{file_of(first.name)}')}",
        f"jpt evaluate --prompt {_quoted(f'prompts/{file_of(first.name)}')}"
        f" --task {_quoted(_task(first))}",
        "```",
        "",
        "| prompt | backbone | task | score on validation | size |",
        "|---|---|---|---|---|",
        *(_row(entry) for entry in sorted(entries, key=lambda entry: entry.name)),
    ]
    return ("\n".join(lines) + "\n").encode()


def may_rewrite(page: bytes) -> bool:
    """Tells whether a page was written here and not by hand."""
    return MARK.encode() in page


def _front_matter(entries: Sequence[LibraryPrompt]) -> list[str]:
    """What a hub reads; a text of JSON is one of YAML too."""
    models = sorted({entry.card.backbone for entry in entries if _is_hub_id(entry.card.backbone)})
    lines = ["---", "library_name: jpt", "tags:", *(f"- {tag}" for tag in _TAGS)]
    if models:
        lines += ["base_model:", *(f"- {json.dumps(model)}" for model in models)]
        lines.append("base_model_relation: adapter")
    return [*lines, "---", ""]


def _is_hub_id(backbone: str) -> bool:
    """Built-in models and folders are no models of a hub."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(backbone)
    except HFValidationError:
        return False
    return "/" in backbone and not backbone.startswith(PREFIX)


def _task(entry: LibraryPrompt) -> str:
    """A folder of its maker's is nothing to others; its name is."""
    task = entry.card.task
    return task if task.startswith(BUILTIN_PREFIX) else short_task(task)


def _row(entry: LibraryPrompt) -> str:
    card = entry.card
    score = "" if card.score is None else f"{card.score:.3f} {card.metric or ''}".strip()
    backbone = card.backbone if card.backbone.count("/") < 2 else short_task(card.backbone)
    cells = (entry.name, backbone, _task(entry), score, f"{entry.rows} x {entry.width}")
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    """No letter of a name ends a cell, a line or opens a tag."""
    clean = "".join(letter if letter.isprintable() else " " for letter in text)
    for letter, told in (("&", "&amp;"), ("<", "&lt;"), ("|", "&#124;"), ("`", "&#96;")):
        clean = clean.replace(letter, told)
    return clean


def _quoted(text: str) -> str:
    return shlex.quote(" ".join(text.split()).replace("`", ""))
