"""Read and write PEFT adapters, and read the prompts that the paper's authors released."""

from __future__ import annotations

import io
import re
import tokenize
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Float32

from jpt.errors import InputError
from jpt.io.files import (
    LazyTensor,
    file_size_bytes,
    make_folder,
    new_folder,
    read_bytes,
    read_error,
    read_json,
    write_json,
)
from jpt.io.tensors import TensorSource, open_tensors, write_safetensors
from jpt.io.torch_pickle import read_torch_object
from jpt.prompts.store import card_text, checked_tensors, read_card, read_rows
from jpt.types import Prompt, PromptCard

# --- PEFT adapters
# An adapter folder has ``adapter_config.json`` and ``adapter_model.safetensors`` (older:
# ``adapter_model.bin``) with the tensor ``prompt_embeddings``. As jpt does in decoders and T5, PEFT
# prepends its rows to the input. For T5 it saves 2P rows by default (``num_transformer_submodules``
# 2) and uses the first P.

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
TENSOR = "prompt_embeddings"

TASK_TYPES = {"CAUSAL_LM": "decoder", "SEQ_2_SEQ_LM": "encoder_decoder"}
"""Prompt layouts by PEFT's task type."""

_CARD = "jpt_card"  # metadata entry of the safetensors file, which PEFT ignores
_INITS = {"RANDOM": "random", "SAMPLE_VOCAB": "vocab"}
_OTHER_KINDS = {
    "PREFIX_TUNING": "keys and values of every layer, no input prompt",
    "P_TUNING": "a prompt computed by a trained network",
    "MULTITASK_PROMPT_TUNING": "a prompt multiplied by a matrix for each task",
    "LORA": "weight updates, no input prompt",
}


@dataclass(frozen=True)
class PeftAdapter:
    """Soft prompt of a PEFT adapter folder."""

    values: Float32[np.ndarray, "P D"]  # the rows that PEFT uses
    layout: str
    base_model: str | None  # ``base_model_name_or_path``
    init: str  # initialisation, as jpt's ``init`` option
    table_rows: int  # rows in the file; 2P for T5 by PEFT's default
    card: PromptCard | None  # prompt card, if jpt wrote the folder


def write_adapter(
    folder: str | Path,
    prompt: Prompt,
    base_model: str | None = None,
    heads: int | None = None,
    layers: int | None = None,
) -> None:
    """Write a PEFT adapter folder atomically."""
    task_type = peft_task_type(prompt.card)
    values = checked_tensors(folder, prompt)["prompt"]
    rows, width = values.shape
    make_folder(Path(folder).absolute().parent)
    config = {
        "base_model_name_or_path": base_model or prompt.card.backbone,
        "inference_mode": True,
        "num_attention_heads": heads,
        "num_layers": layers,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": rows,
        "peft_type": "PROMPT_TUNING",
        "prompt_tuning_init": "RANDOM",  # overwritten when PEFT loads the values
        "revision": None,
        "task_type": task_type,
        "token_dim": width,
    }
    # PEFT warns about unknown config fields, so the card goes into the metadata.
    metadata = {"format": "pt", _CARD: card_text(folder, prompt.card)}
    with new_folder(folder) as new:
        write_json(new / CONFIG_FILE, config)
        write_safetensors(new / WEIGHT_FILES[0], {TENSOR: values}, metadata)


def peft_task_type(card: PromptCard) -> str:
    """Return PEFT's task type of a prompt; raise InputError for prompts of encoders."""
    for task_type, layout in TASK_TYPES.items():
        if layout == card.layout:
            return task_type
    raise InputError(
        f"expected a prompt of a decoder or T5, got one of {card.backbone}, an encoder: its prompt"
        " is between [MASK] and [CLS] without position embeddings, which PEFT cannot express"
    )


def read_adapter(source: str | Path) -> PeftAdapter:
    """Read an adapter folder of PEFT's prompt tuning, without unpickling code."""
    folder = _adapter_folder(Path(source))
    path = folder / CONFIG_FILE
    config = read_json(path)
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(config).__name__}")
    layout = _layout(path, config)
    count, copies = _count(path, config), _copies(path, config, layout)
    file, tensor, metadata = _open(folder)
    _check_shape(file, tensor, count, copies, config.get("token_dim"))
    base_model = config.get("base_model_name_or_path")
    return PeftAdapter(
        values=np.ascontiguousarray(read_rows(file, TENSOR, tensor)[:count]),
        layout=layout,
        base_model=base_model if isinstance(base_model, str) and base_model else None,
        init=_init(config),
        table_rows=tensor.shape[0],
        card=read_card(file, metadata[_CARD]) if _CARD in metadata else None,
    )


