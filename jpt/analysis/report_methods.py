"""The part of the report on how the numbers came about: methods, versions, machine, dates."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jpt.analysis.page import Child, Markup, element
from jpt.analysis.study import Study
from jpt.version import __version__

STUDY_FILES = (
    "transfer.csv",
    "relative.csv",
    "transfer.json",
    "neurons.npz",
    "indicators.csv",
    "correlation.json",
    "types.json",
    "choice.json",
    "mask.json",
)

# Facts of a config that are told elsewhere, or that differ by task as a matter of course.
_TOLD = ("task", "template", "label_words", "label_ids", "data", "fingerprint")


def methods_text(study: Study) -> list[str]:
    """Says how each part of a study is computed; only of the parts that it holds."""
    told = {
        "The weights of the model are frozen; a prompt's rows are all that is trained. Of each run"
        " the prompt that scores best on validation is kept.": study.prompts,
        "Zero-shot transfer: a prompt is put before the rows of another task unchanged. A relative"
        " score is the score over that of the task's own prompt.": study.transfer,
        "A neuron is a unit of a feed-forward layer, read after its non-linearity behind the prompt"
        " alone; it is active above 0. ON is the cosine of two patterns of active neurons; E and C"
        " are the nearness, 1 / (1 + distance), and the cosine of the prompts' vectors, as one"
        " vector each (concat) or over all pairs of rows (average).": study.similarities,
        "Correlations are Spearman's rho, for each task over its sources, then the mean over tasks;"
        " intervals are percentile bootstraps over tasks, widened for small numbers.": (
            study.correlations
        ),
        "Choices are judged by leaving one task out at a time: the source that an indicator puts"
        " first against the best one.": study.choices and study.choices.ranges,
        "Masks set the values of chosen neurons to 0 in the forward pass, while the task is scored"
        " with its own prompt.": study.masks,
    }
    return [text for text, part in told.items() if part]


def methods_list(texts: Iterable[str]) -> Markup | None:
    """Lists sentences on methods, with what they go back to."""
    items = [element("li", text) for text in texts]
    if not items:
        return None
    paper = "After Su et al., On Transferability of Prompt Tuning for Natural Language Processing,"
    items.append(element("li", paper, " NAACL 2022 (arXiv 2111.06719)."))
    return element("ul", *items, class_="notes")


def fact_list(facts: Iterable[tuple[str, Child]]) -> Markup:
    """Lists facts by name; those that are not known are left out."""
    pairs = [(element("dt", name), element("dd", text)) for name, text in facts if text]
    return element("dl", *(part for pair in pairs for part in pair))


def version_facts(
    versions: Mapping[str, str], machine: str | None, device: str | None, files: Iterable[Path]
) -> list[tuple[str, Child]]:
    """Names versions, machine, devices and dates."""
    return [
        ("versions", ", ".join(f"{name} {value}" for name, value in versions.items())),
        ("machine", machine),
        ("devices", device),
        ("results written", written_between(files)),
        ("page made by", f"jpt {__version__}, jpt report"),
    ]


def written_between(files: Iterable[Path]) -> str | None:
    """Says when files were written, by the dates they carry."""
    times = sorted(file.stat().st_mtime for file in files if file.exists())
    if not times:
        return None
    told = [f"{datetime.fromtimestamp(t, UTC):%Y-%m-%d %H:%M}" for t in (times[0], times[-1])]
    return " to ".join(dict.fromkeys(told)) + " UTC"


def shared_settings(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, Child]]:
    """Tells the settings that all runs have in common, and those that differ between them."""
    shared, differing = [], []
    for name in dict.fromkeys(name for run in configs for name in run if name not in _TOLD):
        values = {_plain(run.get(name)) for run in configs}
        if len(values) == 1:
            shared.append(f"{name} {values.pop()}")
        else:
            differing.append(f"{name} ({', '.join(sorted(values)[:6])})")
    told = (
        ("settings of all runs", ", ".join(shared)),
        ("settings that differ", ", ".join(differing)),
    )
    return [*told]


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
