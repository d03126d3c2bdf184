"""Recommend source prompts for a task before it is tuned."""

from __future__ import annotations

import dataclasses
import math
import shlex
import sys
import textwrap
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32

from jpt.backbones.registry import Backbone
from jpt.config import RecommendOptions
from jpt.data.batches import shuffled
from jpt.data.rows import Row, has_split, read_rows, read_texts
from jpt.errors import DataWarning, InputError, shorten, unknown_name
from jpt.indicators.indicators import (
    EMBEDDING_INDICATORS,
    OVERLAP,
    Indicators,
    compute_indicators,
    indicator_label,
    parse_layers,
)
from jpt.indicators.pairs import is_random, over_seeds, serves, type_of
from jpt.indicators.source_selection import (
    SAME_TYPE,
    ZERO_SHOT,
    leave_one_out,
    mutual_information,
    shown_rankings,
)
from jpt.io.files import make_folder, write_json
from jpt.neurons.probe import activated_neurons
from jpt.parallel import batch_sharding, make_mesh
from jpt.prompts.initialisers import initial_generator, random_values
from jpt.prompts.store import Prompts, check_prompt, list_runs, load_runs
from jpt.results.prompt_table import AT_CHANCE, AT_CHANCE_MEANING, BASELINES, read_scores
from jpt.results.records import LeaveOneOut, Ranking
from jpt.results.statistics import is_at_chance
from jpt.tasks.task import Task
from jpt.tuning.bound_task import (
    BoundTask,
    bind,
    in_task_of,
    resolve_backbone,
    resolve_task,
    scoring_notes,
    weights_of,
)
from jpt.tuning.tune import tune
from jpt.types import Data, Prompt, Score, TransferMatrix

# --- Rows

LABELS = 64  # default number of labelled rows
TEXTS = 256  # number of texts without labels
STREAM = crc32(b"recommend/rows")


def labelled_task(task: Task, labels: int | None, seed: int) -> tuple[Task, list[str]]:
    """Return the task restricted to a few labelled train rows, and notes."""
    if not has_split(task, "train"):
        raise InputError(
            f"task {task.name} has no train rows to score sources and tune a probe on; add some, or"
            " rank without labels (--labels 0)"
        )
    rows = read_rows(task, "train")
    if labels is not None and labels > len(rows):
        raise InputError(
            f"labels is {labels}, but task {task.name} has {len(rows)} train rows; ask for"
            f" {len(rows)} or fewer"
        )
    chosen = _some(rows, LABELS if labels is None else labels, seed)
    notes = []
    lacking = [label for label in task.labels if all(row["label"] != label for row in chosen)]
    if lacking:
        notes.append(f"no labelled row with label {' or '.join(lacking)}: scores do not cover it")
    return _with(task, chosen), notes


def unlabelled_task(task: Task, seed: int) -> Task:
    """Return the task restricted to some texts without labels."""
    if task.is_generative:
        raise InputError(
            f"task {task.name} is generative, so sources cannot be ranked without labelled rows;"
            " give some rows with answers (--labels 16)"
        )
    if not has_split(task, "train"):
        raise InputError(
            f"task {task.name} has no train rows, so there are no texts to rank sources on; add"
            " some, without labels"
        )
    return _with(task, _some(read_texts(task, "train"), TEXTS, seed))


def _some(rows: Sequence[Row], count: int, seed: int) -> tuple[Row, ...]:
    """Return random rows in their original order."""
    chosen = shuffled(seed, STREAM, 0, len(rows))[:count]
    return tuple(rows[number] for number in sorted(chosen.tolist()))


def _with(task: Task, rows: tuple[Row, ...]) -> Task:
    """Return the task with these rows only; checked rows have their target under a fixed name."""
    target = {"answer_field": "answers"} if task.is_generative else {"label_field": "label"}
    splits = {"train": rows, "validation": rows}
    return replace(task, rows=splits, folder=None, files={}, **target)


# --- Inputs


@dataclass(frozen=True)
class RecommendInputs:
    """The new task and the source prompts, loaded and checked."""

    task: Task  # with the rows to use only
    backbone: Backbone
    mesh: Mesh
    prompts: dict[str, Prompt]  # all given prompts, without unused rows
    sources: dict[str, Prompt]  # the candidates
    bound: BoundTask
    options: RecommendOptions  # with the seed resolved
    notes: list[str]  # prompts that were excluded, and why

    @property
    def labelled(self) -> bool:
        """Whether the rows have labels."""
        return self.options.labels != 0

    @property
    def first(self) -> Prompt:
        """First prompt; all have the same backbone and length."""
        return next(iter(self.prompts.values()))


