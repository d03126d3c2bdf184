"""Read and write prompts of Hugging Face PEFT and of the paper's authors."""

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

# --- Adapter folders of PEFT's prompt tuning: written so that PEFT loads them, and read
# A folder holds ``adapter_config.json`` and ``adapter_model.safetensors`` (older ones
# ``adapter_model.bin``) with the tensor ``prompt_embeddings``. PEFT puts its rows in front of the
# input, as jpt does in decoders and in T5's encoder. Its table for T5 has 2P rows by default
# (``num_transformer_submodules`` 2) of which it reads the first P.

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
TENSOR = "prompt_embeddings"

TASK_TYPES = {"CAUSAL_LM": "decoder", "SEQ_2_SEQ_LM": "encoder_decoder"}
"""The layout of a prompt by what PEFT calls the kind of model."""

_CARD = "jpt_card"  # in the metadata of the safetensors file, which PEFT does not read
_INITS = {"RANDOM": "random", "SAMPLE_VOCAB": "vocab"}
_OTHER_KINDS = {
    "PREFIX_TUNING": "keys and values for every layer, not rows in front of the input",
    "P_TUNING": "rows that a trained network makes",
    "MULTITASK_PROMPT_TUNING": "rows times a matrix of each task",
    "LORA": "changes of the weights, not rows in front of the input",
}


@dataclass(frozen=True)
class PeftAdapter:
    """A soft prompt as PEFT saved it."""

    values: Float32[np.ndarray, "P D"]  # the rows that PEFT puts in front of the input
    layout: str  # where they stand
    base_model: str | None  # what the folder says of its backbone
    init: str  # how they started, in jpt's words
    table_rows: int  # how many rows the file has; 2P for T5 by PEFT's default
    card: PromptCard | None  # where jpt wrote the folder, the card of the prompt


def write_adapter(
    folder: str | Path,
    prompt: Prompt,
    base_model: str | None = None,
    heads: int | None = None,
    layers: int | None = None,
) -> None:
    """Writes an adapter folder that PEFT loads, in one step."""
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
        # How the rows started tells PEFT what to draw before it reads them: nothing special.
        "prompt_tuning_init": "RANDOM",
        "revision": None,
        "task_type": task_type,
        "token_dim": width,
    }
    # PEFT warns of fields in its config that it does not know, so the card stands elsewhere.
    metadata = {"format": "pt", _CARD: card_text(folder, prompt.card)}
    with new_folder(folder) as place:
        write_json(place / CONFIG_FILE, config)
        write_safetensors(place / WEIGHT_FILES[0], {TENSOR: values}, metadata)


def peft_task_type(card: PromptCard) -> str:
    """What PEFT calls the kind of model that a prompt is for."""
    for task_type, layout in TASK_TYPES.items():
        if layout == card.layout:
            return task_type
    raise InputError(
        f"the prompt was tuned on {card.backbone}, an encoder: its rows stand between [MASK] and"
        " [CLS], without positions of their own, and PEFT can only put them before all of the"
        " input, where they would mean something else; only prompts of decoders and T5 can be"
        " exported"
    )


def read_adapter(source: str | Path) -> PeftAdapter:
    """Reads an adapter folder of PEFT's prompt tuning; nothing is unpickled by running code."""
    folder = _adapter_folder(Path(source))
    path = folder / CONFIG_FILE
    config = read_json(path)
    if not isinstance(config, dict):
        raise InputError(f"{path} holds no table of fields; save the adapter with PEFT again")
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


def _adapter_folder(place: Path) -> Path:
    """The folder of an adapter; where there is none, what was found instead."""
    if place.name in (CONFIG_FILE, *WEIGHT_FILES):
        place = place.parent
    try:
        entries = sorted(place.iterdir())
    except NotADirectoryError:
        raise InputError(f"{place} is a file; give the adapter's folder") from None
    except OSError as error:
        raise read_error(place, error) from None
    if (place / CONFIG_FILE).is_file():
        return place
    below = [entry.name for entry in entries if (entry / CONFIG_FILE).is_file()]
    found = f"it has adapters below it: {', '.join(below[:5])}; give one of these folders"
    raise InputError(
        f"{place} is no adapter of PEFT: it has no {CONFIG_FILE};"
        f" {found if below else 'give the folder that save_pretrained wrote'}"
    )


