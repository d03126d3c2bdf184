"""Prompts to PEFT and back: held against their backbone, with a card that says what they are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jpt.backbones.families import find_family
from jpt.backbones.registry import GGUF_SUFFIX, PREFIX, find_folder, read_config
from jpt.errors import InputError
from jpt.files.atomic import make_folder
from jpt.files.gguf_file import open_gguf
from jpt.files.reading import read_json
from jpt.prompts.peft_files import PeftAdapter, peft_task_type, read_adapter, write_adapter
from jpt.prompts.store import load_prompt, save_prompt
from jpt.recipes.prompts_text import wrap
from jpt.tasks.reference_names import task_type
from jpt.types import Prompt, PromptCard
from jpt.version import __version__

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
        >>> from jpt.prompts.peft_files import write_adapter
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
