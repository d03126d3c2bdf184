"""Templates: the text that a model of some family reads for a row."""

from __future__ import annotations

from collections.abc import Mapping

from jpt.errors import InputError
from jpt.tasks.segments import fill_segment
from jpt.tasks.task import Task


def render(task: Task, row: Mapping[str, str], family: str = "encoder") -> tuple[str, ...]:
    """Fills a task's template with the fields of one row.

    Blanks around a segment are taken off: the text of a byte-pair vocabulary starts without a
    leading space, as in the paper's code.

    Args:
        task: the task whose template it is.
        row: the text of each field.
        family: the model family the text is for.

    Returns:
        One text for each segment.

    Raises:
        InputError: the task has no template for that family.

    Example:
        >>> from jpt.tasks.catalog import CATALOG
        >>> render(CATALOG["mnli"], {"premise": "It rains.", "hypothesis": "It is wet."})
        ('It is wet.', 'It rains.')
    """
    if family not in task.templates:
        raise InputError(
            f"task {task.name} has no template for {family} models; "
            f"it has one for {', '.join(sorted(task.templates))}"
        )
    return tuple(fill_segment(segment, row) for segment in task.templates[family])
