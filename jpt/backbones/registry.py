"""Find and load a backbone by name, hub id, folder or GGUF file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from jpt.backbones.decoder import GPT2_WEIGHTS, LLAMA_WEIGHTS, Decoder, DecoderConfig
from jpt.backbones.encoder import ENCODER_WEIGHTS, Encoder, EncoderConfig
from jpt.backbones.loading import Placer, TensorSource, Weights
from jpt.backbones.t5 import T5, T5_WEIGHTS, T5Config
from jpt.config import DTYPES, REMAT, check_choice
from jpt.errors import InputError, unknown_name
from jpt.io.compile_cache import use_compile_cache
from jpt.io.files import file_size_bytes, load_json
from jpt.io.gguf import open_gguf, read_gguf_tokenizer
from jpt.io.tensors import open_tensors
from jpt.io.tokenizer import SpecialIds, TextTokenizer, load_tokenizer
from jpt.parallel import parameter_sharding, parameter_shardings, place
from jpt.types import Parameters

# --- Model families

LARGE_LAYERS = 24
LAYOUTS = ("encoder", "encoder_decoder", "decoder")


@dataclass(frozen=True)
class Family:
    """Everything that differs between model families."""

    name: str  # for messages
    layout: str  # of prompt and answer in the input; one of `LAYOUTS`
    model_types: tuple[str, ...]  # ``model_type`` values in config.json
    special_tokens: tuple[str, ...]  # special tokens that the tokenizer must have
    config: Callable[[Mapping[str, Any]], Any]  # parser of config.json
    # ``module(config, ids, dtype, dropout_rate, remat)``: the Linen module
    module: Callable[[Any, SpecialIds, jnp.dtype, float, str], nn.Module]
    weights: Weights  # checkpoint format and partition table
    choices: Callable[[Any], dict[str, Any]]  # default tuning options of a config
    init_std: float | None  # of a random prompt; None: that of the input embeddings


def _encoder(
    config: EncoderConfig, ids: SpecialIds, dtype: jnp.dtype, dropout_rate: float, remat: str
) -> Encoder:
    return Encoder(config, ids.mask or 0, dtype, dropout_rate, remat)


def _encoder_choices(config: EncoderConfig) -> dict[str, Any]:
    # Paper 1.0 configs: 1e-3 on bert-base and roberta-base, 1e-4 on roberta-large.
    return {"learning_rate": 1e-4} if config.layers >= LARGE_LAYERS else {}


ENCODERS = Family(
    name="BERT and RoBERTa",
    layout="encoder",
    model_types=("bert", "roberta", "xlm-roberta"),
    special_tokens=("cls", "sep", "mask", "pad"),
    config=EncoderConfig.from_huggingface,
    module=_encoder,
    weights=ENCODER_WEIGHTS,
    choices=_encoder_choices,
    # Paper's code: N(0, 0.02^2), the models' own initializer_range.
    init_std=0.02,
)


def _t5(config: T5Config, ids: SpecialIds, dtype: jnp.dtype, dropout_rate: float, remat: str) -> T5:
    del ids  # the start token is in the config
    return T5(config, dtype, dropout_rate, remat)


def _t5_choices(config: T5Config) -> dict[str, Any]:
    # Paper 1.0 configs: 5e-3 on t5-small and t5-base, 1e-3 on t5-large; extended to larger models.
    rate = 1e-3 if config.layers >= LARGE_LAYERS else 5e-3
    return {"learning_rate": rate, "objective": "vocabulary"}


def _decoder(
    config: DecoderConfig, ids: SpecialIds, dtype: jnp.dtype, dropout_rate: float, remat: str
) -> Decoder:
    del ids
    return Decoder(config, dtype, dropout_rate, remat)


def _decoder_choices(config: DecoderConfig) -> dict[str, Any]:
    # Not in the paper.
    del config
    return {"learning_rate": 5e-3, "objective": "vocabulary"}


T5S = Family(
    name="T5",
    layout="encoder_decoder",
    model_types=("t5",),
    special_tokens=("eos", "pad"),
    config=T5Config.from_huggingface,
    module=_t5,
    weights=T5_WEIGHTS,
    choices=_t5_choices,
    # Paper's code: N(0, 1), the default of torch.nn.Embedding.
    init_std=1.0,
)

GPT2S = Family(
    name="GPT-2",
    layout="decoder",
    model_types=("gpt2",),
    special_tokens=("eos",),
    config=DecoderConfig.from_huggingface,
    module=_decoder,
    weights=GPT2_WEIGHTS,
    choices=_decoder_choices,
    init_std=None,
)

LLAMAS = dataclasses.replace(
    GPT2S,
    name="Llama and Qwen2",
    model_types=("llama", "qwen2"),
    weights=LLAMA_WEIGHTS,
)

FAMILIES: dict[str, Family] = {
    model_type: family
    for family in (ENCODERS, T5S, GPT2S, LLAMAS)
    for model_type in family.model_types
}
"""Families by model type."""


def find_family(config: Mapping[str, Any], where: str) -> Family:
    """Return the family of a config; raise InputError if its model type is not supported."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(f"{where}: {unknown_name('model_type', str(model_type), FAMILIES)}")
    return FAMILIES[model_type]


