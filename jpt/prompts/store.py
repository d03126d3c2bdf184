"""Save, load, list and stack prompts, with one or several seeds."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Float32

from jpt.config import LABEL_SCORING
from jpt.errors import InputError, unknown_name
from jpt.io.files import LazyTensor, parse_json, read_error
from jpt.io.tensors import read_header, write_safetensors
from jpt.types import Prompt, PromptCard, Scoring
from jpt.version import __version__

# --- Prompt banks


def stack_prompts(prompts: Mapping[str, Prompt]) -> Float32[np.ndarray, "K P D"]:
    """Stack prompts of one length and width, in order."""
    if not prompts:
        raise InputError("expected at least 1 prompt to stack, got 0")
    first, shape = next((name, prompt.values.shape) for name, prompt in prompts.items())
    for name, prompt in prompts.items():
        if prompt.values.shape != shape:
            raise InputError(
                f"prompt {name}: expected shape {_size(shape)}, that of prompt {first}, got"
                f" {_size(prompt.values.shape)}"
            )
    return np.stack([np.asarray(prompt.values, np.float32) for prompt in prompts.values()])


def unstack_prompts(
    bank: Float32[np.ndarray, "K P D"], cards: Sequence[PromptCard]
) -> tuple[Prompt, ...]:
    """Split a bank into prompts, one for each card."""
    if bank.ndim != 3:
        raise InputError(f"expected a prompt bank [K, P, D], got shape {_size(bank.shape)}")
    if len(cards) != len(bank):
        raise InputError(f"expected {len(bank)} cards, one per prompt, got {len(cards)}")
    pairs = zip(np.asarray(bank), cards, strict=True)
    return tuple(Prompt(np.array(values, np.float32), card) for values, card in pairs)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(length) for length in shape)


# --- Prompt files
# ``NAME.safetensors`` has the tensor ``prompt`` [P, D], in imported encoder prompts also
# ``unused_row`` [1, D], and the `PromptCard` as JSON in the metadata entry ``card``.

PROMPT_FILE = "prompt.safetensors"
"""Name of the prompt file in a run folder."""

LAYOUTS = ("encoder", "encoder_decoder", "decoder")
_READABLE = (np.float32, np.float16, ml_dtypes.bfloat16)
_COUNTS = ("seed", "steps", "first_position")
_REQUIRED = ("backbone", "task")


def save_prompt(path: str | Path, prompt: Prompt) -> None:
    """Write a prompt file atomically; equal prompts give identical files.

    Args:
        path: File to write, usually ``NAME.safetensors``; its folder must exist.
        prompt: Prompt to write. A missing ``jpt_version`` is added to its card.

    Raises:
        InputError: If values are not finite, a shape is wrong, or the file cannot be written.

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
    """Return the tensors of a prompt file; raise InputError if they are invalid."""
    tensors = {"prompt": np.asarray(prompt.values, np.float32)}
    if prompt.unused_row is not None:
        tensors["unused_row"] = np.asarray(prompt.unused_row, np.float32)
    _check_shapes(path, {name: values.shape for name, values in tensors.items()})
    for name, values in tensors.items():
        _check_finite(path, name, values)
    return tensors


def card_text(path: str | Path, card: PromptCard) -> str:
    """Return a card as JSON, without empty fields."""
    fields = dataclasses.replace(card, jpt_version=card.jpt_version or __version__).to_json()
    try:
        return json.dumps(fields, ensure_ascii=False, allow_nan=False, default=_plain_number)
    except ValueError:
        raise InputError(f"{path}: expected a finite score in the card, got {card.score}") from None


def load_prompt(path: str | Path) -> Prompt:
    """Load a prompt.

    Args:
        path: Prompt file or run folder.

    Returns:
        The `Prompt`; float16 and bfloat16 are converted to float32.

    Raises:
        InputError: If the file is missing, truncated, not safetensors or without a prompt or card,
            or a row has NaN or infinite values.

    Example:
        See `save_prompt`.
    """
    file = _prompt_file(Path(path))
    tensors, metadata = read_header(file)
    if "prompt" not in tensors:
        found = ", ".join(list(tensors)[:5]) or "nothing"
        cure = "give a prompt file"
        if "prompt_embeddings" in tensors:
            cure = f"import this PEFT adapter with jpt import peft {file.parent} --out FILE"
        raise InputError(f"{file}: expected a tensor 'prompt', got {found}; {cure}")
    tensors = {name: tensors[name] for name in ("prompt", "unused_row") if name in tensors}
    _check_shapes(file, {name: tensor.shape for name, tensor in tensors.items()})
    if "card" not in metadata:
        raise InputError(f"{file} has no prompt card; save the prompt with jpt.save_prompt")
    card = read_card(file, metadata["card"])
    values = {name: read_rows(file, name, tensor) for name, tensor in tensors.items()}
    return Prompt(values["prompt"], card, values.get("unused_row"))


