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

# --- The authors' released prompts as prompts of jpt, with cards that say what they are for

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


# --- Prompts to PEFT and back: held against their backbone, with a card that says what they are

UNKNOWN_TASK = "unknown"
"""The task of an imported prompt where nobody says one."""


@dataclass(frozen=True)
class PeftFile:
    """A prompt that was carried to PEFT or from there.

    Attributes:
        prompt: the prompt.
        path: the adapter folder or the prompt file; None where nothing was written.
        base_model: what PEFT or the card calls the backbone.
        notes: what else there is to know.
    """

    prompt: Prompt
    path: Path | None
    base_model: str
    notes: tuple[str, ...] = ()

    @property
    def record(self) -> dict[str, Any]:
        """What was carried, as JSON."""
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
        """Says in a few lines what was carried."""
        (rows, width), card = self.prompt.values.shape, self.prompt.card
        lines = wrap(f"{card.task} on {self.base_model}: {rows} rows x {width}, {card.layout}")
        for note in self.notes:
            lines += wrap(f"note: {note}")
        return "\n".join(lines if self.path is None else [*lines, f"written: {self.path}"])


def export_peft(
    prompt: Prompt | str | Path, out: str | Path, backbone: str | None = None
) -> PeftFile:
    """Writes a prompt as an adapter folder that PEFT loads, with the same logits there.

    Args:
        prompt: a prompt of a decoder or of T5, its file, or the folder of its run.
        out: the adapter folder. It may hold the same prompt already, but nothing else.
        backbone: what PEFT shall call the model; by default as the prompt's card names it.

    Returns:
        What was written.

    Raises:
        InputError: PEFT's layout cannot express the prompt's (encoders), the width is not the
            backbone's, or something else is in the way.

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
    peft_task_type(loaded.card)  # tells what cannot be expressed, before all else
    looked_at = loaded.card.backbone if backbone is None else backbone
    shape, notes = _shape_of(looked_at, asked=backbone is not None)
    if shape is not None:
        _check(shape, looked_at, loaded.values.shape, loaded.card.layout)
    if looked_at.startswith(PREFIX):
        notes.append(
            f"transformers knows no {looked_at}; its weights lie in {find_folder(looked_at)}"
        )
    elif looked_at.endswith(GGUF_SUFFIX):
        notes.append("PEFT reads no .gguf file; name the model that it was made of by --backbone")
    _write_folder(Path(out), loaded, looked_at, shape)
    return PeftFile(loaded, Path(out), looked_at, tuple(notes))


def import_peft(
    source: str | Path,
    out: str | Path | None = None,
    backbone: str | None = None,
    task: str | None = None,
) -> PeftFile:
    """Imports a prompt that PEFT has trained; one that jpt exported comes back with its card.

    Args:
        source: an adapter folder of prompt tuning on a decoder or T5, or its hub id.
        out: the file ``NAME.safetensors``; without it nothing is written. It may hold the same
            prompt already, but no other.
        backbone: for the card, in place of what the adapter names; the width is checked.
        task: for the card, in place of what it says; ``"unknown"`` where nobody says it.

    Returns:
        What was read.

    Raises:
        InputError: there is no adapter, or one of another kind; sizes do not fit the backbone;
            no backbone is named; another prompt is in the way.

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
            f"the first {rows} of {adapter.table_rows} rows; PEFT reads no others"
            " (num_transformer_submodules is 2)",
        )
    card = dataclasses.replace(card, backbone=name)
    if task is not None:
        card = dataclasses.replace(card, task=task, task_type=task_type(task))
    if card.task == UNKNOWN_TASK:
        notes.append("the adapter does not say its task; name it by --task")
    elif task is not None and card.task_type is None and not Path(task).is_dir():
        notes.append(f"{task} is no task that jpt knows")
    prompt = Prompt(adapter.values, card)
    if out is not None:
        _write_file(Path(out), prompt)
    return PeftFile(prompt, None if out is None else Path(out), name, tuple(notes))


class _Shape(NamedTuple):
    """What a config says of a backbone."""

    layout: str
    width: int
    positions: int
    heads: int
    layers: int