def prepare_recommendation(
    task: Task | str | Path,
    prompts: Prompts,
    data: Data | None,
    options: RecommendOptions,
) -> RecommendInputs:
    """Load and check everything, cheap checks first, without compiling."""
    loaded = {  # the probe has no unused row to compare
        name: dataclasses.replace(prompt, unused_row=None)
        for name, prompt in load_runs(prompts).items()
    }
    definition = resolve_task(task, data)
    sources, notes = _sources(definition, loaded)
    seed = _common_seed(sources) if options.seed is None else options.seed
    options = dataclasses.replace(options, seed=seed)
    if options.labels == 0:
        known = unlabelled_task(definition, seed)
    else:
        known, more = labelled_task(definition, options.labels, seed)
        notes += more
    devices, size = make_mesh(options.mesh), options.eval_batch_size
    batch_sharding(devices, size)
    first = next(iter(loaded.values()))
    name = first.card.backbone if options.backbone is None else options.backbone
    model = resolve_backbone(name, options.dtype, mesh=devices)
    other = options.backbone is not None
    check_prompt(first, model.name, model.config.width, model.layout, other)
    parse_layers(options.layers, model.config.layers)  # raises for layers out of range
    cards = {name: prompt.card for name, prompt in loaded.items()}
    tuned = in_task_of(known, cards)
    bound = bind(known, model, options, first, tuned)
    of_sources = {name: prompt.card for name, prompt in sources.items()}
    notes += scoring_notes(of_sources, known, options, weights_of(model), tuned)
    return RecommendInputs(bound.task, model, devices, loaded, sources, bound, options, notes)


def known_matrix(
    known: TransferMatrix | str | Path, prompts: Mapping[str, Prompt]
) -> TransferMatrix:
    """Return a known transfer matrix; raise InputError if it is of other prompts."""
    matrix = known if isinstance(known, TransferMatrix) else read_scores(known)
    cards = {name: prompt.card for name, prompt in prompts.items()}
    here = over_seeds(Indicators(tuple(cards), {}, cards), matrix.prompts)
    missing = sorted(set(matrix.prompts) - set(here.names) - set(BASELINES))
    if missing:
        raise InputError(
            f"the known matrix has {len(missing)} prompts that were not given"
            f" ({shorten(missing)}; given: {shorten(here.names)}); give the folder of prompts that"
            " it was computed with"
        )
    leave_one_out(here, matrix)  # raises if no ranking can be evaluated
    return matrix


def _sources(task: Task, prompts: dict[str, Prompt]) -> tuple[dict[str, Prompt], list[str]]:
    """Return the candidate prompts, and notes on the others."""
    in_task = [n for n, prompt in prompts.items() if serves(n, prompt.card, [task.short_name])]
    untrained = [n for n, p in prompts.items() if n not in in_task and is_random(n, p.card)]
    sources = {n: p for n, p in prompts.items() if n not in in_task and n not in untrained}
    if not sources:
        raise InputError(
            f"none of the {len(prompts)} prompts ({shorten(list(prompts))}) is for another task "
            f"than {task.short_name}; give a folder with prompts of other tasks"
        )
    notes = []
    if in_task:
        notes.append(f"{shorten(in_task)}: tuned for {task.short_name}, excluded")
    if untrained:
        notes.append(f"{shorten(untrained)}: untrained, excluded")
    return sources, notes


def _common_seed(sources: Mapping[str, Prompt]) -> int:
    seeds = {prompt.card.seed for prompt in sources.values()}
    found = seeds.pop() if len(seeds) == 1 else None
    return 0 if found is None else found


# --- Rankings

MUTUAL_INFORMATION = "mutual_information"

_TWO_SIDED_95 = 1.96


def score_rankings(scores: Mapping[str, Score], labelled: bool) -> dict[str, Ranking]:
    """Rank sources by score, or without labels by mutual information, on the task's rows."""
    if not labelled:
        values = {name: mutual_information(score.log_probs) for name, score in scores.items()}
        return {MUTUAL_INFORMATION: Ranking(values, {})}
    values = {name: score.value for name, score in scores.items()}
    return {ZERO_SHOT: Ranking(values, {name: -score.loss for name, score in scores.items()})}


