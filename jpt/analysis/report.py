"""The report of a study: one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from jpt.analysis.finding import Finding
from jpt.analysis.findings import find
from jpt.analysis.layout import Layout, lay_out, with_relative
from jpt.analysis.page import Markup, element, finding_item, join, whole_page
from jpt.analysis.report_choice import choice_section
from jpt.analysis.report_correlation import correlation_section
from jpt.analysis.report_indicators import embedding_section, overlap_section
from jpt.analysis.report_masks import mask_section
from jpt.analysis.report_projection import is_projection, projection_parts
from jpt.analysis.report_runs import note_section, provenance_section, training_section
from jpt.analysis.report_sweep import is_sweep, sweep_header, sweep_parts
from jpt.analysis.report_transfer import transfer_section, type_section
from jpt.analysis.report_warm_start import is_warm_start, warm_start_parts
from jpt.analysis.study import Study, read_study
from jpt.analysis.wording import counted
from jpt.files.atomic import write_text

PAGE = "report.html"
# The sentences at the top; what else was found stands in its own part of the page.
_SUMMARY = ("training", "types", "best_source", "correlation", "choice", "masks", "caution")
# Where the numbers of these sentences stand; the other topics are named as their part.
_PLACES = {"best_source": "transfer", "caution": "correlation"}
_PARTS = (
    ("transfer", "transfer"),
    ("overlap", "neurons"),
    ("embeddings", "vectors"),
    ("correlation", "correlation"),
    ("choice", "choosing"),
    ("masks", "masks"),
    ("types", "types"),
    ("training", "training"),
    ("provenance", "methods"),
    ("notes", "notes"),
)


def report(folder: str | Path) -> Path:
    """Writes the report of a study: figures, tables, and sentences that say what was found.

    The page holds everything in itself and is written anew each time; equal files give equal
    bytes. It needs no backbone: it reads what the commands before have written.

    Args:
        folder: of the study, as ``jpt transfer --out`` and ``jpt indicators --out`` filled it, or
            of a sweep, of a warm start, or of ``jpt project evaluate``. What is missing is said in
            the page, with the command that makes it.

    Returns:
        The path of ``report.html`` in that folder.

    Raises:
        InputError: there is no such folder, it holds no part of a study, a file of it is broken,
            or the page cannot be written.

    Example:
        >>> import tempfile
        >>> study = Path(tempfile.mkdtemp())
        >>> text = "target_task,source_prompt,metric,value\\nimdb,imdb,accuracy,0.75\\n"
        >>> _ = (study / "transfer.csv").write_text(text)
        >>> report(study).name
        'report.html'
    """
    target = Path(folder) / PAGE
    parts_of = _other_study(Path(folder))
    if parts_of is not None:
        title, findings, parts = parts_of(Path(folder))
        write_text(target, whole_page(title, sweep_header(title, findings), *parts))
        return target
    study, layout = prepare(folder)
    write_text(target, build_page(study, layout, find(study, layout)))
    return target


def _other_study(folder: Path) -> Callable[[Path], tuple[str, list[str], list[Markup]]] | None:
    """What builds the page of a folder that is no study of transfer."""
    if is_sweep(folder):
        return sweep_parts
    if is_projection(folder):
        return projection_parts
    return warm_start_parts if is_warm_start(folder) else None


def summarize(folder: str | Path) -> list[str]:
    """Says what a study found: the sentences at the top of its page."""
    parts_of = _other_study(Path(folder))
    if parts_of is not None:
        return parts_of(Path(folder))[1]
    study, layout = prepare(folder)
    return [found.text for found in find(study, layout) if found.topic in _SUMMARY]


def prepare(folder: str | Path) -> tuple[Study, Layout]:
    """Reads a study and lays it out."""
    study = read_study(folder)
    layout = lay_out(study)
    return with_relative(study, layout), layout


def build_page(study: Study, layout: Layout, found: Sequence[Finding]) -> str:
    """Builds the page of a study."""
    return whole_page(
        _title(study),
        _header(study, layout, found),
        transfer_section(study, layout),
        overlap_section(study, layout),
        embedding_section(study, layout),
        correlation_section(study, layout, found),
        choice_section(study, layout, found),
        mask_section(study, found),
        type_section(study, layout, found),
        training_section(study, layout),
        provenance_section(study, layout),
        note_section(study, layout),
    )


def _backbones(study: Study) -> list[str]:
    told = [study.facts.backbone] if study.facts else []
    told += [record.card.backbone for record in study.prompts.values() if record.card]
    return list(dict.fromkeys(name for name in told if name))


def _title(study: Study) -> str:
    names = _backbones(study)
    return f"Prompt transfer on {', '.join(names)}" if names else "Prompt transfer"


def _header(study: Study, layout: Layout, found: Sequence[Finding]) -> Markup:
    n_prompts = len(layout.sources or layout.prompts or study.prompts)
    facts = [counted(n_prompts, "prompt")]
    if layout.targets:
        facts.append(counted(len(layout.targets), "target task"))
        kinds = dict.fromkeys(layout.target_types[name] for name in layout.targets)
        facts.append(f"{counted(len(kinds), 'type')} ({', '.join(kinds)})")
    shown = [finding for finding in found if finding.topic in _SUMMARY]
    items = [finding_item(each, _PLACES.get(each.topic, each.topic)) for each in shown]
    if not items:
        items = [element("li", "Nothing can be concluded yet: parts of the study are missing.")]
    links = [element("a", name, href=f"#{place}") for place, name in _PARTS]
    return element(
        "header",
        element("h1", _title(study)),
        element("p", " · ".join(facts), class_="facts"),
        element("ul", *items, class_="findings"),
        element("nav", join(links), aria_label="Parts of this page"),
    )
