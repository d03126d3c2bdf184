"""Learn mixtures of prompts for a task, and score ensembles."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Float64
from scipy.special import log_softmax, logsumexp

from jpt.backbones.registry import Backbone
from jpt.config import ScoringOptions, TuneOptions, check_choice
from jpt.errors import InputError
from jpt.parallel import batch_sharding, make_mesh, place, replicated
from jpt.prompts.arithmetic import (
    MIXTURE,
    Weights,
    load_parts,
    mix_bank,
    mixed_card,
    resolve_weights,
    softmax_weights,
)
from jpt.prompts.store import check_prompt, load_prompt, load_runs, save_prompt, stack_prompts
from jpt.tasks.task import Task
from jpt.tuning.batches import TrainBatches, make_train_batches
from jpt.tuning.bound_task import (
    BoundTask,
    Splits,
    bank_logits,
    bind,
    check_finite,
    data_record,
    in_task_of,
    resolve_backbone,
    resolve_options,
    resolve_task,
    score_logits,
    scoring_notes,
    weights_of,
)
from jpt.tuning.evaluate import describe_score
from jpt.tuning.logging import peak_memory_mb
from jpt.tuning.losses import Answer, answer_loss
from jpt.tuning.run_dir import BEST, RunFolder
from jpt.tuning.step import Optimizer
from jpt.tuning.trainer import Best, Fitted, Problem, fit, intervals_of
from jpt.types import Batch, Data, Parameters, Prompt, Score
from jpt.version import __version__

# --- Ensembles: average the predictions of several prompts

COMBINE = ("log_probs", "probs")


@dataclass(frozen=True)
class EnsembleScore:
    """Score of an ensemble and of its members.

    Attributes:
        score: Score of the ensemble.
        members: Score of each prompt alone.
        weights: Weight of each prompt; they sum to 1.
        combine: Averaged quantity: ``log_probs`` or ``probs``.
    """

    score: Score
    members: dict[str, Score]
    weights: dict[str, float]
    combine: str

    @property
    def record(self) -> dict[str, Any]:
        """JSON form of the result."""
        members = {name: score.summary() for name, score in self.members.items()}
        parts = {"combine": self.combine, "weights": self.weights, "members": members}
        return {**self.score.summary(), **parts}

    def describe(self, task: str, split: str) -> str:
        """Return one line for the ensemble and one for each member."""
        lines = [describe_score(self.score, f"{task}, {len(self.members)} prompts,", split)]
        ordered = sorted(self.members.items(), key=lambda item: (-item[1].value, item[0]))
        for name, score in ordered:
            lines.append(
                f"  {name}: {score.metric} {score.value:.3f} alone, weight {self.weights[name]:.3f}"
            )
        return "\n".join(lines)


def evaluate_ensemble(
    prompts: Mapping[str, Prompt] | str | Path, task: Task | str | Path, **options: Any
) -> Score:
    """Score an ensemble of prompts on a split, without training.

    Every prompt predicts every row; the label probabilities are averaged.

    Args:
        prompts: Folder of prompts, or prompts by name; all of one backbone and length.
        task: Classification task, its name, or its folder.
        **options: Arguments of :func:`score_ensemble`: weights, combine, split, backbone and
            others.

    Returns:
        The :class:`jpt.types.Score` of the ensemble.

    Raises:
        InputError: If the prompts are incompatible, the task is generative, or weights or data
            are invalid.

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
    label_scoring: str | None = None,
    eval_batch_size: int = 64,
    dtype: str = "float32",
    mesh: str | None = None,
    data: Data | None = None,
) -> EnsembleScore:
    """Score an ensemble and each of its members in one pass over the rows."""
    check_choice("combine", combine, COMBINE)
    options = ScoringOptions(max_tokens, eval_batch_size, label_scoring)
    loaded = load_runs(prompts)
    shares = resolve_weights(list(prompts if isinstance(prompts, Mapping) else loaded), weights)
    devices, definition = make_mesh(mesh), resolve_task(task, data)
    _check_classification(definition)
    batch_sharding(devices, eval_batch_size)
    first = next(iter(loaded.values()))
    name = first.card.backbone if backbone is None else backbone
    model = resolve_backbone(name, dtype, mesh=devices)
    check_prompt(first, model.name, model.config.width, model.layout, backbone is not None)
    cards = {name: prompt.card for name, prompt in loaded.items()}
    tuned = in_task_of(definition, cards)
    bound = bind(definition, model, options, first, tuned)
    found = _score(bound, loaded, {name: shares[name] for name in loaded}, combine, split, devices)
    notes = (*scoring_notes(cards, definition, options, weights_of(model), tuned), *bound.notes)
    return dataclasses.replace(found, score=dataclasses.replace(found.score, notes=notes))