# --- Backbones

BUILTIN = Path(__file__).parent / "builtin"
PREFIX = "builtin/"
FIRST_IDS = {
    name: f"{owner}/{name}"
    for owner, names in {
        "google-bert": ("bert-base-cased", "bert-base-uncased", "bert-large-uncased"),
        "FacebookAI": ("roberta-base", "roberta-large", "xlm-roberta-base", "xlm-roberta-large"),
        "google-t5": ("t5-small", "t5-base", "t5-large", "t5-3b", "t5-11b"),
        "openai-community": ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"),
    }.items()
    for name in names
}
"""Hub ids of models that the paper and old prompt cards name without an owner."""
HUB_PATTERNS = ["*.json", "*.txt", "*.safetensors", "*.model"]
GGUF_SUFFIX = ".gguf"
SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True)
class Backbone:
    """A frozen language model with its tokenizer, as returned by `load_backbone`.

    Attributes:
        name: Name, folder, file or hub id that it was loaded by; stored in prompt cards.
        family: Model family.
        config: Hyperparameters.
        module: Linen module.
        params: Weights; passed to every step, never a constant of a compiled program.
        tokenizer: Tokenizer.
        fingerprint: Short hash of the weight files.
        defaults: Recommended tuning options, by option name.
        notes: Remarks on the sharding of the weights, for the log.
    """

    name: str
    family: Family
    config: Any
    module: nn.Module
    params: Parameters
    tokenizer: TextTokenizer
    fingerprint: str
    defaults: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def layout(self) -> str:
        """Input layout: ``"encoder"``, ``"encoder_decoder"`` or ``"decoder"``."""
        return self.family.layout

    @property
    def model_type(self) -> str:
        """``model_type`` of its config, for instance ``"bert"``."""
        return self.config.model_type

    @property
    def frozen_count(self) -> int:
        """Number of (frozen) weights."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    @property
    def pad_id(self) -> int:
        """Id of the padding token."""
        ids, size = self.tokenizer.ids, self.config.vocabulary
        # Padding is never read, so a padding token outside the word table is replaced.
        usual = (token for token in (ids.pad, ids.eos) if token is not None)
        return next((token for token in usual if token < size), 0)

    @property
    def start_id(self) -> int:
        """Id of the token behind the prompt when its neurons are probed.

        Paper's code: ``[CLS]`` (``<s>``) in encoders, ``<extra_id_0>`` in T5. Decoders, which are
        not in the paper, use the begin-of-text token.
        """
        ids = self.tokenizer.ids
        sentinel = self.tokenizer.find("<extra_id_0>")
        first = {"encoder": ids.cls, "encoder_decoder": sentinel, "decoder": ids.bos}
        token = next((t for t in (first[self.layout], ids.eos, ids.cls) if t is not None), 0)
        self.tokenizer.check_ids([token], f"start token of {self.name}")
        return token

    def init_std(self) -> float:
        """Return the standard deviation of a random prompt."""
        if self.family.init_std is not None:
            return self.family.init_std
        return float(jnp.std(self.params["embeddings"]["word"].astype(jnp.float32)))

    def on_mesh(self, mesh: Mesh) -> Backbone:
        """Shard the weights over a mesh by the family's partition table.

        Args:
            mesh: Device mesh.

        Returns:
            The backbone with sharded weights. Weights that are in place are not copied.
        """
        shardings, notes = parameter_shardings(self.params, self.family.weights.partition, mesh)
        return dataclasses.replace(self, params=place(self.params, shardings), notes=tuple(notes))


def backbone_names() -> list[str]:
    """List the built-in backbones.

    Returns:
        Sorted names.

    Example:
        >>> all(name.startswith("builtin/") for name in backbone_names())
        True
    """
    return sorted(PREFIX + folder.parent.name for folder in BUILTIN.glob("*/config.json"))


def load_backbone(
    name: str | Path,
    dtype: str = "float32",
    dropout: bool = False,
    mesh: Mesh | None = None,
    remat: str = "dots",
) -> Backbone:
    """Load a frozen language model.

    Args:
        name: Built-in name, folder with ``config.json``, weights and tokenizer, ``.gguf`` file or
            hub id.
        dtype: ``"float32"`` or ``"bfloat16"``, of weights and matrix products.
        dropout: Whether to apply the model's dropout inside its layers during tuning.
        mesh: Mesh to shard the weights over; the default device if omitted.
        remat: Activations saved for the backward pass: ``"dots"`` (results of matrix products),
            ``"full"`` (recompute all) or ``"none"`` (no rematerialisation).

    Returns:
        The `Backbone`.

    Raises:
        InputError: If the name is unknown, the model is not supported, or its files do not match.

    Example:
        >>> load_backbone("builtin/bert-small").config.width
        128
    """
    check_choice("dtype", dtype, DTYPES)
    check_choice("remat", remat, REMAT)
    use_compile_cache()  # here, since every computation needs a backbone
    files = _open(name)
    family, compute, notes = files.family, jnp.dtype(dtype), []
    placer = None if mesh is None else _placer(family, mesh, notes)
    shape, params = family.weights.load(
        files.source, family.config(files.config), compute, str(files.path), placer
    )
    files.tokenizer.table_size = shape.vocabulary
    _check_special_tokens(family, files.tokenizer, files.path)
    rate = shape.dropout_rate if dropout else 0.0
    return Backbone(
        name=str(name),
        family=family,
        config=shape,
        module=family.module(shape, files.tokenizer.ids, compute, rate, remat),
        params=params,
        tokenizer=files.tokenizer,
        fingerprint=_fingerprint(files.path),
        defaults={**family.choices(shape), **_bundled_choices(files.path)},
        notes=tuple(notes),
    )


class _Files(NamedTuple):
    """Opened files of a model; the weights are not read yet."""

    path: Path
    config: dict[str, Any]
    family: Family
    source: TensorSource
    tokenizer: TextTokenizer


def _open(name: str | Path) -> _Files:
    path = Path(name).expanduser()
    if path.suffix == GGUF_SUFFIX:
        file = open_gguf(path)
        family = find_family(file.config, str(path))
        return _Files(
            path, file.config, family, file.source, read_gguf_tokenizer(file, family.special_tokens)
        )
    folder = find_folder(name)
    config = read_config(folder)
    family = find_family(config, f"{folder}/config.json")
    tokenizer = load_tokenizer(folder, family.special_tokens)
    return _Files(folder, config, family, open_tensors(folder), tokenizer)


def _placer(family: Family, mesh: Mesh, notes: list[str]) -> Placer:
    def put(path: str, values: np.ndarray) -> jax.Array:
        sharding = parameter_sharding(path, values.shape, family.weights.partition, mesh, notes)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return put


def _check_special_tokens(family: Family, tokenizer: TextTokenizer, folder: Path) -> None:
    """Raise InputError if a special token that every text has is not in the word table."""
    for name in (*family.special_tokens, *(["bos"] if tokenizer.add_bos else [])):
        token = getattr(tokenizer.ids, name)
        tokenizer.check_ids([token], f"{folder}: {name} token of the tokenizer")


def find_folder(name: str | Path) -> Path:
    """Return the folder of a backbone; downloads only hub ids."""
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
    text = FIRST_IDS.get(text, text)
    is_hub_id = text.count("/") == 1 and not text.startswith((".", "/", "~"))
    if folder.exists() or not is_hub_id:
        raise unknown_name("backbone", text, backbone_names())
    return _download(text)


def weights_fingerprint(name: str | Path) -> str:
    """Return the fingerprint of a backbone without loading it."""
    path = Path(name).expanduser()
    if path.suffix != GGUF_SUFFIX:
        return _fingerprint(find_folder(name))
    file_size_bytes(path)  # raises InputError if it is no regular file
    return _fingerprint(path)


def read_config(folder: Path) -> dict[str, Any]:
    """Return the fields of a folder's ``config.json``."""
    path = folder / "config.json"
    try:
        config = load_json(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(config).__name__}")
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
            f"'{hub_id}' is neither a built-in backbone ({', '.join(backbone_names())}) nor a "
            f"folder, and could not be fetched from the hub ({reason})"
        ) from None