def _adapter_folder(path: Path) -> Path:
    """Return the folder of an adapter; raise InputError with a hint if there is none."""
    if path.name in (CONFIG_FILE, *WEIGHT_FILES):
        path = path.parent
    try:
        entries = sorted(path.iterdir())
    except NotADirectoryError:
        raise InputError(f"{path} is a file; give the adapter's folder") from None
    except OSError as error:
        raise read_error(path, error) from None
    if (path / CONFIG_FILE).is_file():
        return path
    below = [entry.name for entry in entries if (entry / CONFIG_FILE).is_file()]
    found = f"give one of the adapter folders below it: {', '.join(below[:5])}"
    raise InputError(
        f"{path}: expected a PEFT adapter, got a folder with no {CONFIG_FILE};"
        f" {found if below else 'give the folder that save_pretrained wrote'}"
    )


def _layout(path: Path, config: dict[str, Any]) -> str:
    """Return the layout; raise InputError unless the adapter is a plain soft prompt."""
    kind, task_type = config.get("peft_type"), config.get("task_type")
    if kind != "PROMPT_TUNING":
        reason = _OTHER_KINDS.get(kind, "no soft prompt") if isinstance(kind, str) else "unknown"
        raise InputError(f"{path}: expected peft_type PROMPT_TUNING, got {kind} ({reason})")
    if task_type not in TASK_TYPES:
        raise InputError(
            f"{path}: expected task_type {' or '.join(TASK_TYPES)} (language models without a"
            f" task head), got {task_type}"
        )
    return TASK_TYPES[task_type]


def _count(path: Path, config: dict[str, Any]) -> int:
    count = config.get("num_virtual_tokens")
    if type(count) is not int or count < 1:
        raise InputError(f"{path}: expected num_virtual_tokens of at least 1, got {count!r}")
    return count


def _copies(path: Path, config: dict[str, Any], layout: str) -> int:
    """Return how often the table has P rows; PEFT counts T5's encoder and decoder."""
    most = 2 if layout == "encoder_decoder" else 1
    copies = config.get("num_transformer_submodules")
    copies = most if copies is None else copies
    if type(copies) is not int or not 1 <= copies <= most:
        raise InputError(
            f"{path}: expected num_transformer_submodules 1{' or 2' * (most - 1)} for"
            f" {config['task_type']}, got {copies!r}"
        )
    return copies


def _open(folder: Path) -> tuple[Path, LazyTensor, dict[str, str]]:
    """Return the file, its prompt tensor (not read yet) and its metadata."""
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).exists()), None)
    if file is None:
        raise InputError(f"{folder} has no {' or '.join(WEIGHT_FILES)}; copy the whole folder")
    source: TensorSource = open_tensors(file)
    others = [name for name in source.tensors if name != TENSOR]
    if TENSOR not in source.tensors:
        found = ", ".join(others[:3]) or "nothing"
        raise InputError(f"{file}: expected a tensor {TENSOR!r}, got {found}; save it with PEFT")
    if others:
        raise InputError(
            f"{file}: expected the prompt of an unchanged model, got further trained weights"
            f" ({', '.join(others[:3])}), which cannot be imported"
        )
    return file, source.tensors[TENSOR], dict(source.metadata)


def _check_shape(file: Path, tensor: LazyTensor, count: int, copies: int, width: Any) -> None:
    expected = (count * copies, tensor.shape[-1] if width is None and tensor.shape else width)
    if tensor.shape != expected or 0 in expected:
        times = f"{copies} x {count}" if copies > 1 else str(count)
        raise InputError(
            f"{file}: expected {TENSOR} of shape [{times}, {width}] as in {CONFIG_FILE}, got"
            f" {list(tensor.shape)}; use both files of one adapter"
        )