def indicator_rankings(
    indicators: Indicators, probe: str, sources: Mapping[str, Prompt]
) -> dict[str, Ranking]:
    """Rank sources by similarity to a probe."""
    names = [name for name in (OVERLAP, *EMBEDDING_INDICATORS) if name in indicators.columns]
    return {
        name: Ranking({source: indicators.value(name, probe, source) for source in sources}, {})
        for name in names
    }


def type_ranking(task: Task, sources: Mapping[str, Prompt]) -> dict[str, Ranking]:
    """Rank sources of the task's type first."""
    values = {}
    for name, prompt in sources.items():
        kind = type_of(prompt.card)
        values[name] = math.nan if kind is None else float(kind == task.type)
    return {SAME_TYPE: Ranking(values, {})} if 1.0 in values.values() else {}


def not_distinguished(best: str, scores: Mapping[str, Score], truth: np.ndarray) -> list[str]:
    """Return the sources whose accuracy does not differ significantly from the best one's."""
    right = {name: (score.predictions == truth).astype(float) for name, score in scores.items()}
    found = []
    for name in scores:
        gains = right[best] - right[name]
        error = gains.std(ddof=1) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
        if name != best and gains.mean() <= _TWO_SIDED_95 * error:
            found.append(name)
    return found


# --- Record

START = "random"  # the untrained prompt among the scores


def recommendation_record(
    case: RecommendInputs,
    rankings: Mapping[str, Ranking],
    by: str,
    scores: Mapping[str, Score],
    judged: LeaveOneOut | None,
) -> dict[str, Any]:
    """Return a recommendation as JSON."""
    ordered = rankings[by].ordered()
    ranks = {name: ranking.ranks() for name, ranking in rankings.items()}
    sources = {
        name: {
            "task": case.sources[name].card.task,
            **(_score_fields(scores[name]) if case.labelled else {}),
            "values": {r: _number(ranking.values[name]) for r, ranking in rankings.items()},
            "ranks": {r: ranks_of[name] for r, ranks_of in ranks.items()},
        }
        for name in ordered
    }
    untrained = scores[START]
    return {
        "task": case.task.name,
        "backbone": case.backbone.name,
        "metric": case.task.metric,
        "rows": untrained.rows,
        "labelled": case.labelled,
        "probe_steps": case.options.probe_steps if case.labelled else None,
        "seed": case.options.seed,
        "source": ordered[0],
        "by": by,
        "sources": sources,
        "untrained": untrained.summary() if case.labelled else None,
        "command": None,
        "known": None if judged is None else judged.record,
        "notes": [*case.notes, *_cautions(case, rankings, scores)],
    }


def _score_fields(score: Score) -> dict[str, Any]:
    chance, error = score.chance, score.standard_error
    near = chance is not None and error is not None and is_at_chance(score.value, chance, error)
    return {
        "score": score.value,
        "loss": score.loss,
        "standard_error": error,
        "at_chance": bool(near),
    }


def _cautions(
    case: RecommendInputs, rankings: Mapping[str, Ranking], scores: Mapping[str, Score]
) -> list[str]:
    """Return notes on what the scores do not show."""
    if not case.labelled:
        return [
            "without labels no score is measured: mutual information (confident predictions that"
            " differ between texts) is a heuristic, and a confident prompt may be wrong"
        ]
    best, notes = next(iter(rankings.values())).ordered()[0], []
    untrained, chance = scores[START].value, scores[START].chance or 0.0
    if case.task.metric == "accuracy":
        of_sources = {name: scores[name] for name in case.sources}
        truth = case.bound.split("train").labels
        near = not_distinguished(best, of_sources, truth)
        if near:
            notes.append(
                f"on {len(truth)} rows {best} is not significantly better than {shorten(near)}"
                " (95 % confidence interval of the difference)"
            )
    if scores[best].value <= max(untrained, chance):
        notes.append(
            f"no source scores above both an untrained prompt ({untrained:.3f}) and chance"
            f" ({chance:.3f}): the scores give no reason to start from one"
        )
    return notes


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def start_command(
    task: Task | str | Path,
    prompts: Prompts,
    data: Data | None,
    case: RecommendInputs,
    source: str,
) -> str | None:
    """Return the command that tunes from a source; None for tasks and prompts in memory."""
    if isinstance(prompts, Mapping) or isinstance(data, Mapping):
        return None
    if isinstance(task, Task) and task.rows is not None:
        return None
    name = task.folder or task.name if isinstance(task, Task) else task
    parts = ["jpt", "tune", "--backbone", case.backbone.name, "--task", str(name)]
    parts += [] if data is None else ["--data", str(data)]
    parts += ["--length", str(len(case.first.values))]
    parts += ["--init", f"prompt:{list_runs(prompts)[source]}"]
    out = f"runs/{case.task.short_name}-from-{source.replace('/', '-')}"
    return shlex.join([*parts, "--out", out])


