"""Pretrain a built-in T5 or GPT-2: `python pretrain_writer.py --family t5 --teacher DIR ...`.

The README in this folder has the full command, requirements and results. Re-run to resume from the
last checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from components import principal_components
from corpus import load_corpus, load_pieces
from flax import linen as nn
from running import Run, add_options, make_step, rise_and_fall, save_folder
from teacher import load_states, load_teacher, piece_ids
from vocabulary import SPECIAL, save_writer_tokenizer
from writer_batches import SENTINELS, Texts, Writer, chosen_texts

from jpt.backbones.registry import FAMILIES
from jpt.io.tokenizer import SpecialIds

WIDTH, DEPTH, HEADS, POSITIONS = 128, 4, 4, 128
TEACHER_WIDTH = 384
ENDS = {"pad_token_id": 0, "eos_token_id": SPECIAL.index("[SEP]")}
CONFIGS: dict[str, dict[str, Any]] = {
    "t5": {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "d_model": WIDTH,
        "d_kv": WIDTH // HEADS,
        "d_ff": 4 * WIDTH,
        "num_layers": DEPTH,
        "num_decoder_layers": DEPTH,
        "num_heads": HEADS,
        "feed_forward_proj": "relu",
        "dropout_rate": 0.1,
        "is_encoder_decoder": True,
        "decoder_start_token_id": 0,
        "tie_word_embeddings": True,
        **ENDS,
    },
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": WIDTH,
        "n_layer": DEPTH,
        "n_head": HEADS,
        "n_positions": POSITIONS,
        "activation_function": "gelu_new",
        "tie_word_embeddings": True,
        "bos_token_id": SPECIAL.index("[CLS]"),
        **ENDS,
    },
}
# Of the word table: T5 divides its logits by the square root of the width, GPT-2 does not.
TABLE_STD = {"t5": 1.0, "gpt2": 0.1}
Parameters = dict[str, Any]


def main() -> None:
    """Run until `--steps`, writing the folder at each checkpoint."""
    options = read_options()
    options.cache.mkdir(parents=True, exist_ok=True)
    pieces = load_pieces(options.teacher, options.cache)
    corpus = load_corpus("train", pieces, options.cache)
    teacher, heads = load_teacher(options.teacher)
    ids, taught = piece_ids(pieces, options.teacher), chosen_texts(corpus)
    rows, lengths = corpus.rows[taught], corpus.row_lengths[taught]
    states = load_states(teacher, heads, ids, rows, lengths, options.cache / "states-writers.npy")
    table = np.asarray(teacher["bert.embeddings.word_embeddings.weight"])[ids]
    module, params = start_model(options.family, table, options.seed)
    train(options, pieces, module, params, states, Writer(corpus, pieces, options.seed))


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=CONFIGS, required=True)
    add_options(parser, teacher_weight=30.0, every_s=300)
    parser.add_argument("--pooled-weight", type=float, default=60.0)
    return parser.parse_args()


def config_of(family: str, pieces: int) -> dict[str, Any]:
    return {**CONFIGS[family], "vocab_size": pieces + (SENTINELS if family == "t5" else 0)}


def start_model(family: str, table: np.ndarray, seed: int) -> tuple[nn.Module, Parameters]:
    """Make the module and its start: words from the teacher's table, the rest at random."""
    kind = FAMILIES[family]
    config = kind.config(config_of(family, len(table)))
    ids = SpecialIds(cls=2, sep=3, mask=4, pad=0, unk=1)
    module = kind.module(config, ids, jnp.dtype("float32"), 0.0, "none")
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, 3), int), jnp.array([3]))
    random = np.random.default_rng(seed)
    words = principal_components(table, slice(None), WIDTH) * (TABLE_STD[family] / 0.05)

    def fill(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = "/".join(key.key for key in path)
        if name == "embeddings/word":
            extra = random.normal(0, TABLE_STD[family], (leaf.shape[0] - len(words), WIDTH))
            return jnp.asarray(np.concatenate([words, extra]), jnp.float32)
        if name.endswith("scale"):
            return jnp.ones(leaf.shape)
        if name.endswith("bias") and "relative" not in name:
            return jnp.zeros(leaf.shape)
        spread = 0.02 if leaf.shape[-1] != leaf.shape[-2] and "kernel" not in name else None
        spread = spread or leaf.shape[-2] ** -0.5
        if name.endswith("query/kernel") and family == "t5":
            spread *= (WIDTH // HEADS) ** -0.5
        if "_out" in name and family == "gpt2":
            spread *= (2 * DEPTH) ** -0.5
        return jnp.asarray(random.normal(0, spread, leaf.shape), jnp.float32)

    params = jax.tree_util.tree_map_with_path(fill, shapes["params"])
    maps = random.normal(0, 0.3 * WIDTH**-0.5, (2, WIDTH, TEACHER_WIDTH))
    extra = {}
    for name, values in zip(("states", "pooled"), maps, strict=True):
        extra[name] = jnp.asarray(values, jnp.float32)
        extra[f"{name}_bias"] = jnp.zeros(TEACHER_WIDTH)
    return module, {"model": params, "extra": extra}


def make_loss(module: nn.Module, family: str, teacher_weight: float, pooled_weight: float):
    """Build the loss: the family's own, and two squared errors to the teacher's states."""

    def loss(params: Parameters, texts: Texts, states: jax.Array) -> tuple[jax.Array, Any]:
        read = _read_t5 if family == "t5" else _read_gpt2
        logits, hidden, summary = read(module, params["model"], texts)
        asked = (texts.targets >= 0).astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits, jnp.maximum(texts.targets, 0)
        )
        written = (losses * asked).sum() / asked.sum()
        states, extra = states.astype(jnp.float32), params["extra"]
        is_known = (texts.places >= 0).astype(jnp.float32)
        wanted = jnp.take_along_axis(states, jnp.maximum(texts.places, 0)[..., None], axis=1)
        errors = jnp.square(hidden @ extra["states"] + extra["states_bias"] - wanted).mean(-1)
        taught = (errors * is_known).sum() / is_known.sum()
        is_real = (jnp.abs(states).sum(-1) > 0).astype(jnp.float32)
        mean = (states * is_real[..., None]).sum(1) / is_real.sum(1)[:, None]
        guess = summary @ extra["pooled"] + extra["pooled_bias"]
        pooled = jnp.square(guess - mean).mean() / jnp.square(mean - mean.mean(0)).mean()
        total = written + teacher_weight * taught + pooled_weight / 30 * pooled
        return total, {"written": written, "teacher": taught, "pooled": pooled}

    return loss


def _prompt(params: Parameters, texts: Texts) -> jax.Array | None:
    return params["embeddings"]["word"][texts.front] if texts.front.shape[1] else None


def _read_t5(module: nn.Module, params: Parameters, texts: Texts):
    """Return logits of the decoder, states of the encoder's text, and the decoder's first state."""
    output, kept = module.apply(
        {"params": params},
        texts.tokens,
        texts.lengths,
        _prompt(params, texts),
        decoder_tokens=texts.decoded,
        capture_intermediates=lambda part, _: part.name == "encoder",
        mutable=["intermediates"],
    )
    encoded = kept["intermediates"]["encoder"]["__call__"][0][0]
    return output.logits, encoded[:, texts.front.shape[1] :], output.hidden[:, 0]


def _read_gpt2(module: nn.Module, params: Parameters, texts: Texts):
    """Return logits at the scored positions, all states, and the state of the last token."""
    output = module.apply(
        {"params": params},
        texts.tokens,
        texts.lengths,
        _prompt(params, texts),
        every_position=True,
    )
    last = jnp.take_along_axis(output.hidden, texts.lengths[:, None, None] - 1, axis=1)[:, 0]
    asked = jnp.take_along_axis(output.hidden, texts.decoded[..., None], axis=1)
    # Logits at other positions are never read, so they are not computed.
    return asked @ params["embeddings"]["word"].T, output.hidden, last


def train(
    options: argparse.Namespace,
    pieces: list[str],
    module: nn.Module,
    params: Parameters,
    states: np.ndarray,
    writer: Writer,
) -> None:
    """Run all steps."""
    schedule = rise_and_fall(options.learning_rate, options.steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b1=0.9, b2=0.98, weight_decay=0.01)
    )
    loss = make_loss(module, options.family, options.teacher_weight, options.pooled_weight)

    def batch_at(number: int) -> tuple[Texts, np.ndarray]:
        texts = writer.batch(number, options.family)
        return texts, states[texts.rows]

    def finish(number: int, elapsed_s: float, params: Parameters) -> None:
        del number, elapsed_s
        save_model(options.out, options.family, params["model"], module.config, pieces)

    checkpoint = options.cache / f"checkpoint-{options.family}.npz"
    run = Run(options, checkpoint, make_step(loss, optimizer), batch_at, finish)
    run(params, optimizer.init(params))


def save_model(
    folder: Path, family: str, params: Parameters, shape: Any, pieces: list[str]
) -> None:
    """Write an ordinary Hugging Face folder in bfloat16."""
    save_writer_tokenizer(pieces, folder, family, SENTINELS)
    config = {**config_of(family, len(pieces)), "dtype": "bfloat16"}
    halved = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    save_folder(folder, config, FAMILIES[family].weights.write(halved, shape))


if __name__ == "__main__":
    main()
