"""The tables of a decoder: words, and in GPT-2 positions."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jpt.backbones.decoder_config import DecoderConfig


class DecoderEmbeddings(nn.Module):
    """The word table, and in GPT-2 the table of positions."""

    config: DecoderConfig  # shape of the model

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
