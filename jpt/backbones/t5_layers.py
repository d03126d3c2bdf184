"""The layer that both stacks of T5 repeat, and the stacks."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from jpt.backbones.attention import KeyBlock, attend
from jpt.backbones.layers import ACTIVATIONS, RMSNorm, linear, rematerialised
from jpt.backbones.packing import Packing, at_position, collect, spread
from jpt.backbones.t5_config import T5Config
from jpt.backbones.t5_positions import RelativeBias


class KeysValues(NamedTuple):
    """What a layer computed of some tokens for queries to look at."""

    key: Float[Array, "B S H K"]
    value: Float[Array, "B S H K"]


class View(NamedTuple):
    """Which keys the queries of all layers of a stack may look at, and the bias by position."""

    allowed: Bool[Array, "B Q S"] | None
    bias: Float[Array, "H Q S"]


class Sight(NamedTuple):
    """What all layers of a stack share."""

    own: View  # view of the states' own tokens
    past: View | None = None  # view of the tokens whose keys are given
    # the encoder's states, where keys of them are to be computed
    encoded: Float[Array, "B S D"] | Float[Array, "G M D"] | None = None
    is_read: Bool[Array, "B 1 S"] | None = None  # which of the encoder's positions are no padding
    # where the states stand in their rows, where they are of real tokens alone
    packing: Packing | None = None
    encoded_packing: Packing | None = None  # where the encoder's stand


class LayerInput(NamedTuple):
    """What each layer gets for itself; in a scan every array has an axis of layers in front."""

    # multiplies the activations before the last matrix
    neuron_mask: Float[Array, "F"] | None = None
    past: KeysValues | None = None  # keys and values of tokens before the states'
    cross: KeysValues | None = None  # keys and values of the encoder's states, computed before


class LayerOutput(NamedTuple):
    """What each layer gives beside the states, where it is asked for."""

    neurons: Float[Array, "B *S F"] | None
    own: KeysValues | None
    cross: KeysValues | None


class T5Layer(nn.Module):
    """One layer with the norms before the maps: own tokens, the encoder's states, feed forward."""

    config: T5Config  # shape of the model
    dtype: jnp.dtype  # dtype of states and matrix products
    dropout_rate: float = 0.0  # 0 leaves dropout out
    capture: int | str | None = None  # neurons at which position are returned, ``"all"``, or none
    keeps_keys: bool = False  # whether keys and values are returned

    @nn.compact
    def __call__(
        self, states: Float[Array, "B Q D"], given: LayerInput, sight: Sight
    ) -> tuple[Float[Array, "B Q D"], LayerOutput]:
        """Updates the states from their own tokens, earlier ones and what the encoder read."""
        rows = self._norm("attention_norm", states)
        own = self._keys_values(rows, sight.packing, "key", "value")
        blocks = [KeyBlock(*own, *sight.own)]
        if given.past is not None and sight.past is not None:
            blocks.append(KeyBlock(*given.past, *sight.past))
        states = states + self._gather(rows, blocks, "query", "attention_out", sight.packing)
        cross, computed = given.cross, None
        if sight.encoded is not None:
            names = ("cross_key", "cross_value")
            cross = computed = self._keys_values(sight.encoded, sight.encoded_packing, *names)
        if cross is not None:
            rows = self._norm("cross_norm", states)
            block = KeyBlock(*cross, sight.is_read)
            states = states + self._gather(rows, [block], "cross_query", "cross_out", sight.packing)
        update, neurons = self._feed_forward(states, given.neuron_mask)
        kept = (own, computed) if self.keeps_keys else (None, None)
        return states + update, LayerOutput(self._captured(neurons, sight), *kept)

    def _keys_values(
        self, rows: Float[Array, "B S D"], packing: Packing | None, *names: str
    ) -> KeysValues:
        return KeysValues(*(self._project(name, rows, packing) for name in names))

    def _project(
        self, name: str, rows: Float[Array, "B S D"], packing: Packing | None
    ) -> Float[Array, "B S H K"]:
        """Maps states, and puts what comes out by row."""
        heads, width = self.config.heads, self.config.head_width
        projected = linear(heads * width, self.dtype, name, use_bias=False)(rows)
        # [B, S, H*K] -> [B, S, H, K]
        projected = projected.reshape(*rows.shape[:2], heads, width)
        return spread(projected, packing)

    def _gather(
        self,
        rows: Float[Array, "B Q D"],
        blocks: list[KeyBlock],
        query: str,
        out: str,
        packing: Packing | None = None,
    ) -> Float[Array, "B Q D"]:
        """Collects what the queries look for; T5 leaves their products with keys unscaled."""
        drop = self._drop if self.dropout_rate else None
        gathered = attend(self._project(query, rows, packing), blocks, scale=1.0, drop=drop)
        # [B, Q, H, K] -> [B, Q, H*K]
        gathered = collect(gathered.reshape(*gathered.shape[:2], -1), packing)
        return self._drop(linear(self.config.width, self.dtype, out, use_bias=False)(gathered))

    def _feed_forward(
        self, states: Float[Array, "B Q D"], neuron_mask: Float[Array, "F"] | None
    ) -> tuple[Float[Array, "B Q D"], Float[Array, "B Q F"]]:
        config, rows = self.config, self._norm("feed_forward_norm", states)

        def into(name: str) -> Float[Array, "B Q F"]:
            return linear(config.neurons, self.dtype, name, use_bias=False)(rows)

        neurons = into("feed_forward_gate" if config.gated else "feed_forward_in")
        neurons = kept = ACTIVATIONS[config.activation](neurons)
        if neuron_mask is not None:
            kept = kept * neuron_mask.astype(kept.dtype)[None, None, :]
        if config.gated:
            kept = kept * into("feed_forward_in")
        out = linear(config.width, self.dtype, "feed_forward_out", use_bias=False)
        return self._drop(out(self._drop(kept))), neurons

    def _captured(
        self, neurons: Float[Array, "B S F"], sight: Sight
    ) -> Float[Array, "B *S F"] | None:
        if self.capture is None or isinstance(self.capture, str):
            return neurons if self.capture else None
        if sight.packing is None:
            return neurons[:, self.capture]
        position = jnp.full(sight.packing.place.shape[0], self.capture)
        return at_position(neurons, position, sight.packing)[:, 0]

    def _norm(self, name: str, rows: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        return RMSNorm(self.config.epsilon, name=name)(rows).astype(self.dtype)

    def _drop(self, rows: Float[Array, "..."]) -> Float[Array, "..."]:
        if not self.dropout_rate:
            return rows
        return nn.Dropout(self.dropout_rate, deterministic=False)(rows)


class Stack(nn.Module):
    """The layers of the encoder or of the decoder as one scan, and the norm after them."""

    config: T5Config  # shape of the model
    depth: int  # number of layers
    bidirectional: bool  # whether every token may look at every other; else at earlier ones
    dtype: jnp.dtype  # dtype of states and matrix products
    dropout_rate: float  # 0 leaves dropout out
    remat: str  # what is kept for the way back

    def setup(self) -> None:
        """Declares the table of relative positions and the norm."""
        self.relative = RelativeBias(self.config, self.bidirectional)
        self.norm = RMSNorm(self.config.epsilon)

    @nn.compact
    def __call__(
        self,
        states: Float[Array, "B Q D"],
        given: LayerInput,
        sight: Sight,
        capture: int | str | None = None,
        keeps_keys: bool = False,
    ) -> tuple[Float[Array, "B Q D"], LayerOutput]:
        """Runs all layers: compile time does not grow with depth."""
        scanned = nn.scan(
            rematerialised(T5Layer, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=self.depth,
        )(self.config, self.dtype, self.dropout_rate, capture, keeps_keys, name="layers")
        states, kept = scanned(self._drop(states.astype(self.dtype)), given, sight)
        return self._drop(self.norm(states).astype(self.dtype)), kept

    def bias(self, reach: int) -> Float[Array, "H 2*reach-1"]:
        """Gives the bias of distances from 1 - reach up to reach - 1, key minus query."""
        return self.relative(reach)

    def _drop(self, rows: Float[Array, "B Q D"]) -> Float[Array, "B Q D"]:
        if not self.dropout_rate:
            return rows
        return nn.Dropout(self.dropout_rate, deterministic=False)(rows)
