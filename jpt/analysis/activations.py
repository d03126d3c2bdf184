"""The neurons of the feed-forward layers that a prompt activates, for many prompts at once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jpt.backbones.lengths import check_lengths
from jpt.backbones.registry import Backbone, load_backbone
from jpt.config import check_choice
from jpt.errors import InputError
from jpt.files.study_files import write_activations
from jpt.prompts.bank import stack_prompts
from jpt.prompts.collection import load_prompts
from jpt.prompts.store import check_prompt
from jpt.types import Activations, Parameters, Prompt

STACKS = ("decoder", "encoder")


def activated_neurons(
    prompts: Mapping[str, Prompt] | str | Path,
    out: str | Path | None = None,
    *,
    backbone: Backbone | str | Path | None = None,
    dtype: str = "float32",
    stack: str | None = None,
) -> Activations:
    """Reads the feed-forward neurons of all layers behind each prompt, in one compiled call.

    The paper's probe: the input is the prompt and the start token, without any text, and the
    neurons are read where the answer stands. Values are those after the non-linearity. In T5 the
    decoder is read at its first step, as in the paper, or the encoder at the start token.

    Args:
        prompts: a folder of prompts, or prompts by name; all of one backbone and length.
        out: file to write, by custom ``neurons.npz``.
        backbone: instead of the one that the cards name; the width is checked.
        dtype: of weights and matrix products.
        stack: ``"decoder"`` or ``"encoder"`` of a T5; its decoder by default.

    Returns:
        Activations [K, L, F], the prompts sorted by name.

    Raises:
        InputError: prompts that do not belong together or to the backbone.

    Example:
        >>> from jpt.types import PromptCard
        >>> values = np.zeros((20, 128), np.float32)
        >>> prompt = Prompt(values, PromptCard("builtin/bert-small", "builtin/imdb"))
        >>> activated_neurons({"imdb": prompt}).values.shape
        (1, 4, 512)
    """
    loaded = load_prompts(prompts)
    first = next(iter(loaded.values()))
    name = backbone if backbone is not None else first.card.backbone
    model = name if isinstance(name, Backbone) else load_backbone(name, dtype=dtype)
    check_prompt(first, model.name, model.config.width, model.layout, backbone is not None)
    position = first.card.first_position or 0
    check_lengths(model, len(first.values), 1, position)
    if stack is not None:
        _check_stack(model, stack)
    start = jnp.array([[model.start_id]], jnp.int32)
    values = probe_bank(
        model.module.clone(dropout_rate=0.0),
        model.params,
        jnp.asarray(stack_prompts(loaded)),
        start,
        position,
        stack,
    )
    found = Activations(tuple(loaded), np.asarray(values, np.float32))
    if out is not None:
        write_activations(out, found)
    return found


def _check_stack(model: Backbone, stack: str) -> None:
    """Refuses a stack that is not there."""
    check_choice("stack", stack, STACKS)
    if model.layout != "encoder_decoder":
        raise InputError(f"stack is '{stack}', but {model.name} has one stack; leave it out")


@partial(jax.jit, static_argnums=(0, 4, 5))
def probe_bank(
    module: nn.Module,
    params: Parameters,
    bank: Float[Array, "K P D"],
    start: Int[Array, "1 1"],
    first_position: int = 0,
    stack: str | None = None,
) -> Float[Array, "K L F"]:
    """Runs the probe on every prompt of a bank.

    Args:
        module: the frozen model, without dropout.
        params: its weights.
        bank: the prompts.
        start: id of the start token, the only token of the input.
        first_position: the position of that token.
        stack: whose neurons, in a model that has two.

    Returns:
        The neurons at the answer position, after the non-linearity.

    Example:
        >>> from jpt.testing import tiny_encoder
        >>> module, params = tiny_encoder()
        >>> probe_bank(module, params, jnp.zeros((3, 5, 32)), jnp.array([[1]])).shape
        (3, 2, 48)
    """

    # Only encoders number their text apart from the prompt, only T5 has two stacks.
    options = {"first_position": first_position} if first_position else {}
    options |= {"neuron_stack": stack} if stack else {}

    def probe(prompt: Float[Array, "P D"]) -> Float[Array, "L F"]:
        output = module.apply(
            {"params": params},
            start,
            jnp.ones(1, jnp.int32),
            prompt,
            label_ids=jnp.zeros(1, jnp.int32),
            capture_neurons=True,
            **options,
        )
        return output.neurons[:, 0].astype(jnp.float32)

    return jax.vmap(probe)(bank)
