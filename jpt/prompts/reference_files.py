"""Prompts as the paper's authors released them: NumPy arrays, or files named ``task_prompt``.

Their code saves a prompt with torch as ``IMDBPromptRoberta/task_prompt``: task, the word Prompt,
backbone. As NumPy arrays they lie as ``roberta-base/imdb.npy``. Nothing is unpickled.
"""

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
from jpt.files.reading import file_size_bytes, read_bytes, read_error
from jpt.files.torch_pickle import read_torch_object

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
