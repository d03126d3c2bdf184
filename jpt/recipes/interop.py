"""Import prompts of PEFT and of the paper's authors, and export to PEFT."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jpt.backbones.registry import GGUF_SUFFIX, PREFIX, find_family, find_folder, read_config
from jpt.errors import InputError
from jpt.io.files import make_folder, read_json
from jpt.io.gguf import open_gguf
from jpt.prompts.interop import (
    PeftAdapter,
    ReferenceFile,
    find_reference_files,
    peft_task_type,
    read_adapter,
    read_reference_values,
    write_adapter,
)
from jpt.prompts.store import PROMPT_FILE, load_prompt, save_prompt
from jpt.recipes.library import wrap
from jpt.tasks.catalog import REFERENCE_TASKS, task_type
from jpt.types import Prompt, PromptCard
from jpt.version import __version__

# --- Prompts released by the paper's authors

REPOSITORY = "thunlp/Prompt-Transferability"
RANDOM = "random"


@dataclass(frozen=True)
class ReferenceBackbone:
    """Backbone of prompts in the authors' format."""

    name: str  # hub id
    width: int  # D
    layout: str
    code: str  # name in the authors' files
    first_position: int | None = None  # position of the first text token, if not the model's own


REFERENCE_BACKBONES = {
    # The authors' BERT counts positions from 1 (their padding_idx is 0 and they add 1).
    "bert-base": ReferenceBackbone("bert-base-uncased", 768, "encoder", "Bert", 1),
    "roberta-base": ReferenceBackbone("roberta-base", 768, "encoder", "Roberta"),
    "roberta-large": ReferenceBackbone("roberta-large", 1024, "encoder", "RobertaLarge"),
    "t5-small": ReferenceBackbone("t5-small", 512, "encoder_decoder", "T5Small"),
    "t5-base": ReferenceBackbone("t5-base", 768, "encoder_decoder", "T5"),
    "t5-large": ReferenceBackbone("t5-large", 1024, "encoder_decoder", "T5Large"),
}
"""Backbones by folder name; the T5 models are the original ones, not T5 1.1."""


def import_reference(
    source: str | Path, out: str | Path | None = None, backbone: str | None = None
) -> dict[str, Prompt]:
    """Import prompts that the paper's authors released.

    Names are kept; cards name the task as the catalog does. Row 0 of an encoder's prompt was
    trained but never read, because the authors' model puts the mask there: it is returned as
    ``unused_row``.

    Args:
        source: Folder of ``NAME.npy`` files or of folders with a ``task_prompt``, or one file.
        out: Folder for ``NAME.safetensors`` files; nothing is written without it. It may already
            contain the same prompts, but no others of these names.
        backbone: Hub id, or folder whose last part is one; defaults to the one in the folder's
            name. If the folders name several, only prompts of this backbone are imported.

    Returns:
        The prompts by name.

    Raises:
        InputError: There are no prompts, the backbone is unknown or has another width, a file is
            broken, or another prompt exists in ``out``. Nothing is written then.

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
    """Return a backbone by folder name, hub id or the authors' name for it."""
    for folder, model in REFERENCE_BACKBONES.items():
        if name.split("__")[0] == folder or name == model.code:
            return model
        if name.rstrip("/").rsplit("/", 1)[-1] == model.name:
            return dataclasses.replace(model, name=name)
    return None


def _choose(
    source: str | Path, files: list[ReferenceFile], backbone: str | None
) -> tuple[list[ReferenceFile], ReferenceBackbone]:
    """Return the files to import and their backbone."""
    known = ", ".join(REFERENCE_BACKBONES)
    named = {file.path: reference_backbone(file.backbone) for file in files}
    counts = Counter(model.name for model in named.values() if model)
    if backbone is None:
        lacking = [file for file in files if named[file.path] is None]
        if lacking:
            raise InputError(
                f"{lacking[0].path}: unknown backbone in the folder's name"
                f" ({lacking[0].backbone or lacking[0].name}); give --backbone (known: {known})"
            )
        if len(counts) > 1:
            listed = ", ".join(f"{count} of {name}" for name, count in sorted(counts.items()))
            raise InputError(
                f"{source} has prompts of {len(counts)} backbones ({listed}); choose one with"
                " --backbone"
            )
        return files, next(model for model in named.values() if model)
    model = reference_backbone(backbone)
    if model is None:
        raise InputError(f"no released prompts for backbone {backbone}; known: {known}")
    if len(counts) > 1:
        hub_id = model.name.rstrip("/").rsplit("/", 1)[-1]
        files = [file for file in files if (each := named[file.path]) and each.name == hub_id]
        if not files:
            raise InputError(f"{source} has no prompts of {backbone}, only of {', '.join(counts)}")
    return files, model


