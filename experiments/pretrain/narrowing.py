"""Initialise a student from the teacher: fewer columns, heads, neurons and layers, fitted in turn.

The student keeps a part of the teacher's columns, so that its layer norms mean the same. Layer by
layer, each of its maps is the least-squares fit, on train text, from the student's states at that
point to the teacher's. This takes no training step.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

Arrays = dict[str, np.ndarray]
HEAD = 32
EPSILON = 1e-12


def narrow(
    teacher: Arrays, tokens: np.ndarray, lengths: np.ndarray, *, width: int, layers: list[int]
) -> Arrays:
    """Fit a narrow student to the teacher, up to a masked-LM head that answers each token.

    Args:
        teacher: its parameters under Hugging Face names.
        tokens: [N, T] texts in the teacher's ids, to fit on.
        lengths: [N] tokens of each.
        width: D of the student; it gets D / 32 heads and 4 D neurons.
        layers: The teacher layers to follow.

    Returns:
        The student's parameters and under "extra." the map from its last states to the teacher's.
        The token table still has the teacher's rows.
    """
    words = teacher["bert.embeddings.word_embeddings.weight"]
    places = teacher["bert.embeddings.position_embeddings.weight"]
    # Shared offsets go to the tokens: front tokens have neither position nor type.
    common = places[1 : tokens.shape[1]].mean(0)
    kind = teacher["bert.embeddings.token_type_embeddings.weight"][0]
    real = np.arange(tokens.shape[1]) < lengths[:, None]
    bias = np.where(real, 0.0, -1e9).astype(np.float32)[:, None, None]
    summed = words[tokens] + places[None, : tokens.shape[1]] + kind
    states = _norm_of(teacher, "bert.embeddings.LayerNorm", summed)
    traces = [_trace(teacher, 0, states, bias)]
    for layer in range(1, max(layers) + 1):
        traces.append(_trace(teacher, layer, traces[-1]["second"], bias))
    kept = _choose_columns([states[real], *(trace["second"][real] for trace in traces)], width)
    made = {
        "bert.embeddings.word_embeddings.weight": (words + common + kind)[:, kept],
        "bert.embeddings.position_embeddings.weight": (places - common)[:, kept],
        "bert.embeddings.token_type_embeddings.weight": np.zeros((2, width), np.float32),
    }
    student = _fit_norm(
        made, "bert.embeddings.LayerNorm", summed[..., kept], states[..., kept], real
    )
    for index, layer in enumerate(layers):
        student = _fit_layer(made, index, teacher, layer, traces[layer], student, kept, bias, real)
        error = np.square(student[real] - traces[layer]["second"][..., kept][real]).mean()
        spread = traces[layer]["second"][..., kept][real].var(0).mean()
        print(f"layer {index} follows {layer}: {1 - error / spread:.2f} explained", flush=True)
    _fit(made, "extra.teacher", student, traces[-1]["second"], real)
    vectors = made["bert.embeddings.word_embeddings.weight"][tokens]
    vectors = _plain_norm(vectors - vectors[real].mean(0))
    _fit(made, "cls.predictions.transform.dense", student, vectors, real)
    ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
    made["cls.predictions.transform.LayerNorm.weight"] = ones
    made["cls.predictions.transform.LayerNorm.bias"] = zeros
    return made


def _trace(teacher: Arrays, layer: int, states: np.ndarray, bias: np.ndarray) -> Arrays:
    """Return the intermediate values of a teacher layer."""
    root = f"bert.encoder.layer.{layer}"
    parts = {
        name: _map(teacher, f"{root}.attention.self.{name}", states)
        for name in ("query", "key", "value")
    }
    mixed = _mix(parts, bias)
    first_sum = states + _map(teacher, f"{root}.attention.output.dense", mixed)
    first = _norm_of(teacher, f"{root}.attention.output.LayerNorm", first_sum)
    inner = _map(teacher, f"{root}.intermediate.dense", first)
    second_sum = first + _map(teacher, f"{root}.output.dense", _gelu(inner))
    second = _norm_of(teacher, f"{root}.output.LayerNorm", second_sum)
    return parts | {
        "mixed": mixed,
        "first_sum": first_sum,
        "first": first,
        "inner": inner,
        "second_sum": second_sum,
        "second": second,
    }


def _fit_layer(made, index, teacher, layer, trace, student, kept, bias, real) -> np.ndarray:
    """Fit one layer of the student; return its output."""
    new, old = f"bert.encoder.layer.{index}", f"bert.encoder.layer.{layer}"
    heads = _choose_heads(trace["mixed"][real], teacher[f"{old}.attention.output.dense.weight"])
    heads = heads[: len(kept) // HEAD]
    columns = (heads[:, None] * HEAD + np.arange(HEAD)).ravel()
    parts = {
        name: _fit(made, f"{new}.attention.self.{name}", student, trace[name][..., columns], real)
        for name in ("query", "key", "value")
    }
    mixed = _mix(parts, bias)
    wanted = trace["first_sum"][..., kept] - student
    total = student + _fit(made, f"{new}.attention.output.dense", mixed, wanted, real)
    name = f"{new}.attention.output.LayerNorm"
    student = _fit_norm(made, name, total, trace["first"][..., kept], real)
    strength = np.square(teacher[f"{old}.output.dense.weight"]).sum(0)
    neurons = np.argsort(-_gelu(trace["inner"][real]).var(0) * strength)[: 4 * len(kept)]
    inner = _fit(made, f"{new}.intermediate.dense", student, trace["inner"][..., neurons], real)
    wanted = trace["second_sum"][..., kept] - student
    total = student + _fit(made, f"{new}.output.dense", _gelu(inner), wanted, real)
    return _fit_norm(made, f"{new}.output.LayerNorm", total, trace["second"][..., kept], real)


def _choose_columns(states: list[np.ndarray], width: int) -> np.ndarray:
    """Choose the columns that best predict the others, by pivoted QR."""
    centered = np.concatenate([(one - one.mean(0))[::4] for one in states])
    _, _, order = scipy.linalg.qr(centered.T @ centered, pivoting=True)
    return np.sort(order[:width])


def _choose_heads(mixed: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Sort the heads by the variance that they add to the residual stream."""
    count = mixed.shape[1] // HEAD
    parts = [slice(head * HEAD, (head + 1) * HEAD) for head in range(count)]
    return np.argsort([-(mixed[:, part] @ weight[:, part].T).var(0).sum() for part in parts])