def _layout(path: Path, config: dict[str, Any]) -> str:
    """Where the rows stand, after a look at whether they are a plain soft prompt at all."""
    kind, task_type = config.get("peft_type"), config.get("task_type")
    if kind != "PROMPT_TUNING":
        reason = _OTHER_KINDS.get(kind, "no soft prompt") if isinstance(kind, str) else "unknown"
        raise InputError(
            f"{path}: peft_type is {kind} ({reason}); only PROMPT_TUNING can be imported"
        )
    if task_type not in TASK_TYPES:
        raise InputError(
            f"{path}: task_type is {task_type}; {' or '.join(TASK_TYPES)} expected: decoders and T5"
            " that answer in words, without a head of their own"
        )
    return TASK_TYPES[task_type]


def _count(path: Path, config: dict[str, Any]) -> int:
    count = config.get("num_virtual_tokens")
    if type(count) is not int or count < 1:
        raise InputError(f"{path}: num_virtual_tokens is {count!r}; a number from 1 on expected")
    return count


def _copies(path: Path, config: dict[str, Any], layout: str) -> int:
    """How often the table holds P rows: PEFT counts encoder and decoder as two submodules."""
    most = 2 if layout == "encoder_decoder" else 1
    copies = config.get("num_transformer_submodules")
    copies = most if copies is None else copies
    if type(copies) is not int or not 1 <= copies <= most:
        raise InputError(
            f"{path}: num_transformer_submodules is {copies!r}; 1{' or 2' * (most - 1)} expected"
            f" for {config['task_type']}"
        )
    return copies


def _open(folder: Path) -> tuple[Path, LazyTensor, dict[str, str]]:
    """The table of rows, not yet read."""
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).exists()), None)
    if file is None:
        raise InputError(f"{folder} has no {' or '.join(WEIGHT_FILES)}; copy the whole folder")
    source: TensorSource = open_tensors(file)
    others = [name for name in source.tensors if name != TENSOR]
    if TENSOR not in source.tensors:
        held = ", ".join(others[:3]) or "nothing"
        raise InputError(f"{file} has no tensor {TENSOR!r} (it holds {held}); save it with PEFT")
    if others:
        raise InputError(
            f"{file} holds trained weights beside the prompt ({', '.join(others[:3])}), without"
            " which it means something else; only prompts on an unchanged model can be imported"
        )
    return file, source.tensors[TENSOR], dict(source.metadata)


def _check_shape(file: Path, tensor: LazyTensor, count: int, copies: int, width: Any) -> None:
    expected = (count * copies, tensor.shape[-1] if width is None and tensor.shape else width)
    if tensor.shape != expected or 0 in expected:
        times = f"{copies} x {count}" if copies > 1 else str(count)
        raise InputError(
            f"{file}: {TENSOR} has the shape {list(tensor.shape)}, but {CONFIG_FILE} says"
            f" {times} rows x {width}; the files are of two adapters: save them again"
        )


def _init(config: dict[str, Any]) -> str:
    told, text = config.get("prompt_tuning_init"), config.get("prompt_tuning_init_text")
    if told == "TEXT" and isinstance(text, str):
        return f"text:{text}"
    return _INITS.get(told, "random") if isinstance(told, str) else "random"


# --- Prompts as the paper's authors released them: NumPy arrays, or files named ``task_prompt``
# Their code saves a prompt with torch as ``IMDBPromptRoberta/task_prompt``: task, the word Prompt,
# backbone. As NumPy arrays they lie as ``roberta-base/imdb.npy``. Nothing is unpickled.