def _shape_of(name: str, asked: bool) -> tuple[_Shape | None, list[str]]:
    """The shape of a backbone; what is neither here nor asked for by its name is not fetched."""
    path = Path(name).expanduser()
    if path.suffix == GGUF_SUFFIX and (asked or path.is_file()):
        fields, where = open_gguf(path).config, str(path)
    elif name.startswith(PREFIX) or path.is_dir():
        folder = find_folder(name)
        fields, where = read_config(folder), f"{folder}/config.json"
    elif asked and _is_hub_id(name):
        fields, where = _fetched_config(name), f"config.json of {name}"
    elif asked and "/" in name:
        raise InputError(f"{name} is no folder here and no hub id; give one of these as backbone")
    else:
        return None, [f"width not held against {name}, which is no folder here"]
    family = find_family(fields, where)
    config = family.config(fields)
    return _Shape(family.layout, config.width, config.positions, config.heads, config.layers), []


def _check(shape: _Shape, name: str, size: tuple[int, ...], layout: str) -> None:
    rows, width = size
    if width != shape.width:
        raise InputError(
            f"the prompt is {width} wide, but {name} is {shape.width} wide; name the model that it"
            " was tuned on by --backbone"
        )
    if layout != shape.layout:
        raise InputError(
            f"the prompt has the layout {layout}, but {name} has {shape.layout}; name the model"
            " that it was tuned on by --backbone"
        )
    if rows > shape.positions:
        raise InputError(f"the prompt has {rows} rows, but {name} only {shape.positions} positions")


def _new_card(source: str, adapter: PeftAdapter, backbone: str | None) -> PromptCard:
    """The card of a prompt that jpt did not write."""
    told = adapter.base_model
    if backbone is None and (told is None or not _can_be_named(told)):
        said = "names no base model" if told is None else f"names {told}, which is no folder here"
        raise InputError(f"{source}: the adapter {said}; name its backbone by --backbone")
    # The last part of a path, as a name: where the folder lay tells others nothing.
    place = source if _is_hub_id(source) and not Path(source).exists() else Path(source).name
    return PromptCard(
        backbone=backbone or told or "",
        task=UNKNOWN_TASK,
        layout=adapter.layout,
        init=adapter.init,
        source=f"peft:{place or Path(source).resolve().name}",
    )


def _can_be_named(model: str) -> bool:
    """Whether a base model means something here: a folder, a hub id, or a name without a path."""
    return Path(model).expanduser().is_dir() or "/" not in model or _is_hub_id(model)


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and "\\" not in name


def _fetched(source: str | Path) -> Path:
    """The adapter's folder; the network is used for a hub id only."""
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
        raise InputError(f"config.json of {hub_id} holds no table of fields; give another backbone")
    return fields


def _not_fetched(hub_id: str, error: Exception) -> InputError:
    reason = str(error).strip().split("\n")[0][:200]
    return InputError(
        f"'{hub_id}' is no folder here and could not be fetched from the hub ({reason}); give a"
        " folder"
    )


def _write_folder(out: Path, prompt: Prompt, base_model: str, shape: _Shape | None) -> None:
    """Writes an adapter, unless it is there already."""
    if out.is_dir() and any(out.iterdir()):
        try:
            old = read_adapter(out)
        except InputError:
            old = None  # write_adapter says what is in the way
        if old is not None:
            there = (old.card, old.base_model)
            if there == (_written_card(prompt), base_model) and _equal(old.values, prompt.values):
                return
            raise InputError(f"{out} is there and holds another adapter; choose another out")
    heads, layers = (None, None) if shape is None else (shape.heads, shape.layers)
    write_adapter(out, prompt, base_model, heads, layers)


def _write_file(out: Path, prompt: Prompt) -> None:
    """Writes a prompt, unless it is there already."""
    if out.suffix != ".safetensors":
        raise InputError(f"out is {out}; give the name of a file, for instance {out}.safetensors")
    if out.exists():
        old = load_prompt(out)
        if old.card == _written_card(prompt) and _equal(old.values, prompt.values):
            return
        raise InputError(f"{out} is there and is another prompt; choose another out, or remove it")
    make_folder(out.parent)
    save_prompt(out, prompt)


def _written_card(prompt: Prompt) -> PromptCard:
    return dataclasses.replace(prompt.card, jpt_version=prompt.card.jpt_version or __version__)


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.array_equal(one, other)
