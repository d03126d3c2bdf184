"""Toy twins of the real things, for tests and examples: offline, tiny, of odd sizes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jpt.backbones.encoder import Encoder
from jpt.backbones.encoder_config import EncoderConfig
from jpt.types import Batch, Parameters


def tiny_bert_config() -> dict[str, Any]:
    """Gives the Hugging Face config of a BERT of two layers and width 32.

    Returns:
        The parsed ``config.json``.

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


def tiny_encoder(seed: int = 0, mask_id: int = 2, **changes: Any) -> tuple[Encoder, Parameters]:
    """Builds a BERT of two layers with random weights.

    Args:
        seed: of the weights.
        mask_id: id of the mask token.
        **changes: fields of the Hugging Face config to set otherwise.

    Returns:
        The module and its parameters.

    Example:
        >>> encoder, params = tiny_encoder(num_hidden_layers=3)
        >>> params["layers"]["query"]["kernel"].shape
        (2, 32, 32)
    """
    config = EncoderConfig.from_huggingface({**tiny_bert_config(), **changes})
    encoder = Encoder(config, mask_id)
    tokens, lengths = jnp.ones((1, 3), jnp.int32), jnp.array([3])
    # Shapes only: running the model once to initialise it would compile it for seconds.
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), tokens, lengths)["params"]
    random = np.random.default_rng(seed)

    def fill(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        values = random.normal(0, 0.1, leaf.shape)
        return jnp.asarray(values + (path[-1].key == "scale"), leaf.dtype)

    return encoder, jax.tree_util.tree_map_with_path(fill, shapes)


def tiny_batch() -> Batch:
    """Gives two rows of the toy vocabulary, one of them padded.

    Returns:
        The batch.

    Example:
        >>> tiny_batch().tokens.shape
        (2, 7)
    """
    tokens = np.array([[1, 5, 9, 11, 13, 17, 3], [1, 7, 19, 3, 0, 0, 0]], np.int32)
    lengths, labels = np.array([7, 4], np.int32), np.array([0, 1], np.int32)
    return Batch(tokens, lengths, labels, np.ones(2, np.float32))