# --- Text, at most 80 columns wide

WIDTH = 80
_NAME = 22
_LABELS = {
    ZERO_SHOT: "zero-shot",
    SAME_TYPE: "same type",
    MUTUAL_INFORMATION: "mutual information",
}


def describe_recommendation(record: dict[str, Any]) -> str:
    """Return a recommendation as text: sources in order, evaluation of rankings, command."""
    seen = f"{record['rows']} {'labelled rows' if record['labelled'] else 'texts, no labels'}"
    head = f"Sources for {record['task']} on {record['backbone']}: ranks, 1 is best ({seen})"
    lines = [*textwrap.wrap(head, WIDTH), *_table(record)]
    if record["known"] is not None:
        lines += _known(record["known"])
    for note in record["notes"]:
        lines += textwrap.wrap(f"note: {note}", WIDTH, subsequent_indent="      ")
    chosen = f"start from: {record['source']} (rank 1 by {ranking_label(record['by'])})"
    lines += textwrap.wrap(chosen, WIDTH)
    return "\n".join([*lines, *([record["command"]] if record["command"] else [])])


def ranking_label(name: str) -> str:
    """Return the display name of a ranking."""
    return _LABELS.get(name) or indicator_label(name)


def _table(record: dict[str, Any]) -> list[str]:
    """Return one line per source: value of the first ranking, then the ranks."""
    sources = record["sources"]
    rankings = list(next(iter(sources.values()))["ranks"])
    first, others = rankings[0], rankings[1:]
    shown = "score" if first == ZERO_SHOT else ranking_label(first)
    lines = [["", shown, "#", *map(_short_label, others)]]
    for name, found in sources.items():
        ranks = [found["ranks"][ranking] for ranking in rankings]
        cells = ["-" if rank is None else str(rank) for rank in ranks]
        mark = AT_CHANCE if found.get("at_chance") else ""
        lines.append([_cut(name), _figure(found["values"][first]) + mark, *cells])
    untrained, legend = record["untrained"], []
    if untrained is not None:
        for label, score in (("untrained", record["metric"]), ("chance", "chance")):
            lines.append([f"({label})", _figure(untrained[score]), *[""] * len(rankings)])
        if any(found["at_chance"] for found in sources.values()):
            legend = [f"{AT_CHANCE} {AT_CHANCE_MEANING}"]
    return [*_aligned(lines), *legend]


def _known(known: dict[str, Any]) -> list[str]:
    count = len(known["targets"])
    head = (
        f"Share of the {count} targets of the known matrix for which rank 1 is the best source,"
        " with the fully tuned in-task prompt as the probe (a short probe may do worse); regret:"
        " best score minus that of rank 1:"
    )
    lines = [["", "targets", "best", "mean rank", "regret", "at random"]]
    for name in shown_rankings(known["rankings"]):
        found = known["rankings"][name]
        lines.append(
            [
                ranking_label(name) + (" (simulated)" if name == ZERO_SHOT else ""),
                str(found["targets"]),
                f"{100 * found['hits']:.0f} %",
                f"{found['mean_rank']:.2f}",
                f"{found['regret']:.3f}",
                f"{found['chance_regret']:.3f}",
            ]
        )
    notes = [f"note: known matrix: {note}" for note in known["notes"]]
    wrapped = [textwrap.wrap(note, WIDTH, subsequent_indent="      ") for note in notes]
    return [*textwrap.wrap(head, WIDTH), *_aligned(lines), *(line for of in wrapped for line in of)]


