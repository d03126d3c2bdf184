"""Which source prompt to start from, for a task with few labels or none.

The paper compares prompts that are both tuned to the end. Here the new task has no prompt yet: a
probe is tuned for a few steps on its few labelled rows and stands in for it.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from jpt.analysis.activations import activated_neurons
from jpt.analysis.choice import ZERO_SHOT, LeaveOneOut, leave_one_out
from jpt.analysis.indicators import Indicators, indicators
from jpt.analysis.overlap import OVERLAP
from jpt.analysis.similarity import EMBEDDING_INDICATORS
from jpt.errors import unknown_name
from jpt.files.atomic import make_folder, write_json
from jpt.prompts.initialisers import initial_generator, random_values
from jpt.recipes.recommend_case import Case, RecommendOptions, known_matrix, prepare_case
from jpt.recipes.recommend_rankings import (
    SURENESS,
    Ranking,
    indicator_rankings,
    score_rankings,
    type_ranking,
)
from jpt.recipes.recommend_record import START, recommendation_record, start_command
from jpt.recipes.recommend_text import describe_recommendation
from jpt.tasks.task import Task
from jpt.tuning.prepare import Data
from jpt.tuning.scoring import Score
from jpt.tuning.tune import tune
from jpt.types import Prompt, TransferMatrix

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
        **options: fields of :class:`jpt.recipes.recommend_case.RecommendOptions`: labels,
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
        >>> found.by, sorted(found.rankings["sureness"].places().values())
        ('sureness', [1, 2])
    """
    started_s = time.monotonic()
    case = prepare_case(task, prompts, data, RecommendOptions(**options))
    matrix = None if known is None else known_matrix(known, case.prompts)
    _check_by(case)
    result = _rank(case, matrix, out, progress)
    result.record["command"] = start_command(task, prompts, data, case, result.source)
    result.record["elapsed_s"] = round(time.monotonic() - started_s, 2)
    if out is not None:
        write_json(make_folder(out) / RECORD, result.record)
    return result


def _rank(
    case: Case, matrix: TransferMatrix | None, out: str | Path | None, progress: bool
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


def _check_by(case: Case) -> None:
    """Refuses an unknown ranking before the work."""
    of_probe = (ZERO_SHOT, OVERLAP, *EMBEDDING_INDICATORS)
    names = [*(of_probe if case.labelled else (SURENESS,)), *type_ranking(case.task, case.sources)]
    if case.options.by is not None and case.options.by not in names:
        raise unknown_name("ranking", case.options.by, names)


def _score(case: Case) -> dict[str, Score]:
    """Scores all sources and an untrained start in one pass over the rows."""
    values = {name: prompt.values for name, prompt in case.sources.items()}
    values[START] = _untrained(case)
    found = case.prepared.score(list(values.values()), case.prepared.split("train"), case.mesh)
    return dict(zip(values, found, strict=True))


def _untrained(case: Case) -> Float32[np.ndarray, "P D"]:
    """Where the probe starts."""
    model = case.backbone
    generator = initial_generator(case.options.seed, model.name, START)
    return random_values(generator, *case.first.values.shape, model.init_std())


def _tune_probe(case: Case, out: str | Path | None) -> Prompt:
    """Tunes a prompt shortly; its card is made comparable with the sources'."""
    options, first = case.options, case.first
    result = tune(
        case.backbone,
        case.task,
        None if out is None else Path(out) / PROBE,
        steps=options.probe_steps,
        learning_rate=options.learning_rate,
        length=len(first.values),
        max_tokens=case.prepared.batching.max_tokens,
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


def _compare(case: Case, probe: Prompt | None) -> tuple[str, Indicators]:
    """Computes the indicators of all prompts and the probe, which gets a name of its own."""
    name = PROBE
    while name in case.prompts:
        name += "_"
    bank = case.prompts if probe is None else {**case.prompts, name: probe}
    activations = activated_neurons(bank, backbone=case.backbone, mesh=case.options.mesh)
    found = indicators(bank, activations, layers=case.options.layers)
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