def _read(file: ReferenceFile, model: ReferenceBackbone) -> Prompt:
    rows = read_reference_values(file.path)
    if rows.shape[1] != model.width:
        raise InputError(
            f"{file.path}: expected width {model.width} for {model.name}, got {rows.shape[1]}; give"
            " the backbone with --backbone"
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
            f"{file.path}: expected at least 2 rows, got 1, which {model.name} does not read"
        )
    return Prompt(rows[1:], card, rows[:1])


def _task(text: str) -> tuple[str, str | None]:
    """Return a task's name and type in the catalog; its longest known prefix (``imdb_trained``)."""
    parts = text.split("_")
    for length in range(len(parts), 0, -1):
        name = "_".join(parts[:length])
        if name in REFERENCE_TASKS:
            return REFERENCE_TASKS[name]
        if name == RANDOM:
            return RANDOM, None
    return text, task_type(text)


def _write(prompts: dict[str, Prompt], out: Path) -> None:
    """Write missing prompts, after checking that existing ones are equal."""
    fresh = {}
    for name, prompt in prompts.items():
        file = out / f"{name}.safetensors"
        if (out / name / PROMPT_FILE).exists():
            raise InputError(
                f"{out / name} is a run folder with a prompt of this name; choose another out"
            )
        if not file.exists():
            fresh[file] = prompt
        elif not _same(load_prompt(file), prompt):
            raise InputError(
                f"{file} exists and differs from the imported prompt {name}; choose another out or"
                " remove it"
            )
    make_folder(out)
    for file, prompt in fresh.items():
        save_prompt(file, prompt)


def _same(old: Prompt, new: Prompt) -> bool:
    """Return whether two prompts are equal apart from the version and path that wrote them."""
    rows = [
        (prompt.values, np.zeros((0, 0)) if prompt.unused_row is None else prompt.unused_row)
        for prompt in (old, new)
    ]
    cards = [
        dataclasses.replace(prompt.card, jpt_version=None, source=None) for prompt in (old, new)
    ]
    return cards[0] == cards[1] and all(map(np.array_equal, *rows))


def describe_import(prompts: dict[str, Prompt], out: str | Path) -> tuple[dict[str, Any], str]:
    """Return imported prompts as a record and text."""
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
    apart = "" if first.unused_row is None else ", row 0 stored separately"
    lines = [
        f"{count} of {first.card.backbone}, {rows} rows x {width}{apart}: {', '.join(prompts)}"
    ]
    if untyped:
        lines.append(f"note: {', '.join(untyped)}: unknown task type, excluded from means by type")
    return record, "\n".join([*lines, f"written: {out}"])


# --- PEFT

UNKNOWN_TASK = "unknown"


@dataclass(frozen=True)
class PeftFile:
    """Result of `export_peft` and `import_peft`.

    Attributes:
        prompt: Prompt.
        path: Adapter folder or prompt file; None if nothing was written.
        base_model: Backbone name in the adapter config or the card.
        notes: Notes for the user.
    """

    prompt: Prompt
    path: Path | None
    base_model: str
    notes: tuple[str, ...] = ()

    @property
    def record(self) -> dict[str, Any]:
        """The result as JSON."""
        rows, width = self.prompt.values.shape
        return {
            "out": None if self.path is None else str(self.path),
            "backbone": self.base_model,
            "task": self.prompt.card.task,
            "layout": self.prompt.card.layout,
            "rows": rows,
            "width": width,
            "notes": list(self.notes),
        }

    def describe(self) -> str:
        """Return the result as text."""
        (rows, width), card = self.prompt.values.shape, self.prompt.card
        lines = wrap(f"{card.task} on {self.base_model}: {rows} rows x {width}, {card.layout}")
        for note in self.notes:
            lines += wrap(f"note: {note}")
        return "\n".join(lines if self.path is None else [*lines, f"written: {self.path}"])


