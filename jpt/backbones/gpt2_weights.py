"""The names that GPT-2 checkpoints give their tensors."""

from __future__ import annotations

from jpt.backbones.decoder_config import DecoderConfig
from jpt.backbones.decoder_weights import decoder_weights
from jpt.backbones.loading import TensorRule

# Files saved from the model without its head lack this prefix.
ROOT = "transformer."
LAYER = "h.{layer}"

# Causal masks kept as tensors by older versions.
_IGNORED = (r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",)


def gpt2_rules(config: DecoderConfig) -> list[TensorRule]:
    """Names the tensor of every parameter but the head of a GPT-2."""
    width, neurons, layers = config.width, config.neurons, config.layers
    rules = [
        _rule("embeddings/word", "wte.weight", (config.vocabulary, width)),
        _rule("embeddings/position", "wpe.weight", (config.positions, width)),
    ]
    for number, name in enumerate(("query", "key", "value")):
        # One tensor holds all three, side by side.
        rules += _map(name, "attn.c_attn", width, 3 * width, layers, part=(number, 3))
    rules += [
        *_map("attention_out", "attn.c_proj", width, width, layers),
        *_map("feed_forward_in", "mlp.c_fc", width, neurons, layers),
        *_map("feed_forward_out", "mlp.c_proj", neurons, width, layers),
        *_norm("layer/attention_norm", f"{LAYER}.ln_1", width, layers),
        *_norm("layer/feed_forward_norm", f"{LAYER}.ln_2", width, layers),
        *_norm("final_norm", "ln_f", width, 0),
    ]
    return rules


def _map(
    ours: str,
    theirs: str,
    inputs: int,
    outputs: int,
    layers: int,
    part: tuple[int, int] | None = None,
) -> list[TensorRule]:
    """A linear map of a layer; GPT-2's files have them as [in, out], as we do."""
    shapes = {"kernel": (inputs, outputs), "bias": (outputs,)}
    names = {"kernel": "weight", "bias": "bias"}
    return [
        _rule(f"layer/{ours}/{kind}", f"{LAYER}.{theirs}.{names[kind]}", shape, layers, part)
        for kind, shape in shapes.items()
    ]


def _norm(path: str, name: str, width: int, layers: int) -> list[TensorRule]:
    return [
        _rule(f"{path}/scale", f"{name}.weight", (width,), layers),
        _rule(f"{path}/bias", f"{name}.bias", (width,), layers),
    ]


def _rule(
    path: str,
    name: str,
    shape: tuple[int, ...],
    layers: int = 0,
    part: tuple[int, int] | None = None,
) -> TensorRule:
    return TensorRule(path, ROOT + name, shape, aliases=(name,), layers=layers, part=part)


GPT2_WEIGHTS = decoder_weights(gpt2_rules, _IGNORED)
"""GPT-2's checkpoints."""
