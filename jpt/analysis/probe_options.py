"""What a probe reads behind each prompt, and where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jpt.config import check_choice, check_counts
from jpt.errors import InputError
from jpt.tasks.task import Task

Data = str | Path | Mapping[str, Iterable[Mapping[str, Any]]]
Positions = str | tuple[int, ...]

ANSWER, ALL_TEXT = "answer", "text"
START, TEXT = "start", "text"
CHUNK_MB = 256
_OF_TEXT = ("task", "rows", "data", "max_tokens")


@dataclass(frozen=True)
class ProbeOptions:
    """The options of `jpt.analysis.activations.activated_neurons`.

    Attributes:
        probe: ``"start"``, the paper's: prompt and start token alone; or ``"text"``.
        task: whose text; a task, its name, or its folder. Its labels are not looked at.
        split: of the task.
        rows: how many rows, by chance; 64 by default, or all where there are fewer.
        data: folder of the task's rows, or the rows by split.
        positions: where a text's neurons are read: ``"answer"``, ``"text"`` (mean over all its
            tokens), or tokens by number, from 0 or, negative, from the end: ``(0, -1)``.
        max_tokens: longest text in tokens; by default what a run would take.
        seed: of the choice of rows.
        stack: ``"decoder"`` or ``"encoder"`` of a T5; its decoder by default.
        chunk_mb: memory for the prompts and rows that are read at once, roughly; changes speed,
            never a number.

    Example:
        >>> ProbeOptions(probe="text", task="sst2", positions="0,-1").places
        (0, -1)
    """

    probe: str = START
    task: Task | str | Path | None = None
    split: str = "validation"
    rows: int | None = None
    data: Data | None = None
    positions: str | int | Sequence[int] = ANSWER
    max_tokens: int | None = None
    seed: int = 0
    stack: str | None = None
    chunk_mb: float = CHUNK_MB

    def __post_init__(self) -> None:
        """Refuses what does not go together, before anything is read."""
        check_choice("probe", self.probe, (START, TEXT))
        check_counts(rows=self.rows, max_tokens=self.max_tokens)
        if not self.chunk_mb > 0:
            raise InputError(f"chunk_mb is {self.chunk_mb}; give a number of megabytes above 0")
        if self.probe == TEXT and self.task is None:
            raise InputError("probe is text, but no task says whose; give one, for instance sst2")
        named = [name for name in _OF_TEXT if getattr(self, name) is not None]
        named += ["positions"] if self.places != ANSWER else []
        if self.probe == START and named:
            raise InputError(
                f"{' and '.join(named)} choose{'s' if len(named) == 1 else ''} what text is read,"
                " but the probe is start, which reads none; set probe to text"
            )

    @property
    def places(self) -> Positions:
        """The positions as ``"answer"``, ``"text"`` or numbers."""
        return parse_positions(self.positions)


def parse_positions(positions: str | int | Sequence[int]) -> Positions:
    """Reads where neurons are read."""
    if positions in (ANSWER, ALL_TEXT):
        return positions
    parts = positions.split(",") if isinstance(positions, str) else positions
    try:
        numbers = (parts,) if isinstance(parts, int) else tuple(parts)
        if not numbers or any(isinstance(n, float | bool) for n in numbers):
            raise ValueError
        return tuple(dict.fromkeys(int(number) for number in numbers))
    except (TypeError, ValueError):
        raise InputError(
            f"positions is {positions!r}; expected answer, text, or numbers of tokens of the text,"
            " for instance 0,-1"
        ) from None
