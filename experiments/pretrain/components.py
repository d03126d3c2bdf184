"""Initialise a student from principal components of the teacher's tables, the rest at random.

The alternative, `narrowing.py`, also follows the teacher's layers.
"""

from __future__ import annotations

import numpy as np
from corpus import TEXT_TOKENS

Arrays = dict[str, np.ndarray]


def start_from_components(
    teacher: Arrays, ids: np.ndarray, *, width: int, depth: int, seed: int
) -> Arrays:
    """Make a student's parameters, including the map to the teacher's states.

    Args:
        teacher: Its parameters under Hugging Face names.
        ids: The teacher's id of each token.
        width: D; the student gets 4 D neurons.
        depth: L.
        seed: Seed of the random numbers.

    Returns:
        Parameters under Hugging Face names, without the masked-LM head's bias; the map to the
        teacher's states under "extra.teacher".
    """
    words = teacher["bert.embeddings.word_embeddings.weight"][ids]
    places = teacher["bert.embeddings.position_embeddings.weight"]
    # Only of the trained positions: the slow drift over all would hide near neighbors.
    # Reversed, so that the strongest components of both tables are in different columns.
    places = principal_components(places, slice(1, TEXT_TOKENS), width)[:, ::-1].copy()
    # Position 0 is far from all others in BERT; scale it to their norm.
    places[0] *= np.linalg.norm(places[1:TEXT_TOKENS], axis=1).mean() / np.linalg.norm(places[0])
    random = np.random.default_rng(seed)
    tensors = {
        "bert.embeddings.word_embeddings.weight": principal_components(words, slice(None), width),
        "bert.embeddings.position_embeddings.weight": places,
        "bert.embeddings.token_type_embeddings.weight": np.zeros((2, width)),
        "extra.teacher.weight": random.normal(0, 0.3 * width**-0.5, (words.shape[1], width)),
        "extra.teacher.bias": np.zeros(words.shape[1]),
    }
    tensors |= _random_maps(random, width, depth)
    _start_similar(tensors, random)
    return tensors


def principal_components(table: np.ndarray, main: slice, width: int) -> np.ndarray:
    """Project all rows on the principal components of the main rows, scaled by the main rows."""
    center = table[main].mean(0)
    _, _, directions = np.linalg.svd(table[main] - center, full_matrices=True)
    kept = (table - center) @ directions[:width].T
    return kept * (0.05 / kept[main].std())


def _random_maps(random: np.random.Generator, width: int, depth: int) -> Arrays:
    linears = {"cls.predictions.transform.dense": (width, width)}
    norms = ["bert.embeddings.LayerNorm", "cls.predictions.transform.LayerNorm"]
    for layer in range(depth):
        root = f"bert.encoder.layer.{layer}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            linears[f"{root}.attention.{name}"] = (width, width)
        linears[f"{root}.intermediate.dense"] = (4 * width, width)
        linears[f"{root}.output.dense"] = (width, 4 * width)
        norms += [f"{root}.attention.output.LayerNorm", f"{root}.output.LayerNorm"]
    made: Arrays = {}
    for name, (rows, columns) in linears.items():
        # Residual additions start smaller: at full size a run ended in constant states.
        size = 0.3 if name.endswith(("output.dense", "transform.dense")) else 1.0
        matrix = random.normal(0, size * (2 / (rows + columns)) ** 0.5, (rows, columns))
        made |= {f"{name}.weight": matrix, f"{name}.bias": np.zeros(rows)}
    for name in norms:
        made |= {f"{name}.weight": np.ones(width), f"{name}.bias": np.zeros(width)}
    return made


def _start_similar(tensors: Arrays, random: np.random.Generator) -> None:
    """Initialise the maps so that tokens attend to similar tokens and pass on their identity.

    Trained attention often ends near this (half of the heads have query = key), and a state that is
    a token's vector answers with that token.
    """
    width = len(tensors["cls.predictions.transform.dense.weight"])
    tensors["cls.predictions.transform.dense.weight"] += np.eye(width)
    for name in [name for name in tensors if name.endswith("self.key.weight")]:
        tensors[name][: width // 2] = tensors[name.replace("key", "query")][: width // 2]
        rotation, _ = np.linalg.qr(random.normal(size=(width, width)))
        tensors[name.replace("key", "value")] = rotation
        tensors[name.replace("self.key", "output.dense")] = 0.4 * rotation.T
