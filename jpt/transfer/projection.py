"""Apply projectors and compare projected prompts with baselines."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Float64, Int64

from jpt.backbones.registry import Backbone, check_lengths
from jpt.config import (
    ANCHORS,
    PROJECTOR_BASELINES,
    EvaluationOptions,
    ProjectorOptions,
    TuneOptions,
    check_counts,
)
from jpt.data.rows import has_split
from jpt.distributed import on_first
from jpt.errors import InputError, unknown_name
from jpt.io.files import OutFolder, make_folder, write_json
from jpt.parallel import batch_sharding, describe_devices, fetch, make_mesh
from jpt.prompts.initialisers import initial_generator, random_values, sampled_ids
from jpt.prompts.store import save_prompt
from jpt.results.prompt_table import (
    AT_CHANCE,
    AT_CHANCE_MEANING,
    ERRORS,
    align_columns,
    at_chance,
    chance_record,
    check_unique,
    match_in_task_prompts,
    write_errors,
    write_transfer,
)
from jpt.results.provenance import environment_info
from jpt.tasks.task import Task
from jpt.transfer.projector import (
    PROJECTOR_FILE,
    ProjectorCard,
    Prompts,
    TrainedProjector,
    as_projector,
    check_different_backbones,
    check_source,
    check_targets,
    describe_origin,
    initial_parameters,
    length_of,
    make_card,
    projected,
    prompts_of_tasks,
    read_prompts,
    read_tasks,
)
from jpt.tuning.bound_task import (
    bind,
    resolve_backbone,
    scoring_notes,
    weights_of,
    with_inherited,
)
from jpt.tuning.tune import WarmStart, tune
from jpt.types import Prompt, PromptCard, TransferMatrix

# --- Tokens shared by two vocabularies

_WORD_STARTS = ("\u2581", "\u0120")  # word-start marks of SentencePiece and byte-level BPE
_CONTINUES = "##"  # WordPiece's mark of a token that continues a word


def shared_tokens(
    source: Backbone, target: Backbone
) -> tuple[Int64[np.ndarray, "N"], Int64[np.ndarray, "N"]]:
    """Return the ids, in both vocabularies, of the tokens that both have."""
    # Tokens match if their texts are equal and both start a word or both continue one (``film`` of
    # WordPiece is SentencePiece's with a word-start mark). Special, untrained tokens are left out.
    first, second = _token_ids(source), _token_ids(target)
    pairs = [(token, second[key]) for key, token in first.items() if key in second]
    if not pairs:
        raise InputError(
            f"{source.name} ({len(first)} tokens) and {target.name} ({len(second)} tokens):"
            " expected shared tokens, got none; train a projector with jpt project train"
        )
    found = np.array(sorted(pairs), np.int64)
    return found[:, 0], found[:, 1]


def token_embeddings(backbone: Backbone, ids: Int64[np.ndarray, "N"]) -> Float64[np.ndarray, "N D"]:
    """Return the embeddings of tokens."""
    rows = backbone.params["embeddings"]["word"][ids.astype(np.int32)]
    return fetch(rows).astype(np.float64)


def _token_ids(backbone: Backbone) -> dict[tuple[bool, str], int]:
    """Map (starts a word, text) to the id of each ordinary token."""
    tokenizer = backbone.tokenizer
    count = min(backbone.config.vocabulary, tokenizer.vocabulary_size)
    texts = [tokenizer.token_text(token) for token in range(count)]
    special = {token for token in tokenizer.ids if token is not None}
    mark = next((m for m in _WORD_STARTS if any(t.startswith(m) for t in texts)), None)
    kept = sampled_ids(texts, special).tolist()
    return {plain: token for token in reversed(kept) if (plain := _plain(texts[token], mark))[1]}


def _plain(token: str, mark: str | None) -> tuple[bool, str]:
    """Return whether a token starts a word, and its text without marks."""
    if mark is not None:
        return token.startswith(mark), token.removeprefix(mark)
    return not token.startswith(_CONTINUES), token.removeprefix(_CONTINUES)


def choose_anchors(count: int, wanted: int) -> Sequence[int]:
    """Return evenly spaced indices into a list of shared tokens."""
    # Not its head: a vocabulary begins with digits, punctuation and single letters.
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).round().astype(int)).tolist()


# --- Untrained projection methods (baselines)

# Singular values below this share of the largest are rounding of the float32 embeddings.
ROUNDING = 1e-6

Method = Callable[[Prompt], Float32[np.ndarray, "P D"]]
"""Maps a source prompt to the values of a target prompt."""


def untrained_projector(
    prompts: Mapping[str, Prompt],
    target: Backbone,
    options: ProjectorOptions,
    like: ProjectorCard | None = None,
) -> TrainedProjector:
    """Return a randomly initialised projector (the paper's random baseline)."""
    card = make_card(prompts, target, "untrained", (), options)
    if like is not None:
        new = {"objective": "untrained", "tasks": (), "seed": options.seed}
        card = dataclasses.replace(like, **new, steps=0, score=None)
    size = (card.source_length, card.source_width)
    params = initial_parameters(card.module(), *size, options.seed)
    return TrainedProjector(card, params, "untrained")


def least_squares_projector(source: Backbone, target: Backbone, length: int) -> TrainedProjector:
    """Fit W, applied token by token, minimising ||E_source W - E_target|| over shared tokens."""
    ids, same = shared_tokens(source, target)
    first, second = token_embeddings(source, ids), token_embeddings(target, same)
    matrix = np.linalg.lstsq(first, second, rcond=ROUNDING)[0]
    card = ProjectorCard(
        source_backbone=source.name,
        target_backbone=target.name,
        target_layout=target.layout,
        objective="least_squares",
        tasks=(),
        source_length=length,
        source_width=matrix.shape[0],
        target_length=length,
        target_width=matrix.shape[1],
        activation="none",
        layer_norm=False,
        per_token=True,
    )
    row = {
        "kernel": jnp.asarray(matrix, jnp.float32),
        "bias": jnp.zeros(matrix.shape[1], jnp.float32),
    }
    return TrainedProjector(card, {"row": row}, "least_squares")


def relative_method(source: Backbone, target: Backbone, anchors: int = ANCHORS) -> Method:
    """Return a method that keeps the similarities of prompt tokens to shared anchor tokens."""
    # The code of a prompt token is its cosine to each anchor in the source model. The target token
    # is the least-squares solution for that code on unit-norm target anchors, scaled to their mean
    # norm. PTfer, whose idea this is, searches by gradient steps from random words and selects the
    # step on validation rows; this closed form needs no rows.
    check_counts(anchors=anchors)
    ids, same = shared_tokens(source, target)
    chosen = choose_anchors(len(ids), anchors)
    first = _unit(token_embeddings(source, ids[chosen]))  # [A, Ds]
    second = token_embeddings(target, same[chosen])
    norm = np.linalg.norm(second, axis=1).mean()
    inverse = np.linalg.pinv(_unit(second), rcond=ROUNDING)  # [D, A]

    def project(prompt: Prompt) -> Float32[np.ndarray, "P D"]:
        code = _unit(prompt.values.astype(np.float64)) @ first.T  # [P, A]
        return (norm * _unit(code @ inverse.T)).astype(np.float32)

    return project


def _unit(rows: np.ndarray) -> np.ndarray:
    """Scale rows to norm 1; rows of zeros stay."""
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def baseline(
    name: str,
    prompts: Mapping[str, Prompt],
    source: Callable[[], Backbone],
    target: Backbone,
    options: ProjectorOptions,
    anchors: int = ANCHORS,
    like: ProjectorCard | None = None,
) -> Method:
    """Return a baseline by its name."""
    if name not in PROJECTOR_BASELINES:
        raise unknown_name("method", name, PROJECTOR_BASELINES)
    if name == "untrained":
        return untrained_projector(prompts, target, options, like)
    rows = length_of(prompts)
    if options.length != rows:
        raise InputError(
            f"length: expected {rows}, the source's, which {name} keeps, got {options.length};"
            " leave out length or the method"
        )
    if name == "relative":
        return relative_method(source(), target, anchors)
    return least_squares_projector(source(), target, rows)


def checked_method(projector: TrainedProjector, prompts: Mapping[str, Prompt]) -> Method:
    """Return a projector as a method after checking that it accepts the prompts."""
    for name, prompt in prompts.items():
        check_source(projector.card, prompt, f"prompt {name}")
    return partial(TrainedProjector.__call__, projector)


# --- Applying projectors


def apply_projector(
    projector: TrainedProjector | str | Path,
    prompts: Prompts,
    out: str | Path | None = None,
    *,
    target_backbone: Backbone | str | Path | None = None,
    source_backbone: Backbone | str | Path | None = None,
    length: int | None = None,
    anchors: int = ANCHORS,
    seed: int = 0,
) -> dict[str, Prompt]:
    """Project prompts of the source model to ordinary prompts of the target model.

    Args:
        projector: Trained projector, its file or its run folder; or an untrained method:
            ``untrained``, ``least_squares`` or ``relative``.
        prompts: Prompts of the source model: a folder, a file, or by name.
        out: Folder for ``NAME.safetensors`` files; ``source`` in each card records the origin.
        target_backbone: Target model; required for untrained methods.
        source_backbone: Source model, for its embeddings; defaults to the one in the cards.
        length: Number of target prompt tokens of ``untrained``; defaults to the source's.
        anchors: Number of anchor tokens of ``relative``.
        seed: Seed of ``untrained``.

    Returns:
        The projected prompts, by name of the source prompt.

    Raises:
        InputError: If backbone, length or width of a prompt differ from the projector's.

    Example:
        >>> source = Prompt(np.ones((4, 128), np.float32), PromptCard("builtin/bert-small", "imdb"))
        >>> found = apply_projector("relative", source, target_backbone="builtin/bert-medium")
        >>> found["imdb"].values.shape, found["imdb"].card.source
        ((4, 192), 'relative from prompt imdb of builtin/bert-small')
    """
    given = read_prompts(prompts)
    if str(projector) in PROJECTOR_BASELINES:
        if target_backbone is None:
            raise InputError(
                f"{projector}: an untrained method has no target of its own; give target_backbone"
            )
        check_different_backbones(given, target_backbone)
        target = resolve_backbone(target_backbone)
        options = ProjectorOptions(seed=seed, length=length or length_of(given)).resolve("task")
        name, layout, by = target.name, target.layout, str(projector)
        method = baseline(
            by, given, lambda: source_of(given, source_backbone), target, options, anchors
        )
    else:
        by = as_projector(projector)
        method = checked_method(by, given)
        name, layout = by.card.target_backbone, by.card.target_layout
    found = {
        of: projected(of, prompt, method(prompt), name, layout, by) for of, prompt in given.items()
    }
    for of, prompt in found.items() if out is not None else ():
        save_prompt(make_folder(out) / f"{of}.safetensors", prompt)
    return found


def source_of(
    prompts: Mapping[str, Prompt], backbone: Backbone | str | Path | None = None
) -> Backbone:
    """Load the model that the prompts were tuned on."""
    first = next(iter(prompts.values()))
    model = resolve_backbone(backbone if backbone is not None else first.card.backbone)
    if model.config.width != first.values.shape[1]:
        raise InputError(
            f"source backbone {model.name}: expected width {first.values.shape[1]}, as the source"
            f" prompts have, got {model.config.width}; give the model that they were tuned on"
        )
    return model


# --- Methods (columns) of the cross-model table

IN_TASK, RANDOM, WARM, VANILLA = "in_task", "random", "warm", "vanilla"

Projectors = (
    Mapping[str, TrainedProjector | str | Path]
    | Sequence[TrainedProjector | str | Path]
    | TrainedProjector
    | str
    | Path
)
"""Trained projectors by column name, or several, or one."""


@dataclass(frozen=True)
class MethodPrompts:
    """Prompts to score: by method, by task."""

    backbone: Backbone  # the target
    tasks: dict[str, Task]  # by short name
    length: int  # P of the target
    in_task: dict[str, Prompt]  # in-task prompts of the target model, by task
    random: Prompt | None  # random initial prompt, the same for all tasks; None to leave it out
    projected: dict[str, dict[str, Prompt]]  # prompts by method and task
    record: dict[str, Any]  # source, target and projectors

    @property
    def names(self) -> tuple[str, ...]:
        """Column names, in order."""
        first = [IN_TASK] * bool(self.in_task) + [RANDOM] * (self.random is not None)
        return (*first, *self.projected)

    def of_task(self, task: str) -> dict[str, Prompt]:
        """Return the prompts of a task by column."""
        found = {IN_TASK: self.in_task[task]} if task in self.in_task else {}
        if self.random is not None:
            found[RANDOM] = self.random
        return found | {name: prompts[task] for name, prompts in self.projected.items()}

    def tuned(self, task: str) -> PromptCard | None:
        """Return the card whose settings a row has: of the in-task prompt, else a projected one."""
        cards = (prompt.card for prompt in self.of_task(task).values())
        return next((card for card in cards if card.scoring is not None), None)


def build_columns(
    projectors: Projectors,
    sources: Prompts,
    tasks: Iterable[Task | str | Path] | None,
    targets: Prompts | None,
    target: Backbone | str | Path | None,
    source: Backbone | str | Path | None,
    data: str | Path | None,
    options: EvaluationOptions,
    mesh: Mesh,
) -> MethodPrompts:
    """Load, check and project all prompts to score."""
    given, trained = read_prompts(sources), name_columns(projectors)
    target = _target_of(trained, target)
    check_different_backbones(given, target)
    methods: dict[str, Method] = {
        name: checked_method(projector, given) for name, projector in trained.items()
    }
    definitions = read_tasks(tasks, given, data)
    of = prompts_of_tasks(given, definitions, "source prompts")
    wanted = {} if targets is None else read_prompts(targets)
    length = _length(trained, wanted, options.length, length_of(given))
    backbone = resolve_backbone(target, options.dtype, mesh=mesh)
    check_lengths(backbone, length, 1)
    _check_projectors(trained, backbone, length)
    if wanted:
        check_targets(wanted, backbone)
    methods |= _baselines(given, trained, backbone, source, length, options)
    if options.warm_start is not None and options.warm_start not in methods:
        raise InputError(
            f"warm_start: expected one of {', '.join(methods)}, got {options.warm_start!r}"
        )
    found = _project_all(
        methods, trained, {task: (n, given[n]) for task, n in of.items()}, backbone
    )
    in_task, _ = match_in_task_prompts(
        definitions, {name: prompt.card for name, prompt in wanted.items()}
    )
    tuned = {task: wanted[name] for task, name in in_task.items()}
    start = _random_prompt(backbone, length, options.seed) if options.random else None
    record = _record(given, trained, backbone, length)
    return MethodPrompts(backbone, definitions, length, tuned, start, found, record)


def _project_all(
    methods: Mapping[str, Method],
    trained: Mapping[str, TrainedProjector],
    sources: Mapping[str, tuple[str, Prompt]],
    backbone: Backbone,
) -> dict[str, dict[str, Prompt]]:
    found: dict[str, dict[str, Prompt]] = {}
    for method, project in methods.items():
        target = (backbone.name, backbone.layout, trained.get(method, method))
        found[method] = {
            task: projected(name, prompt, project(prompt), *target)
            for task, (name, prompt) in sources.items()
        }
    return found


def name_columns(projectors: Projectors) -> dict[str, TrainedProjector]:
    """Load projectors, by column name."""
    if isinstance(projectors, Mapping):
        found = {name: as_projector(projector) for name, projector in projectors.items()}
    else:
        is_one = isinstance(projectors, (TrainedProjector, str, Path))
        loaded = [as_projector(p) for p in ([projectors] if is_one else projectors)]
        names = [_column(projector) for projector in loaded]
        check_unique(names, "projectors")
        found = dict(zip(names, loaded, strict=True))
    for name in found:
        if name in (IN_TASK, RANDOM, WARM, VANILLA, *PROJECTOR_BASELINES):
            raise InputError(f"projector {name}: the name of another column; rename the file")
    return found


def _column(projector: TrainedProjector) -> str:
    path = Path(projector.name)
    return path.parent.name if path.name == PROJECTOR_FILE and path.parent.name else path.stem


def _target_of(
    trained: Mapping[str, TrainedProjector], target: Backbone | str | Path | None
) -> Backbone | str | Path:
    names = sorted({projector.card.target_backbone for projector in trained.values()})
    if target is not None:
        return target
    if len(names) == 1:
        return names[0]
    if names:
        raise InputError(
            f"projectors: expected 1 target backbone, got {len(names)} ({', '.join(names)});"
            " evaluate them one target at a time"
        )
    raise InputError("target_backbone: required without a trained projector; give it")


def _check_projectors(
    trained: Mapping[str, TrainedProjector], backbone: Backbone, length: int
) -> None:
    for name, projector in trained.items():
        card = projector.card
        size, wanted = (card.target_length, card.target_width), (length, backbone.config.width)
        if size != wanted or card.target_backbone != backbone.name:
            raise InputError(
                f"projector {name}: expected output {list(wanted)} (of {backbone.name}), got"
                f" {list(size)} (of {card.target_backbone}); give projectors and in-task prompts of"
                " one target and length"
            )


def _length(
    trained: Mapping[str, TrainedProjector],
    wanted: Mapping[str, Prompt],
    length: int | None,
    source: int,
) -> int:
    """Return P of the target: of the projectors, the option, the in-task prompts or the source."""
    if trained:
        return next(iter(trained.values())).card.target_length
    return length or (length_of(wanted) if wanted else source)


def _baselines(
    given: Mapping[str, Prompt],
    trained: Mapping[str, TrainedProjector],
    backbone: Backbone,
    source: Backbone | str | Path | None,
    length: int,
    options: EvaluationOptions,
) -> dict[str, Method]:
    names = options.methods
    if names is None:
        names = PROJECTOR_BASELINES if length == length_of(given) else ("untrained",)
    like = next((p.card for p in trained.values() if not p.card.per_token), None)
    shape = ProjectorOptions(length=length, seed=options.seed).resolve("task")
    loaded: list[Backbone] = []

    def load() -> Backbone:
        if not loaded:
            loaded.append(source_of(given, source))
        return loaded[0]

    more = (shape, options.anchors, like)
    return {name: baseline(name, given, load, backbone, *more) for name in names}


def _random_prompt(backbone: Backbone, length: int, seed: int) -> Prompt:
    generator = initial_generator(seed, backbone.name, RANDOM)
    values = random_values(generator, length, backbone.config.width, backbone.init_std())
    return Prompt(values, PromptCard(backbone.name, RANDOM, layout=backbone.layout, seed=seed))


def _record(
    given: Mapping[str, Prompt],
    trained: Mapping[str, TrainedProjector],
    backbone: Backbone,
    length: int,
) -> dict[str, Any]:
    return {
        "source_backbone": next(iter(given.values())).card.backbone,
        "target_backbone": backbone.name,
        "length": length,
        "trained_on": {name: list(projector.card.tasks) for name, projector in trained.items()},
        "projectors": {name: describe_origin(projector) for name, projector in trained.items()},
    }


# --- The cross-model table as text


def describe_table(matrix: TransferMatrix, record: Mapping[str, Any]) -> str:
    """Return the table as text."""
    trained_on = record["trained_on"]
    lines, near = [["", "chance", *matrix.prompts]], at_chance(matrix)
    levels = np.full(len(matrix.targets), np.nan) if matrix.chance is None else matrix.chance
    for target, level, row, marks in zip(matrix.targets, levels, matrix.values, near, strict=True):
        cells = [
            _cell(value, target in trained_on.get(name, ())) + (AT_CHANCE if mark else "")
            for name, value, mark in zip(matrix.prompts, row, marks, strict=True)
        ]
        lines.append([target, _cell(level), *cells])
    means = [_cell(_mean(column)) for column in matrix.values.T]
    lines.append(["mean", _cell(_mean(levels)), *means])
    lines.append(["unseen", "-", *_unseen(matrix, trained_on)])
    notes = ["* the projector was trained on this task"] if any(trained_on.values()) else []
    notes += [f"{AT_CHANCE} {AT_CHANCE_MEANING}"] if near.any() else []
    for target, each in record["targets"].items():
        if each.get("split") != record.get("split"):
            notes.append(
                f"note: {target} has no {record['split']} split: scored on {each['split']}"
            )
    notes += [f"warning: {note}" for note in record.get("notes", ())]
    return "\n".join([*align_columns(lines, least=9), *notes])


def _unseen(matrix: TransferMatrix, trained_on: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the mean of each projector over the tasks that it was not trained on."""
    cells = []
    for column, name in enumerate(matrix.prompts):
        new = [target not in trained_on.get(name, ()) for target in matrix.targets]
        cells.append(_cell(_mean(matrix.values[new, column])) if name in trained_on else "-")
    return cells


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else None


def _cell(value: float | None, is_marked: bool = False) -> str:
    if value is None or np.isnan(value):
        return "-"
    return f"{value:.3f}{'*' if is_marked else ''}"


# --- Tuning from projected prompts and from a random start


def warm_columns(
    columns: MethodPrompts,
    matrix: TransferMatrix,
    options: EvaluationOptions,
    folder: OutFolder | None,
    progress: bool,
) -> TransferMatrix:
    """Tune every task from its projected prompt and from a random one, and append both scores."""
    values, errors = np.full((2, len(columns.tasks), 2), np.nan)
    starts = columns.projected[options.warm_start]
    for row, task in enumerate(columns.tasks):
        init: dict[str, Any] = {"start": WarmStart(task, starts[task])}
        if folder is not None:  # the run's config names the file, so that it can be resumed
            kept = folder.path / PROJECTED / options.warm_start / f"{task}.safetensors"
            init = {"init": f"prompt:{kept}"}
        for column, (name, given) in enumerate({WARM: init, VANILLA: {}}.items()):
            out = None if folder is None else make_folder(folder.file(name)) / task
            score = _tuned(columns, task, given, options, out, progress)
            values[row, column] = score[columns.tasks[task].metric]
            error = score.get("standard_error")  # a run of an older version has none
            errors[row, column] = np.nan if error is None else error
    values, errors = np.hstack([matrix.values, values]), np.hstack([matrix.errors, errors])
    names = (*matrix.prompts, WARM, VANILLA)
    return dataclasses.replace(matrix, prompts=names, values=values, errors=errors)


def _tuned(
    columns: MethodPrompts,
    task: str,
    given: dict[str, Any],
    options: EvaluationOptions,
    out: Path | None,
    progress: bool,
) -> dict[str, Any]:
    asked = TuneOptions(max_tokens=options.max_tokens, length=columns.length)
    definition, asked = with_inherited(
        columns.tasks[task], asked, columns.backbone, columns.tuned(task)
    )
    result = tune(
        columns.backbone,
        definition,
        out,
        **given,
        steps=options.warm_steps,
        length=columns.length,
        max_tokens=asked.max_tokens,
        label_scoring=asked.label_scoring,
        answer_tokens=asked.answer_tokens,
        eval_batch_size=options.eval_batch_size,
        seed=options.seed,
        dtype=options.dtype,
        mesh=options.mesh,
        progress=progress,
    )
    return result.record.get(options.split, result.record["validation"])


# --- The cross-model table (paper, section 4)

TABLE, RECORD, PROJECTED = "projection.csv", "projection.json", "projected"
_RECORDED = ("split", "seed", "warm_start", "warm_steps")


@dataclass(frozen=True)
class ProjectionResult:
    """Result of `evaluate_projector`.

    Attributes:
        matrix: Scores by target (rows) and method (columns): ``in_task``, ``random``, every
            projector and untrained method, and with a warm start ``warm`` and ``vanilla``.
        record: Chance levels, standard errors, row counts and training tasks of the projectors,
            as in ``projection.json``.
        prompts: Projected prompts by method and task.
    """

    matrix: TransferMatrix
    record: dict[str, Any]
    prompts: dict[str, dict[str, Prompt]]

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """Scores by target and method; pairs that were not measured are left out."""
        matrix = self.matrix
        return {
            target: {
                n: float(v) for n, v in zip(matrix.prompts, row, strict=True) if not np.isnan(v)
            }
            for target, row in zip(matrix.targets, matrix.values, strict=True)
        }

    def describe(self) -> str:
        """Return the table as text; a star marks the training tasks of a projector."""
        return describe_table(self.matrix, self.record)


def evaluate_projector(
    projectors: Projectors,
    sources: Prompts,
    tasks: Iterable[Task | str | Path] | None = None,
    out: str | Path | None = None,
    *,
    targets: Prompts | None = None,
    target_backbone: Backbone | str | Path | None = None,
    source_backbone: Backbone | str | Path | None = None,
    data: str | Path | None = None,
    progress: bool = False,
    **options: Any,
) -> ProjectionResult:
    """Compare projected prompts with in-task, random and untrained baselines.

    Args:
        projectors: Trained projectors by column name, a list of them (named by their files), one,
            or ``[]`` for the untrained methods alone.
        sources: Prompts of the source model.
        tasks: Tasks to score; defaults to those named by the source prompts' cards.
        out: Folder for the tables, ``projection.json`` and the projected prompts.
        targets: In-task prompts of the target model, for the column ``in_task``.
        target_backbone: Target model; defaults to the one in the projectors' cards.
        source_backbone: Source model, for its embeddings; defaults to the one in the cards.
        data: Folder with a subfolder of rows for each catalog task.
        progress: Show a progress bar for each tuning run.
        **options: Fields of :class:`jpt.config.EvaluationOptions`.

    Returns:
        The :class:`ProjectionResult`.

    Raises:
        InputError: If source, target or sizes of the projectors do not match, or data is invalid.

    Example:
        >>> from jpt.types import PromptCard
        >>> card = PromptCard("builtin/bert-medium", "builtin/imdb_number")
        >>> source = Prompt(np.ones((4, 192), np.float32), card)
        >>> small = {"methods": ("untrained",), "max_tokens": 8}
        >>> found = evaluate_projector([], source, target_backbone="builtin/bert-small", **small)
        >>> found.matrix.prompts
        ('random', 'untrained')
    """
    started_s = time.monotonic()
    chosen = EvaluationOptions(**options)
    batch_sharding(devices := make_mesh(chosen.mesh), chosen.eval_batch_size)
    backbones = (target_backbone, source_backbone)
    columns = build_columns(projectors, sources, tasks, targets, *backbones, data, chosen, devices)
    folder = None if out is None else OutFolder(out)
    matrix, record = _measure(columns, chosen, devices, folder, progress)
    record |= columns.record | {name: getattr(chosen, name) for name in _RECORDED}
    record |= {**environment_info(), "device": describe_devices(devices)}
    record["elapsed_s"] = round(time.monotonic() - started_s, 2)
    if folder is not None:
        write_transfer(folder.file(TABLE), matrix)
        write_errors(folder.file(ERRORS), matrix)
        write_json(folder.file(RECORD), record)
    return ProjectionResult(matrix, record, columns.projected)


def _measure(
    columns: MethodPrompts,
    options: EvaluationOptions,
    mesh: Mesh,
    folder: OutFolder | None,
    progress: bool,
) -> tuple[TransferMatrix, dict[str, Any]]:
    """Score every prompt, tune from the starts that were asked for, and record the levels."""
    matrix, record = _score_all(columns, options, mesh)
    if folder is not None:
        _write_prompts(make_folder(folder.file(PROJECTED)), columns.projected)
    if options.warm_start is not None:
        matrix = warm_columns(columns, matrix, options, folder, progress)
    for target, level in chance_record(matrix).items():
        record["targets"][target] |= level
    return matrix, record


def _score_all(
    columns: MethodPrompts, options: EvaluationOptions, mesh: Mesh
) -> tuple[TransferMatrix, dict[str, Any]]:
    """Score every prompt of every task; read all rows before anything compiles."""
    bound, rows, used, notes = {}, {}, {}, []
    for name, task in columns.tasks.items():
        prompts = columns.of_task(name)
        cards = {column: prompt.card for column, prompt in prompts.items()}
        first, tuned = next(iter(prompts.values())), columns.tuned(name)
        bound[name] = bind(task, columns.backbone, options, first, tuned)
        notes += scoring_notes(cards, task, options, weights_of(columns.backbone), tuned)
        notes += bound[name].notes
        used[name] = options.split if has_split(task, options.split) else "validation"
        rows[name] = bound[name].split(used[name])
    names = columns.names
    values, errors = np.full((2, len(rows), len(names)), np.nan)
    targets, chance = {}, []
    for row, (name, split) in enumerate(rows.items()):
        prompts = columns.of_task(name)
        bank = [prompt.values for prompt in prompts.values()]
        scores = bound[name].score(bank, split, mesh, names=list(prompts))
        for column, score in zip(prompts, scores, strict=True):
            values[row, names.index(column)] = score.value
            errors[row, names.index(column)] = score.standard_error
        chance.append(scores[0].chance)
        targets[name] = {
            "metric": columns.tasks[name].metric,
            "majority": scores[0].majority,
            "rows": scores[0].rows,
            "split": used[name],
        }
    metrics = tuple(task.metric for task in columns.tasks.values())
    measured = (values, metrics, np.array(chance, np.float64), errors)
    return TransferMatrix(tuple(rows), names, *measured), {"targets": targets, "notes": notes}


def _write_prompts(folder: Path, prompts: Mapping[str, Mapping[str, Prompt]]) -> None:
    for method, by_task in prompts.items():
        method_folder = make_folder(folder / method)
        for task, prompt in by_task.items():
            save_prompt(method_folder / f"{task}.safetensors", prompt)
    on_first(lambda: None)  # a barrier: every process reads them to tune from them
