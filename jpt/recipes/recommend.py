"""Recommend source prompts for a task before it is tuned."""

from __future__ import annotations

import dataclasses
import math
import shlex
import sys
import textwrap
import time
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
from jpt.errors import InputError, unknown_name
from jpt.indicators.indicators import (
    EMBEDDING_INDICATORS,
    OVERLAP,
    Indicators,
    compute_indicators,
    indicator_label,
    parse_layers,
)
from jpt.indicators.pairs import is_random, over_seeds, serves, shorten, type_of
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
from jpt.results.prompt_table import BASELINES, read_transfer
from jpt.results.records import LeaveOneOut, Ranking
from jpt.tasks.task import Task
from jpt.tuning.bound_task import (
    BoundTask,
    bind_task,
    resolve_backbone,
    resolve_max_tokens,
    resolve_task,
)
from jpt.tuning.tune import tune
from jpt.types import Data, Prompt, Score, TransferMatrix

# --- The rows that a recommendation may look at: a few of train, with their labels or without

LABELS = 64
"""Labelled rows, where nothing else is said."""

TEXTS = 256
"""Texts without labels, where there are no labels."""

STREAM = crc32(b"recommend/rows")


def labelled_task(task: Task, labels: int | None, seed: int) -> tuple[Task, list[str]]:
    """Gives a task that knows a few labelled rows of train and nothing else."""
    if not has_split(task, "train"):
        raise InputError(
            f"task {task.name} has no train rows, so there are no labels to score sources and to"
            " tune a probe on; give some, or rank without labels: --labels 0"
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
        notes.append(
            f"no labelled row is {' or '.join(lacking)}: scores say nothing of telling that apart"
        )
    return _with(task, chosen), notes


def unlabelled_task(task: Task, seed: int) -> Task:
    """Gives a task that knows some texts and no labels."""
    if task.is_generative:
        raise InputError(
            f"the answers of task {task.name} are written: without labelled rows there is nothing"
            " to rank sources by; give some rows with answers (--labels 16)"
        )
    if not has_split(task, "train"):
        raise InputError(
            f"task {task.name} has no train rows, so there are no texts to ask sources about; give"
            " some, labels are not needed"
        )
    return _with(task, _some(read_texts(task, "train"), TEXTS, seed))


def _some(rows: Sequence[Row], count: int, seed: int) -> tuple[Row, ...]:
    """Rows by chance, in the order in which they stood."""
    chosen = shuffled(seed, STREAM, 0, len(rows))[:count]
    return tuple(rows[number] for number in sorted(chosen.tolist()))


def _with(task: Task, rows: tuple[Row, ...]) -> Task:
    """A task with these rows alone. Checked rows have their target under one name."""
    target = {"answer_field": "answers"} if task.is_generative else {"label_field": "label"}
    splits = {"train": rows, "validation": rows}
    return replace(task, rows=splits, folder=None, files={}, **target)


# --- A new task with its source prompts, loaded and checked before a recommendation is made


@dataclass(frozen=True)
class RecommendInputs:
    """The new task and the sources, before anything is compiled."""

    task: Task  # with the rows alone that may be looked at
    backbone: Backbone  # who reads them
    mesh: Mesh  # its devices
    prompts: dict[str, Prompt]  # all that were given, without rows that no model reads
    sources: dict[str, Prompt]  # those that are a choice
    bound: BoundTask  # the task as the backbone reads it
    options: RecommendOptions  # as they were given, the seed settled
    notes: list[str]  # what was left out, and why

    @property
    def labelled(self) -> bool:
        """Whether the labels of the rows are true."""
        return self.options.labels != 0

    @property
    def first(self) -> Prompt:
        """One of the prompts; all are of one kind."""
        return next(iter(self.prompts.values()))


def prepare_recommendation(
    task: Task | str | Path,
    prompts: Prompts,
    data: Data | None,
    options: RecommendOptions,
) -> RecommendInputs:
    """Loads and checks everything, cheap things first, before anything is compiled."""
    loaded = {  # a row that no model reads has no part in this, and the probe has none
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
    parse_layers(options.layers, model.config.layers)  # refuses those that are not there
    position = first.card.first_position or 0
    tokens = resolve_max_tokens(options.max_tokens, model, known, len(first.values), position)
    bound = bind_task(known, model, tokens, size, position)
    return RecommendInputs(known, model, devices, loaded, sources, bound, options, notes)


def known_matrix(
    known: TransferMatrix | str | Path, prompts: Mapping[str, Prompt]
) -> TransferMatrix:
    """Reads a known matrix, and refuses that of other prompts."""
    matrix = known if isinstance(known, TransferMatrix) else read_transfer(known)
    cards = {name: prompt.card for name, prompt in prompts.items()}
    here = over_seeds(Indicators(tuple(cards), {}, cards), matrix.prompts)
    missing = sorted(set(matrix.prompts) - set(here.names) - set(BASELINES))
    if missing:
        raise InputError(
            f"the known matrix names {len(missing)} prompts that are not here"
            f" ({shorten(missing)}; here are {shorten(here.names)}); give the folder of prompts"
            " that it was made with"
        )
    leave_one_out(here, matrix)  # says so where nothing is judged
    return matrix


def _sources(task: Task, prompts: dict[str, Prompt]) -> tuple[dict[str, Prompt], list[str]]:
    """The prompts that are a choice, and a line on those that are none."""
    in_task = [n for n, prompt in prompts.items() if serves(n, prompt.card, [task.short_name])]
    untrained = [n for n, p in prompts.items() if n not in in_task and is_random(n, p.card)]
    sources = {n: p for n, p in prompts.items() if n not in in_task and n not in untrained}
    if not sources:
        raise InputError(
            f"none of the {len(prompts)} prompts ({shorten(list(prompts))}) is for another task"
            f" than {task.short_name}: there is no source to choose; give a folder with prompts of"
            " other tasks"
        )
    notes = []
    if in_task:
        notes.append(f"{shorten(in_task)}: for {task.short_name} itself, left out of the ranking")
    if untrained:
        notes.append(f"{shorten(untrained)}: not trained, left out of the ranking")
    return sources, notes


def _common_seed(sources: Mapping[str, Prompt]) -> int:
    seeds = {prompt.card.seed for prompt in sources.values()}
    found = seeds.pop() if len(seeds) == 1 else None
    return 0 if found is None else found


# --- What each ranking says of each source, who is first, and who cannot be told from the first

MUTUAL_INFORMATION = "mutual_information"

_TWO_SIDED_95 = 1.96


def score_rankings(scores: Mapping[str, Score], labelled: bool) -> dict[str, Ranking]:
    """Ranks sources by what they do on the task's rows."""
    if not labelled:
        values = {name: mutual_information(score.log_probs) for name, score in scores.items()}
        return {MUTUAL_INFORMATION: Ranking(values, {})}
    values = {name: score.value for name, score in scores.items()}
    return {ZERO_SHOT: Ranking(values, {name: -score.loss for name, score in scores.items()})}


def indicator_rankings(
    indicators: Indicators, probe: str, sources: Mapping[str, Prompt]
) -> dict[str, Ranking]:
    """Ranks sources by how alike they are to a probe."""
    names = [name for name in (OVERLAP, *EMBEDDING_INDICATORS) if name in indicators.columns]
    return {
        name: Ranking({source: indicators.value(name, probe, source) for source in sources}, {})
        for name in names
    }


def type_ranking(task: Task, sources: Mapping[str, Prompt]) -> dict[str, Ranking]:
    """Puts sources for tasks of the task's type first."""
    values = {}
    for name, prompt in sources.items():
        kind = type_of(prompt.card)
        values[name] = math.nan if kind is None else float(kind == task.type)
    return {SAME_TYPE: Ranking(values, {})} if 1.0 in values.values() else {}


def not_distinguished(best: str, scores: Mapping[str, Score], truth: np.ndarray) -> list[str]:
    """Finds the sources that may be as good as the best one, for all that a few rows say."""
    right = {name: (score.predictions == truth).astype(float) for name, score in scores.items()}
    found = []
    for name in scores:
        gains = right[best] - right[name]
        error = gains.std(ddof=1) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
        if name != best and gains.mean() <= _TWO_SIDED_95 * error:
            found.append(name)
    return found


# --- A recommendation as JSON: what each ranking says of each source, and what a few rows hide

START = "random"
"""The untrained start among the scores."""


def recommendation_record(
    case: RecommendInputs,
    rankings: Mapping[str, Ranking],
    by: str,
    scores: Mapping[str, Score],
    judged: LeaveOneOut | None,
) -> dict[str, Any]:
    """Puts a recommendation together as JSON."""
    ordered = rankings[by].ordered()
    ranks = {name: ranking.ranks() for name, ranking in rankings.items()}
    sources = {
        name: {
            "task": case.sources[name].card.task,
            **({"score": scores[name].value, "loss": scores[name].loss} if case.labelled else {}),
            "values": {r: _number(ranking.values[name]) for r, ranking in rankings.items()},
            "ranks": {r: place[name] for r, place in ranks.items()},
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


def _cautions(
    case: RecommendInputs, rankings: Mapping[str, Ranking], scores: Mapping[str, Score]
) -> list[str]:
    """What the scores on a few rows do not show."""
    if not case.labelled:
        return [
            "without labels nothing is measured: sureness (answers that are clear and differ from"
            " text to text) is a heuristic, and a sure prompt may be wrong"
        ]
    best, notes = next(iter(rankings.values())).ordered()[0], []
    untrained, majority = scores[START].value, 0.0
    if case.task.metric == "accuracy":
        of_sources = {name: scores[name] for name in case.sources}
        truth = case.bound.split("train").labels
        near = not_distinguished(best, of_sources, truth)
        majority = scores[START].majority
        if near:
            notes.append(
                f"{len(truth)} rows do not tell {best} from {shorten(near)} (95 % interval of the"
                " difference)"
            )
    if scores[best].value <= max(untrained, majority):
        notes.append(
            f"no source scores above an untrained prompt ({untrained:.3f}) and the commonest"
            f" answer ({majority:.3f}): the scores give no reason to start from one"
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
    """Writes the command that starts from a source."""
    if isinstance(prompts, Mapping) or isinstance(data, Mapping):
        return None
    if isinstance(task, Task) and task.rows is not None:
        return None
    name = task.folder or task.name if isinstance(task, Task) else task
    words = ["jpt", "tune", "--backbone", case.backbone.name, "--task", str(name)]
    words += [] if data is None else ["--data", str(data)]
    words += ["--length", str(len(case.first.values))]
    words += ["--init", f"prompt:{list_runs(prompts)[source]}"]
    place = f"runs/{case.task.short_name}-from-{source.replace('/', '-')}"
    return shlex.join([*words, "--out", place])


# --- A recommendation as text, at most 80 columns wide

WIDTH = 80
_NAME = 22
_LABELS = {
    ZERO_SHOT: "zero-shot",
    SAME_TYPE: "same type",
    "mutual_information": "mutual_information",
}


def describe_recommendation(record: dict[str, Any]) -> str:
    # Lays a recommendation out: the sources in order, how often rankings were right, the command.
    seen = f"{record['rows']} {'labelled rows' if record['labelled'] else 'texts, no labels'}"
    head = f"Sources for {record['task']} on {record['backbone']}: place by each ranking, 1 the"
    lines = [*textwrap.wrap(f"{head} best ({seen})", WIDTH), *_table(record)]
    if record["known"] is not None:
        lines += _known(record["known"])
    for note in record["notes"]:
        lines += textwrap.wrap(f"note: {note}", WIDTH, subsequent_indent="      ")
    chosen = f"start from: {record['source']} (first by {ranking_label(record['by'])})"
    lines += textwrap.wrap(chosen, WIDTH)
    return "\n".join([*lines, *([record["command"]] if record["command"] else [])])


def ranking_label(name: str) -> str:
    """Gives the name of a ranking for people."""
    return _LABELS.get(name) or indicator_label(name)


def _table(record: dict[str, Any]) -> list[str]:
    """One line a source: what the first ranking says of it, then its places."""
    sources = record["sources"]
    rankings = list(next(iter(sources.values()))["ranks"])
    first, others = rankings[0], rankings[1:]
    shown = "score" if first == ZERO_SHOT else ranking_label(first)
    lines = [["", shown, "#", *map(_short_label, others)]]
    for name, found in sources.items():
        ranks = [found["ranks"][ranking] for ranking in rankings]
        cells = ["-" if place is None else str(place) for place in ranks]
        lines.append([_cut(name), _figure(found["values"][first]), *cells])
    if record["untrained"] is not None:
        score = record["untrained"][record["metric"]]
        lines.append(["(untrained)", _figure(score), *[""] * len(rankings)])
    return _aligned(lines)


def _known(known: dict[str, Any]) -> list[str]:
    count = len(known["targets"])
    head = (
        f"How often the first source was the best one, on {count} targets of the known matrix,"
        " each with its own prompt as the probe (tuned to the end: a short one may do worse);"
        " regret: best score less that of the first source:"
    )
    lines = [["", "targets", "was best", "mean place", "regret", "by chance"]]
    simulated = False
    for name in shown_rankings(known["rankings"]):
        found = known["rankings"][name]
        simulated |= name == ZERO_SHOT
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
    """So that all fit: E_average as E_avg."""
    label = ranking_label(name)
    return label.replace("average", "avg").replace("concat", "cat").replace("same ", "")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _cut(name: str) -> str:
    """Shortens a name in the middle: of runs of one prompt the end tells which it is."""
    if len(name) <= _NAME:
        return name
    tail = name[name.rindex("/") :] if "/" in name else ""
    return f"{name[: _NAME - 1 - len(tail)]}…{tail}"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    return [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(max(width, 3))
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


# --- Which source prompt to start from, for a task with few labels or none
# The paper compares prompts that are both tuned to the end. Here the new task has no prompt yet: a
# probe is tuned for a few steps on its few labelled rows and stands in for it.

RECORD, PROBE = "recommend.json", "probe"


@dataclass(frozen=True)
class Recommendation:
    """The sources in order, and what each ranking says of them.

    Attributes:
        source: the prompt to start from.
        by: the ranking that chose it.
        rankings: every ranking, by name.
        scores: of each source, and of an untrained start under ``random``, on the task's rows;
            empty of meaning where there are no labels.
        probe: the prompt that was tuned shortly; None without labels.
        known: how often rankings were right on a known matrix, where there is one.
        record: the same as JSON.
    """

    source: str
    by: str
    rankings: dict[str, Ranking]
    scores: dict[str, Score]
    probe: Prompt | None
    known: LeaveOneOut | None
    record: dict[str, Any]

    def describe(self) -> str:
        """Lays the recommendation out for reading, in at most 80 columns."""
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
    """Ranks source prompts for a new task, before it is tuned for.

    With labelled rows: by the score of each source on them, as it is; and by overlap of neurons
    (ON) and the embedding indicators between each source and a probe, a prompt that is tuned
    shortly on these rows. Without labels: by how sure each source is on the task's texts, which is
    a heuristic. Only train rows are looked at. Prompts of the task itself are no sources.

    Args:
        task: the new task, its name, or its folder.
        prompts: the sources: a folder, or prompts by name; all of one backbone and length.
        out: folder for ``recommend.json`` and the probe's run.
        known: a zero-shot matrix of the same prompts, on which rankings are judged.
        data: folder of the task's rows, or the rows by split.
        progress: whether to say on stderr how far it is.
        **options: fields of :class:`jpt.config.RecommendOptions`: labels,
            probe_steps, by and others.

    Returns:
        The recommendation.

    Raises:
        InputError: prompts that do not belong together, no source for another task, no labelled
            rows, a matrix of other prompts, or an unknown ranking.

    Example:
        >>> from jpt.types import PromptCard
        >>> card = PromptCard("builtin/bert-small", "builtin/imdb")
        >>> random = np.random.default_rng(0).normal(0, 0.1, (2, 5, 128)).astype(np.float32)
        >>> sources = {name: Prompt(each, card) for name, each in zip("ab", random)}
        >>> texts = {"train": [{"text": "Fine."}, {"text": "Dull."}]}
        >>> found = recommend("sst2", sources, labels=0, data=texts, eval_batch_size=2)
        >>> found.by, sorted(found.rankings["mutual_information"].places().values())
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
    """Scores, probes, compares and judges, and puts it together."""
    kind = "labelled rows" if case.labelled else "texts"
    _say(progress, f"scoring {len(case.sources)} sources on {len(case.task.rows['train'])} {kind}")
    scores = _score(case)
    rankings = score_rankings({name: scores[name] for name in case.sources}, case.labelled)
    probe, found, judged = None, None, None
    if case.labelled:
        _say(progress, f"tuning a probe for {case.options.probe_steps} steps")
        probe = _tune_probe(case, out)
    if probe is not None or matrix is not None:
        _say(progress, "comparing prompts and the neurons that they activate")
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
    """Refuses an unknown ranking before the work."""
    of_probe = (ZERO_SHOT, OVERLAP, *EMBEDDING_INDICATORS)
    names = [
        *(of_probe if case.labelled else (MUTUAL_INFORMATION,)),
        *type_ranking(case.task, case.sources),
    ]
    if case.options.by is not None and case.options.by not in names:
        raise unknown_name("ranking", case.options.by, names)


def _score(case: RecommendInputs) -> dict[str, Score]:
    """Scores all sources and an untrained start in one pass over the rows."""
    values = {name: prompt.values for name, prompt in case.sources.items()}
    values[START] = _untrained(case)
    found = case.bound.score(list(values.values()), case.bound.split("train"), case.mesh)
    return dict(zip(values, found, strict=True))


def _untrained(case: RecommendInputs) -> Float32[np.ndarray, "P D"]:
    """Where the probe starts."""
    model = case.backbone
    generator = initial_generator(case.options.seed, model.name, START)
    return random_values(generator, *case.first.values.shape, model.init_std())


def _tune_probe(case: RecommendInputs, out: str | Path | None) -> Prompt:
    """Tunes a prompt shortly; its card is made comparable with the sources'."""
    options, first = case.options, case.first
    result = tune(
        case.backbone,
        case.task,
        None if out is None else Path(out) / PROBE,
        steps=options.probe_steps,
        learning_rate=options.learning_rate,
        length=len(first.values),
        max_tokens=case.bound.batching.max_tokens,
        seed=options.seed,
        # Validation is the same few rows: scored once, so that nothing is chosen on them.
        eval_every=options.probe_steps,
        checkpoint_every=options.probe_steps,
        eval_batch_size=options.eval_batch_size,
        dtype=options.dtype,
        mesh=options.mesh,
    )
    position = first.card.first_position
    if position:
        case.notes.append(
            f"the sources read text from position {position}, the probe was tuned with text from"
            " position 0"
        )
    placed = {"backbone": first.card.backbone, "first_position": position}
    return dataclasses.replace(result.last, card=dataclasses.replace(result.last.card, **placed))


def _compare(case: RecommendInputs, probe: Prompt | None) -> tuple[str, Indicators]:
    """Computes the indicators of all prompts and the probe, which gets a name of its own."""
    name = PROBE
    while name in case.prompts:
        name += "_"
    bank = case.prompts if probe is None else {**case.prompts, name: probe}
    activations = activated_neurons(bank, backbone=case.backbone, mesh=case.options.mesh)
    found = compute_indicators(bank, activations, layers=case.options.layers)
    case.notes.extend(found.notes)
    return name, found


def _without(found: Indicators, name: str) -> Indicators:
    """The indicators of the other prompts; each pair stands for itself."""
    place = found.names.index(name)
    return Indicators(
        tuple(each for each in found.names if each != name),
        {
            column: np.delete(np.delete(table, place, 0), place, 1)
            for column, table in found.columns.items()
        },
        {each: card for each, card in found.cards.items() if each != name},
    )


def _say(progress: bool, line: str) -> None:
    if progress:
        print(line, file=sys.stderr, flush=True)
