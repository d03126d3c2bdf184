"""Templates: the text that a model of some family reads for a row."""

from __future__ import annotations

from collections.abc import Mapping

from jpt.tasks.segments import fill_segment
from jpt.tasks.task import Task


def render(task: Task, row: Mapping[str, str], layout: str = "encoder") -> tuple[str, ...]:
    """Fills a task's template with the fields of one row."""
    # Blanks around a segment are taken off: the text of a byte-pair vocabulary starts without a
    # leading space, as in the paper's code. In decoders, which read all segments as one text, each
    # but the first stands on a line of its own.
    first, *others = [fill_segment(segment, row) for segment in task.template(layout)]
    lead = "\n" if layout == "decoder" else ""
    return (first, *(lead + text for text in others))
