"""Tune a soft prompt on a pretrained student for each kind of task, to check that prompts learn.

A quick check on the students' sentences code during pretraining; the reported results come from
`jpt tune`. Labels of reviews are read here, for the prompt only.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.flax import load_file
from student import _layer, _normalise, vocabulary_logits
from tokenizers import Tokenizer

from jpt.data.builtin import Split, cut_sentences, reviews

TEXT = 64
ANSWERS = {
    "rotten_tomatoes": ("negative", "positive"),
    "imdb": ("negative", "positive"),
    "rotten_tomatoes_order": ("scrambled", "natural"),
    "imdb_order": ("scrambled", "natural"),
    "next_sentence": ("no", "yes"),
    "same_review": ("different", "same"),
}


def make_rows(task: str, split: Split, count: int) -> tuple[list[tuple[str, ...]], np.ndarray]:
    """Make texts and balanced labels of one task."""
    random = np.random.default_rng([len(task), {"train": 0, "validation": 1, "test": 2}[split]])
    source = "rotten_tomatoes" if task.startswith("rotten") else "imdb"
    rows = reviews(source, split)
    rows = [rows[n] for n in random.permutation(len(rows))]
    if task in ("rotten_tomatoes", "imdb"):
        groups = [[row for row in rows if row.label == label][: count // 2] for label in (0, 1)]
        chosen = [row for group in groups for row in group]
        return [(row.text,) for row in chosen], np.array([row.label for row in chosen])
    cut = [[s for s in cut_sentences(row.text) if 5 <= len(s.split()) <= 22] for row in rows]
    cut = [one for one in cut if len(one) >= (1 if task.endswith("order") else 3)][:count]
    labels = np.arange(len(cut)) % 2
    made: list[tuple[str, ...]] = []
    for index, (label, sentences) in enumerate(zip(labels, cut, strict=True)):
        if task.endswith("order"):
            words = sentences[int(random.integers(len(sentences)))].split()
            made.append((" ".join(words if label else random.permutation(words)),))
            continue
        first = int(random.integers(len(sentences) - 1))
        other = cut[index - 1]
        if label:
            far = [n for n in range(len(sentences)) if n != first]
            second = sentences[first + 1 if task == "next_sentence" else int(random.choice(far))]
        else:
            second = other[int(random.integers(len(other)))]
        made.append((sentences[first], second))
    return made, labels


def encode_rows(rows: list[tuple[str, ...]], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens [N, 64] and lengths [N] of `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`."""
    cls, sep = (tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]"))
    tokens, lengths = np.zeros((len(rows), TEXT), np.int32), np.zeros(len(rows), np.int32)
    for index, row in enumerate(rows):
        ids = [cls]
        for text in row:
            ids += [*tokenizer.encode(text, add_special_tokens=False).ids, sep]
        ids = ids if len(ids) <= TEXT else [*ids[: TEXT - 1], sep]
        tokens[index, : len(ids)], lengths[index] = ids, len(ids)
    return tokens, lengths


def answer_logits(tensors, prompt, tokens, lengths, answers, *, heads: int, mask: int):
    """Return logits [B, C] of the label words at the mask in front of the prompt [P, D]."""
    words = tensors["bert.embeddings.word_embeddings.weight"]
    text = words[tokens] + tensors["bert.embeddings.position_embeddings.weight"][None, :TEXT]
    text = text + tensors["bert.embeddings.token_type_embeddings.weight"][0][None, None]
    front = jnp.concatenate([words[mask][None], prompt])
    front = jnp.broadcast_to(front[None], (len(tokens), *front.shape))
    states = jnp.concatenate([front, text], axis=1)
    states = _normalise(tensors, "bert.embeddings.LayerNorm", states)
    seen = jnp.arange(TEXT)[None] < lengths[:, None]
    seen = jnp.concatenate([jnp.ones(front.shape[:2], bool), seen], axis=1)
    bias = jnp.where(seen, 0.0, -1e9).astype(jnp.float32)
    depth = sum(name.endswith("self.query.weight") for name in tensors)
    for layer in range(depth):
        states = _layer(tensors, f"bert.encoder.layer.{layer}", states, bias, heads)
    return vocabulary_logits(tensors, states[:, 0])[:, answers]


def check(folder: Path, task: str, heads: int, steps: int, rate: float, length: int) -> None:
    """Tune a prompt and print its accuracy on validation and test."""
    tensors = {
        name: t.astype(jnp.float32) for name, t in load_file(folder / "model.safetensors").items()
    }
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    answers = jnp.array([tokenizer.token_to_id(word) for word in ANSWERS[task]])
    mask = tokenizer.token_to_id("[MASK]")
    score = partial(answer_logits, heads=heads, mask=mask)
    random = np.random.default_rng(0)
    words = np.asarray(tensors["bert.embeddings.word_embeddings.weight"])
    prompt = jnp.asarray(words[random.integers(1000, 6000, length)])
    fall = optax.linear_schedule(rate, 0.0, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(fall, weight_decay=0.0))
    memory = optimizer.init(prompt)

    @jax.jit
    def step(prompt, memory, tensors, tokens, lengths, labels):
        def loss(prompt):
            logits = score(tensors, prompt, tokens, lengths, answers)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, slope = jax.value_and_grad(loss)(prompt)
        updates, memory = optimizer.update(slope, memory, prompt)
        return optax.apply_updates(prompt, updates), memory, value

    train, labels = make_rows(task, "train", 4000)
    tokens, lengths = encode_rows(train, tokenizer)
    started_s, losses = time.time(), []
    for _ in range(steps):
        batch = random.integers(0, len(tokens), 32)
        prompt, memory, value = step(
            prompt, memory, tensors, tokens[batch], lengths[batch], labels[batch]
        )
        losses.append(float(value))
    read = jax.jit(score)
    found = []
    for split in ("validation", "test"):
        rows, wanted = make_rows(task, split, 800)
        tokens, lengths = encode_rows(rows, tokenizer)
        parts = [
            np.asarray(read(tensors, prompt, tokens[n : n + 100], lengths[n : n + 100], answers))
            for n in range(0, len(tokens), 100)
        ]
        found.append((np.concatenate(parts).argmax(-1) == wanted).mean())
    print(
        f"{folder.name} {task:22s} rate {rate} loss {np.mean(losses[:20]):.3f} -> "
        f"{np.mean(losses[-40:]):.3f} validation {found[0]:.3f} test {found[1]:.3f} "
        f"{time.time() - started_s:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--heads", type=int, required=True)
    parser.add_argument("--tasks", nargs="*", default=list(ANSWERS))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, nargs="*", default=[0.02])
    parser.add_argument("--length", type=int, default=20)
    options = parser.parse_args()
    for name in options.tasks:
        for learning_rate in options.learning_rate:
            check(options.folder, name, options.heads, options.steps, learning_rate, options.length)
