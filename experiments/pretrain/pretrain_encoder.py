"""Pretrains a built-in encoder: `python pretrain_encoder.py --size small --teacher DIR ...`.

The README beside this file has the whole command, what it needs and what came out. A killed run
goes on from its last checkpoint when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
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
from safetensors.flax import save_file
from student import Tensors, encode
from teacher import load_states, load_teacher, piece_ids
from vocabulary import save_tokenizer

POSITIONS = 256
WARM_UP = 100
LATE = 3.0  # in the second half of the steps the teacher weighs so many times more
FIT_EVERY = 60  # the start is fitted on 201 of the taught texts
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
    """Runs until `--steps`, writing the folder at each checkpoint."""
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
    """Makes the student's start, once; later calls read the cached arrays."""
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
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--teacher", type=Path, required=True, help="folder of MiniLM-L6")
    parser.add_argument("--cache", type=Path, required=True, help="folder for arrays made once")
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--start", choices=("fitted", "components"), default="components")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--teacher-weight", type=float, default=20.0)
    parser.add_argument("--rows-of", type=int, nargs=6, default=[2, 2, 2, 2, 3, 5])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint-every-s", type=float, default=600)
    return parser.parse_args()


def make_step(optimizer: optax.GradientTransformation, heads: int):
    """Compiles one update on a plain and a front batch."""

    def loss(tensors: Tensors, plain, states, front, teacher_weight):
        first, plain_metrics = plain_loss(
            tensors, plain, states, heads=heads, teacher_weight=teacher_weight
        )
        second, front_metrics = front_loss(tensors, front, heads=heads)
        return first + second, plain_metrics | front_metrics

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(tensors: Tensors, memory, plain, states, front, teacher_weight):
        (_, metrics), slopes = jax.value_and_grad(loss, has_aux=True)(
            tensors, plain, states, front, teacher_weight
        )
        updates, memory = optimizer.update(slopes, memory, tensors)
        return optax.apply_updates(tensors, updates), memory, metrics

    return step


def make_optimizer(rate: float, steps: int) -> optax.GradientTransformation:
    """AdamW whose rate rises for a few steps and then falls in a line to nearly nothing."""
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, rate, WARM_UP),
            optax.linear_schedule(rate, rate * 0.02, steps - WARM_UP),
        ],
        [WARM_UP],
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b1=0.9, b2=0.98, weight_decay=0.01, mask=_is_matrix),
        optax.stateless(_own_rates),
    )


def _own_rates(updates: Tensors, _: Tensors | None) -> Tensors:
    """Slows the tables down, whose numbers are small, and speeds up the head, which starts new."""
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
    """The loop: batches are made while the step before them runs."""
    size = SIZES[options.size]
    optimizer = make_optimizer(options.learning_rate, options.steps)
    memory = optimizer.init(tensors)
    checkpoint = options.cache / f"checkpoint-{options.size}.npz"
    done, spent_s, tensors, memory = load_checkpoint(checkpoint, tensors, memory)
    step = make_step(optimizer, size["heads"])
    score = jax.jit(lambda tensors, batch: front_loss(tensors, batch, heads=size["heads"])[1])
    read = jax.jit(partial(encode, heads=size["heads"]))

    def batches(number: int):
        plain = sampler.plain(number)
        return plain, states[plain.rows, : plain.tokens.shape[1]], sampler.front(number)

    def finish(number: int, elapsed_s: float) -> None:
        save_checkpoint(checkpoint, number, elapsed_s, tensors, memory)
        save_model(options.out, tensors, pieces, size)
        found = {
            "probe": probe_sentiment(partial(read, tensors), options.cache / "pieces.txt"),
            **ask_questions(partial(score, tensors), held_out, 25),
        }
        write_log(options.log, number, elapsed_s, "validation", found)

    started_s = saved_s = time.time() - spent_s
    recent: list[dict[str, jax.Array]] = []
    with ThreadPoolExecutor(1) as worker:
        coming = worker.submit(batches, done)
        for number in range(done, options.steps):
            batch = coming.result()
            coming = worker.submit(batches, number + 1)
            weight = options.teacher_weight * (LATE if 2 * number >= options.steps else 1.0)
            tensors, memory, metrics = step(tensors, memory, *batch, weight)
            recent.append(metrics)
            if (number + 1) % 25 == 0:
                means = {name: np.mean([float(one[name]) for one in recent]) for name in metrics}
                write_log(options.log, number + 1, time.time() - started_s, "train", means)
                recent = []
            late = time.time() - max(saved_s, started_s + spent_s) > options.checkpoint_every_s
            if late or number + 1 == options.steps:
                finish(number + 1, time.time() - started_s)
                saved_s = time.time()


def write_log(path: Path, step: int, elapsed_s: float, kind: str, values: dict) -> None:
    """Adds one line to the log, and prints it."""
    figures = " ".join(f"{name} {value:.3f}" for name, value in values.items())
    line = f"{step:6d} {elapsed_s:6.0f} s  {kind:10s} {figures}"
    print(line, flush=True)
    with path.open("a") as file:
        file.write(line + "\n")


def save_checkpoint(path: Path, step: int, elapsed_s: float, tensors: Tensors, memory) -> None:
    """Writes parameters and optimizer state under a temporary name, then renames."""
    leaves = {f"m{place}": leaf for place, leaf in enumerate(jax.tree.leaves((tensors, memory)))}
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez(file, step=step, elapsed_s=elapsed_s, **leaves)
    temporary.replace(path)


def load_checkpoint(path: Path, tensors: Tensors, memory):
    """Gives step, seconds spent, parameters and optimizer state; the start where there is none."""
    if not path.exists():
        return 0, 0.0, tensors, memory
    shape = jax.tree.structure((tensors, memory))
    with np.load(path) as saved:
        leaves = [jnp.asarray(saved[f"m{place}"]) for place in range(shape.num_leaves)]
        tensors, memory = jax.tree.unflatten(shape, leaves)
        return int(saved["step"]), float(saved["elapsed_s"]), tensors, memory


def save_model(folder: Path, tensors: Tensors, pieces: list[str], size: dict) -> None:
    """Writes an ordinary Hugging Face folder in bfloat16."""
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
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    kept = {
        name: value.astype(jnp.bfloat16)
        for name, value in tensors.items()
        if not name.startswith("extra.")
    }
    temporary = folder / "model.tmp"
    save_file(kept, temporary, metadata={"format": "pt"})
    temporary.chmod(0o644)
    temporary.replace(folder / "model.safetensors")


if __name__ == "__main__":
    main()
