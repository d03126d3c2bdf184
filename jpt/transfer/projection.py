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
    check_counts,
)
from jpt.data.rows import has_split
from jpt.errors import InputError, unknown_name
from jpt.io.files import make_folder, write_json
from jpt.parallel import batch_sharding, describe_devices, fetch, make_mesh, on_first
from jpt.prompts.initialisers import initial_generator, random_values, sampled_ids
from jpt.prompts.store import save_prompt
from jpt.results.prompt_table import (
    align_columns,
    match_in_task_prompts,
    refuse_twice,
    write_transfer,
)
from jpt.results.provenance import environment_info
from jpt.tasks.task import Task
from jpt.transfer.projector import (
    PROJECTOR_FILE,
    ProjectorCard,
    Prompts,
    TrainedProjector,
    check_source,
    check_targets,
    initial_parameters,
    length_of,
    load_projector,
    make_card,
    prompts_of_tasks,
    read_prompts,
    read_tasks,
    refuse_same_backbone,
)
from jpt.tuning.bound_task import bind_task, resolve_backbone, resolve_max_tokens
from jpt.tuning.tune import WarmStart, tune
from jpt.types import Prompt, PromptCard, TransferMatrix
from jpt.version import __version__

# --- Pieces of text that two vocabularies share, however each of them writes them

_WORD_STARTS = ("\u2581", "\u0120")
"""What stands before a piece that starts a word: SentencePiece's mark, and byte-level BPE's."""
_CONTINUES = "##"
"""What stands before a piece that does not, in WordPiece."""


def shared_tokens(
    source: Backbone, target: Backbone
) -> tuple[Int64[np.ndarray, "N"], Int64[np.ndarray, "N"]]:
    """Finds the pieces of text that stand in both vocabularies."""
    # Pieces are the same where they have the same text and both begin a word or both go on with
    # one: ``film`` of WordPiece is SentencePiece's and byte-level BPE's with their mark of a word's
    # start. Special pieces and pieces that were never trained are left out.
    first, second = _pieces_of(source), _pieces_of(target)
    pairs = [(token, second[piece]) for piece, token in first.items() if piece in second]
    if not pairs:
        raise InputError(
            f"{source.name} ({len(first)} pieces) and {target.name} ({len(second)} pieces) share no"
            " piece of text, and this method needs some; train a projector with jpt project train"
        )
    found = np.array(sorted(pairs), np.int64)
    return found[:, 0], found[:, 1]


def token_embeddings(backbone: Backbone, ids: Int64[np.ndarray, "N"]) -> Float64[np.ndarray, "N D"]:
    """Looks up the embeddings of pieces."""
    rows = backbone.params["embeddings"]["word"][ids.astype(np.int32)]
    return fetch(rows).astype(np.float64)


def _pieces_of(backbone: Backbone) -> dict[tuple[bool, str], int]:
    """Ids of the pieces that stand for text, by (starts a word, text)."""
    tokenizer = backbone.tokenizer
    count = min(backbone.config.vocabulary, tokenizer.vocabulary_size)
    written = [tokenizer.token_text(token) for token in range(count)]
    special = {token for token in tokenizer.ids if token is not None}
    mark = next((m for m in _WORD_STARTS if any(p.startswith(m) for p in written)), None)
    kept = sampled_ids(written, special).tolist()
    return {plain: token for token in reversed(kept) if (plain := _plain(written[token], mark))[1]}


def _plain(piece: str, mark: str | None) -> tuple[bool, str]:
    """Whether a piece starts a word, and its text without the vocabulary's marks."""
    if mark is not None:
        return piece.startswith(mark), piece.removeprefix(mark)
    return not piece.startswith(_CONTINUES), piece.removeprefix(_CONTINUES)


def choose_anchors(count: int, wanted: int) -> Sequence[int]:
    """Chooses anchors evenly over a list of shared pieces, the same each time."""
    # A vocabulary begins with digits, signs and single letters, so that its head alone would say
    # little.
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).round().astype(int)).tolist()


# --- Ways to another model without training: what a trained projector has to beat
# ``untrained``: a projector as it is drawn. ``least_squares``: one matrix, fitted to the embeddings
# of the words that both models know. ``relative``: each row keeps its similarities to those words.

ROUNDING = 1e-6
"""Directions weaker than this share of the strongest are the rounding of float32 tables."""

Method = Callable[[Prompt], Float32[np.ndarray, "P D"]]
"""Turns a prompt of the source into the values of one of the target."""