def _bundled_choices(folder: Path) -> dict[str, Any]:
    """Return the tuning options in a model's ``tuning.json``, if any."""
    path = folder / "tuning.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _fingerprint(weights: Path) -> str:
    """Return a hash of name, size, first and last MiB of each weight file."""
    digest, files = hashlib.sha256(), [weights]
    if weights.is_dir():
        files = sorted([*weights.glob("*.safetensors"), *weights.glob("pytorch_model*.bin")])
    for path in files:
        with path.open("rb") as file:
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            digest.update(file.read(SAMPLE_BYTES))
            file.seek(max(0, size - SAMPLE_BYTES))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


# --- Length limits


def longest_text(
    backbone: Backbone, prompt_rows: int, first_position: int = 0, answer_tokens: int = 0
) -> int:
    """Return the maximum number of text tokens."""
    positions = backbone.config.positions
    if backbone.layout == "decoder":
        return positions - prompt_rows - answer_tokens
    return positions - first_position if backbone.layout == "encoder" else sys.maxsize


def check_lengths(
    backbone: Backbone,
    prompt_rows: int,
    max_tokens: int,
    first_position: int = 0,
    answer_tokens: int = 0,
) -> None:
    """Raise InputError if prompt, text and answer exceed the model's positions."""
    positions = backbone.config.positions
    most = longest_text(backbone, prompt_rows, first_position, answer_tokens)
    if max_tokens > most:
        parts = {
            "prompt": prompt_rows if backbone.layout == "decoder" else 0,
            "text": max_tokens,
            "answer": answer_tokens if backbone.layout == "decoder" else 0,
            "first position": first_position,
        }
        named = [f"{name} {count}" for name, count in parts.items() if count]
        sum_ = f"{' + '.join(named)} =" if len(named) > 1 else "a text of"
        cure = f"set max_tokens to {most} or less" if most > 0 else "use a shorter prompt"
        raise InputError(
            f"{sum_} {sum(parts.values())} tokens, but {backbone.name} has {positions} "
            f"positions; {cure}"
        )
    if prompt_rows > positions:
        raise InputError(
            f"expected at most {positions} prompt tokens ({backbone.name}), got {prompt_rows}; set "
            f"length to {positions} or less"
        )