def read_rows(file: Path, name: str, tensor: LazyTensor) -> Float32[np.ndarray, "P D"]:
    """Return the finite float32 values of a prompt tensor."""
    if tensor.dtype.type not in _READABLE:
        raise InputError(
            f"{file}: expected float32, float16 or bfloat16 in tensor '{name}', got {tensor.dtype}"
        )
    values = tensor.read().astype(np.float32)
    _check_finite(file, name, values)
    return values


def read_card(file: str | Path, text: str) -> PromptCard:
    """Parse and check a card; ignore fields of later versions."""
    table = parse_json(text.encode(), f"the card of {file}")
    if not isinstance(table, dict):
        raise InputError(
            f"the card of {file}: expected a JSON object, got {type(table).__name__}; save the"
            " prompt with jpt.save_prompt"
        )
    fields = [field.name for field in dataclasses.fields(PromptCard)]
    known = {name: table[name] for name in fields if table.get(name) is not None}
    for name in _REQUIRED:
        if not known.get(name):
            raise InputError(
                f"the card of {file} has no {name}; save the prompt with jpt.save_prompt"
            )
    for name, value in known.items():
        expected = _expected(name, value)
        if expected:
            raise InputError(f"the card of {file}: expected {name} to be {expected}, got {value!r}")
    if "scoring" in known:
        known["scoring"] = read_scoring(f"the card of {file}", "scoring", known["scoring"])
    return PromptCard(**known)


