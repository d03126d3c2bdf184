"""The stored answers of torch transformers for decoders, and how the tests ask for them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from jpt.backbones.decoder import Decoder
from jpt.backbones.decoder_config import DecoderConfig
from jpt.backbones.gpt2_weights import GPT2_WEIGHTS
from jpt.backbones.llama_weights import LLAMA_WEIGHTS
from jpt.backbones.output import Cache, ModelOutput
from jpt.files.tensor_files import open_tensors
from jpt.types import Parameters
from tests.backbones.golden import FAST_COMPILE, FIXTURES

NAMES = (
    "gpt2_tied",
    "gpt2_untied",
    "llama_grouped",
    "llama_plain",
    "qwen2_tied",
    "qwen2_untied",
)


@dataclass(frozen=True, eq=False)
class DecoderGolden:
    """A small checkpoint and what torch says of one batch.

    Attributes:
        config: the shape, as the loader left it.
        params: the weights in float32.
        stored: inputs and answers by name, see ``make_decoder_fixtures.py``.
    """

    config: DecoderConfig
    params: Parameters
    stored: dict[str, np.ndarray]

    def input(self, name: str) -> jax.Array:
        """One stored input as a JAX array."""
        return jnp.asarray(self.stored[name])

    @property
    def batch(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Tokens, lengths and prompt."""
        return self.input("tokens"), self.input("lengths"), self.input("prompt")


@cache
def load_golden(name: str) -> DecoderGolden:
    """Reads a fixture as any checkpoint folder is read, once a session."""
    folder = FIXTURES / name
    config = DecoderConfig.from_huggingface(json.loads((folder / "config.json").read_text()))
    load = GPT2_WEIGHTS.load if config.is_gpt2 else LLAMA_WEIGHTS.load
    source = open_tensors(folder / "model.safetensors")
    config, params = load(source, config, jnp.float32, where=name)
    return DecoderGolden(config, params, load_file(folder / "golden.safetensors"))


def rows_of_prompts(golden: DecoderGolden) -> jax.Array:
    """A prompt of its own for each row of the batch."""
    shape = (golden.stored["lengths"].shape[0], *golden.stored["prompt"].shape)
    return 0.9 * jax.random.normal(jax.random.key(5), shape, jnp.float32)


@partial(
    jax.jit,
    static_argnums=0,
    static_argnames=("capture_neurons", "every_position"),
    compiler_options=FAST_COMPILE,
)
def read(
    decoder: Decoder,
    params: Parameters,
    tokens: jax.Array,
    lengths: jax.Array,
    prompt: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
    **options: object,
) -> ModelOutput:
    """Runs a decoder, compiled."""
    keys = None if dropout_key is None else {"dropout": dropout_key}
    return decoder.apply({"params": params}, tokens, lengths, prompt, rngs=keys, **options)


@partial(jax.jit, static_argnums=(0, 1), compiler_options=FAST_COMPILE)
def learn(
    decoder: Decoder,
    every_position: bool,
    params: Parameters,
    batch: tuple[jax.Array, jax.Array, jax.Array],
    label_ids: jax.Array,
    labels: jax.Array,
) -> dict[str, jax.Array]:
    """What a train step and the analysis ask for, computed at the answer or everywhere."""
    tokens, lengths, prompt = batch

    def loss(prompt: jax.Array) -> tuple[jax.Array, ModelOutput]:
        options = {"label_ids": label_ids, "capture_neurons": True}
        output = decoder.apply(
            {"params": params}, tokens, lengths, prompt, every_position=every_position, **options
        )
        if every_position:
            rows = jnp.arange(tokens.shape[0])
            output = ModelOutput(
                output.logits[rows, lengths - 1],
                output.hidden[rows, lengths - 1],
                output.neurons[:, rows, lengths - 1],
            )
        scores = jax.nn.log_softmax(output.logits)
        return -jnp.take_along_axis(scores, labels[:, None], axis=1).mean(), output

    (value, output), gradient = jax.value_and_grad(loss, has_aux=True)(prompt)
    return {
        "logits": output.logits,
        "loss": value[None],
        "prompt_gradient": gradient,
        "answer_hidden": output.hidden,
        "answer_neurons": output.neurons,
    }


@partial(jax.jit, static_argnums=(0, 5), compiler_options=FAST_COMPILE)
def start(
    decoder: Decoder,
    params: Parameters,
    tokens: jax.Array,
    lengths: jax.Array,
    prompt: jax.Array | None,
    max_new: int,
) -> tuple[jax.Array, Cache]:
    """Begins to write, compiled."""
    variables = {"params": params}
    return decoder.apply(variables, tokens, lengths, prompt, max_new, method="start")


@partial(jax.jit, static_argnums=0, compiler_options=FAST_COMPILE)
def advance(
    decoder: Decoder, params: Parameters, last: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    """Writes on, compiled."""
    return decoder.apply({"params": params}, last, cache, method="advance")