def untrained_projector(
    prompts: Mapping[str, Prompt],
    target: Backbone,
    options: ProjectorOptions,
    like: ProjectorCard | None = None,
) -> TrainedProjector:
    """Draws a projector and leaves it as it is. Paper: the random baseline."""
    card = make_card(prompts, target, "untrained", (), options)
    if like is not None:
        new = {"objective": "untrained", "tasks": (), "seed": options.seed}
        card = dataclasses.replace(like, **new, steps=0, score=None)
    size = (card.source_length, card.source_width)
    params = initial_parameters(card.module(), *size, options.seed)
    return TrainedProjector(card, params, "untrained")


def least_squares_projector(source: Backbone, target: Backbone, length: int) -> TrainedProjector:
    """Fits one matrix W to the words that both models know: least ||E_source W - E_target||."""
    # It is applied to a prompt row by row.
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
    """Keeps each row's similarities to words that both models know (relative representation)."""
    # A row's code is its cosine to each of the anchors in the source model. The row of the target
    # is the one whose products with the target's anchors, each of length 1, come nearest to the
    # code (least squares), as long as the target's words are on average. PTfer, whose idea this is,
    # looks for it in gradient steps from random words and chooses the step on validation rows; this
    # form has one solution and sees no rows.
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
    """Rows of length 1; a row of zeros stays."""
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
    """Builds a baseline by its name."""
    if name not in PROJECTOR_BASELINES:
        raise unknown_name("method", name, PROJECTOR_BASELINES)
    if name == "untrained":
        return untrained_projector(prompts, target, options, like)
    rows = length_of(prompts)
    if options.length != rows:
        raise InputError(
            f"{name} keeps the rows of a prompt, but the source's have {rows} and the target's "
            f"shall have {options.length}; leave length out, or leave the method out"
        )
    if name == "relative":
        return relative_method(source(), target, anchors)
    return least_squares_projector(source(), target, rows)


def checked_method(projector: TrainedProjector, prompts: Mapping[str, Prompt]) -> Method:
    """Gives a projector as a method after a check of every prompt that it shall read."""
    for name, prompt in prompts.items():
        check_source(projector.card, prompt, f"prompt {name}")
    return partial(TrainedProjector.__call__, projector)


# --- Projecting prompts: ordinary prompt files of the target model come out


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
    """Projects prompts of the source model into ordinary prompts of the target model.

    Args:
        projector: a trained one, its file or its run; or one of ``untrained``, ``least_squares``
            and ``relative``, which need no training.
        prompts: of the source model: a folder, a file, or by name.
        out: folder for ``NAME.safetensors`` files; each card's ``source`` says what it came from.
        target_backbone: the target, where no trained projector names it.
        source_backbone: where the words of the source are read, in place of what the cards name.
        length: P of an untrained projector's target; by default the source's.
        anchors: words that ``relative`` holds rows against.
        seed: of an untrained projector.

    Returns:
        The projected prompts by the names of the source's.

    Raises:
        InputError: a prompt of another backbone, length or width than the projector's.

    Example:
        >>> card = PromptCard("builtin/bert-small", "builtin/imdb")
        >>> source = Prompt(np.ones((4, 128), np.float32), card)
        >>> found = apply_projector("relative", source, target_backbone="builtin/bert-medium")
        >>> found["imdb"].values.shape, found["imdb"].card.source
        ((4, 192), 'relative from prompt imdb of builtin/bert-small')
    """
    given = read_prompts(prompts)
    if str(projector) in PROJECTOR_BASELINES:
        if target_backbone is None:
            raise InputError(f"{projector} is no file that names its target; give target_backbone")
        refuse_same_backbone(given, target_backbone)
        target = resolve_backbone(target_backbone)
        options = ProjectorOptions(seed=seed, length=length or length_of(given)).resolve("task")
        name, layout, what = target.name, target.layout, str(projector)
        method = baseline(
            what, given, lambda: source_of(given, source_backbone), target, options, anchors
        )
    else:
        trained = as_projector(projector)
        method, card = checked_method(trained, given), trained.card
        name, layout, what = card.target_backbone, card.target_layout, describe_origin(trained)
    found = {
        of: projected(prompt, method(prompt), name, layout, f"{what} from prompt {of}")
        for of, prompt in given.items()
    }
    for of, prompt in found.items() if out is not None else ():
        save_prompt(make_folder(out) / f"{of}.safetensors", prompt)
    return found


def projected(
    prompt: Prompt, values: Float32[np.ndarray, "P D"], backbone: str, layout: str, origin: str
) -> Prompt:
    """Puts projected values into a prompt of the target."""
    card = PromptCard(
        backbone=backbone,
        task=prompt.card.task,
        task_type=prompt.card.task_type,
        layout=layout,
        init="projected",
        source=f"{origin} of {prompt.card.backbone}",
        jpt_version=__version__,
    )
    return Prompt(np.asarray(values, np.float32), card)


