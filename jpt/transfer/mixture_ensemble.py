"""Several prompts on one task at once: each reads every row, and their answers are averaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Float64
from scipy.special import log_softmax, logsumexp

from jpt.backbones.registry import Backbone
from jpt.config import LABEL_SCORING, check_choice, check_counts
from jpt.errors import InputError
from jpt.mesh import batch_sharding, make_mesh
from jpt.prompts.mixture import Weights, settle_weights
from jpt.prompts.seed_prompts import load_runs
from jpt.prompts.store import check_prompt
from jpt.tasks.task import Task
from jpt.tuning.evaluate import describe_score
from jpt.tuning.prepare import Data, PreparedTask, as_backbone, as_task, prepare_task
from jpt.tuning.scoring import Score, bank_logits, score_logits
from jpt.tuning.settle import settle_length
from jpt.types import Prompt

COMBINE = ("log_probs", "probs")
"""What is averaged: logarithms of the labels' probabilities, or the probabilities."""


@dataclass(frozen=True)
class EnsembleScore:
    """An ensemble and its parts.

    Attributes:
        score: of the ensemble.
        members: the score of each prompt alone.
        weights: the share of each prompt.
        combine: what was averaged.
    """

    score: Score
    members: dict[str, Score]
    weights: dict[str, float]
    combine: str

    @property
    def record(self) -> dict[str, Any]:
        """The result as JSON."""
        members = {name: score.summary() for name, score in self.members.items()}
        told = {"combine": self.combine, "weights": self.weights, "members": members}
        return {**self.score.summary(), **told}

    def describe(self, task: str, split: str) -> str:
        """Says the ensemble in a line, and each prompt in one below."""
        lines = [describe_score(self.score, f"{task}, {len(self.members)} prompts,", split)]
        ordered = sorted(self.members.items(), key=lambda item: (-item[1].value, item[0]))
        for name, score in ordered:
            share = f"{self.weights[name]:.3f} of it"
            lines.append(f"  {name}: {score.metric} {score.value:.3f} alone, {share}")
        return "\n".join(lines)


def evaluate_ensemble(
    prompts: Mapping[str, Prompt] | str | Path, task: Task | str | Path, **options: Any
) -> Score:
    """Scores several prompts together over every row of a split, as they are.

    Args:
        prompts: a folder, or prompts by name; all of one backbone and length. One is allowed, and
            then its own score comes out.
        task: a task with labels, its name, or its folder.
        **options: as for :func:`score_ensemble`: weights, combine, split, backbone and others.

    Returns:
        The score of the ensemble.

    Raises:
        InputError: prompts that do not belong together, a task whose answers are written, wrong
            weights, or broken data.

    Example:
        >>> from jpt.types import PromptCard
        >>> card = PromptCard("builtin/bert-small", "builtin/imdb")
        >>> random = np.random.default_rng(0).normal(0, 0.1, (2, 5, 128)).astype(np.float32)
        >>> parts = {name: Prompt(each, card) for name, each in zip("ab", random)}
        >>> rows = [{"text": "Fine.", "label": 1}, {"text": "Dull.", "label": 0}]
        >>> evaluate_ensemble(parts, "sst2", data={"test": rows}, eval_batch_size=2).rows
        2
    """
    return score_ensemble(prompts, task, **options).score


def score_ensemble(
    prompts: Mapping[str, Prompt] | str | Path,
    task: Task | str | Path,
    *,
    weights: Weights | None = None,
    combine: str = "log_probs",
    split: str = "test",
    backbone: Backbone | str | Path | None = None,
    max_tokens: int | None = None,
    label_scoring: str = "phrase",
    eval_batch_size: int = 64,
    dtype: str = "float32",
    mesh: str | None = None,
    data: Data | None = None,
) -> EnsembleScore:
    """Scores several prompts together and each alone, in one pass over the rows."""
    check_choice("combine", combine, COMBINE)
    check_choice("label_scoring", label_scoring, LABEL_SCORING)
    check_counts(max_tokens=max_tokens, eval_batch_size=eval_batch_size)
    loaded = load_runs(prompts)
    shares = settle_weights(list(prompts if isinstance(prompts, Mapping) else loaded), weights)
    devices, definition = make_mesh(mesh), as_task(task, data)
    _refuse_written(definition)
    batch_sharding(devices, eval_batch_size)
    first = next(iter(loaded.values()))
    name = first.card.backbone if backbone is None else backbone
    model = as_backbone(name, dtype, mesh=devices)
    check_prompt(first, model.name, model.config.width, model.layout, backbone is not None)
    position = first.card.first_position or 0
    tokens = settle_length(max_tokens, model, definition, len(first.values), position)
    prepared = prepare_task(definition, model, tokens, eval_batch_size, position, label_scoring)
    return _score(
        prepared, loaded, {name: shares[name] for name in loaded}, combine, split, devices
    )


def _refuse_written(task: Task) -> None:
    if task.is_written:
        raise InputError(
            f"the answers of task {task.name} are written, and texts of several prompts have no"
            " mean; average the prompts themselves (jpt mix average), or take a task with labels"
        )


def _score(
    prepared: PreparedTask,
    prompts: Mapping[str, Prompt],
    shares: dict[str, float],
    combine: str,
    split: str,
    mesh: Mesh,
) -> EnsembleScore:
    """Reads the rows once for all prompts."""
    task, model, rows = prepared.task, prepared.backbone, prepared.split(split)
    module = model.module.clone(dropout_rate=0.0)
    values = [prompt.values for prompt in prompts.values()]
    settings = (prepared.answer, prepared.batching, mesh)
    logits = bank_logits(module, model.params, values, rows, *settings)
    facts = (rows.labels, task.labels, task.metric)
    mean = combine_logits(logits, np.array(list(shares.values())), combine)
    members = {name: score_logits(each, *facts) for name, each in zip(prompts, logits, strict=True)}
    return EnsembleScore(score_logits(mean, *facts), members, shares, combine)


def combine_logits(
    logits: Float[np.ndarray, "K N C"], weights: Float64[np.ndarray, "K"], combine: str
) -> Float64[np.ndarray, "N C"]:
    """Averages what several prompts say of the labels of each row."""
    log_probs = log_softmax(logits.astype(np.float64), axis=-1)
    if combine == "probs":
        return logsumexp(log_probs, axis=0, b=weights[:, None, None])
    return np.einsum("k,knc->nc", weights, log_probs)
