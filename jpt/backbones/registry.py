"""Find a backbone by name, hub id, folder or GGUF file, and load it."""

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
from jpt.io.files import file_size_bytes
from jpt.io.gguf import open_gguf, read_gguf_tokenizer
from jpt.io.tensors import open_tensors
from jpt.io.tokenizer import SpecialIds, TextTokenizer, load_tokenizer
from jpt.parallel import parameter_sharding, parameter_shardings, place
from jpt.types import Parameters

# --- The families of language models: what the registry has to know of each

LARGE_LAYERS = 24
LAYOUTS = ("encoder", "encoder_decoder", "decoder")


@dataclass(frozen=True)
class Family:
    """One family of models."""

    name: str  # what it is called in messages
    layout: str  # where the prompt stands and the answer is read; one of `LAYOUTS`
    model_types: tuple[str, ...]  # what ``config.json`` calls its models
    special_tokens: tuple[str, ...]  # special pieces that it cannot do without
    # reads the shape from a Hugging Face config: ``config(dict)``
    config: Callable[[Mapping[str, Any]], Any]
    # builds the Linen module: ``module(config, ids, dtype, dropout_rate, remat)``
    module: Callable[[Any, SpecialIds, jnp.dtype, float, str], nn.Module]
    weights: Weights  # how its parameters stand in files and lie on a mesh
    # tuning options that suit a shape, where they are not the encoders': ``choices( config)``
    choices: Callable[[Any], dict[str, Any]]
    init_std: float | None  # spread of a random prompt; None takes that of the word table


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
    del ids  # its start token stands in the config
    return T5(config, dtype, dropout_rate, remat)


def _t5_choices(config: T5Config) -> dict[str, Any]:
    # Paper 1.0 configs: 5e-3 on t5-small and t5-base, 1e-3 on t5-large; one rate for all sizes from
    # there on.
    rate = 1e-3 if config.layers >= LARGE_LAYERS else 5e-3
    return {"learning_rate": rate, "objective": "vocabulary"}


def _decoder(
    config: DecoderConfig, ids: SpecialIds, dtype: jnp.dtype, dropout_rate: float, remat: str
) -> Decoder:
    del ids
    return Decoder(config, dtype, dropout_rate, remat)


def _decoder_choices(config: DecoderConfig) -> dict[str, Any]:
    # The paper has no decoders.
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
    # Paper's code: N(0, 1), what torch gives an embedding that nobody initialises.
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
"""The family of each model type."""


def find_family(config: Mapping[str, Any], where: str) -> Family:
    """Finds the family of a model."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(f"{where}: {unknown_name('model_type', str(model_type), FAMILIES)}")
    return FAMILIES[model_type]


# --- Backbones by name: built-in ones, folders of weights, and hub ids when one is asked for

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
"""Hub ids of the first models, which the paper and old prompts name without an owner."""
HUB_PATTERNS = ["*.json", "*.txt", "*.safetensors", "*.model"]
GGUF_SUFFIX = ".gguf"
SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True)
class Backbone:
    """A frozen language model, ready to read text behind a prompt.

    Attributes:
        name: what it was asked for by; prompts name it in their cards.
        family: what is common to models of its kind.
        config: shape of the model.
        module: the Linen module.
        params: the weights; an argument of every step, never part of a compiled program.
        tokenizer: the model's own.
        fingerprint: short hash of the files the weights came from.
        defaults: tuning options that suit this model, by option name.
        notes: what to know of where the weights lie, for the first lines of a log.
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
        """Where the prompt stands: ``"encoder"``, ``"encoder_decoder"`` or ``"decoder"``."""
        return self.family.layout

    @property
    def model_type(self) -> str:
        """What its ``config.json`` calls it, for instance ``"bert"``."""
        return self.config.model_type

    @property
    def frozen_count(self) -> int:
        """Number of weights, all of them frozen."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    @property
    def pad_id(self) -> int:
        """Id that fills rows up; nothing looks at it."""
        ids = self.tokenizer.ids
        return next((token for token in (ids.pad, ids.eos) if token is not None), 0)

    @property
    def start_id(self) -> int:
        """Id of the one token that the neurons of a prompt are probed with.

        Paper's code: the start of a text in encoders, ``<extra_id_0>`` in T5. In decoders, which
        the paper does not have, the piece that stands before a text.
        """
        ids = self.tokenizer.ids
        sentinel = self.tokenizer.find("<extra_id_0>")
        first = {"encoder": ids.cls, "encoder_decoder": sentinel, "decoder": ids.bos}
        return next((t for t in (first[self.layout], ids.eos, ids.cls) if t is not None), 0)

    def init_std(self) -> float:
        """Spread of a random prompt: the family's, or that of the word table."""
        if self.family.init_std is not None:
            return self.family.init_std
        return float(jnp.std(self.params["embeddings"]["word"].astype(jnp.float32)))

    def on_mesh(self, mesh: Mesh) -> Backbone:
        """Puts the weights where the family's table says; what lies there already stays.

        Args:
            mesh: the devices.

        Returns:
            The backbone on the mesh.
        """
        shardings, notes = parameter_shardings(self.params, self.family.weights.partition, mesh)
        return dataclasses.replace(self, params=place(self.params, shardings), notes=tuple(notes))


