"""The authors' released prompts as prompts of jpt, with cards that say what they are for."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jpt.errors import InputError
from jpt.files.atomic import make_folder
from jpt.prompts.reference_files import (
    ReferenceFile,
    find_reference_files,
    read_reference_values,
)
from jpt.prompts.store import PROMPT_FILE, load_prompt, save_prompt
from jpt.tasks.reference_names import REFERENCE_TASKS, task_type
from jpt.types import Prompt, PromptCard

REPOSITORY = "thunlp/Prompt-Transferability"
RANDOM = "random"


@dataclass(frozen=True)
class ReferenceBackbone:
    """A backbone for which the authors released prompts, or could have."""

    name: str  # its hub id
    width: int  # D
    layout: str  # where its prompts stand
    code: str  # what the authors' files call it
    # the position of the text's first token where it is not the model's own
    first_position: int | None = None


REFERENCE_BACKBONES = {
    # The authors' BERT counts positions from 1 (their padding_idx is 0 and they add 1).
    "bert-base": ReferenceBackbone("bert-base-uncased", 768, "encoder", "Bert", 1),
    "roberta-base": ReferenceBackbone("roberta-base", 768, "encoder", "Roberta"),
    "roberta-large": ReferenceBackbone("roberta-large", 1024, "encoder", "RobertaLarge"),
    "t5-small": ReferenceBackbone("t5-small", 512, "encoder_decoder", "T5Small"),
    "t5-base": ReferenceBackbone("t5-base", 768, "encoder_decoder", "T5"),
    "t5-large": ReferenceBackbone("t5-large", 1024, "encoder_decoder", "T5Large"),
}
"""By the name of the folder; hub ids are those of the original T5, not of T5 1.1."""


def import_reference(
    source: str | Path, out: str | Path | None = None, backbone: str | None = None
) -> dict[str, Prompt]:
    """Imports prompts that the paper's authors released.

    Names are kept; cards name the task as the catalog does. Row 0 of an encoder's prompt was
    trained but never read (the authors' model puts the mask there): it is kept apart as
    ``unused_row``.

    Args:
        source: a folder of ``NAME.npy`` files or of folders with a ``task_prompt``, or one file.
        out: folder for ``NAME.safetensors`` files; without it nothing is written. It may hold
            the same prompts already, but no others of these names.
        backbone: hub id, or folder whose last part is one; by default what the folder's name
            says. Where folders say several, only those of this one are taken.

    Returns:
        The prompts by name.

    Raises:
        InputError: no prompts, an unknown backbone, a width that is not the backbone's, a broken
            file, or another prompt in the way. Then nothing is written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "roberta-base"
        >>> folder.mkdir()
        >>> np.save(folder / "ethicsjustice.npy", np.ones((100, 768), np.float32))
        >>> prompt = import_reference(folder)["ethicsjustice"]
        >>> prompt.card.task, prompt.card.task_type, prompt.values.shape, prompt.unused_row.shape
        ('justice', 'ethics', (99, 768), (1, 768))
    """
    files, model = _choose(source, find_reference_files(source), backbone)
    prompts = {file.name: _read(file, model) for file in files}
    if out is not None:
        _write(prompts, Path(out))
    return prompts


def reference_backbone(name: str) -> ReferenceBackbone | None:
    """Looks a backbone up."""
    for folder, model in REFERENCE_BACKBONES.items():
        if name.split("__")[0] == folder or name == model.code:
            return model
        if name.rstrip("/").rsplit("/", 1)[-1] == model.name:
            return dataclasses.replace(model, name=name)
    return None


def _choose(
    source: str | Path, files: list[ReferenceFile], backbone: str | None
) -> tuple[list[ReferenceFile], ReferenceBackbone]:
    """The files that are imported, and their backbone."""
    known = ", ".join(REFERENCE_BACKBONES)
    said = {file.path: reference_backbone(file.backbone) for file in files}
    counts = Counter(model.name for model in said.values() if model)
    if backbone is None:
        lacking = [file for file in files if said[file.path] is None]
        if lacking:
            raise InputError(
                f"{lacking[0].path}: its folder names no known backbone"
                f" ({lacking[0].backbone or lacking[0].name}); name it with --backbone (known:"
                f" {known})"
            )
        if len(counts) > 1:
            told = ", ".join(f"{count} of {name}" for name, count in sorted(counts.items()))
            raise InputError(
                f"{source} holds prompts of {len(counts)} backbones ({told}); choose one with"
                " --backbone, a folder of prompts has one"
            )
        return files, next(model for model in said.values() if model)
    model = reference_backbone(backbone)
    if model is None:
        raise InputError(
            f"the backbone {backbone} is none that the authors released prompts for; known: {known}"
        )
    if len(counts) > 1:
        hub_id = model.name.rstrip("/").rsplit("/", 1)[-1]
        files = [file for file in files if (each := said[file.path]) and each.name == hub_id]
        if not files:
            raise InputError(f"{source} holds no prompt of {backbone}; it has {', '.join(counts)}")
    return files, model


def _read(file: ReferenceFile, model: ReferenceBackbone) -> Prompt:
    rows = read_reference_values(file.path)
    if rows.shape[1] != model.width:
        raise InputError(
            f"{file.path} is {rows.shape[1]} wide, but prompts of {model.name} are {model.width}"
            " wide; name its backbone with --backbone"
        )
    task, kind = _task(file.task)
    card = PromptCard(
        model.name,
        task,
        task_type=kind,
        layout=model.layout,
        init="uniform" if task == RANDOM else "random",
        source=f"{REPOSITORY}, {file.path.absolute().parent.name}/{file.path.name}",
        first_position=model.first_position,
    )
    if model.layout != "encoder":
        return Prompt(rows, card)
    if len(rows) < 2:
        raise InputError(
            f"{file.path} has 1 row, which {model.name} does not read; at least 2 expected"
        )
    return Prompt(rows[1:], card, rows[:1])


def _task(told: str) -> tuple[str, str | None]:
    """The catalog's name and type of a task; of ``imdb_trained`` the longest part that is known."""
    parts = told.split("_")
    for length in range(len(parts), 0, -1):
        name = "_".join(parts[:length])
        if name in REFERENCE_TASKS:
            return REFERENCE_TASKS[name]
        if name == RANDOM:
            return RANDOM, None
    return told, task_type(told)


def _write(prompts: dict[str, Prompt], out: Path) -> None:
    """Writes what is not there yet, after a look at all that is."""
    fresh = {}
    for name, prompt in prompts.items():
        file = out / f"{name}.safetensors"
        if (out / name / PROMPT_FILE).exists():
            raise InputError(
                f"{out / name} is a run with a prompt of this name; choose another out"
            )
        if not file.exists():
            fresh[file] = prompt
        elif not _same(load_prompt(file), prompt):
            raise InputError(
                f"{file} is there and is another prompt than the imported {name}; choose another"
                " out, or remove it"
            )
    make_folder(out)
    for file, prompt in fresh.items():
        save_prompt(file, prompt)


def _same(old: Prompt, new: Prompt) -> bool:
    """Whether two prompts are equal, whatever version and path wrote them."""
    rows = [
        (prompt.values, np.zeros((0, 0)) if prompt.unused_row is None else prompt.unused_row)
        for prompt in (old, new)
    ]
    cards = [
        dataclasses.replace(prompt.card, jpt_version=None, source=None) for prompt in (old, new)
    ]
    return cards[0] == cards[1] and all(map(np.array_equal, *rows))


def describe_import(prompts: dict[str, Prompt], out: str | Path) -> tuple[dict[str, Any], str]:
    """Says what was imported."""
    first = next(iter(prompts.values()))
    rows, width = first.values.shape
    cards = {name: prompt.card for name, prompt in prompts.items()}
    untyped = [name for name, card in cards.items() if card.task_type is None]
    record = {
        "out": str(out),
        "backbone": first.card.backbone,
        "rows": rows,
        "width": width,
        "prompts": {
            name: {"task": card.task, "type": card.task_type} for name, card in cards.items()
        },
    }
    count = f"{len(prompts)} prompt{'s' if len(prompts) > 1 else ''}"
    apart = "" if first.unused_row is None else ", row 0 kept apart"
    lines = [
        f"{count} of {first.card.backbone}, {rows} rows x {width}{apart}: {', '.join(prompts)}"
    ]
    if untyped:
        lines.append(
            f"note: {', '.join(untyped)}: a task without a type, left out of means by type"
        )
    return record, "\n".join([*lines, f"written: {out}"])