TORCH_NAME = "task_prompt"
ARRAY_SUFFIX = ".npy"

_FOLDER = re.compile(r"(?P<task>.+?)Prompt(?P<backbone>[A-Z][A-Za-z0-9]*)?(_.*)?")
# What a damaged header of an array can make numpy raise; it is parsed as Python's literals are.
_BROKEN = (ValueError, EOFError, TypeError, KeyError, SyntaxError, OverflowError, MemoryError)


@dataclass(frozen=True)
class ReferenceFile:
    """A prompt that the authors released, not yet read."""

    path: Path  # the file
    name: str  # of the prompt: the array's file name, or the folder's name of a ``task_prompt``
    task: str  # what it says of its task, in lower case
    backbone: str  # what it says of its backbone; for an array the folder's name


def find_reference_files(source: str | Path) -> list[ReferenceFile]:
    """Finds the prompts of a folder."""
    place = Path(source)
    if not place.is_dir():
        file_size_bytes(place)  # tells what is missing or is no regular file
        return [_described(place)]
    if (place / TORCH_NAME).is_file():
        return [_described(place / TORCH_NAME)]
    try:
        entries = sorted(entry for entry in place.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise read_error(source, error) from None
    paths = [entry / TORCH_NAME if entry.is_dir() else entry for entry in entries]
    found = [
        _described(path)
        for path in paths
        if path.is_file() and (path.suffix == ARRAY_SUFFIX or path.name == TORCH_NAME)
    ]
    if not found:
        raise InputError(
            f"{source} holds no prompts: looked for NAME{ARRAY_SUFFIX} and NAME/{TORCH_NAME} among"
            f" {len(entries)} entries"
        )
    names = [file.name for file in found]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{source} has two prompts named {name}; rename one")
    return sorted(found, key=lambda file: file.name)


def read_reference_values(file: str | Path) -> Float32[np.ndarray, "R D"]:
    """Reads the rows of a prompt."""
    path = Path(file)
    values = _read_array(path) if path.suffix == ARRAY_SUFFIX else read_torch_object(path)
    if not isinstance(values, np.ndarray):
        raise InputError(
            f"{file} holds a {type(values).__name__}; one tensor of rows x width expected"
        )
    is_real = values.dtype.kind in "fiu" or values.dtype == ml_dtypes.bfloat16
    if values.ndim != 2 or 0 in values.shape or not is_real:
        raise InputError(
            f"{file} holds an array of the shape {list(values.shape)} and type {values.dtype};"
            " rows x width of real numbers expected"
        )
    with np.errstate(over="ignore"):  # a number too large for float32 is told below
        rows = np.ascontiguousarray(values, dtype=np.float32)
    broken = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if broken.size:
        raise InputError(
            f"{file}: row {broken[0]} holds NaN or a number beyond float32 ({broken.size} of"
            f" {len(rows)} rows do); its training diverged: leave it out"
        )
    return rows


def _described(path: Path) -> ReferenceFile:
    """What the names of a file and its folder say."""
    folder = path.absolute().parent.name
    if path.name != TORCH_NAME:
        return ReferenceFile(path, path.stem, path.stem.lower(), folder)
    parts = _FOLDER.fullmatch(folder)
    task, backbone = (parts["task"], parts["backbone"] or "") if parts else (folder, "")
    return ReferenceFile(path, folder, task.lower(), backbone)


def _read_array(path: Path) -> Any:
    """An array of NumPy; objects, which would have to be unpickled, are refused."""
    data = io.BytesIO(read_bytes(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's remark on headers of Python 2
            return np.lib.format.read_array(data, allow_pickle=False)
    except (*_BROKEN, tokenize.TokenError) as error:
        reason = " ".join((str(error) or type(error).__name__).split())[:120]
        raise InputError(
            f"{path} is no whole array of numbers ({reason}); copy it again, or save it with"
            " numpy.save"
        ) from None