def export_peft(
    prompt: Prompt | str | Path, out: str | Path, backbone: str | None = None
) -> PeftFile:
    """Export a prompt as an adapter folder for PEFT, which computes the same logits.

    Args:
        prompt: Prompt of a decoder or T5, prompt file or run folder.
        out: Adapter folder. It may already contain the same prompt, but nothing else.
        backbone: Base model name in the adapter config; defaults to the one in the prompt's card.

    Returns:
        A `PeftFile`.

    Raises:
        InputError: PEFT cannot express the prompt's layout (encoders), the width is not the
            backbone's, or ``out`` contains something else.

    Example:
        >>> import tempfile
        >>> card = PromptCard("builtin/gpt2-mini", "builtin/imdb", layout="decoder")
        >>> prompt = Prompt(np.ones((4, 128), np.float32), card)
        >>> folder = Path(tempfile.mkdtemp()) / "adapter"
        >>> export_peft(prompt, folder, "gpt2-mini").prompt.card.backbone
        'builtin/gpt2-mini'
        >>> sorted(file.name for file in folder.iterdir())
        ['adapter_config.json', 'adapter_model.safetensors']
    """
    loaded = prompt if isinstance(prompt, Prompt) else load_prompt(prompt)
    peft_task_type(loaded.card)  # raises for layouts that PEFT cannot express
    name = loaded.card.backbone if backbone is None else backbone
    shape, notes = _shape_of(name, asked=backbone is not None)
    if shape is not None:
        _check(shape, name, loaded.values.shape, loaded.card.layout)
    if name.startswith(PREFIX):
        notes.append(f"transformers does not know {name}; its weights are in {find_folder(name)}")
    elif name.endswith(GGUF_SUFFIX):
        notes.append("PEFT cannot read .gguf files; give the original model with --backbone")
    _write_folder(Path(out), loaded, name, shape)
    return PeftFile(loaded, Path(out), name, tuple(notes))


def import_peft(
    source: str | Path,
    out: str | Path | None = None,
    backbone: str | None = None,
    task: str | None = None,
) -> PeftFile:
    """Import a prompt trained by PEFT; one exported by jpt keeps its card.

    Args:
        source: Prompt-tuning adapter folder of a decoder or T5, or its hub id.
        out: File ``NAME.safetensors``; nothing is written without it. It may already contain the
            same prompt, but no other.
        backbone: Backbone for the card; defaults to the adapter's base model. Its width is checked.
        task: Task for the card; defaults to the one in the adapter's card, or ``"unknown"``.

    Returns:
        A `PeftFile`.

    Raises:
        InputError: There is no adapter, it is of another kind or does not fit the backbone, no
            backbone is named, or another prompt exists in ``out``.

    Example:
        >>> import tempfile
        >>> from jpt.prompts.interop import write_adapter
        >>> folder = Path(tempfile.mkdtemp()) / "mood"
        >>> card = PromptCard("builtin/gpt2-mini", "builtin/imdb", layout="decoder", seed=3)
        >>> write_adapter(folder, Prompt(np.ones((4, 128), np.float32), card))
        >>> import_peft(folder).prompt.card.seed
        3
    """
    folder = _fetched(source)
    adapter = read_adapter(folder)
    card = adapter.card or _new_card(str(source), adapter, backbone)
    name = backbone or card.backbone
    shape, notes = _shape_of(name, asked=backbone is not None)
    if shape is not None:
        _check(shape, name, adapter.values.shape, adapter.layout)
    rows = len(adapter.values)
    if adapter.table_rows > rows:
        notes.insert(
            0,
            f"imported the first {rows} of {adapter.table_rows} rows; PEFT reads no others"
            " (num_transformer_submodules is 2)",
        )
    card = dataclasses.replace(card, backbone=name)
    if task is not None:
        card = dataclasses.replace(card, task=task, task_type=task_type(task))
    if card.task == UNKNOWN_TASK:
        notes.append("the adapter names no task; give one with --task")
    elif task is not None and card.task_type is None and not Path(task).is_dir():
        notes.append(f"unknown task {task}")
    prompt = Prompt(adapter.values, card)
    if out is not None:
        _write_file(Path(out), prompt)
    return PeftFile(prompt, None if out is None else Path(out), name, tuple(notes))


class _Shape(NamedTuple):
    """Sizes of a backbone, from its config."""

    layout: str
    width: int
    positions: int
    heads: int
    layers: int


