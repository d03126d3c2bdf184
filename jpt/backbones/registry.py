"""Backbones by name: built-in ones, folders of weights, and hub ids when one is asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jpt.backbones.encoder import Encoder
from jpt.backbones.encoder_config import MODEL_TYPES, EncoderConfig
from jpt.backbones.encoder_weights import ENCODER_PARTITION, load_encoder
from jpt.config import DTYPES, check_choice
from jpt.errors import InputError, unknown_name
from jpt.files.tensor_files import open_tensors
from jpt.files.tokenizer import TextTokenizer, load_tokenizer
from jpt.types import Parameters

BUILTIN = Path(__file__).parent / "builtin"
PREFIX = "builtin/"
HUB_PATTERNS = ["*.json", "*.txt", "*.safetensors", "*.model"]
SAMPLE_BYTES = 1 << 20
LARGE_LAYERS = 24


@dataclass(frozen=True)
class Backbone:
    """A frozen language model, ready to read text behind a prompt.

    Attributes:
        name: what it was asked for by; prompts name it in their cards.
        model_type: ``"bert"`` or ``"roberta"``.
        layout: where the prompt stands; ``"encoder"``.
        config: shape of the model.
        module: the Linen module.
        params: the weights; an argument of every step, never part of a compiled program.
        tokenizer: the model's own.
        partition: from parameter path to axes of the mesh.
        fingerprint: short hash of the files the weights came from.
        defaults: tuning options that suit this model, by option name.
    """

    name: str
    model_type: str
    layout: str
    config: EncoderConfig
    module: nn.Module
    params: Parameters
    tokenizer: TextTokenizer
    partition: tuple[tuple[str, Any], ...]
    fingerprint: str
    defaults: Mapping[str, Any]

    @property
    def frozen_count(self) -> int:
        """Number of weights, all of them frozen."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))


def backbone_names() -> list[str]:
    """Lists the built-in backbones.

    Returns:
        Their names, sorted.

    Example:
        >>> all(name.startswith("builtin/") for name in backbone_names())
        True
    """
    return sorted(PREFIX + folder.parent.name for folder in BUILTIN.glob("*/config.json"))


def load_backbone(name: str | Path, dtype: str = "float32", dropout: bool = False) -> Backbone:
    """Loads a frozen language model.

    Args:
        name: a built-in name, a folder with ``config.json``, weights and tokenizer, or a hub id.
        dtype: ``"float32"`` or ``"bfloat16"``, for weights and matrix products.
        dropout: whether the model's own dropout is on inside its layers while tuning.

    Returns:
        The backbone.

    Raises:
        InputError: for an unknown name, an unsupported model, or files that do not fit.

    Example:
        >>> load_backbone("builtin/bert-small").config.width
        128
    """
    check_choice("dtype", dtype, DTYPES)
    folder = find_folder(name)
    config = read_config(folder)
    if config.get("model_type") not in MODEL_TYPES:
        raise InputError(
            f"{folder}/config.json has model_type {config.get('model_type')!r}; "
            f"supported are {', '.join(MODEL_TYPES)}"
        )
    tokenizer = load_tokenizer(folder)
    compute = jnp.dtype(dtype)
    shape, params = load_encoder(
        open_tensors(folder), EncoderConfig.from_huggingface(config), compute, str(folder)
    )
    if tokenizer.ids.mask >= shape.vocabulary:
        raise InputError(
            f"{folder}: the tokenizer's mask token has id {tokenizer.ids.mask}, but the model "
            f"has {shape.vocabulary} words; tokenizer and weights are of two models"
        )
    rate = shape.dropout_rate if dropout else 0.0
    return Backbone(
        name=str(name),
        model_type=shape.model_type,
        layout="encoder",
        config=shape,
        module=Encoder(shape, tokenizer.ids.mask, compute, rate),
        params=params,
        tokenizer=tokenizer,
        partition=ENCODER_PARTITION,
        fingerprint=_fingerprint(folder),
        defaults=_defaults(folder, shape),
    )


def find_folder(name: str | Path) -> Path:
    """Finds the files of a backbone; the network is used for a hub id only.

    Args:
        name: a built-in name, a folder, or a hub id.

    Returns:
        A folder that holds ``config.json``.

    Raises:
        InputError: when nothing of that name exists, with the nearest names.

    Example:
        >>> find_folder("builtin/bert-small").name
        'bert-small'
    """
    text = str(name)
    if text.startswith(PREFIX):
        if text not in backbone_names():
            raise unknown_name("backbone", text, backbone_names())
        return BUILTIN / text.removeprefix(PREFIX)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} has no config.json; give a folder of weights")
        return folder
    is_hub_id = text.count("/") == 1 and not text.startswith((".", "/", "~"))
    if folder.exists() or not is_hub_id:
        raise unknown_name("backbone", text, backbone_names())
    return _download(text)


def read_config(folder: Path) -> dict[str, Any]:
    """Reads a folder's ``config.json``.

    Args:
        folder: of the backbone.

    Returns:
        The parsed file.

    Raises:
        InputError: where it is no JSON object.

    Example:
        >>> read_config(find_folder("builtin/bert-small"))["model_type"]
        'bert'
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} holds {type(config).__name__}; expected an object of fields")
    return config


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        patterns = [*HUB_PATTERNS, "pytorch_model*.bin"]
        listed = snapshot_download(hub_id, allow_patterns=HUB_PATTERNS)
        if list(Path(listed).glob("*.safetensors")):
            return Path(listed)
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(
            f"'{hub_id}' is no built-in backbone and no folder here, and could not be fetched "
            f"from the hub ({reason}); built in are {', '.join(backbone_names())}"
        ) from None


def _defaults(folder: Path, shape: EncoderConfig) -> dict[str, Any]:
    """Reads the tuning options that a built-in backbone brings; else those of the paper's code."""
    path = folder / "tuning.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    # Paper 1.0 configs: 1e-3 on bert-base and roberta-base, 1e-4 on roberta-large.
    return {"learning_rate": 1e-4} if shape.layers >= LARGE_LAYERS else {}


def _fingerprint(folder: Path) -> str:
    """Hashes size, beginning and end of each weight file: enough to tell two models apart."""
    digest = hashlib.sha256()
    files = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    for path in sorted(files):
        with path.open("rb") as file:
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            digest.update(file.read(SAMPLE_BYTES))
            file.seek(max(0, size - SAMPLE_BYTES))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]
