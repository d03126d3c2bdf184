"""Learn mixtures of prompts for a task, and score ensembles."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Float64
from scipy.special import log_softmax, logsumexp

from jpt.backbones.registry import Backbone
from jpt.config import LABEL_SCORING, TuneOptions, check_choice, check_counts
from jpt.data.encode import EncodedSplit
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
from jpt.tuning.bound_task import (
    BoundTask,
    bank_logits,
    bind_task,
    data_record,
    resolve_backbone,
    resolve_max_tokens,
    resolve_options,
    resolve_task,
    score_logits,
)
from jpt.tuning.evaluate import describe_score
from jpt.tuning.logging import Progress, peak_memory_mb
from jpt.tuning.losses import Answer, answer_loss
from jpt.tuning.run_dir import BEST, CHECKPOINTS, Checkpoints, RunFolder
from jpt.tuning.step import StepMetrics, TrainStep, TuneState, init_state, prompt_optimizer
from jpt.tuning.trainer import (
    LoopState,
    Run,
    Schedule,
    best_prompt,
    init_state_of,
    resume,
    run_loop,
)
from jpt.tuning.tune import TrainBatches, make_train_batches
from jpt.types import Batch, Data, Parameters, Prompt, Score
from jpt.version import __version__

# --- Several prompts on one task at once: each reads every row, and their answers are averaged

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
    shares = resolve_weights(list(prompts if isinstance(prompts, Mapping) else loaded), weights)
    devices, definition = make_mesh(mesh), resolve_task(task, data)
    _refuse_generative(definition)
    batch_sharding(devices, eval_batch_size)
    first = next(iter(loaded.values()))
    name = first.card.backbone if backbone is None else backbone
    model = resolve_backbone(name, dtype, mesh=devices)
    check_prompt(first, model.name, model.config.width, model.layout, backbone is not None)
    position = first.card.first_position or 0
    tokens = resolve_max_tokens(max_tokens, model, definition, len(first.values), position)
    prepared = bind_task(definition, model, tokens, eval_batch_size, position, label_scoring)
    return _score(
        prepared, loaded, {name: shares[name] for name in loaded}, combine, split, devices
    )


def _refuse_generative(task: Task) -> None:
    if task.is_generative:
        raise InputError(
            f"the answers of task {task.name} are written, and texts of several prompts have no"
            " mean; average the prompts themselves (jpt mix average), or take a task with labels"
        )


def _score(
    prepared: BoundTask,
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


# --- One step of learning a softmax mixture of frozen prompts: a pure function, compiled once


def mix(bank: Float[Array, "K P D"], logits: Float[Array, "K R"]) -> Float[Array, "P D"]:
    """Mixes the prompts of a bank by the softmax of logits."""
    return (jax.nn.softmax(logits, axis=0)[:, :, None] * bank).sum(0)


def mixture_loss(
    module: nn.Module,
    params: Parameters,
    bank: Float[Array, "K P D"],
    logits: Float[Array, "K R"],
    batch: Batch,
    answer: Answer,
    objective: str = "labels",
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Gives the loss of a batch behind the mixture, and the share of right answers."""
    return answer_loss(module, params, mix(bank, logits), batch, answer, objective)


@lru_cache(maxsize=16)
def mixture_step(
    module: nn.Module,
    learning_rate: float,
    objective: str,
    mesh: Mesh | None = None,
    clip_norm: float | None = None,
) -> TrainStep:
    """Gives the compiled step; what is trained is the logits, in the place of a prompt."""
    optimizer = prompt_optimizer(learning_rate, clip_norm)

    def loss_of(
        logits: Array, params: Parameters, batch: Batch, answer: Answer
    ) -> tuple[Array, Array]:
        frozen = (module, params["backbone"], params["bank"])
        return mixture_loss(*frozen, logits, batch, answer, objective)

    def step(
        params: Parameters, state: TuneState, batch: Batch, answer: Answer
    ) -> tuple[TuneState, StepMetrics]:
        (loss, accuracy), gradient = jax.value_and_grad(loss_of, has_aux=True)(
            state.prompt, params, batch, answer
        )
        # optax raises a float to an int power, which strict promotion (on in tests) refuses.
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.prompt)
        logits = optax.apply_updates(state.prompt, updates)
        metrics = StepMetrics(loss, accuracy, optax.tree.norm(gradient))
        return TuneState(state.step + 1, logits, optimizer_state), metrics

    shardings = {} if mesh is None else {"out_shardings": replicated(mesh)}
    return jax.jit(step, donate_argnums=1, **shardings)


# --- A softmax mixture of frozen source prompts, its weights learnt on a task
# Only K numbers (or K for each row of the prompt) are trained, through the frozen model and on the
# same batches that a prompt would be tuned on; the result is an ordinary prompt to start from. Not
# part of the paper, which moves one prompt at a time.

