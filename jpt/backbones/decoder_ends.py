"""The two ends of a decoder: its tables of words and positions, and the head that scores words."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jpt.backbones.decoder_config import DecoderConfig
from jpt.backbones.layers import matmul_precision


class DecoderEmbeddings(nn.Module):
    """The word table, and in GPT-2 the table of positions.

    Attributes:
        config: shape of the model.
    """

    config: DecoderConfig

    def setup(self) -> None:
        """Declares the tables."""
        config, normal = self.config, nn.initializers.normal(0.02)
        self.word = self.param("word", normal, (config.vocabulary, config.width))
        if config.is_gpt2:
            self.position = self.param("position", normal, (config.positions, config.width))

    def words(
        self, tokens: Int[Array, "B S"], positions: Int[Array, "R S"]
    ) -> Float[Array, "B S D"]:
        """Embeds tokens at their positions; R is 1 where all rows have the same positions."""
        return self.place(self.word[tokens], positions)

    def place(
        self, states: Float[Array, "B S D"], positions: Int[Array, "R S"]
    ) -> Float[Array, "B S D"]:
        """Adds the position table to embedded tokens, or to a prompt, in float32."""
        states = states.astype(jnp.float32)
        if not self.config.is_gpt2:
            return states
        # Padding may reach beyond the table; nothing looks at it.
        inside = jnp.minimum(positions, self.config.positions - 1)
        return states + self.position[inside].astype(jnp.float32)


class DecoderHead(nn.Module):
    """Scores words by the word table, or by a table of its own.

    Attributes:
        config: shape of the model.
        dtype: dtype of the product.
    """

    config: DecoderConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "... D"],
        words: Float[Array, "V D"],
        label_ids: Int[Array, "C"] | None,
    ) -> Float[Array, "... C"]:
        """Scores the label words only, or the whole vocabulary when none are named."""
        if not self.config.tied_head:
            words = self.param("words", nn.initializers.normal(0.02), words.shape)
        if label_ids is not None:
            words = words[label_ids]
        return jnp.einsum(
            "...d,vd->...v",
            hidden,
            words.astype(self.dtype),
            precision=matmul_precision(self.dtype),
            preferred_element_type=jnp.float32,
        )