def describe_origin(projector: TrainedProjector) -> str:
    """Says what a projector is, for the cards of what it makes."""
    card = projector.card
    tasks = f" on {', '.join(card.tasks)}" if card.tasks else ""
    return f"{projector.name} ({card.objective}{tasks})"


def as_projector(projector: TrainedProjector | str | Path) -> TrainedProjector:
    """Loads a projector unless it is one."""
    return projector if isinstance(projector, TrainedProjector) else load_projector(projector)


def source_of(
    prompts: Mapping[str, Prompt], backbone: Backbone | str | Path | None = None
) -> Backbone:
    """Loads the model that prompts were tuned on."""
    first = next(iter(prompts.values()))
    model = resolve_backbone(backbone if backbone is not None else first.card.backbone)
    if model.config.width != first.values.shape[1]:
        raise InputError(
            f"the source prompts are {first.values.shape[1]} wide, and {model.name} is "
            f"{model.config.width} wide; name the model that they were tuned on"
        )
    return model


# --- The columns of the table of cross-model transfer: which prompt stands for which way

OWN, RANDOM, WARM, VANILLA = "in_task", "random", "warm", "vanilla"

Projectors = (
    Mapping[str, TrainedProjector | str | Path]
    | Sequence[TrainedProjector | str | Path]
    | TrainedProjector
    | str
    | Path
)
"""Trained projectors by the name that their column gets, or several, or one."""


@dataclass(frozen=True)
class MethodScores:
    """What is scored, task by task."""

    backbone: Backbone  # the target
    tasks: dict[str, Task]  # by short name
    length: int  # P of the target
    in_task: dict[str, Prompt]  # the target's own prompt of each task that has one
    random: Prompt | None  # the start of tuning, the same for all tasks; None leaves it out
    projected: dict[str, dict[str, Prompt]]  # prompts by method and task
    record: dict[str, Any]  # what is known of source, target and projectors

    @property
    def names(self) -> tuple[str, ...]:
        """The columns, in their order."""
        first = [OWN] * bool(self.in_task) + [RANDOM] * (self.random is not None)
        return (*first, *self.projected)

    def of_task(self, task: str) -> dict[str, Prompt]:
        """Gives the prompts of one task by column."""
        found = {OWN: self.in_task[task]} if task in self.in_task else {}
        if self.random is not None:
            found[RANDOM] = self.random
        return found | {name: prompts[task] for name, prompts in self.projected.items()}


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
) -> MethodScores:
    """Loads, checks and projects everything that will be scored."""
    given, trained = read_prompts(sources), name_columns(projectors)
    target = _target_of(trained, target)
    refuse_same_backbone(given, target)
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
            f"warm_start is {options.warm_start!r}; expected one of {', '.join(methods)}"
        )
    found = _project_all(
        methods, trained, {task: (n, given[n]) for task, n in of.items()}, backbone
    )
    in_task, _ = match_in_task_prompts(
        definitions, {name: prompt.card for name, prompt in wanted.items()}
    )
    mine = {task: wanted[name] for task, name in in_task.items()}
    start = _random_prompt(backbone, length, options.seed) if options.random else None
    record = _record(given, trained, backbone, length)
    return MethodScores(backbone, definitions, length, mine, start, found, record)


def _project_all(
    methods: Mapping[str, Method],
    trained: Mapping[str, TrainedProjector],
    sources: Mapping[str, tuple[str, Prompt]],
    backbone: Backbone,
) -> dict[str, dict[str, Prompt]]:
    """Projects the source prompt of every task in every way."""
    found: dict[str, dict[str, Prompt]] = {}
    for method, project in methods.items():
        what = describe_origin(trained[method]) if method in trained else method
        found[method] = {
            task: projected(
                prompt,
                project(prompt),
                backbone.name,
                backbone.layout,
                f"{what} from prompt {name}",
            )
            for task, (name, prompt) in sources.items()
        }
    return found


def name_columns(projectors: Projectors) -> dict[str, TrainedProjector]:
    """Loads projectors by the names of their columns."""
    if isinstance(projectors, Mapping):
        found = {name: as_projector(projector) for name, projector in projectors.items()}
    else:
        is_one = isinstance(projectors, (TrainedProjector, str, Path))
        loaded = [as_projector(p) for p in ([projectors] if is_one else projectors)]
        names = [_column(projector) for projector in loaded]
        refuse_twice(names, "projectors")
        found = dict(zip(names, loaded, strict=True))
    for name in found:
        if name in (OWN, RANDOM, WARM, VANILLA, *PROJECTOR_BASELINES):
            raise InputError(f"a projector is called {name}, as another column is; rename it")
    return found