def _check_classification(task: Task) -> None:
    if task.is_generative:
        raise InputError(
            f"task {task.name}: expected a classification task, got a generative one, whose answers"
            " cannot be averaged; average the prompts themselves (jpt mix average)"
        )


def _score(
    bound: BoundTask,
    prompts: Mapping[str, Prompt],
    shares: dict[str, float],
    combine: str,
    split: str,
    mesh: Mesh,
) -> EnsembleScore:
    task, model, rows = bound.task, bound.backbone, bound.split(split)
    module = model.module.clone(dropout_rate=0.0)
    values = [prompt.values for prompt in prompts.values()]
    logits = bank_logits(module, model.params, values, rows, bound.answer, bound.batching, mesh)
    truth = (rows.labels, task.labels, task.metric)
    mean = combine_logits(logits, np.array(list(shares.values())), combine)
    members = {name: score_logits(each, *truth) for name, each in zip(prompts, logits, strict=True)}
    check_finite(list(members.values()), values, list(prompts), task, model)
    return EnsembleScore(score_logits(mean, *truth), members, shares, combine)


def combine_logits(
    logits: Float[np.ndarray, "K N C"], weights: Float64[np.ndarray, "K"], combine: str
) -> Float64[np.ndarray, "N C"]:
    """Average the label predictions of several prompts for each row."""
    log_probs = log_softmax(logits.astype(np.float64), axis=-1)
    if combine == "probs":
        return logsumexp(log_probs, axis=0, b=weights[:, None, None])
    return np.einsum("k,knc->nc", weights, log_probs)


# --- Training step of a softmax mixture


def mix(bank: Float[Array, "K P D"], logits: Float[Array, "K R"]) -> Float[Array, "P D"]:
    """Mix the prompts of a bank by the softmax of the logits."""
    return (jax.nn.softmax(logits, axis=0)[:, :, None] * bank).sum(0)


