"""The train-step cases (a), (b), (c), and the same for a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

WORDS = {"objective": "vocabulary", "label_scoring": "first_token"}
"""Loss over the whole vocabulary, as in PEFT, at one token of the label word."""


@dataclass(frozen=True)
class StepCase:
    """A train-step benchmark: a model, a task, and the sides that run it.

    Attributes:
        name: Name in the table.
        model: Name in ``models.py``.
        task: Catalog name.
        batch_size: Rows per step.
        expected: Target speed-up against each torch side.
        turns: Number of rounds.
        steps: Steps per round.
        options: Further options of jpt.
        device: ``cpu`` or ``cuda``.
    """

    name: str
    model: str
    task: str
    batch_size: int
    expected: dict[str, float]
    turns: int
    steps: int
    options: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"


def _on_gpu(name: str, model: str, task: str, side: str, rows: int, **options: Any) -> StepCase:
    given = {"dtype": "bfloat16", **options}
    return StepCase(
        f"(GPU) {name}, batch {rows}", model, task, rows, {side: 1}, 5, 20, given, "cuda"
    )


ENCODER = {"plain": 2, "tuned": 1}
# A random initialisation of a decoder is so far from all text that gradients are tiny and AdamW's
# first steps follow rounding errors, which differ between any two programs.
DECODER = {**WORDS, "init": "vocab"}
CASES = {
    "a8": StepCase("(a) SmolLM2-135M, batch 8", "smollm2", "sst2", 8, {"peft": 6}, 5, 3, DECODER),
    "a32": StepCase(
        "(a) SmolLM2-135M, batch 32", "smollm2", "sst2", 32, {"peft": 6}, 3, 2, DECODER
    ),
    "b-roberta": StepCase(
        "(b) RoBERTa-base shape, batch 8", "roberta-base", "qnli", 8, ENCODER, 5, 2
    ),
    "b-minilm": StepCase("(b) MiniLM shape, batch 16", "minilm", "qnli", 16, ENCODER, 5, 4),
    "c": StepCase("(c) T5-base shape, batch 8", "t5-base", "sst2", 8, {"peft": 1.5}, 5, 3, WORDS),
}
GPU_CASES = {
    f"gpu-{model}-{rows}": _on_gpu(name, model, task, side, rows, **options)
    for rows in (8, 64)
    for model, name, task, side, options in (
        ("roberta-large", "RoBERTa-large shape", "qnli", "plain", {}),
        ("t5-large", "T5-large shape", "sst2", "peft", WORDS),
        ("llama-1b", "Llama-3.2-1B shape", "sst2", "peft", DECODER),
    )
}