def _column(projector: TrainedProjector) -> str:
    """The name of the run or of the file."""
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
            f"the projectors have the targets {', '.join(names)}; a table has one: evaluate those "
            "of one target at a time"
        )
    raise InputError("no projector was given that names a target; give target_backbone")


def _check_projectors(
    trained: Mapping[str, TrainedProjector], backbone: Backbone, length: int
) -> None:
    for name, projector in trained.items():
        card = projector.card
        size, wanted = (card.target_length, card.target_width), (length, backbone.config.width)
        if size != wanted or card.target_backbone != backbone.name:
            raise InputError(
                f"projector {name} writes {size[0]} rows of {size[1]} (of {card.target_backbone}), "
                f"but {wanted[0]} rows of {wanted[1]} (of {backbone.name}) are compared; give "
                "projectors and own prompts of one target and length"
            )


def _length(
    trained: Mapping[str, TrainedProjector],
    wanted: Mapping[str, Prompt],
    length: int | None,
    source: int,
) -> int:
    """P of the target, as the first that knows says."""
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


# --- The table of cross-model transfer as text


def describe_table(matrix: TransferMatrix, record: Mapping[str, Any]) -> str:
    """Lays the table out for reading."""
    trained_on = record["trained_on"]
    lines = [["", "majority", *matrix.prompts]]
    majorities = [record["targets"][target]["majority"] for target in matrix.targets]
    for target, majority, row in zip(matrix.targets, majorities, matrix.values, strict=True):
        cells = [
            _cell(value, target in trained_on.get(name, ()))
            for name, value in zip(matrix.prompts, row, strict=True)
        ]
        lines.append([target, _cell(majority), *cells])
    known = [majority for majority in majorities if majority is not None]
    means = [_cell(_mean(column)) for column in matrix.values.T]
    lines.append(["mean", _cell(_mean(known)), *means])
    lines.append(["unseen", "-", *_unseen(matrix, trained_on)])
    notes = ["* the projector was trained on this task"] if any(trained_on.values()) else []
    for target, told in record["targets"].items():
        if told.get("split") != record.get("split"):
            notes.append(
                f"note: {target} has no {record['split']} split: scored on {told['split']}"
            )
    return "\n".join([*align_columns(lines, least=9), *notes])


def _unseen(matrix: TransferMatrix, trained_on: Mapping[str, Sequence[str]]) -> list[str]:
    """Means over the tasks that a projector was not trained on."""
    cells = []
    for place, name in enumerate(matrix.prompts):
        new = [target not in trained_on.get(name, ()) for target in matrix.targets]
        cells.append(_cell(_mean(matrix.values[new, place])) if name in trained_on else "-")
    return cells


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else None


def _cell(value: float | None, is_marked: bool = False) -> str:
    if value is None or np.isnan(value):
        return "-"
    return f"{value:.3f}{'*' if is_marked else ''}"


# --- Tuning on the target from projected prompts, beside a random start of as many steps


def warm_columns(
    columns: MethodScores,
    matrix: TransferMatrix,
    options: EvaluationOptions,
    folder: Path | None,
    progress: bool,
) -> TransferMatrix:
    """Tunes every task from its projected prompt and from a random one, in as many steps."""
    values = np.full((len(columns.tasks), 2), np.nan)
    starts = columns.projected[options.warm_start]
    for row, task in enumerate(columns.tasks):
        begun: dict[str, Any] = {"start": WarmStart(task, starts[task])}
        if folder is not None:  # a run is told by its start, so that has to stay where it is
            kept = folder / "projected" / options.warm_start / f"{task}.safetensors"
            begun = {"init": f"prompt:{kept}"}
        for column, (name, given) in enumerate({WARM: begun, VANILLA: {}}.items()):
            out = None if folder is None else make_folder(folder / name) / task
            values[row, column] = _tuned(columns, task, given, options, out, progress)
    names = (*matrix.prompts, WARM, VANILLA)
    return dataclasses.replace(matrix, prompts=names, values=np.hstack([matrix.values, values]))


def _tuned(
    columns: MethodScores,
    task: str,
    given: dict[str, Any],
    options: EvaluationOptions,
    out: Path | None,
    progress: bool,
) -> float:
    result = tune(
        columns.backbone,
        columns.tasks[task],
        out,
        **given,
        steps=options.warm_steps,
        length=columns.length,
        max_tokens=options.max_tokens,
        eval_batch_size=options.eval_batch_size,
        seed=options.seed,
        dtype=options.dtype,
        mesh=options.mesh,
        progress=progress,
    )
    record = result.record
    return record.get(options.split, record["validation"])[record["metric"]]