def backbone_names() -> list[str]:
    """Lists the built-in backbones.

    Returns:
        Their names, sorted.

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
    """Loads a frozen language model.

    Args:
        name: a built-in name, a folder with ``config.json``, weights and tokenizer, a ``.gguf``
            file, or a hub id.
        dtype: ``"float32"`` or ``"bfloat16"``, for weights and matrix products.
        dropout: whether the model's own dropout is on inside its layers while tuning.
        mesh: devices that the weights go to, tensor by tensor; the default device otherwise.
        remat: what layers keep for the way back: ``"dots"``, ``"full"`` or ``"none"``.

    Returns:
        The backbone.

    Raises:
        InputError: for an unknown name, an unsupported model, or files that do not fit.

    Example:
        >>> load_backbone("builtin/bert-small").config.width
        128
    """
    check_choice("dtype", dtype, DTYPES)
    check_choice("remat", remat, REMAT)
    use_compile_cache()  # whatever computes has a backbone
    files = _open(name)
    family, compute, notes = files.family, jnp.dtype(dtype), []
    placer = None if mesh is None else _placer(family, mesh, notes)
    shape, params = family.weights.load(
        files.source, family.config(files.config), compute, str(files.place), placer
    )
    _check_special_tokens(family, files.tokenizer, shape.vocabulary, files.place)
    rate = shape.dropout_rate if dropout else 0.0
    return Backbone(
        name=str(name),
        family=family,
        config=shape,
        module=family.module(shape, files.tokenizer.ids, compute, rate, remat),
        params=params,
        tokenizer=files.tokenizer,
        fingerprint=_fingerprint(files.place),
        defaults={**family.choices(shape), **_own_choices(files.place)},
        notes=tuple(notes),
    )


class _Files(NamedTuple):
    """What a model is made of: opened, checked to belong to a family, its weights not yet read."""

    place: Path
    config: dict[str, Any]
    family: Family
    source: TensorSource
    tokenizer: TextTokenizer


def _open(name: str | Path) -> _Files:
    """Opens a folder, or the one file that holds all."""
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
    """Puts each parameter on its devices as soon as it is read."""

    def put(path: str, values: np.ndarray) -> jax.Array:
        sharding = parameter_sharding(path, values.shape, family.weights.partition, mesh, notes)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return put


def _check_special_tokens(
    family: Family, tokenizer: TextTokenizer, vocabulary: int, folder: Path
) -> None:
    """Refuses a tokenizer whose special pieces the model has no rows for."""
    for name in family.special_tokens:
        token = getattr(tokenizer.ids, name)
        if token >= vocabulary:
            raise InputError(
                f"{folder}: the tokenizer's {name} token has id {token}, but the model has "
                f"{vocabulary} words; tokenizer and weights are of two models"
            )


def find_folder(name: str | Path) -> Path:
    """Finds the folder of a backbone; the network is used for a hub id only."""
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
    """Gives the fingerprint that a loaded backbone has, without loading it."""
    path = Path(name).expanduser()
    if path.suffix != GGUF_SUFFIX:
        return _fingerprint(find_folder(name))
    file_size_bytes(path)  # is there, and is a file
    return _fingerprint(path)


def read_config(folder: Path) -> dict[str, Any]:
    """Reads a folder's ``config.json``."""
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


def _own_choices(place: Path) -> dict[str, Any]:
    """Reads the tuning options that a built-in backbone brings."""
    path = place / "tuning.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _fingerprint(place: Path) -> str:
    """Hashes size, beginning and end of each weight file: enough to tell two models apart."""
    digest, files = hashlib.sha256(), [place]
    if place.is_dir():
        files = sorted([*place.glob("*.safetensors"), *place.glob("pytorch_model*.bin")])
    for path in files:
        with path.open("rb") as file:
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            digest.update(file.read(SAMPLE_BYTES))
            file.seek(max(0, size - SAMPLE_BYTES))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


# --- How long prompts and texts may be: what a model has positions for


def longest_text(
    backbone: Backbone, prompt_rows: int, first_position: int = 0, answer_tokens: int = 0
) -> int:
    """Says how long a text a model has positions for."""
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
    """Refuses texts and prompts that the model's positions cannot serve."""
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
        cure = f"set max_tokens to {most} or less" if most > 0 else "take a shorter prompt"
        raise InputError(
            f"{sum_} {sum(parts.values())} tokens, but {backbone.name} has {positions} "
            f"positions; {cure}"
        )
    if prompt_rows > positions:
        # T5 has no positions; there the most rows are a rule of ours.
        raise InputError(
            f"a prompt of {prompt_rows} rows is longer than the {positions} positions of "
            f"{backbone.name}; set length to {positions} or less"
        )