def _short_label(name: str) -> str:
    """Return a short column head, for instance E_avg for E_average."""
    label = ranking_label(name)
    return label.replace("average", "avg").replace("concat", "cat").replace("same ", "")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _cut(name: str) -> str:
    """Shorten a name in the middle, keeping the seed at its end."""
    if len(name) <= _NAME:
        return name
    tail = name[name.rindex("/") :] if "/" in name else ""
    return f"{name[: _NAME - 1 - len(tail)]}…{tail}"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(max(width, 3))
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


# --- Recommendation
# The paper compares fully tuned prompts. Here the new task has no prompt yet: a probe, tuned for a
# few steps on its few labelled rows, takes its place.

RECORD, PROBE = "recommend.json", "probe"


@dataclass(frozen=True)
class Recommendation:
    """Result of `recommend`.

    Attributes:
        source: Name of the prompt to start from.
        by: Ranking that selected it.
        rankings: All rankings, by name.
        scores: Score of each source, and of an untrained prompt under ``random``, on the task's
            rows; meaningless without labels.
        probe: Probe prompt; None without labels.
        known: Evaluation of the rankings on a known matrix, if one was given.
        record: The recommendation as JSON.
    """

    source: str
    by: str
    rankings: dict[str, Ranking]
    scores: dict[str, Score]
    probe: Prompt | None
    known: LeaveOneOut | None
    record: dict[str, Any]

    def describe(self) -> str:
        """Return the recommendation as text of at most 80 columns."""
        return describe_recommendation(self.record)


def recommend(
    task: Task | str | Path,
    prompts: Prompts,
    out: str | Path | None = None,
    *,
    known: TransferMatrix | str | Path | None = None,
    data: Data | None = None,
    progress: bool = False,
    **options: Any,
) -> Recommendation:
    """Rank source prompts for a new task before it is tuned.

    With labelled rows, sources are ranked by their zero-shot score on them, and by overlap of
    neurons (ON) and the embedding indicators between each source and a probe: a prompt tuned for a
    few steps on these rows. Without labels they are ranked by the mutual information of their
    predictions, a heuristic. Only train rows are used. Prompts of the task itself are excluded.

    Args:
        task: New task, its name or its folder.
        prompts: Source prompts of one backbone and length: a folder, or prompts by name.
        out: Folder for ``recommend.json`` and the probe's run.
        known: Zero-shot matrix of the same prompts, to evaluate the rankings on.
        data: Folder of the task's rows, or rows by split.
        progress: Report progress on stderr.
        **options: Fields of :class:`jpt.config.RecommendOptions`: labels, probe_steps, by and
            others.

    Returns:
        A `Recommendation`.

    Raises:
        InputError: The prompts do not belong together, none is for another task, there are no
            labelled rows, the matrix is of other prompts, or the ranking is unknown.

    Example:
        >>> from jpt.types import PromptCard
        >>> card = PromptCard("builtin/bert-small", "builtin/imdb")
        >>> random = np.random.default_rng(0).normal(0, 0.1, (2, 5, 128)).astype(np.float32)
        >>> sources = {name: Prompt(each, card) for name, each in zip("ab", random)}
        >>> texts = {"train": [{"text": "Fine."}, {"text": "Dull."}]}
        >>> found = recommend("sst2", sources, labels=0, data=texts, eval_batch_size=2)
        >>> found.by, sorted(found.rankings["mutual_information"].ranks().values())
        ('mutual_information', [1, 2])
    """
    started_s = time.monotonic()
    case = prepare_recommendation(task, prompts, data, RecommendOptions(**options))
    matrix = None if known is None else known_matrix(known, case.prompts)
    _check_by(case)
    result = _rank(case, matrix, out, progress)
    result.record["command"] = start_command(task, prompts, data, case, result.source)
    result.record["elapsed_s"] = round(time.monotonic() - started_s, 2)
    if out is not None:
        write_json(make_folder(out) / RECORD, result.record)
    return result