def read_scoring(where: str, key: str, table: Any) -> Scoring:
    """Check the scoring settings of a card; ignore fields of later versions."""
    found = {}
    if not isinstance(table, dict):
        raise InputError(f"{where}: expected {key} to be an object, got {table!r}")
    for name, (is_valid, expected, convert) in _SCORING.items():
        value = table.get(name)
        if value is None and name in _OPTIONAL:
            continue
        if not is_valid(value):
            raise InputError(f"{where}: expected {key}.{name} to be {expected}, got {value!r}")
        found[name] = convert(value)
    words, ids = found["label_words"], found["label_ids"]
    if {k: len(v) for k, v in words.items()} != {k: len(v) for k, v in ids.items()}:
        raise InputError(
            f"{where}: expected {key}.label_ids for the words of {key}.label_words, got {ids}"
        )
    return Scoring(**found)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and each >= 0 for each in value)


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _by_label(is_valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda table: isinstance(table, dict) and all(map(is_valid, table.values()))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _words_of(table: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    return {label: tuple(words) for label, words in table.items()}


def _ids_of(table: dict[str, list[list[int]]]) -> dict[str, tuple[tuple[int, ...], ...]]:
    return {label: tuple(map(tuple, ids)) for label, ids in table.items()}


# Check, what is expected, and conversion of each field of `Scoring`.
_SCORING: dict[str, tuple[Callable[[Any], bool], str, Callable[[Any], Any]]] = {
    "template": (lambda value: _are_texts(value) and bool(value), "a list of texts", tuple),
    "label_words": (_by_label(_are_texts), "lists of words by label", _words_of),
    "label_ids": (
        _by_label(lambda value: isinstance(value, list) and all(map(_are_ids, value))),
        "lists of token ids by label",
        _ids_of,
    ),
    "max_tokens": (_is_count, "an integer of at least 1", int),
    "label_scoring": (
        lambda value: isinstance(value, str) and value in LABEL_SCORING,
        f"one of {', '.join(LABEL_SCORING)}",
        str,
    ),
    "answer_tokens": (_is_count, "an integer of at least 1", int),
    "fingerprint": (_is_text, "a string", str),
    "dtype": (_is_text, "a string", str),
    "split": (_is_text, "a string", str),
}
_OPTIONAL = ("answer_tokens", "fingerprint", "dtype", "split")


def list_prompts(folder: str | Path) -> dict[str, Path]:
    """Return the prompt files of a folder by name: NAME.safetensors and NAME/prompt.safetensors."""
    root = Path(folder)
    try:
        entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
    except NotADirectoryError:
        raise InputError(f"{folder} is a file; give the folder that holds the prompts") from None
    except OSError as error:
        raise read_error(folder, error) from None
    if (root / PROMPT_FILE).is_file() and (root / "config.json").is_file():
        raise InputError(
            f"{folder}: expected a folder of prompts, got a run folder; give {root.parent}"
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
                f"{folder}: expected one prompt per name, got runs of several seeds"
                f" ({of_seeds.name}/seed-S); give {of_seeds}, or a folder with one run of each"
            )
        raise InputError(
            f"{folder} holds no prompts: expected NAME.safetensors or NAME/{PROMPT_FILE} among"
            f" {len(entries)} entries"
        )
    return dict(sorted(found.items()))


def check_prompt(
    prompt: Prompt, backbone: str, width: int, layout: str, other_backbone: bool = False
) -> None:
    """Raise InputError if the prompt does not fit the backbone."""
    card, columns = prompt.card, prompt.values.shape[1]
    _check_finite(f"prompt of {card.task}", "values", np.asarray(prompt.values))
    if columns != width:
        raise InputError(
            f"expected a prompt of width {width} for {backbone}, got width {columns} (tuned on"
            f" {card.backbone}); use a prompt of that model, or project this one"
        )
    if card.layout != layout:
        raise InputError(
            f"expected a prompt with layout {layout} for {backbone}, got layout {card.layout}"
            f" (tuned on {card.backbone}); use a prompt of that model family"
        )
    if card.backbone != backbone and not other_backbone:
        raise InputError(
            f"expected a prompt tuned on {backbone}, got one tuned on {card.backbone}; to use it"
            " anyway, name the backbone explicitly"
        )


def _prompt_file(path: Path) -> Path:
    """Return the prompt file of a run folder or file; suggest similar names if it is missing."""
    try:
        if path.is_dir():
            if (path / PROMPT_FILE).is_file():
                return path / PROMPT_FILE
            raise InputError(
                f"{path} has no {PROMPT_FILE} (an unfinished run?); give a prompt file or a"
                " finished run"
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
        raise InputError(f"{path}: expected a prompt of shape [P, D], got {list(shape)}")
    unused = shapes.get("unused_row")
    if unused is not None and unused != (1, shape[1]):
        raise InputError(
            f"{path}: expected unused_row of shape {[1, shape[1]]}, got {list(unused)}"
        )


def _check_finite(path: str | Path, name: str, values: Float32[np.ndarray, "P D"]) -> None:
    broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if broken.size:
        raise InputError(
            f"{path}: expected finite values in '{name}', got NaN or infinity in {broken.size} of"
            f" {len(values)} rows (first: row {broken[0]}); tune again with a lower learning rate"
        )


def _expected(name: str, value: Any) -> str | None:
    """Return what the card field should be, or None if the value is valid."""
    if name == "layout":
        return None if value in LAYOUTS else f"one of {', '.join(LAYOUTS)}"
    if name in _COUNTS:
        return None if type(value) is int and value >= 0 else "an integer of at least 0"
    if name == "score":
        is_score = type(value) in (int, float) and -1 <= value <= 1  # also of Matthews
        return None if is_score else "a number from -1 to 1"
    if name == "scoring":
        return None if isinstance(value, dict) else "a table"
    return None if isinstance(value, str) else "a string"


def _plain_number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be stored in a card")


# --- Several prompts


def load_prompts(prompts: Mapping[str, Prompt] | str | Path) -> dict[str, Prompt]:
    """Load prompts by name; raise InputError unless backbone, layout, length and width agree."""
    if isinstance(prompts, (str, Path)):
        prompts = {name: load_prompt(path) for name, path in list_prompts(prompts).items()}
    if not prompts:
        raise InputError("expected at least 1 prompt, got 0; give a folder or prompts by name")
    loaded = dict(sorted(prompts.items()))
    first = next(iter(loaded))
    expected = _kind(loaded[first])
    for name, prompt in loaded.items():
        _check_finite(f"prompt {name}", "values", np.asarray(prompt.values))
        for what, value in _kind(prompt).items():
            if value != expected[what]:
                raise InputError(
                    f"prompt {name}: expected {what} {expected[what]}, that of prompt {first}, got"
                    f" {value}; put prompts that differ in backbone, layout, length or width into"
                    " separate folders"
                )
    return loaded


def _kind(prompt: Prompt) -> dict[str, str | int]:
    return {
        "backbone": prompt.card.backbone,
        "layout": prompt.card.layout,
        "length": len(prompt.values),
        "width": prompt.values.shape[1],
        "first position": prompt.card.first_position or 0,
    }


# --- Several seeds

Prompts = Mapping[str, Prompt | Mapping[int, Prompt]] | str | Path
"""Folder of prompts, prompts by name, or prompts by name and seed."""

_SEED = re.compile(r"seed-(\d+)")


def load_seed_prompts(prompts: Prompts) -> dict[str, dict[int | None, Prompt]]:
    """Load prompts by name and seed (None for a single run); raise InputError if they differ."""
    if isinstance(prompts, (str, Path)):
        prompts = _read_folder(Path(prompts))
    loaded = {name: _by_seed(name, of) for name, of in prompts.items()}
    load_prompts(_runs_of(loaded))  # checks that they can be compared
    for name, of in loaded.items():
        _check_tasks(name, of)
    return {name: loaded[name] for name in sorted(loaded)}


def run_name(name: str, seed: int | None) -> str:
    """Return NAME, or NAME/seed-S."""
    return name if seed is None else f"{name}/seed-{seed}"


def split_run_name(name: str) -> tuple[str, int | None]:
    """Return name and seed; the inverse of `run_name`."""
    prefix, _, last = name.rpartition("/")
    match = _SEED.fullmatch(last) if prefix else None
    return (prefix, int(match[1])) if match else (name, None)


def load_runs(prompts: Prompts) -> dict[str, Prompt]:
    """Load every run of every prompt by its run name."""
    return dict(sorted(_runs_of(load_seed_prompts(prompts)).items()))


def _runs_of(prompts: Mapping[str, Mapping[int | None, Prompt]]) -> dict[str, Prompt]:
    return {run_name(name, s): prompt for name, of in prompts.items() for s, prompt in of.items()}


def list_seed_runs(folder: str | Path) -> dict[str, dict[int, Path]]:
    """Return the finished runs of several seeds; raise InputError if one is unfinished."""
    found = seed_runs(folder)
    for name, runs in found.items():
        _check_runs(Path(folder) / name, runs)
    return found


def seed_runs(folder: str | Path) -> dict[str, dict[int, Path]]:
    """Return the runs of several seeds by name and seed, finished or not."""
    root, found = Path(folder), {}
    if not root.is_dir():
        return found  # list_prompts raises the error
    for entry in sorted(root.iterdir()):
        if entry.name.startswith(".") or not entry.is_dir() or _SEED.fullmatch(entry.name):
            continue
        inner = [(_SEED.fullmatch(each.name), each) for each in entry.iterdir() if each.is_dir()]
        runs = {int(match[1]): each for match, each in inner if match}
        if runs:
            found[entry.name] = dict(sorted(runs.items()))
    return found


def list_runs(folder: str | Path) -> dict[str, Path]:
    """Return every run of a folder by its run name."""
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
    """Return the prompts without seeds; there may be none if others have seeds."""
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
    # Skipping unfinished seeds would change the mean once they are finished.
    if (entry / PROMPT_FILE).is_file():
        raise InputError(
            f"{entry}: expected a run or runs of seeds, got both"
            f" ({', '.join(r.name for r in runs.values())}); move one of them away"
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
        raise InputError(f"prompt {name}: expected at least 1 seed, got 0")
    return dict(sorted(prompts.items()))


def _check_tasks(name: str, prompts: Mapping[int | None, Prompt]) -> None:
    tasks = {seed: prompt.card.task for seed, prompt in prompts.items()}
    first = next(iter(tasks))
    for seed, task in tasks.items():
        if task != tasks[first]:
            raise InputError(
                f"prompt {name}: expected runs of one task, got {tasks[first]} (seed {first}) and"
                f" {task} (seed {seed}); put them into separate folders"
            )
