"""The parts of the report on how it was made: training, prompts, versions, commands, notes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jpt.analysis.curves import learning_curve
from jpt.analysis.layout import NO_TYPE, Layout
from jpt.analysis.page import (
    Child,
    Markup,
    details,
    element,
    figure,
    missing,
    section,
    sources,
    table,
    value_cell,
)
from jpt.analysis.plots import to_svg
from jpt.analysis.report_methods import (
    STUDY_FILES,
    fact_list,
    methods_list,
    methods_text,
    shared_settings,
    version_facts,
)
from jpt.analysis.runs import PromptRecord
from jpt.analysis.study import Study, commands
from jpt.analysis.study_facts import Correlations
from jpt.analysis.wording import UNKNOWN, counted, decimal, duration

_MOST_PANELS = 40


def training_section(study: Study, layout: Layout) -> Markup:
    """Shows how the runs learned, and lists the prompts."""
    title = "How the prompts were trained"
    records = ordered_prompts(study, layout)
    if not records:
        note = missing(
            "There is no folder prompts/ with runs or prompts", commands(study.folder)["tune"]
        )
        return section("training", title, note)
    logged = [record for record in records if record.curve is not None]
    parts: list[Markup | None] = []
    if logged:
        parts.append(
            element(
                "p",
                "Above: score on validation (blue), majority class (dashed), the prompt that was"
                " kept (dot). Below: loss on validation (thick, orange) and on training batches"
                " (thin, gray).",
            )
        )
        panels = [
            _panel(index, record, layout.prompt_types[record.name])
            for index, record in enumerate(logged[:_MOST_PANELS])
        ]
        parts.append(element("div", *panels, class_="panels"))
        if len(logged) > _MOST_PANELS:
            rest = counted(len(logged) - _MOST_PANELS, "run")
            parts.append(element("p", f"{rest} more have no figure here.", class_="facts"))
    else:
        parts.append(
            element("p", "There are no logs (metrics.jsonl) of the runs, so there are no curves.")
        )
    return section("training", title, *parts, _prompt_table(records, layout))


def ordered_prompts(study: Study, layout: Layout) -> list[PromptRecord]:
    """Lists the prompts of the folder in the order of the page."""
    return [study.prompts[name] for name in layout.every if name in study.prompts]


def provenance_section(study: Study, layout: Layout) -> Markup:
    """Says how it was computed, what was run, on what, with which settings."""
    facts = study.facts
    written = [study.folder / name for name in STUDY_FILES]
    written += [study.folder / "prompts" / name / "result.json" for name in study.prompts]
    told: list[tuple[str, Child]] = []
    if facts is not None:
        random = ", ".join(f"{name} {value}" for name, value in facts.random_start.items())
        told += [
            ("backbone", facts.backbone),
            ("scored rows", _rows_told(study)),
            ("untrained prompt", random or None),
            ("time for the matrix", duration(facts.elapsed_s)),
            ("command", element("code", facts.command) if facts.command else None),
        ]
    if study.neurons is not None:
        n_prompts, n_layers, n_neurons = study.neurons
        sizes = (counted(n_prompts, "prompt"), counted(n_layers, "layer"))
        told.append(("neurons", f"{', '.join(sizes)} of {counted(n_neurons, 'neuron')}"))
    told += _run_settings(list(study.prompts.values()))
    versions = (facts.versions, facts.machine, facts.device) if facts else ({}, None, None)
    told += version_facts(*versions, written)
    note = None
    if facts is None:
        note = missing(
            "There is no transfer.json, so versions and device are not known",
            commands(study.folder)["transfer"],
        )
    files = [name for name in ("transfer.json", "prompts/") if (study.folder / name).exists()]
    return section(
        "provenance",
        "Methods and versions",
        methods_list(methods_text(study)),
        note,
        fact_list(told),
        sources(files, "p"),
        _row_table(study, layout),
    )


def note_section(study: Study, layout: Layout) -> Markup:
    """Lists what is undefined, missing or worth knowing."""
    lines = notes(study, layout)
    if not lines:
        return section("notes", "Notes", element("p", "Nothing is missing or undefined."))
    items = [element("li", line) for line in lines]
    return section("notes", "Notes", element("ul", *items, class_="notes"))


def notes(study: Study, layout: Layout) -> list[str]:
    """Collects what is undefined, missing or worth knowing."""
    lines = list(study.facts.notes if study.facts else ())
    lines += study.types.notes if study.types else ()
    lines += _own_notes(study, layout, "\n".join(lines))
    if study.correlations is not None:
        # The command says why; without its notes the gaps themselves are told.
        lines += study.correlations.notes or _undefined_notes(study.correlations)
    for part in (study.choices, study.masks):
        lines += part.notes if part else ()
    compared = set(study.similarities.names if study.similarities else ())
    moved = set(layout.sources)
    if compared and moved:
        lines += _unlike("indicators.csv", moved - compared, "transfer.csv")
        lines += _unlike("transfer.csv", compared - moved - {study.random}, "indicators.csv")
    unfinished = [record.name for record in study.prompts.values() if not record.finished]
    if unfinished:
        lines.append(f"Not finished, so not used elsewhere: {_names(unfinished)}.")
    without = [n for n, t in {**layout.target_types, **layout.prompt_types}.items() if t == NO_TYPE]
    if without and not (study.types and study.types.notes):
        lines.append(f"No type is known for {_names(without)}; left out of means by type.")
    return list(dict.fromkeys(lines))


def _own_notes(study: Study, layout: Layout, told: str) -> list[str]:
    """Gaps of the matrix; what the command has told already is not told twice."""
    lines = []
    without = [t for t in layout.targets if t not in layout.own and f"{t} has" not in told]
    if without:
        lines.append(f"Relative performance is undefined without own prompt: {_names(without)}.")
    if study.transfer is not None:
        gaps = int(np.isnan(study.transfer.values).sum())
        if gaps:
            lines.append(f"{counted(gaps, 'pair')} of task and prompt were not measured.")
    return lines


def _undefined_notes(found: Correlations) -> list[str]:
    """Correlations that do not exist because one side is the same for all sources."""
    lines = []
    for part, which in ((found.own_out, "own_out"), (found.own_in, "own_in")):
        for name, each in part.items():
            undefined = [target for target, v in each.per_target.items() if np.isnan(v)]
            if undefined:
                lines.append(
                    f"The correlation of {name} ({which}) is undefined for {_names(undefined)}:"
                    " fewer than three sources, or a constant column (values or scores are equal)."
                )
    return lines


def _unlike(lacks: str, names: set[str], has: str) -> list[str]:
    if not names:
        return []
    return [f"{has} has prompts that {lacks} has not: {_names(sorted(names))}; make both anew."]


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _panel(index: int, record: PromptRecord, kind: str) -> Markup:
    assert record.curve is not None
    task = record.card.task if record.card else UNKNOWN
    told = kind if task == record.name else f"{task} · {kind}"
    plot = learning_curve(record.curve, record.metric or "score", record.majority, record.best_step)
    score = decimal(record.score, 3)
    label = f"Training of {record.name}: {record.metric or 'score'} on validation {score}"
    caption = f"{told}: {record.metric or 'score'} {score} on validation, step {_steps(record)}."
    files = [f"prompts/{record.name}/metrics.jsonl"]
    svg = to_svg(plot, f"curve-{index}", label)
    return element("div", element("h3", record.name), figure(svg, label, caption, files))


def _prompt_table(records: Sequence[PromptRecord], layout: Layout) -> Markup:
    rows = [
        [
            record.name,
            record.card.task if record.card else UNKNOWN,
            layout.prompt_types.get(record.name, NO_TYPE),
            record.metric or UNKNOWN,
            decimal(record.score, 3),
            decimal(record.majority, 3),
            _steps(record),
            value_cell(duration(record.elapsed_s), record.elapsed_s),
        ]
        for record in records
    ]
    head = ["prompt", "task", "type", "metric", "score", "majority", "step kept / all", "time"]
    caption = "The prompts; scores are on validation"
    return table(head, rows, caption, numbers_from=4, source=["prompts/"])


def _steps(record: PromptRecord) -> str:
    kept = UNKNOWN if record.best_step is None else f"{record.best_step:,}"
    return kept if record.steps is None else f"{kept} / {record.steps:,}"


def _rows_told(study: Study) -> str | None:
    assert study.facts is not None
    rows = [target.rows for target in study.facts.targets.values() if target.rows is not None]
    split = f" of {study.facts.split}" if study.facts.split else ""
    return f"{sum(rows):,}{split} for each prompt, over {counted(len(rows), 'task')}"


def _row_table(study: Study, layout: Layout) -> Markup | None:
    if study.facts is None or not study.facts.targets:
        return None
    told = study.facts.targets
    rows = [
        [
            name,
            told[name].task,
            layout.target_types[name],
            told[name].split or study.facts.split or UNKNOWN,
            told[name].own_prompt or UNKNOWN,
            UNKNOWN if told[name].rows is None else f"{told[name].rows:,}",
            decimal(told[name].majority, 4),
        ]
        for name in layout.targets
        if name in told
    ]
    head = ["target", "task", "type", "split", "own prompt", "rows", "majority"]
    caption = "The target tasks and the rows that were scored"
    whole = table(head, rows, caption, numbers_from=5, source=["transfer.json"])
    return details("Rows by task", whole)


def _run_settings(records: Sequence[PromptRecord]) -> list[tuple[str, Child]]:
    """How many runs there are, and what they have in common."""
    runs = [record for record in records if record.settings]
    if not runs:
        return []
    seconds = [record.elapsed_s for record in runs if np.isfinite(record.elapsed_s)]
    told = f"{len(runs)}, together {duration(sum(seconds))}"
    return [("training runs", told), *shared_settings([record.settings for record in runs])]