def _rank(
    case: RecommendInputs, matrix: TransferMatrix | None, out: str | Path | None, progress: bool
) -> Recommendation:
    """Score the sources, tune the probe, compare, and evaluate the rankings."""
    kind = "labelled rows" if case.labelled else "texts"
    _say(progress, f"scoring {len(case.sources)} sources on {len(case.task.rows['train'])} {kind}")
    scores = _score(case)
    rankings = score_rankings({name: scores[name] for name in case.sources}, case.labelled)
    probe, found, judged = None, None, None
    if case.labelled:
        _say(progress, f"tuning a probe for {case.options.probe_steps} steps")
        probe = _tune_probe(case, out)
    if probe is not None or matrix is not None:
        _say(progress, "comparing prompts and activated neurons")
        name, found = _compare(case, probe)
        if probe is not None:
            rankings |= indicator_rankings(found, name, case.sources)
            found = _without(found, name)
    rankings |= type_ranking(case.task, case.sources)
    by = case.options.by or next(iter(rankings))
    if matrix is not None:
        rows = len(case.task.rows["train"]) if case.labelled else None
        judged = leave_one_out(found, matrix, rows=rows)
    record = recommendation_record(case, rankings, by, scores, judged)
    return Recommendation(record["source"], by, rankings, scores, probe, judged, record)


def _check_by(case: RecommendInputs) -> None:
    """Raise InputError for an unknown ranking."""
    of_probe = (ZERO_SHOT, OVERLAP, *EMBEDDING_INDICATORS)
    names = [
        *(of_probe if case.labelled else (MUTUAL_INFORMATION,)),
        *type_ranking(case.task, case.sources),
    ]
    if case.options.by == "sureness":
        raise InputError("by is sureness, which is now called mutual_information; use that name")
    if case.options.by is not None and case.options.by not in names:
        raise unknown_name("ranking", case.options.by, names)


def _score(case: RecommendInputs) -> dict[str, Score]:
    """Score all sources and an untrained prompt in one pass over the rows."""
    values = {name: prompt.values for name, prompt in case.sources.items()}
    values[START] = _untrained(case)
    rows, names = case.bound.split("train"), list(values)
    found = case.bound.score(list(values.values()), rows, case.mesh, names=names)
    return dict(zip(values, found, strict=True))


def _untrained(case: RecommendInputs) -> Float32[np.ndarray, "P D"]:
    """Return the values that the probe starts from."""
    model = case.backbone
    generator = initial_generator(case.options.seed, model.name, START)
    return random_values(generator, *case.first.values.shape, model.init_std())


def _tune_probe(case: RecommendInputs, out: str | Path | None) -> Prompt:
    """Tune the probe; its card is made comparable with the sources'."""
    options, first = case.options, case.first
    with warnings.catch_warnings():
        # Validation has the same few rows: scored once, so that no step is selected on them.
        warnings.simplefilter("ignore", DataWarning)
        result = tune(
            case.backbone,
            case.task,
            None if out is None else Path(out) / PROBE,
            steps=options.probe_steps,
            learning_rate=options.learning_rate,
            length=len(first.values),
            max_tokens=case.bound.batching.max_tokens,
            label_scoring=case.bound.label_scoring,
            seed=options.seed,
            eval_every=options.probe_steps,
            checkpoint_every=options.probe_steps,
            eval_batch_size=options.eval_batch_size,
            dtype=options.dtype,
            mesh=options.mesh,
        )
    position = first.card.first_position
    if position:
        case.notes.append(
            f"the sources were tuned with text from position {position}, the probe with text from"
            " position 0"
        )
    shared = {"backbone": first.card.backbone, "first_position": position}
    return dataclasses.replace(result.last, card=dataclasses.replace(result.last.card, **shared))


def _compare(case: RecommendInputs, probe: Prompt | None) -> tuple[str, Indicators]:
    """Compute the indicators of all prompts and the probe; return the probe's name and them."""
    name = PROBE
    while name in case.prompts:
        name += "_"
    bank = case.prompts if probe is None else {**case.prompts, name: probe}
    activations = activated_neurons(bank, backbone=case.backbone, mesh=case.options.mesh)
    found = compute_indicators(bank, activations, layers=case.options.layers)
    case.notes.extend(found.notes)
    return name, found


def _without(found: Indicators, name: str) -> Indicators:
    """Return the indicators without one prompt."""
    index = found.names.index(name)
    return Indicators(
        tuple(each for each in found.names if each != name),
        {
            column: np.delete(np.delete(table, index, 0), index, 1)
            for column, table in found.columns.items()
        },
        {each: card for each, card in found.cards.items() if each != name},
    )


def _say(progress: bool, line: str) -> None:
    if progress:
        print(line, file=sys.stderr, flush=True)
