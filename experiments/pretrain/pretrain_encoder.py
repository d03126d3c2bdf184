"""Pretrain a built-in encoder: `python pretrain_encoder.py --size small --teacher DIR ...`.

The README in this folder has the full command, requirements and results. Re-run to resume from the
last checkpoint.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from batches import Sampler, taught_rows
from components import start_from_components
from corpus import load_corpus, load_pieces
from narrowing import narrow
from objectives import front_loss, plain_loss, start_heads
from probes import ask_questions, probe_sentiment
from running import Run, add_options, make_step, rise_and_fall, save_folder, write_log
from student import Tensors, encode
from teacher import load_states, load_teacher, piece_ids
from vocabulary import save_tokenizer

POSITIONS = 256
LATE = 3.0  # factor of the teacher's weight in the second half of the steps
FIT_EVERY = 60  # the start is fitted on every 60th of the taught texts
SIZES = {
    "small": {"width": 128, "depth": 4, "heads": 4, "follows": [0, 1, 3, 5]},
    "medium": {
        "width": 192,
        "depth": 5,
        "heads": 6,
        "follows": [0, 1, 2, 3, 5],
    },
}


def main() -> None:
    """Run until `--steps`, writing the folder at each checkpoint."""
    options = read_options()
    options.cache.mkdir(parents=True, exist_ok=True)
    pieces = load_pieces(options.teacher, options.cache)
    corpus = load_corpus("train", pieces, options.cache)
    teacher, teacher_heads = load_teacher(options.teacher)
    ids = piece_ids(pieces, options.teacher)
    taught = taught_rows(corpus)
    rows, lengths = corpus.rows[taught], corpus.row_lengths[taught]
    path = options.cache / "states.npy"
    states = load_states(teacher, teacher_heads, ids, rows, lengths, path)
    counts = np.bincount(corpus.tokens, minlength=len(pieces))
    start = load_start(options, teacher, ids, rows[::FIT_EVERY], lengths[::FIT_EVERY], counts)
    sampler = Sampler(corpus, pieces, options.seed, tuple(options.rows_of))
    validation = load_corpus("validation", pieces, options.cache)
    held_out = Sampler(validation, pieces, options.seed, tuple(options.rows_of))
    train(options, pieces, start, states, sampler, held_out)


def load_start(options, teacher, ids, rows, lengths, counts) -> Tensors:
    """Make the student's start, once; later calls read the cached arrays."""
    size, seed = SIZES[options.size], options.seed
    path = options.cache / f"start-{options.size}.npz"
    if not path.exists():
        arrays = {name: np.asarray(value) for name, value in teacher.items()}
        shape = {"width": size["width"]}
        if options.start == "components":
            shape |= {"depth": size["depth"], "seed": seed}
            made = start_from_components(arrays, ids, **shape)
        else:
            made = narrow(arrays, ids[rows], lengths, **shape, layers=size["follows"])
            table = "bert.embeddings.word_embeddings.weight"
            made[table] = made[table][ids]
        places = "bert.embeddings.position_embeddings.weight"
        made[places] = made[places][:POSITIONS]
        made["cls.predictions.bias"] = np.log((counts + 1) / (counts + 1).sum())
        np.savez(path, **made)
    with np.load(path) as made:
        start = {name: jnp.asarray(value, jnp.float32) for name, value in made.items()}
    return start | start_heads(size["width"], seed)


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, required=True)
    add_options(parser, teacher_weight=20.0, every_s=600)
    parser.add_argument("--start", choices=("fitted", "components"), default="components")
    parser.add_argument("--rows-of", type=int, nargs=6, default=[2, 2, 2, 2, 3, 5])
    return parser.parse_args()


def make_loss(heads: int):
    """Build the loss of a plain and a front batch."""

    def loss(tensors: Tensors, plain, states, front, teacher_weight):
        first, plain_metrics = plain_loss(
            tensors, plain, states, heads=heads, teacher_weight=teacher_weight
        )
        second, front_metrics = front_loss(tensors, front, heads=heads)
        return first + second, plain_metrics | front_metrics

    return loss


def make_optimizer(rate: float, steps: int) -> optax.GradientTransformation:
    """Return AdamW with weight decay for matrices only, and separate rates for tables and head."""
    schedule = rise_and_fall(rate, steps)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b1=0.9, b2=0.98, weight_decay=0.01, mask=_is_matrix),
        optax.stateless(_scale_rates),
    )


def _scale_rates(updates: Tensors, _: Tensors | None) -> Tensors:
    """Lower the rate of the tables, whose values are small, and raise that of the new head."""
    rates = {
        "bert.embeddings.word_embeddings.weight": 0.5,
        "bert.embeddings.position_embeddings.weight": 0.3,
        "bert.embeddings.token_type_embeddings.weight": 0.0,
        "cls.predictions.transform.dense.weight": 3.0,
        "cls.predictions.transform.LayerNorm.weight": 3.0,
        "cls.predictions.transform.LayerNorm.bias": 3.0,
        "cls.predictions.bias": 10.0,
    }
    return {name: value * rates.get(name, 1.0) for name, value in updates.items()}


def _is_matrix(tensors: Tensors) -> dict[str, bool]:
    return {name: value.ndim > 1 for name, value in tensors.items()}


def train(options, pieces, tensors, states, sampler: Sampler, held_out: Sampler) -> None:
    """Run all steps, evaluating on validation text at each checkpoint."""
    size = SIZES[options.size]
    optimizer = make_optimizer(options.learning_rate, options.steps)
    score = jax.jit(lambda tensors, batch: front_loss(tensors, batch, heads=size["heads"])[1])
    read = jax.jit(partial(encode, heads=size["heads"]))

    def batch_at(number: int):
        plain = sampler.plain(number)
        weight = options.teacher_weight * (LATE if 2 * number >= options.steps else 1.0)
        known = states[plain.rows, : plain.tokens.shape[1]]
        return plain, known, sampler.front(number), weight

    def finish(number: int, elapsed_s: float, tensors: Tensors) -> None:
        save_model(options.out, tensors, pieces, size)
        found = {
            "probe": probe_sentiment(partial(read, tensors), options.cache / "pieces.txt"),
            **ask_questions(partial(score, tensors), held_out, 25),
        }
        write_log(options.log, number, elapsed_s, "validation", found)

    checkpoint = options.cache / f"checkpoint-{options.size}.npz"
    step = make_step(make_loss(size["heads"]), optimizer)
    Run(options, checkpoint, step, batch_at, finish)(tensors, optimizer.init(tensors))


def save_model(folder: Path, tensors: Tensors, pieces: list[str], size: dict) -> None:
    """Write an ordinary Hugging Face folder in bfloat16."""
    save_tokenizer(pieces, folder, POSITIONS)
    config = {
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        "vocab_size": len(pieces),
        "hidden_size": size["width"],
        "num_hidden_layers": size["depth"],
        "num_attention_heads": size["heads"],
        "intermediate_size": 4 * size["width"],
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
    kept = {
        name: np.asarray(value.astype(jnp.bfloat16))
        for name, value in tensors.items()
        if not name.startswith("extra.")
    }
    save_folder(folder, config, kept)


if __name__ == "__main__":
    main()