STEPS, LEARNING_RATE = 100, 0.1
"""AdamW moves a logit by about the rate each step: 100 steps can choose one source alone."""

_SET_HERE = ("length", "init", "dropout")
_PLACE_KEYS = ("step", "split")


@dataclass(frozen=True)
class MixtureResult:
    """What learning a mixture gives.

    Attributes:
        prompt: the mixed prompt, best on validation.
        weights: the share of each source, of the rows' weights the mean.
        row_weights: the shares [K, 1], or [K, P] where each row has its own; sources by name.
        record: scores and weights, as in ``result.json``.
        history: the logged lines.
        folder: where the run lies, where it was written.
    """

    prompt: Prompt
    weights: dict[str, float]
    row_weights: Float64[np.ndarray, "K R"]
    record: dict[str, Any]
    history: list[dict[str, Any]]
    folder: Path | None

    def describe(self) -> str:
        """Says in a few lines what came out."""
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
    """Everything a run is made of, before its first step."""

    backbone: Backbone
    prepared: BoundTask
    parts: dict[str, Prompt]
    bank: Float32[np.ndarray, "K P D"]
    per_row: bool
    options: TuneOptions
    splits: dict[str, EncodedSplit]
    mesh: Mesh
    feed: TrainBatches

    def config(self) -> dict[str, Any]:
        """Defines the run: another config is another run."""
        return {
            "jpt_version": __version__,
            "study": MIXTURE,
            "backbone": self.backbone.name,
            "fingerprint": self.backbone.fingerprint,
            "task": self.prepared.task.name,
            "sources": {name: _checksum(prompt) for name, prompt in self.parts.items()},
            "per_row": self.per_row,
            "label_ids": self.prepared.words.token_ids,
            "data": data_record(self.splits),
            **dataclasses.asdict(self.options),
            "init": MIXTURE,
        }

    def batch_at(self, step: int) -> Batch:
        """Gives the batch of a step, on the devices."""
        return self.feed.batch(step, self.mesh)

    def score(self, logits: Float[Array, "K R"], split: str) -> Score:
        """Scores the mixture of some logits over a whole split."""
        mixed = mix_bank(self.bank, softmax_weights(np.asarray(logits)))
        return self.prepared.score([mixed], self.splits[split], self.mesh)[0]


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
    """Learns on a task how much of each source prompt goes into a start for it.

    The start is the plain average (all logits 0). The weights are kept that do best on validation,
    the average among them; of equal ones the first, so that a score which the average reaches
    already leaves it as it is.

    Args:
        backbone: that the task is learnt on; None for the one that the prompts' cards name.
        task: a task, its name, or its folder; answers may be labels or written.
        prompts: the sources: a folder, or prompts by name; two or more of one backbone and length.
        out: run folder, as for :func:`jpt.tune`.
        per_row: whether each row of the prompt has weights of its own.
        steps: of the optimizer.
        learning_rate: of the logits.
        data: folder of the task's rows, or the rows by split.
        progress: whether to show a bar on stderr.
        **options: fields of :class:`jpt.config.TuneOptions` but length, init and dropout, which
            the sources decide or which is off.

    Returns:
        Weights and mixed prompt, with scores and the log.

    Raises:
        InputError: prompts that do not belong together or to the backbone, and as `jpt.tune`.
        DivergedError: for a loss that is no finite number.
        StoppedError: after SIGTERM or Ctrl-C; the state is saved.

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
    if folder is None:
        return _run(study, None, None, progress, started_s)
    if folder.result is not None:
        return _result(study, load_prompt(folder.path / BEST), folder.result, folder)
    with folder.lock(), Checkpoints(folder.path / CHECKPOINTS, study.backbone.fingerprint) as saves:
        return _run(study, folder, saves, progress, started_s)


def _options(**options: Any) -> TuneOptions:
    """The options of a run, without what the sources decide."""
    fixed = [name for name in _SET_HERE if name in options]
    if fixed:
        raise InputError(
            f"{fixed[0]} is given, but a mixture has the length of its sources, starts as their"
            " average and learns without dropout; leave it out"
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
    """Loads and checks everything, cheap things first, before anything is compiled."""
    mesh = make_mesh(options.mesh)
    definition = resolve_task(task, data)
    first = next(iter(parts.values()))
    name = first.card.backbone if backbone is None else backbone
    model = resolve_backbone(name, options.dtype, mesh=mesh, remat=options.remat)
    check_prompt(first, model.name, model.config.width, model.layout, backbone is not None)
    rows, position = len(first.values), first.card.first_position or 0
    asked = options.max_tokens
    options = resolve_options(dataclasses.replace(options, length=rows), model, definition)
    tokens = resolve_max_tokens(asked, model, definition, rows, position, options.answer_tokens)
    options = dataclasses.replace(options, max_tokens=tokens)
    prepared = bind_task(
        definition,
        model,
        tokens,
        options.eval_batch_size,
        position,
        options.label_scoring,
        options.answer_tokens,
    )
    for size in (options.batch_size, options.eval_batch_size):
        batch_sharding(mesh, size)
    splits = prepared.splits()
    feed = make_train_batches(
        splits["train"], options, prepared.batching, model.layout, mesh.shape["data"]
    )
    bank = stack_prompts(parts)
    return _Study(model, prepared, parts, bank, per_row, options, splits, mesh, feed)


def _run(
    study: _Study,
    folder: RunFolder | None,
    checkpoints: Checkpoints | None,
    progress: bool,
    started_s: float,
) -> MixtureResult:
    options, backbone = study.options, study.backbone
    module = backbone.module.clone(dropout_rate=0.0)
    bank = place(jnp.asarray(study.bank), replicated(study.mesh))
    run = Run(
        params={"backbone": backbone.params, "bank": bank},
        answer=study.prepared.answer,
        step=mixture_step(
            module, options.learning_rate, options.objective, study.mesh, options.clip_norm
        ),
        batch_at=study.batch_at,
        score=lambda logits: study.score(logits, "validation"),
        schedule=Schedule(
            options.steps,
            options.eval_every,
            options.checkpoint_every,
            options.batch_size,
            score_start=True,
            checkpoint_minutes=options.checkpoint_minutes,
        ),
        folder=folder,
        checkpoints=checkpoints,
    )
    state = _start(study, run)
    with Progress(options.steps, int(state.tune.step), shown=progress) as bar:
        state = run_loop(run, state, bar)
    logits, score, step = best_prompt(state)
    weights = softmax_weights(logits)
    prompt = _mixed(study, weights, step, score)
    record = _record(study, weights, prompt, run.history, started_s)
    if folder is not None:
        save_prompt(folder.path / BEST, prompt)
        folder.finish(record)
    return _result(study, prompt, record, folder, run.history)


def _start(study: _Study, run: Run) -> LoopState:
    """The average, or where a broken run stopped."""
    shape = (len(study.bank), study.bank.shape[1] if study.per_row else 1)
    logits = init_state(jnp.zeros(shape), prompt_optimizer(study.options.learning_rate))
    return resume(run, init_state_of(place(logits, replicated(study.mesh))))


def _mixed(study: _Study, weights: Float64[np.ndarray, "K R"], step: int, score: float) -> Prompt:
    task = study.prepared.task
    card = mixed_card(study.parts, _shares(study, weights), MIXTURE, task.name, task.type)
    told = {"seed": study.options.seed, "steps": step, "score": score, "metric": task.metric}
    return Prompt(mix_bank(study.bank, weights), dataclasses.replace(card, **told))


def _shares(study: _Study, weights: Float64[np.ndarray, "K R"]) -> dict[str, float]:
    return dict(zip(study.parts, weights.mean(1).tolist(), strict=True))


def _record(
    study: _Study,
    weights: Float64[np.ndarray, "K R"],
    prompt: Prompt,
    history: list[dict[str, Any]],
    started_s: float,
) -> dict[str, Any]:
    validations = {line["step"]: line for line in history if line["split"] == "validation"}
    scores = {
        name: {key: value for key, value in validations[step].items() if key not in _PLACE_KEYS}
        for name, step in (("validation", prompt.card.steps), ("average", 0))
    }
    if "test" in study.splits:
        rows = study.splits["test"]
        scores["test"] = study.prepared.score([prompt.values], rows, study.mesh)[0].summary()
    return {
        "backbone": study.backbone.name,
        "task": study.prepared.task.name,
        "metric": study.prepared.task.metric,
        "steps": study.options.steps,
        "best_step": prompt.card.steps,
        "weights": _shares(study, weights),
        "row_weights": dict(zip(study.parts, weights.tolist(), strict=True)),
        **scores,
        "elapsed_s": round(time.monotonic() - started_s, 2),
        "peak_memory_mb": peak_memory_mb(),
    }


def _result(
    study: _Study,
    prompt: Prompt,
    record: dict[str, Any],
    folder: RunFolder | None,
    history: list[dict[str, Any]] | None = None,
) -> MixtureResult:
    rows = np.array([record["row_weights"][name] for name in study.parts])
    lines = folder.history() if history is None and folder is not None else history or []
    path = None if folder is None else folder.path
    return MixtureResult(prompt, dict(record["weights"]), rows, record, lines, path)


def _checksum(prompt: Prompt) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(prompt.values, np.float32).tobytes())
    return digest.hexdigest()[:16]