def _init(config: dict[str, Any]) -> str:
    init, text = config.get("prompt_tuning_init"), config.get("prompt_tuning_init_text")
    if init == "TEXT" and isinstance(text, str):
        return f"text:{text}"
    return _INITS.get(init, "random") if isinstance(init, str) else "random"


# --- Prompts of the paper's authors
# Their code saves prompts with torch as ``IMDBPromptRoberta/task_prompt`` (task, "Prompt",
# backbone); as NumPy arrays they are ``roberta-base/imdb.npy``.

TORCH_NAME = "task_prompt"
ARRAY_SUFFIX = ".npy"

_FOLDER = re.compile(r"(?P<task>.+?)Prompt(?P<backbone>[A-Z][A-Za-z0-9]*)?(_.*)?")
# What numpy may raise for a damaged header, which it parses as a Python literal.
_BROKEN = (ValueError, EOFError, TypeError, KeyError, SyntaxError, OverflowError, MemoryError)


@dataclass(frozen=True)
class ReferenceFile:
    """Unread prompt file of the authors."""

    path: Path
    name: str  # file name of an array, folder name of a ``task_prompt``
    task: str  # in lower case
    backbone: str  # folder name of an array


def find_reference_files(source: str | Path) -> list[ReferenceFile]:
    """Return the authors' prompt files in a folder, or the one file."""
    folder = Path(source)
    if not folder.is_dir():
        file_size_bytes(folder)  # raises InputError if it is no regular file
        return [_describe(folder)]
    if (folder / TORCH_NAME).is_file():
        return [_describe(folder / TORCH_NAME)]
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise read_error(source, error) from None
    paths = [entry / TORCH_NAME if entry.is_dir() else entry for entry in entries]
    found = [
        _describe(path)
        for path in paths
        if path.is_file() and (path.suffix == ARRAY_SUFFIX or path.name == TORCH_NAME)
    ]
    if not found:
        raise InputError(
            f"{source} holds no prompts: expected NAME{ARRAY_SUFFIX} or NAME/{TORCH_NAME} among"
            f" {len(entries)} entries"
        )
    names = [file.name for file in found]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{source} has two prompts named {name}; rename one")
    return sorted(found, key=lambda file: file.name)


def read_reference_values(file: str | Path) -> Float32[np.ndarray, "R D"]:
    """Return the rows of a prompt file of the authors."""
    path = Path(file)
    values = _read_array(path) if path.suffix == ARRAY_SUFFIX else read_torch_object(path)
    if not isinstance(values, np.ndarray):
        raise InputError(f"{file}: expected one tensor, got a {type(values).__name__}")
    is_float = values.dtype.kind == "f" or values.dtype == ml_dtypes.bfloat16
    if values.ndim != 2 or 0 in values.shape or not is_float:
        raise InputError(
            f"{file}: expected floating-point numbers of shape [P, D], got {values.dtype} of shape"
            f" {list(values.shape)}"
        )
    with np.errstate(over="ignore"):  # overflow to infinity is reported below
        rows = np.ascontiguousarray(values, dtype=np.float32)
    broken = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if broken.size:
        raise InputError(
            f"{file}: expected finite float32 values, got NaN or overflow in {broken.size} of"
            f" {len(rows)} rows (first: row {broken[0]}); leave this prompt out"
        )
    return rows


def _describe(path: Path) -> ReferenceFile:
    """Read task and backbone off the names of a file and its folder."""
    folder = path.absolute().parent.name
    if path.name != TORCH_NAME:
        return ReferenceFile(path, path.stem, path.stem.lower(), folder)
    parts = _FOLDER.fullmatch(folder)
    task, backbone = (parts["task"], parts["backbone"] or "") if parts else (folder, "")
    return ReferenceFile(path, folder, task.lower(), backbone)


def _read_array(path: Path) -> Any:
    """Read an .npy file without unpickling objects."""
    data = io.BytesIO(read_bytes(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about headers of Python 2
            return np.lib.format.read_array(data, allow_pickle=False)
    except (*_BROKEN, tokenize.TokenError) as error:
        reason = " ".join((str(error) or type(error).__name__).split())[:120]
        raise InputError(
            f"{path}: expected a numeric .npy array, got a broken or other file ({reason}); copy it"
            " again, or save it with numpy.save"
        ) from None
