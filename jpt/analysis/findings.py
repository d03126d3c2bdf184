"""What a study says, in plain sentences that follow from its numbers, for or against the paper."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jpt.analysis.finding import Finding
from jpt.analysis.findings_choice import choice_finding, mask_finding
from jpt.analysis.layout import Layout, moves, own_score, random_values
from jpt.analysis.overlap_findings import caution_finding, correlation_finding, overlap_finding
from jpt.analysis.study import Study
from jpt.analysis.type_findings import source_finding, type_finding
from jpt.analysis.wording import percent


def find(study: Study, layout: Layout) -> list[Finding]:
    """Says what was found."""
    moved = moves(study, layout)
    found = [
        training_finding(study, layout),
        type_finding(moved, random_values(study, layout)),
        source_finding(moved),
        overlap_finding(study),
        correlation_finding(study),
        choice_finding(study),
        mask_finding(study),
        caution_finding(study, moved),
    ]
    return [finding for finding in found if finding is not None]


def training_finding(study: Study, layout: Layout) -> Finding | None:
    """Says whether the prompts learned their own tasks."""
    told = study.facts.targets if study.facts else {}
    scores = {target: own_score(study, layout, target) for target in layout.targets}
    pairs = {t: (s, told[t].majority) for t, s in scores.items() if t in told}
    pairs = {t: pair for t, pair in pairs.items() if np.isfinite(pair).all()}
    if not pairs:
        return None
    failed = [target for target, (score, majority) in pairs.items() if score <= majority]
    mean, majority = (float(np.mean([pair[i] for pair in pairs.values()])) for i in (0, 1))
    means = f"mean score {percent(mean)} against {percent(majority)}"
    if not failed:
        text = f"{_all(len(pairs))} own prompts score above the majority class ({means})."
        return Finding(
            "training", text if len(pairs) > 1 else f"The own prompt has learned: {means}."
        )
    return Finding(
        "training",
        f"{len(failed)} of {len(pairs)} own prompts score no better than the majority class"
        f" ({_list(failed)}), so the moves to {_these(failed)} say little ({means}).",
    )


def _all(count: int) -> str:
    return "Both" if count == 2 else f"All {count}"


def _these(names: Sequence[str]) -> str:
    return "that task" if len(names) == 1 else "those tasks"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:3])}, …"