def _shape_of(name: str, asked: bool) -> tuple[_Shape | None, list[str]]:
    """Return the shape of a backbone; a hub id is only fetched if the user asked for it."""
    path = Path(name).expanduser()
    if path.suffix == GGUF_SUFFIX and (asked or path.is_file()):
        fields, where = open_gguf(path).config, str(path)
    elif name.startswith(PREFIX) or path.is_dir():
        folder = find_folder(name)
        fields, where = read_config(folder), f"{folder}/config.json"
    elif asked and _is_hub_id(name):
        fields, where = _fetched_config(name), f"config.json of {name}"
    elif asked and "/" in name:
        raise InputError(
            f"backbone {name} is neither a local folder nor a hub id; give one of them"
        )
    else:
        return None, [f"width not checked: {name} is not a local folder"]
    family = find_family(fields, where)
    config = family.config(fields)
    return _Shape(family.layout, config.width, config.positions, config.heads, config.layers), []


def _check(shape: _Shape, name: str, size: tuple[int, ...], layout: str) -> None:
    rows, width = size
    if width != shape.width:
        raise InputError(
            f"the prompt has width {width}, but {name} has width {shape.width}; give the model that"
            " it was tuned on with --backbone"
        )
    if layout != shape.layout:
        raise InputError(
            f"the prompt has the layout {layout}, but {name} has {shape.layout}; give the model"
            " that it was tuned on with --backbone"
        )
    if rows > shape.positions:
        raise InputError(f"the prompt has {rows} rows, but {name} has {shape.positions} positions")


def _new_card(source: str, adapter: PeftAdapter, backbone: str | None) -> PromptCard:
    """Return a card for a prompt that jpt did not write."""
    base = adapter.base_model
    if backbone is None and (base is None or not _can_be_named(base)):
        reason = "has no base model" if base is None else f"names {base}, which is not a folder"
        raise InputError(f"{source}: the adapter {reason}; give its backbone with --backbone")
    # Only the last part of a path: the parent folder means nothing to others.
    origin = source if _is_hub_id(source) and not Path(source).exists() else Path(source).name
    return PromptCard(
        backbone=backbone or base or "",
        task=UNKNOWN_TASK,
        layout=adapter.layout,
        init=adapter.init,
        source=f"peft:{origin or Path(source).resolve().name}",
    )


def _can_be_named(model: str) -> bool:
    """Return whether a base model is an existing folder, a hub id, or a name without a path."""
    return Path(model).expanduser().is_dir() or "/" not in model or _is_hub_id(model)


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and "\\" not in name


def _fetched(source: str | Path) -> Path:
    """Return the local folder of an adapter; a hub id is downloaded."""
    if Path(source).exists() or not _is_hub_id(str(source)):
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=["adapter_*"]))
    except (OSError, ValueError) as error:
        raise _not_fetched(str(source), error) from None


def _fetched_config(hub_id: str) -> dict[str, Any]:
    from huggingface_hub import hf_hub_download

    try:
        fields = read_json(hf_hub_download(hub_id, "config.json"))
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise _not_fetched(hub_id, error) from None
    if not isinstance(fields, dict):
        raise InputError(f"config.json of {hub_id}: expected a JSON object; give another backbone")
    return fields


def _not_fetched(hub_id: str, error: Exception) -> InputError:
    reason = str(error).strip().split("\n")[0][:200]
    return InputError(
        f"'{hub_id}' is not a local folder and could not be fetched from the hub ({reason}); give"
        " a folder"
    )


def _write_folder(out: Path, prompt: Prompt, base_model: str, shape: _Shape | None) -> None:
    """Write an adapter unless the same one exists."""
    if out.is_dir() and any(out.iterdir()):
        try:
            old = read_adapter(out)
        except InputError:
            old = None  # write_adapter raises for the other files
        if old is not None:
            existing = (old.card, old.base_model)
            if existing == (_written_card(prompt), base_model) and _equal(
                old.values, prompt.values
            ):
                return
            raise InputError(f"{out} exists and has another adapter; choose another out")
    heads, layers = (None, None) if shape is None else (shape.heads, shape.layers)
    write_adapter(out, prompt, base_model, heads, layers)


def _write_file(out: Path, prompt: Prompt) -> None:
    """Write a prompt unless the same one exists."""
    if out.suffix != ".safetensors":
        raise InputError(f"out is {out}; expected a file name, for instance {out}.safetensors")
    if out.exists():
        old = load_prompt(out)
        if old.card == _written_card(prompt) and _equal(old.values, prompt.values):
            return
        raise InputError(f"{out} exists and has another prompt; choose another out or remove it")
    make_folder(out.parent)
    save_prompt(out, prompt)


def _written_card(prompt: Prompt) -> PromptCard:
    return dataclasses.replace(prompt.card, jpt_version=prompt.card.jpt_version or __version__)


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.array_equal(one, other)
