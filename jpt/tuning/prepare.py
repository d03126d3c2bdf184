"""A task as one backbone reads it: label words found, rows tokenised, answers scored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jpt.backbones.registry import Backbone, load_backbone
from jpt.config import TuneOptions
from jpt.data.encode import EncodedSplit
from jpt.data.sources import attach_data, has_split, read_rows
from jpt.data.token_cache import encode_cached
from jpt.errors import InputError
from jpt.tasks.registry import load_task
from jpt.tasks.task import Task
from jpt.tasks.verbalizers import LabelWords, label_words
from jpt.tuning.losses import NO_PIECE, Answer
from jpt.tuning.neuron_mask import NeuronMask, check_neuron_mask
from jpt.tuning.pieces import CPU_ROWS
from jpt.tuning.scoring import Batching, Score, bank_logits, score_logits
from jpt.tuning.written import score_written

Data = str | Path | Mapping[str, Iterable[Mapping[str, Any]]]
"""Where the rows of a task are: a folder, or the rows themselves by split."""


@dataclass(frozen=True)
class PreparedTask:
    """One task on one backbone."""

    task: Task  # what is asked
    backbone: Backbone  # who is asked
    words: LabelWords  # label words with their pieces in this vocabulary
    answer: Answer  # which words are scored, on the device
    batching: Batching  # how rows are put together
    answer_tokens: int | None  # the most tokens of a written answer

    def split(self, name: str) -> EncodedSplit:
        """Reads and tokenises a split."""
        return encode_cached(
            read_rows(self.task, name),
            self.task,
            self.backbone.tokenizer,
            self.batching.max_tokens,
            self.backbone.layout,
            self.answer_tokens,
        )

    def splits(self) -> dict[str, EncodedSplit]:
        """Reads what a run needs: train, validation, and test where the task has one."""
        names = ["train", "validation"]
        if has_split(self.task, "test"):
            names.append("test")
        return {name: self.split(name) for name in names}

    def score(
        self,
        prompts: Sequence[Float[Array, "P D"] | None],
        split: EncodedSplit,
        mesh: Mesh | None = None,
        neuron_mask: NeuronMask | None = None,
    ) -> list[Score]:
        """Scores prompts over a whole split, without dropout."""
        task, backbone = self.task, self.backbone
        if neuron_mask is not None:
            check_neuron_mask(neuron_mask, backbone, task)
        module = backbone.module.clone(dropout_rate=0.0)
        if task.is_written:
            rows = (split, backbone.tokenizer, task.metric, self.batching, mesh)
            return [score_written(module, backbone.params, prompt, *rows) for prompt in prompts]
        found = bank_logits(
            module, backbone.params, prompts, split, self.answer, self.batching, mesh, neuron_mask
        )
        return [score_logits(each, split.labels, task.labels, task.metric) for each in found]

    def describe_words(self) -> str:
        """Lists label words with their ids, for the first line of a log."""
        if self.task.is_written:
            return f"the answer is written, in {self.answer_tokens} tokens at most"
        by_label = zip(self.task.labels, self.words.words, self.words.pieces, strict=True)
        return ", ".join(
            f"{label} = {' or '.join(map(self._describe_word, words, pieces))}"
            for label, words, pieces in by_label
        )

    def _describe_word(self, word: str, pieces: tuple[int, ...]) -> str:
        """A word with its ids, and its pieces where they show more, such as a leading space."""
        tokenizer, is_whole = self.backbone.tokenizer, self.answer.pieces is not None
        shown = pieces if is_whole else pieces[:1]
        names = [tokenizer.piece(token) for token in shown]
        ids = " ".join(
            str(token) if [name] == [word] else f"{name} {token}"
            for name, token in zip(names, shown, strict=True)
        )
        return f"'{word}' ({ids}{', first piece' if len(shown) < len(pieces) else ''})"


def prepare_task(
    task: Task,
    backbone: Backbone,
    max_tokens: int,
    batch_size: int,
    first_position: int = 0,
    label_scoring: str = "phrase",
    answer_tokens: int | None = None,
) -> PreparedTask:
    """Finds a task's label words in a backbone's vocabulary."""
    if task.is_written and backbone.layout == "encoder":
        raise InputError(
            f"the answers of task {task.name} are written, but {backbone.name} has the layout "
            "encoder, which fills gaps and writes no text; take a T5 or a decoder, for instance "
            "builtin/t5-mini"
        )
    if answer_tokens is not None and not task.is_written:
        raise InputError(
            f"answer_tokens is {answer_tokens}, but task {task.name} has labels "
            f"({', '.join(task.labels)}) and no answer to be written; leave it out"
        )
    is_decoder = backbone.layout == "decoder"
    words = label_words(
        task, backbone.tokenizer, backbone.model_type, backbone.layout, label_scoring
    )
    return PreparedTask(
        task,
        backbone,
        words,
        _answer(words, label_scoring, first_position),
        # A decoder computes the prompt once a batch, whatever the rows.
        Batching(batch_size, max_tokens, backbone.pad_id, None if is_decoder else CPU_ROWS),
        answer_tokens or task.answer_tokens,
    )


def prepare_for(task: Task, backbone: Backbone, options: TuneOptions) -> PreparedTask:
    """Prepares a task as the options of a run say."""
    return prepare_task(
        task,
        backbone,
        options.max_tokens,
        options.eval_batch_size,
        label_scoring=options.label_scoring,
        answer_tokens=options.answer_tokens,
    )


def _answer(words: LabelWords, label_scoring: str, first_position: int) -> Answer:
    """Puts the words of all labels into arrays."""
    flat = [pieces for of in words.pieces for pieces in of]
    owners = [number for number, of in enumerate(words.pieces) for _ in of]
    longest = max(map(len, flat), default=1)
    table = None
    if label_scoring == "phrase" and longest > 1:
        padded = [[*pieces, *[NO_PIECE] * (longest - len(pieces))] for pieces in flat]
        table = jnp.asarray(padded, jnp.int32)
    several = len(flat) > len(words.pieces)
    return Answer(
        jnp.asarray([pieces[0] for pieces in flat], jnp.int32),
        table,
        jnp.asarray(owners, jnp.int32) if several else None,
        len(words.pieces) if several else 0,
        first_position,
    )


def as_task(task: Task | str | Path, data: Data | None) -> Task:
    """Loads a task unless it is one."""
    if isinstance(task, Task):
        return task if data is None else attach_data(task, data)
    if data is None or isinstance(data, str | Path):
        return load_task(task, data)
    return attach_data(load_task(task), data)


def as_backbone(
    backbone: Backbone | str | Path,
    dtype: str = "float32",
    dropout: bool = False,
    mesh: Mesh | None = None,
    remat: str = "dots",
) -> Backbone:
    """Loads a backbone unless it is one."""
    if isinstance(backbone, Backbone):
        return backbone if mesh is None else backbone.on_mesh(mesh)
    return load_backbone(backbone, dtype=dtype, dropout=dropout, mesh=mesh, remat=remat)


def data_record(splits: dict[str, EncodedSplit]) -> dict[str, Any]:
    """Records what was read, so that a resumed run can tell whether it changed."""
    return {
        name: {
            "rows": split.n_rows,
            "cut_rows": split.cut_rows,
            **({"cut_answers": split.answers.cut_rows} if split.answers else {}),
            "content": split.content,
            "sha256": _checksum(split),
        }
        for name, split in splits.items()
    }


def _checksum(split: EncodedSplit) -> str:
    digest = hashlib.sha256()
    arrays = [split.tokens, split.offsets, split.labels]
    if split.answers is not None:
        arrays += [split.answers.tokens, split.answers.offsets]
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