@dataclass(frozen=True)
class MixtureLoss:
    """Loss behind the mixed prompt: ``frozen`` is (weights, bank of prompts, `Answer`)."""

    module: nn.Module
    objective: str = "labels"

    def __call__(
        self,
        frozen: tuple[Parameters, Float[Array, "K P D"], Answer],
        logits: Float[Array, "K R"],
        batch: Batch,
        key: Array | None = None,
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Return loss and accuracy of a batch."""
        weights, bank, answer = frozen
        mixed = mix(bank, logits)
        return answer_loss(self.module, weights, mixed, batch, answer, self.objective)


# --- Learning a mixture
# Not in the paper, which transfers one prompt at a time. Only K numbers (or K per prompt token) are
# trained, on the batches that prompt tuning would use; the result is an ordinary prompt.

# AdamW moves a logit by about the learning rate each step: 100 steps suffice to select one source.
STEPS, LEARNING_RATE = 100, 0.1

_SET_HERE = ("length", "init", "dropout")


@dataclass(frozen=True)
class MixtureResult:
    """Result of `learn_mixture`.

    Attributes:
        prompt: Mixed prompt with the best validation score.
        weights: Weight of each source; with ``per_row`` the mean over prompt tokens.
        row_weights: Weights [K, 1], or [K, P] with ``per_row``, in the order of ``weights``.
        record: Scores and weights, as in ``result.json``.
        history: Logged lines.
        folder: Run folder; None if the run was kept in memory.
    """

    prompt: Prompt
    weights: dict[str, float]
    row_weights: Float64[np.ndarray, "K R"]
    record: dict[str, Any]
    history: list[dict[str, Any]]
    folder: Path | None

    def describe(self) -> str:
        """Return weights and scores as text."""
        record, metric = self.record, self.record["metric"]
        lines = [
            f"{record['task']} on {record['backbone']}: mixture of {len(self.weights)} prompts"
        ]
        for name, weight in sorted(self.weights.items(), key=lambda item: (-item[1], item[0])):
            lines.append(f"{weight:7.3f}  {name}")
        scored = ", ".join(
            f"{name} {metric} {record[name][metric]:.3f}"
            for name in ("test", "validation")
            if name in record
        )
        lines.append(
            f"{scored} (plain average on validation {record['average'][metric]:.3f}); best at step"
            f" {record['best_step']} of {record['steps']}, {record['elapsed_s']:.0f} s"
        )
        if self.folder is not None:
            lines.append(f"prompt: {self.folder / BEST}")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Study:
    """Loaded and checked inputs of a run."""

    backbone: Backbone
    bound: BoundTask
    parts: dict[str, Prompt]
    bank: Float32[np.ndarray, "K P D"]
    per_row: bool
    options: TuneOptions
    splits: Splits
    mesh: Mesh
    batches: TrainBatches

    def config(self) -> dict[str, Any]:
        """Return all that defines the run; a run with another config does not resume it."""
        return {
            "jpt_version": __version__,
            "study": MIXTURE,
            "backbone": self.backbone.name,
            "fingerprint": self.backbone.fingerprint,
            "task": self.bound.task.name,
            "metric": self.bound.task.metric,
            "sources": {name: _checksum(prompt) for name, prompt in self.parts.items()},
            "per_row": self.per_row,
            "label_ids": self.bound.label_words.token_ids,
            "data": data_record(self.splits),
            **dataclasses.asdict(self.options),
            "init": MIXTURE,
        }

    def batch_at(self, step: int) -> Batch:
        return self.batches.batch(step, self.mesh)

    def score(self, logits: Float[Array, "K R"], split: str) -> Score:
        mixed = mix_bank(self.bank, softmax_weights(np.asarray(logits)))
        return self.bound.score([mixed], self.splits[split], self.mesh, may_diverge=True)[0]

    def problem(self) -> Problem:
        """Return what is trained: the logits of the weights, at first a plain average."""
        options, backbone = self.options, self.backbone
        bank = place(jnp.asarray(self.bank), replicated(self.mesh))
        return Problem(
            frozen=(backbone.params, bank, self.bound.answer),
            init=np.zeros((len(self.bank), self.bank.shape[1] if self.per_row else 1)),
            loss=MixtureLoss(backbone.module.clone(dropout_rate=0.0), options.objective),
            batch=self.batch_at,
            evaluate=lambda logits: self.score(logits, "validation"),
            config=self.config(),
            finish=self._finish,
            **intervals_of(options),
            score_start=True,
            learning_rate=options.learning_rate,
            optimizer=Optimizer(clip_norm=options.clip_norm),
            mesh=self.mesh,
            keep=lambda best, folder: save_prompt(folder.file(BEST), self.mixed(best)),
        )

    def mixed(self, best: Best) -> Prompt:
        """Return the mixed prompt of a run."""
        task, weights = self.bound.task, softmax_weights(best.params)
        card = mixed_card(self.parts, self._shares(weights), MIXTURE, task.name, task.type)
        run = {"seed": self.options.seed, "steps": best.step, "score": best.score}
        run |= {"metric": task.metric}
        run["scoring"] = dataclasses.replace(self.bound.scoring, split="validation")
        return Prompt(mix_bank(self.bank, weights), dataclasses.replace(card, **run))

    def _shares(self, weights: Float64[np.ndarray, "K R"]) -> dict[str, float]:
        return dict(zip(self.parts, weights.mean(1).tolist(), strict=True))

    def _finish(self, fitted: Fitted, folder: RunFolder | None) -> dict[str, Any]:
        """Write the mixed prompt; return its scores, and that of the plain average."""
        best, weights = fitted.best, softmax_weights(fitted.best.params)
        prompt, scores = self.mixed(best), {"validation": fitted.logged(best.step)}
        scores["average"] = fitted.logged(0)
        if "test" in self.splits:
            rows = self.splits["test"]
            scores["test"] = self.bound.score([prompt.values], rows, self.mesh)[0].summary()
        if folder is not None:
            save_prompt(folder.file(BEST), prompt)
        return {
            "backbone": self.backbone.name,
            "task": self.bound.task.name,
            "metric": self.bound.task.metric,
            "steps": self.options.steps,
            "best_step": best.step,
            "weights": self._shares(weights),
            "row_weights": dict(zip(self.parts, weights.tolist(), strict=True)),
            **scores,
            "elapsed_s": fitted.elapsed_s,
            "peak_memory_mb": peak_memory_mb(),
        }


def learn_mixture(
    backbone: Backbone | str | Path | None,
    task: Task | str | Path,
    prompts: Mapping[str, Prompt] | str | Path,
    out: str | Path | None = None,
    *,
    per_row: bool = False,
    steps: int = STEPS,
    learning_rate: float = LEARNING_RATE,
    data: Data | None = None,
    progress: bool = False,
    **options: Any,
) -> MixtureResult:
    """Learn the weights of a softmax mixture of source prompts on a task.

    Training starts from the plain average (all logits 0). The weights with the best validation
    score are kept, the average included; of equal scores the first one counts.

    Args:
        backbone: Frozen model; None for the one named by the prompts' cards.
        task: Task, its name, or its folder.
        prompts: Source prompts: a folder, or prompts by name; two or more of one backbone and
            length.
        out: Run folder, as for :func:`jpt.tune`.
        per_row: Learn separate weights for each prompt token.
        steps: Number of optimizer steps.
        learning_rate: Learning rate of the logits.
        data: Folder of the task's rows, or the rows by split.
        progress: Show a progress bar on stderr.
        **options: Fields of :class:`jpt.config.TuneOptions` except length, init and dropout.

    Returns:
        The :class:`MixtureResult`: weights, mixed prompt, scores and log.

    Raises:
        InputError: If the prompts do not fit each other or the backbone, and as `jpt.tune`.
        DivergedError: If the loss is not finite.
        StoppedError: After SIGTERM or Ctrl-C; the state is saved.

    Example:
        >>> from jpt.types import PromptCard
        >>> card = PromptCard("builtin/bert-small", "builtin/imdb")
        >>> parts = {name: Prompt(np.zeros((5, 128), np.float32), card) for name in "ab"}
        >>> rows = [{"text": "Fine.", "label": 1}, {"text": "Dull.", "label": 0}]
        >>> data = {"train": rows, "validation": rows}
        >>> found = learn_mixture(None, "sst2", parts, data=data, steps=1, eval_batch_size=2)
        >>> round(sum(found.weights.values()), 6), found.prompt.card.task
        (1.0, 'sst2')
    """
    started_s = time.monotonic()
    chosen = _options(steps=steps, learning_rate=learning_rate, **options)
    study = _prepare(backbone, task, load_parts(prompts), per_row, data, chosen)
    folder = None if out is None else RunFolder(Path(out), study.config())
    if folder is not None and (record := folder.result) is not None:
        return _result(study, load_prompt(folder.path / BEST), record, folder, folder.history())
    study.splits.warn()
    fitted = fit(study.problem(), folder, progress=progress, started_s=started_s)
    return _result(study, study.mixed(fitted.best), fitted.record, folder, fitted.history)


def _options(**options: Any) -> TuneOptions:
    fixed = [name for name in _SET_HERE if name in options]
    if fixed:
        raise InputError(
            f"{fixed[0]}: not an option of a mixture, which has the length of its sources, starts"
            " at their average and uses no dropout; leave it out"
        )
    return TuneOptions(**options)


def _prepare(
    backbone: Backbone | str | Path | None,
    task: Task | str | Path,
    parts: dict[str, Prompt],
    per_row: bool,
    data: Data | None,
    options: TuneOptions,
) -> _Study:
    """Load and check all inputs, cheap checks first, before anything compiles."""
    mesh = make_mesh(options.mesh)
    definition = resolve_task(task, data)
    first = next(iter(parts.values()))
    name = first.card.backbone if backbone is None else backbone
    model = resolve_backbone(name, options.dtype, mesh=mesh, remat=options.remat)
    check_prompt(first, model.name, model.config.width, model.layout, backbone is not None)
    asked = dataclasses.replace(options, length=len(first.values))
    bound = bind(definition, model, asked, first)
    options = dataclasses.replace(
        resolve_options(asked, model, definition), max_tokens=bound.batching.max_tokens
    )
    for size in (options.batch_size, options.eval_batch_size):
        batch_sharding(mesh, size)
    splits = bound.splits()
    batches = make_train_batches(
        splits["train"], options, bound.batching, model.layout, mesh.shape["data"]
    )
    bank = stack_prompts(parts)
    return _Study(model, bound, parts, bank, per_row, options, splits, mesh, batches)


def _result(
    study: _Study,
    prompt: Prompt,
    record: dict[str, Any],
    folder: RunFolder | None,
    history: list[dict[str, Any]],
) -> MixtureResult:
    rows = np.array([record["row_weights"][name] for name in study.parts])
    path = None if folder is None else folder.path
    return MixtureResult(prompt, dict(record["weights"]), rows, record, history, path)


def _checksum(prompt: Prompt) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(prompt.values, np.float32).tobytes())
    return digest.hexdigest()[:16]
