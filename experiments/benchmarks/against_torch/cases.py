"""The cases of train steps: (a), (b), (c), and the same for a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

WORDS = {"objective": "vocabulary", "label_scoring": "first_token"}
"""The loss is over the whole vocabulary, as PEFT's is, at one piece of the label's word."""


@dataclass(frozen=True)
class RecommendInputs:
    """A model, a task, and who does its train steps.

    Attributes:
        name: in the table.
        model: of ``models.py``.
        task: catalog name.
        batch_size: rows a step.
        expected: how many times as fast as each torch side jpt should be.
        turns: how often the sides take turns.
        steps: of a turn.
        options: further options of jpt.
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


def _on_gpu(
    name: str, model: str, task: str, side: str, rows: int, **options: Any
) -> RecommendInputs:
    given = {"dtype": "bfloat16", **options}
    return RecommendInputs(
        f"(GPU) {name}, batch {rows}", model, task, rows, {side: 1}, 5, 20, given, "cuda"
    )


ENCODER = {"plain": 2, "tuned": 1}
# From words of the vocabulary: a random start of a decoder is so far from all text that gradients
# are tiny and AdamW's first steps follow rounding, which parts any two programs.
DECODER = {**WORDS, "init": "vocab"}
CASES = {
    "a8": RecommendInputs(
        "(a) SmolLM2-135M, batch 8", "smollm2", "sst2", 8, {"peft": 6}, 5, 3, DECODER
    ),
    "a32": RecommendInputs(
        "(a) SmolLM2-135M, batch 32", "smollm2", "sst2", 32, {"peft": 6}, 3, 2, DECODER
    ),
    "b-roberta": RecommendInputs(
        "(b) RoBERTa-base shape, batch 8", "roberta-base", "qnli", 8, ENCODER, 5, 2
    ),
    "b-minilm": RecommendInputs("(b) MiniLM shape, batch 16", "minilm", "qnli", 16, ENCODER, 5, 4),
    "c": RecommendInputs(
        "(c) T5-base shape, batch 8", "t5-base", "sst2", 8, {"peft": 1.5}, 5, 3, WORDS
    ),
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