# --- The paper's table of cross-model transfer: every way to a prompt of the target, task by task

TABLE, RECORD, PROJECTED = "projection.csv", "projection.json", "projected"
_TOLD = ("split", "seed", "warm_start", "warm_steps")


@dataclass(frozen=True)
class ProjectionResult:
    """What `evaluate_projector` measured.

    Attributes:
        matrix: the scores: targets down; across ``own``, ``random``, every projector and method,
            and with a warm start ``warm`` and ``vanilla``.
        record: majority shares, rows, what each projector was trained on, as in
            ``projection.json``.
        prompts: the projected prompts by method and task.
    """

    matrix: TransferMatrix
    record: dict[str, Any]
    prompts: dict[str, dict[str, Prompt]]

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """Gives the scores by target and column, without pairs that were not measured."""
        matrix = self.matrix
        return {
            target: {
                n: float(v) for n, v in zip(matrix.prompts, row, strict=True) if not np.isnan(v)
            }
            for target, row in zip(matrix.targets, matrix.values, strict=True)
        }

    def describe(self) -> str:
        """Lays the table out for reading; a star marks what a projector was trained on."""
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
    """Scores projected prompts beside the target's own, a random one, and ways without training.

    Args:
        projectors: trained ones by the name of their column; several, which are named by their
            files; one; or none, ``[]``, where only methods without training shall be measured.
        sources: the source model's prompts.
        tasks: to score; by default those that the sources' cards name.
        out: folder for ``projection.csv``, ``projection.json`` and the projected prompts.
        targets: the target model's own prompts, for the column ``own``.
        target_backbone: the target; by default what the projectors' cards name.
        source_backbone: where the words of the source are read.
        data: a folder that holds a folder of rows for each catalog task.
        progress: whether to show a bar for each tuning.
        **options: fields of :class:`jpt.config.EvaluationOptions`.

    Returns:
        The table.

    Raises:
        InputError: projectors of another source or target, sizes that do not fit, broken data.

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
    matrix, record = _score_all(columns, chosen, devices)
    if (folder := None if out is None else make_folder(out)) is not None:
        _write_prompts(make_folder(folder / PROJECTED), columns.projected)
    if chosen.warm_start is not None:
        matrix = warm_columns(columns, matrix, chosen, folder, progress)
    record |= columns.record | {name: getattr(chosen, name) for name in _TOLD}
    record |= {**environment_info(), "device": describe_devices(devices)}
    record["elapsed_s"] = round(time.monotonic() - started_s, 2)
    if folder is not None:
        write_transfer(folder / TABLE, matrix)
        write_json(folder / RECORD, record)
    return ProjectionResult(matrix, record, columns.projected)


def _score_all(
    columns: MethodScores, options: EvaluationOptions, mesh: Mesh
) -> tuple[TransferMatrix, dict[str, Any]]:
    """Scores every prompt of every task; all rows are read before anything is compiled."""
    prepared, rows, used = {}, {}, {}
    for name, task in columns.tasks.items():
        tokens = resolve_max_tokens(options.max_tokens, columns.backbone, task, columns.length)
        prepared[name] = bind_task(task, columns.backbone, tokens, options.eval_batch_size)
        used[name] = options.split if has_split(task, options.split) else "validation"
        rows[name] = prepared[name].split(used[name])
    names = columns.names
    values = np.full((len(rows), len(names)), np.nan)
    told = {}
    for place, (name, split) in enumerate(rows.items()):
        prompts = columns.of_task(name)
        scores = prepared[name].score([p.values for p in prompts.values()], split, mesh)
        for column, score in zip(prompts, scores, strict=True):
            values[place, names.index(column)] = score.value
        told[name] = {
            "metric": columns.tasks[name].metric,
            "majority": scores[0].majority,
            "rows": scores[0].rows,
            "split": used[name],
        }
    metrics = tuple(task.metric for task in columns.tasks.values())
    return TransferMatrix(tuple(rows), names, values, metrics), {"targets": told}


def _write_prompts(folder: Path, prompts: Mapping[str, Mapping[str, Prompt]]) -> None:
    for method, by_task in prompts.items():
        place = make_folder(folder / method)
        for task, prompt in by_task.items():
            save_prompt(place / f"{task}.safetensors", prompt)
    on_first(lambda: None)  # all processes read them, where they are tuned on
