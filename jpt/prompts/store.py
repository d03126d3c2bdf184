"""Save and load prompts, list folders of prompts and seeds, and stack prompts into a bank."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Float32

from jpt.errors import InputError, unknown_name
from jpt.io.files import LazyTensor, parse_json, read_error
from jpt.io.tensors import read_header, write_safetensors
from jpt.types import Prompt, PromptCard
from jpt.version import __version__

# --- Several prompts of one length and width as one array, and back


def stack_prompts(prompts: Mapping[str, Prompt]) -> Float32[np.ndarray, "K P D"]:
    """Stacks prompts in the order in which they come."""
    if not prompts:
        raise InputError("a bank of prompts needs at least one; none was given")
    first, shape = next((name, prompt.values.shape) for name, prompt in prompts.items())
    for name, prompt in prompts.items():
        if prompt.values.shape != shape:
            raise InputError(
                f"prompt {name} is {_size(prompt.values.shape)} and prompt {first} {_size(shape)};"
                " a bank holds prompts of one length and width"
            )
    return np.stack([np.asarray(prompt.values, np.float32) for prompt in prompts.values()])


def unstack_prompts(
    bank: Float32[np.ndarray, "K P D"], cards: Sequence[PromptCard]
) -> tuple[Prompt, ...]:
    """Takes a bank apart."""
    if bank.ndim != 3:
        raise InputError(f"a bank has the axes [K, P, D]; this one is {_size(bank.shape)}")
    if len(cards) != len(bank):
        raise InputError(f"{len(cards)} cards for {len(bank)} prompts; give one for each")
    pairs = zip(np.asarray(bank), cards, strict=True)
    return tuple(Prompt(np.array(values, np.float32), card) for values, card in pairs)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(length) for length in shape)


# --- Prompts on disk: one small safetensors file that says itself where it comes from
# ``NAME.safetensors`` holds the tensor ``prompt`` [P, D], in imported encoder prompts also
# ``unused_row`` [1, D], and under ``card`` in its metadata the `PromptCard` as JSON.

PROMPT_FILE = "prompt.safetensors"
"""The name of the prompt in the folder of its run."""

LAYOUTS = ("encoder", "encoder_decoder", "decoder")
_READABLE = (np.float32, np.float16, ml_dtypes.bfloat16)
_COUNTS = ("seed", "steps", "first_position")
_REQUIRED = ("backbone", "task")


def save_prompt(path: str | Path, prompt: Prompt) -> None:
    """Writes a prompt in one step; equal prompts give equal bytes.

    Args:
        path: the file, by custom ``NAME.safetensors``; its folder must exist.
        prompt: what to write. A card without a version gets this one's.

    Raises:
        InputError: values are not finite or of a wrong shape, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "mood.safetensors"
        >>> card = PromptCard("builtin/bert-small", "builtin/mood", seed=0)
        >>> save_prompt(file, Prompt(np.ones((4, 8), np.float32), card))
        >>> load_prompt(file).values.shape, load_prompt(file).card.task
        ((4, 8), 'builtin/mood')
    """
    tensors = checked_tensors(path, prompt)
    write_safetensors(path, tensors, {"card": card_text(path, prompt.card)})


def checked_tensors(path: str | Path, prompt: Prompt) -> dict[str, Float32[np.ndarray, "P D"]]:
    """Gives the rows of a prompt as they go into a file."""
    tensors = {"prompt": np.asarray(prompt.values, np.float32)}
    if prompt.unused_row is not None:
        tensors["unused_row"] = np.asarray(prompt.unused_row, np.float32)
    _check_shapes(path, {name: values.shape for name, values in tensors.items()})
    for name, values in tensors.items():
        _check_finite(path, name, values)
    return tensors


def card_text(path: str | Path, card: PromptCard) -> str:
    """Writes a card as JSON."""
    written = dataclasses.replace(card, jpt_version=card.jpt_version or __version__)
    told = {name: value for name, value in dataclasses.asdict(written).items() if value is not None}
    try:
        return json.dumps(told, ensure_ascii=False, allow_nan=False, default=_plain_number)
    except ValueError:
        raise InputError(f"cannot write {path}: the score {card.score} is no number") from None


def load_prompt(path: str | Path) -> Prompt:
    """Reads a prompt.

    Args:
        path: its file, or the folder of its run.

    Returns:
        The prompt; float16 and bfloat16 are read as float32.

    Raises:
        InputError: the file is missing, truncated, not safetensors, holds no prompt, has no card,
            or a row is NaN or infinite.

    Example:
        See `save_prompt`.
    """
    file = _prompt_file(Path(path))
    tensors, metadata = read_header(file)
    if "prompt" not in tensors:
        held = ", ".join(list(tensors)[:5]) or "nothing"
        cure = "give a prompt file"
        if "prompt_embeddings" in tensors:
            cure = f"it is an adapter of PEFT: jpt import peft {file.parent} --out FILE"
        raise InputError(f"{file} has no tensor 'prompt' (it holds {held}); {cure}")
    tensors = {name: tensors[name] for name in ("prompt", "unused_row") if name in tensors}
    _check_shapes(file, {name: tensor.shape for name, tensor in tensors.items()})
    if "card" not in metadata:
        raise InputError(
            f"{file} has no card that says its backbone and task; save it with jpt.save_prompt"
        )
    card = read_card(file, metadata["card"])
    values = {name: read_rows(file, name, tensor) for name, tensor in tensors.items()}
    return Prompt(values["prompt"], card, values.get("unused_row"))


def read_rows(file: Path, name: str, tensor: LazyTensor) -> Float32[np.ndarray, "P D"]:
    """Reads the rows of a prompt from a file that is open."""
    if tensor.dtype.type not in _READABLE:
        raise InputError(
            f"{file}: tensor '{name}' has the type {tensor.dtype}; float32, float16 or bfloat16"
            " expected: convert it"
        )
    values = tensor.read().astype(np.float32)
    _check_finite(file, name, values)
    return values


def read_card(file: str | Path, text: str) -> PromptCard:
    """Reads a card, checked value by value; what a later version adds to it is left out."""
    table = parse_json(text.encode(), f"the card of {file}")
    if not isinstance(table, dict):
        raise InputError(f"the card of {file} is no table; save it again with jpt.save_prompt")
    fields = [field.name for field in dataclasses.fields(PromptCard)]
    known = {name: table[name] for name in fields if table.get(name) is not None}
    for name in _REQUIRED:
        if not known.get(name):
            raise InputError(f"the card of {file} names no {name}; save it with jpt.save_prompt")
    for name, value in known.items():
        expected = _expected(name, value)
        if expected:
            raise InputError(f"the card of {file} has {name} = {value!r}; {expected} expected")
    return PromptCard(**known)


def list_prompts(folder: str | Path) -> dict[str, Path]:
    """Finds the prompts of a folder."""
    place = Path(folder)
    try:
        entries = sorted(entry for entry in place.iterdir() if not entry.name.startswith("."))
    except NotADirectoryError:
        raise InputError(f"{folder} is a file; give the folder that holds the prompts") from None
    except OSError as error:
        raise read_error(folder, error) from None
    if (place / PROMPT_FILE).is_file() and (place / "config.json").is_file():
        raise InputError(
            f"{folder} is the folder of one run; give {place.parent}, or a folder of prompts"
        )
    found: dict[str, Path] = {}
    for entry in entries:
        file = entry / PROMPT_FILE if entry.is_dir() else entry
        if file.suffix != ".safetensors" or not file.is_file():
            continue
        name = entry.name if entry.is_dir() else entry.stem
        if name in found:
            raise InputError(f"{folder} has two prompts named {name}: a file and a run; rename one")
        found[name] = file
    if not found:
        of_seeds = next((each for each in entries if any(each.glob(f"seed-*/{PROMPT_FILE}"))), None)
        if of_seeds is not None:
            raise InputError(
                f"{folder} holds runs of several seeds ({of_seeds.name}/seed-S), where one prompt a"
                f" name is asked for; give {of_seeds}, or a folder with one run of each"
            )
        raise InputError(
            f"{folder} holds no prompts: looked for NAME.safetensors and NAME/{PROMPT_FILE} among"
            f" {len(entries)} entries"
        )
    return dict(sorted(found.items()))


def check_prompt(
    prompt: Prompt, backbone: str, width: int, layout: str, other_backbone: bool = False
) -> None:
    """Refuses a prompt that a backbone cannot read."""
    card, columns = prompt.card, prompt.values.shape[1]
    if columns != width:
        raise InputError(
            f"the prompt is {columns} wide (tuned on {card.backbone}), but {backbone} is {width}"
            " wide; use a prompt of that model, or project this one"
        )
    if card.layout != layout:
        raise InputError(
            f"the prompt was tuned on {card.backbone} for the layout {card.layout}, but {backbone}"
            f" has the layout {layout}; use a prompt of that family"
        )
    if card.backbone != backbone and not other_backbone:
        raise InputError(
            f"the prompt was tuned on {card.backbone}, not on {backbone}; use a prompt of that"
            " model, or name the backbone yourself to use it all the same"
        )


def _prompt_file(path: Path) -> Path:
    """The file of a prompt; what is missing is told with the nearest names."""
    try:
        if path.is_dir():
            if (path / PROMPT_FILE).is_file():
                return path / PROMPT_FILE
            raise InputError(
                f"{path} is a folder without {PROMPT_FILE}: an unfinished run, or no run; give a"
                " prompt file or a finished run"
            )
        if not path.exists() and path.parent.is_dir():
            names = [entry.name for entry in path.parent.iterdir() if _may_be_prompt(entry)]
            if names:
                raise unknown_name(f"prompt in {path.parent}:", path.name, names[:50])
    except OSError as error:
        raise read_error(path, error) from None
    return path


def _may_be_prompt(entry: Path) -> bool:
    return entry.suffix == ".safetensors" or (entry / PROMPT_FILE).is_file()


def _check_shapes(path: str | Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    shape = shapes["prompt"]
    if len(shape) != 2 or 0 in shape:
        raise InputError(f"{path}: the prompt has the shape {list(shape)}; rows x width expected")
    unused = shapes.get("unused_row")
    if unused is not None and unused != (1, shape[1]):
        raise InputError(
            f"{path}: unused_row has the shape {list(unused)}; {[1, shape[1]]} expected"
        )


def _check_finite(path: str | Path, name: str, values: Float32[np.ndarray, "P D"]) -> None:
    broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if broken.size:
        raise InputError(
            f"{path}: row {broken[0]} of '{name}' holds NaN or infinity ({broken.size} of"
            f" {len(values)} rows do); its training diverged: tune it again with a lower rate"
        )


def _expected(name: str, value: Any) -> str | None:
    """What a value of the card should have been, or None where it is right."""
    if name == "layout":
        return None if value in LAYOUTS else f"one of {', '.join(LAYOUTS)}"
    if name in _COUNTS:
        return None if type(value) is int and value >= 0 else "a whole number from 0 on"
    if name == "score":
        return None if type(value) in (int, float) else "a number"
    return None if isinstance(value, str) else "a text"


def _plain_number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} does not belong into a card")


# --- Several prompts that are compared: loaded by name, and refused when they cannot be compared


def load_prompts(prompts: Mapping[str, Prompt] | str | Path) -> dict[str, Prompt]:
    """Loads the prompts of a folder, and sees to it that they belong together."""
    if isinstance(prompts, (str, Path)):
        prompts = {name: load_prompt(path) for name, path in list_prompts(prompts).items()}
    if not prompts:
        raise InputError("no prompts were given; give a folder of prompts, or prompts by name")
    loaded = dict(sorted(prompts.items()))
    first = next(iter(loaded))
    expected = _kind(loaded[first])
    for name, prompt in loaded.items():
        for what, value in _kind(prompt).items():
            if value != expected[what]:
                raise InputError(
                    f"prompt {name} has {what} {value} and prompt {first} {expected[what]}; only"
                    " prompts of one backbone, length and width can be compared: put them into"
                    " folders of their own"
                )
    return loaded


def _kind(prompt: Prompt) -> dict[str, str | int]:
    return {
        "the backbone": prompt.card.backbone,
        "the layout": prompt.card.layout,
        "the length": len(prompt.values),
        "the width": prompt.values.shape[1],
        "the first position": prompt.card.first_position or 0,
    }


# --- Prompts of several seeds: the runs of one task that differ in their seed alone

Prompts = Mapping[str, Prompt | Mapping[int, Prompt]] | str | Path
"""A folder of prompts, or prompts by name; of several seeds by name and seed."""

_SEED = re.compile(r"seed-(\d+)")


def load_seed_prompts(prompts: Prompts) -> dict[str, dict[int | None, Prompt]]:
    """Loads prompts of one or of several seeds each, and sees to it that they belong together."""
    if isinstance(prompts, (str, Path)):
        prompts = _read_folder(Path(prompts))
    given = {name: _by_seed(name, of) for name, of in prompts.items()}
    load_prompts(_runs_of(given))  # refuses prompts that cannot be compared
    for name, of in given.items():
        _check_tasks(name, of)
    return {name: given[name] for name in sorted(given)}


def run_name(name: str, seed: int | None) -> str:
    """Names one run of a prompt."""
    return name if seed is None else f"{name}/seed-{seed}"


def split_run_name(name: str) -> tuple[str, int | None]:
    """Takes the name of a run apart."""
    owner, _, last = name.rpartition("/")
    match = _SEED.fullmatch(last) if owner else None
    return (owner, int(match[1])) if match else (name, None)


def load_runs(prompts: Prompts) -> dict[str, Prompt]:
    """Loads every run of every prompt under a name of its own."""
    return dict(sorted(_runs_of(load_seed_prompts(prompts)).items()))


def _runs_of(prompts: Mapping[str, Mapping[int | None, Prompt]]) -> dict[str, Prompt]:
    return {run_name(name, s): prompt for name, of in prompts.items() for s, prompt in of.items()}


def list_seed_runs(folder: str | Path) -> dict[str, dict[int, Path]]:
    """Finds the runs of several seeds in a folder of prompts."""
    found = seed_runs(folder)
    for name, runs in found.items():
        _check_runs(Path(folder) / name, runs)
    return found


def seed_runs(folder: str | Path) -> dict[str, dict[int, Path]]:
    """Finds the runs of several seeds in a folder of prompts, finished or not."""
    place, found = Path(folder), {}
    if not place.is_dir():
        return found  # `list_prompts` says what is wrong
    for entry in sorted(place.iterdir()):
        if entry.name.startswith(".") or not entry.is_dir() or _SEED.fullmatch(entry.name):
            continue
        inner = [(_SEED.fullmatch(each.name), each) for each in entry.iterdir() if each.is_dir()]
        runs = {int(match[1]): each for match, each in inner if match}
        if runs:
            found[entry.name] = dict(sorted(runs.items()))
    return found


def list_runs(folder: str | Path) -> dict[str, Path]:
    """Finds every prompt of a folder, each run of several seeds under a name of its own."""
    several = seed_runs(folder)
    found = dict(_single_prompts(Path(folder), several))
    for name, runs in several.items():
        found |= {run_name(name, seed): run for seed, run in runs.items()}
    return dict(sorted(found.items()))


def _read_folder(folder: Path) -> dict[str, Prompt | dict[int, Prompt]]:
    several = list_seed_runs(folder)
    single = _single_prompts(folder, several)
    found: dict[str, Prompt | dict[int, Prompt]] = {
        name: load_prompt(path) for name, path in single.items()
    }
    for name, runs in several.items():
        found[name] = {seed: load_prompt(run) for seed, run in runs.items()}
    return found


def _single_prompts(folder: Path, several: Iterable[str]) -> dict[str, Path]:
    """Those beside the names of several seeds, which may be all there is."""
    several = list(several)
    if several and not any(_is_prompt(entry) for entry in folder.iterdir()):
        return {}
    single = list_prompts(folder)
    for name in several:
        if name in single:
            raise InputError(f"{folder} has two prompts named {name}: a file and seeds; rename one")
    return single


def _is_prompt(entry: Path) -> bool:
    if entry.is_dir():
        return (entry / PROMPT_FILE).is_file()
    return entry.suffix == ".safetensors" and not entry.name.startswith(".")


def _check_runs(entry: Path, runs: Mapping[int, Path]) -> None:
    """A mean over the seeds that happen to be finished would be another number tomorrow."""
    if (entry / PROMPT_FILE).is_file():
        raise InputError(
            f"{entry} is a run and holds runs of seeds ({', '.join(r.name for r in runs.values())})"
            "; move them apart"
        )
    for run in runs.values():
        if not (run / PROMPT_FILE).is_file():
            raise InputError(
                f"{run} has no {PROMPT_FILE}: an unfinished run, one of {len(runs)} seeds of"
                f" {entry.name}; finish it or remove its folder"
            )


def _by_seed(name: str, prompts: Prompt | Mapping[int, Prompt]) -> dict[int | None, Prompt]:
    if isinstance(prompts, Prompt):
        return {None: prompts}
    if not prompts:
        raise InputError(f"prompt {name} has no seed; give at least one prompt")
    return dict(sorted(prompts.items()))


def _check_tasks(name: str, prompts: Mapping[int | None, Prompt]) -> None:
    tasks = {seed: prompt.card.task for seed, prompt in prompts.items()}
    first = next(iter(tasks))
    for seed, task in tasks.items():
        if task != tasks[first]:
            raise InputError(
                f"prompt {name} has seed {first} for the task {tasks[first]} and seed {seed} for"
                f" {task}; the seeds of a prompt are runs of one task: put them into folders of"
                " their own"
            )
