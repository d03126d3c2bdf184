"""Tiny models and batches for tests and examples: offline, with odd sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jpt.backbones.encoder import Encoder
from jpt.backbones.registry import FAMILIES
from jpt.io.tensors import write_safetensors
from jpt.io.tokenizer import SpecialIds
from jpt.types import Batch, Parameters

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[MASK]", "[CLS]", "</s>", "<extra_id_0>")
WORDS = (
    "a the film is was good bad dull bright fine great lovely poor awful boring number not".split()
)
VOCABULARY = (*SPECIAL_TOKENS, *WORDS, "Answer", ":", ",", *map(str, range(10)))

_SIZES: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 32, "d_kv": 6, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "n_positions": 80},
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 80,
    },
}


def tiny_bert_config() -> dict[str, Any]:
    """Return the Hugging Face config of a BERT with two layers and width 32.

    Example:
        >>> tiny_bert_config()["hidden_size"]
        32
    """
    return {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM"],
        "vocab_size": 61,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 40,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "pad_token_id": 0,
        "layer_norm_eps": 1e-12,
    }


def tiny_config(model_type: str) -> dict[str, Any]:
    """Return the Hugging Face config of a model with two layers and width 32.

    Args:
        model_type: ``"bert"``, ``"roberta"``, ``"t5"``, ``"gpt2"`` or ``"llama"``.

    Returns:
        The fields of a ``config.json``.

    Example:
        >>> tiny_config("t5")["d_model"]
        32
    """
    if model_type == "bert":
        return tiny_bert_config()
    if model_type == "roberta":
        return {
            **tiny_bert_config(),
            "model_type": "roberta",
            "architectures": ["RobertaForMaskedLM"],
            "type_vocab_size": 1,
        }
    ends = {"pad_token_id": 0, "eos_token_id": 4, "decoder_start_token_id": 0}
    return {"model_type": model_type, "vocab_size": 61, **_SIZES[model_type], **ends}


def tiny_model(
    model_type: str, seed: int = 0, mask_id: int = 2, **changes: Any
) -> tuple[nn.Module, Parameters]:
    """Build a model of any family with two layers and random weights.

    Args:
        model_type: ``"bert"``, ``"roberta"``, ``"t5"``, ``"gpt2"`` or ``"llama"``.
        seed: Random seed of the weights.
        mask_id: Mask token id, for families that have one.
        **changes: Fields of the Hugging Face config to override.

    Returns:
        The module and its parameters.

    Example:
        >>> module, params = tiny_model("llama")
        >>> params["layers"]["query"]["kernel"].shape
        (1, 32, 32)
    """
    family = FAMILIES[model_type]
    config = family.config({**tiny_config(model_type), **changes})
    ids = SpecialIds(cls=3, sep=4, mask=mask_id, pad=0, unk=1, eos=4)
    module = family.module(config, ids, jnp.dtype("float32"), 0.0, "dots")
    tokens, lengths = jnp.ones((1, 3), jnp.int32), jnp.array([3])
    # Shapes only: initialising by running the model would compile for seconds.
    shapes = jax.eval_shape(module.init, jax.random.key(0), tokens, lengths)["params"]
    random = np.random.default_rng(seed)

    def fill(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        values = random.normal(0, 0.1, leaf.shape)
        return jnp.asarray(values + (path[-1].key == "scale"), leaf.dtype)

    return module, jax.tree_util.tree_map_with_path(fill, shapes)


def tiny_encoder(seed: int = 0, mask_id: int = 2, **changes: Any) -> tuple[Encoder, Parameters]:
    """Build a BERT with two layers and random weights; see `tiny_model`."""
    return tiny_model("bert", seed, mask_id, **changes)


def write_tiny_backbone(folder: str | Path, model_type: str, **changes: Any) -> Path:
    """Write a tiny model as a Hugging Face folder: config, weights and a word-level tokenizer.

    Args:
        folder: Created if missing.
        model_type: ``"bert"``, ``"roberta"``, ``"t5"``, ``"gpt2"`` or ``"llama"``.
        **changes: Fields of the Hugging Face config to override.

    Returns:
        The folder, for `jpt.load_backbone`.

    Example:
        >>> import jpt, tempfile
        >>> jpt.load_backbone(write_tiny_backbone(tempfile.mkdtemp(), "t5")).layout
        'encoder_decoder'
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    path, config = Path(folder), {**tiny_config(model_type), **changes}
    path.mkdir(parents=True, exist_ok=True)
    module, params = tiny_model(model_type, **changes)
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = FAMILIES[model_type].weights.write(params, module.config)
    write_safetensors(path / "model.safetensors", tensors)
    ids = {token: number for number, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(path / "tokenizer.json"))
    named = {"cls_token": "[CLS]", "sep_token": "</s>", "eos_token": "</s>"}
    (path / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
    return path


def tiny_batch() -> Batch:
    """Return a batch of two rows, one of them padded.

    Example:
        >>> tiny_batch().tokens.shape
        (2, 7)
    """
    tokens = np.array([[1, 5, 9, 11, 13, 17, 3], [1, 7, 19, 3, 0, 0, 0]], np.int32)
    lengths, labels = np.array([7, 4], np.int32), np.array([0, 1], np.int32)
    return Batch(tokens, lengths, labels, np.ones(2, np.float32))
