"""A task as one backbone reads it: label words found, rows tokenised, lengths checked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jpt.backbones.registry import Backbone, load_backbone
from jpt.data.encode import EncodedSplit, encode_split
from jpt.data.sources import has_split, read_rows
from jpt.files.tokenizer import TextTokenizer
from jpt.tasks.registry import load_task
from jpt.tasks.task import Task
from jpt.tasks.verbalizers import LabelWords, label_ids
from jpt.tuning.losses import Answer
from jpt.tuning.scoring import Batching


@dataclass(frozen=True)
class PreparedTask:
    """One task on one backbone.

    Attributes:
        task: what is asked.
        words: label words with their ids in this vocabulary.
        answer: which words are scored, on the device.
        batching: how rows are put together.
        tokenizer: of the backbone.
        layout: of the backbone: what is read where.
    """

    task: Task
    words: LabelWords
    answer: Answer
    batching: Batching
    tokenizer: TextTokenizer
    layout: str

    def split(self, name: str) -> EncodedSplit:
        """Reads and tokenises a split.

        Args:
            name: ``"train"``, ``"validation"`` or ``"test"``.

        Returns:
            The encoded rows.

        Raises:
            InputError: for missing or broken data.
        """
        rows = read_rows(self.task, name)
        limit = self.batching.max_tokens
        return encode_split(rows, self.task, self.tokenizer, limit, self.layout)

    def splits(self) -> dict[str, EncodedSplit]:
        """Reads what a run needs: train, validation, and test where the task has one."""
        names = ["train", "validation"]
        if has_split(self.task, "test"):
            names.append("test")
        return {name: self.split(name) for name in names}

    def describe_words(self) -> str:
        """Lists label words with their ids, for the first line of a log."""
        pairs = zip(self.task.labels, self.words.words, self.words.ids, strict=True)
        return ", ".join(
            f"{label} = '{word}' ({token})"
            if self.tokenizer.piece(token).strip("Ġ▁ ") == word
            else f"{label} = '{word}' ({token}, its first piece '{self.tokenizer.piece(token)}')"
            for label, word, token in pairs
        )


def prepare_task(
    task: Task,
    backbone: Backbone,
    max_tokens: int,
    batch_size: int,
    first_position: int = 0,
) -> PreparedTask:
    """Finds a task's label words in a backbone's vocabulary.

    Args:
        task: what is asked.
        backbone: who reads it.
        max_tokens: longest text in tokens.
        batch_size: rows scored at once.
        first_position: position of the text's first token.

    Returns:
        The prepared task.

    Raises:
        InputError: for a label word that the model cannot answer with.
    """
    words = label_ids(task, backbone.tokenizer, backbone.model_type, backbone.layout)
    answer = Answer(jnp.asarray(words.ids, jnp.int32), first_position)
    batching = Batching(batch_size, max_tokens, backbone.pad_id)
    return PreparedTask(task, words, answer, batching, backbone.tokenizer, backbone.layout)


def as_task(task: Task | str | Path, data: str | Path | None) -> Task:
    """Loads a task unless it is one.

    Args:
        task: a task, its name, or its folder.
        data: folder of its rows, where they do not come from elsewhere.

    Returns:
        The task.
    """
    return task if isinstance(task, Task) else load_task(task, data)


def as_backbone(
    backbone: Backbone | str | Path,
    dtype: str = "float32",
    dropout: bool = False,
    mesh: Mesh | None = None,
    remat: str = "dots",
) -> Backbone:
    """Loads a backbone unless it is one.

    Args:
        backbone: a backbone, its name, or its folder.
        dtype: of weights and matrix products when it is loaded.
        dropout: whether its dropout is on while tuning.
        mesh: devices that its weights go to.
        remat: what its layers keep for the way back when it is loaded.

    Returns:
        The backbone, on the mesh.
    """
    if isinstance(backbone, Backbone):
        return backbone if mesh is None else backbone.on_mesh(mesh)
    return load_backbone(backbone, dtype=dtype, dropout=dropout, mesh=mesh, remat=remat)


def data_record(splits: dict[str, EncodedSplit]) -> dict[str, Any]:
    """Records what was read, so that a resumed run can tell whether it changed.

    Args:
        splits: encoded rows by split.

    Returns:
        Row counts, cut rows and a checksum of each split.
    """
    return {
        name: {"rows": split.n_rows, "cut_rows": split.cut_rows, "sha256": _checksum(split)}
        for name, split in splits.items()
    }


def _checksum(split: EncodedSplit) -> str:
    digest = hashlib.sha256()
    for array in (split.tokens, split.offsets, split.labels):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