def _fit(made: Arrays, name: str, given: np.ndarray, wanted: np.ndarray, real: np.ndarray):
    """Store the least-squares map from given to wanted; return its output."""
    rows = np.concatenate([given[real], np.ones((int(real.sum()), 1), np.float32)], axis=1)
    square = (rows.T @ rows).astype(np.float64)
    square += 1e-3 * np.trace(square) / len(square) * np.eye(len(square))
    best = np.linalg.solve(square, rows.T @ wanted[real]).astype(np.float32)
    made[f"{name}.weight"], made[f"{name}.bias"] = best[:-1].T, best[-1]
    return _map(made, name, given)


def _fit_norm(made: Arrays, name: str, given: np.ndarray, wanted: np.ndarray, real: np.ndarray):
    """Store a layer norm's scale and shift, column by column; return its output."""
    plain = _plain_norm(given)
    rows, aims = plain[real], wanted[real]
    covered = ((rows - rows.mean(0)) * (aims - aims.mean(0))).mean(0)
    scale = covered / rows.var(0)
    made[f"{name}.weight"], made[f"{name}.bias"] = scale, aims.mean(0) - scale * rows.mean(0)
    return plain * scale + made[f"{name}.bias"]


def _map(tensors: Arrays, name: str, states: np.ndarray) -> np.ndarray:
    flat = np.ascontiguousarray(states.reshape(-1, states.shape[-1]), np.float32)
    weight = np.ascontiguousarray(tensors[f"{name}.weight"].T, np.float32)
    return (flat @ weight + tensors[f"{name}.bias"]).reshape(*states.shape[:-1], -1)


@jax.jit
def _attend(query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array) -> jax.Array:
    scores = jnp.einsum("nqhd,nkhd->nhqk", query, key) * HEAD**-0.5
    return jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores + bias, axis=-1), value)


def _mix(parts: Arrays, bias: np.ndarray) -> np.ndarray:
    shape = parts["query"].shape
    split = [parts[name].reshape(*shape[:2], -1, HEAD) for name in ("query", "key", "value")]
    return np.asarray(_attend(*split, bias)).reshape(shape)


def _plain_norm(states: np.ndarray) -> np.ndarray:
    centered = states - states.mean(-1, keepdims=True)
    return centered / np.sqrt(np.square(centered).mean(-1, keepdims=True) + EPSILON)


def _norm_of(tensors: Arrays, name: str, states: np.ndarray) -> np.ndarray:
    return _plain_norm(states) * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def _gelu(values: np.ndarray) -> np.ndarray:
    return np.asarray(jax.nn.gelu(values, approximate=False))
