"""A task that a prompt learns in a few steps, and sources of which one alone is any good."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import jpt
from jpt.types import Prompt, PromptCard
from tests.toy_task import write_task

BACKBONE = "builtin/bert-small"
LENGTH, WIDTH = 6, 128
SHORT = {"max_tokens": 20, "batch_size": 8}


def write_easy(folder: Path) -> Path:
    """Writes fourteen rows in which the label word itself stands."""
    rows = [
        json.dumps({"text": f"a {word} film, number {number}", "label": word}) + "\n"
        for number in range(7)
        for word in ("good", "bad")
    ]
    text = "".join(rows)
    toml = (
        'name = "easy"\ntype = "sentiment"\nfields = ["text"]\nlabels = ["bad", "good"]\n'
        'template = "{text}"\n[label_words]\nbad = "bad"\ngood = "good"\n'
    )
    return write_task(folder, train=text, validation=text, test=text, toml=toml)


def planted(backbone: jpt.Backbone, task: Path) -> dict[str, Prompt]:
    """Tunes one prompt for the task, signs it as another task's, and adds two of noise."""
    options = {"length": LENGTH, "learning_rate": 0.03, "eval_every": 40, **SHORT}
    tuned = jpt.tune(backbone, task, steps=40, **options)
    assert tuned.record["test"]["accuracy"] == 1.0
    random = np.random.default_rng(0)
    sources = {
        name: Prompt(
            random.normal(0, 2, (LENGTH, WIDTH)).astype(np.float32),
            PromptCard(BACKBONE, name, kind, seed=0),
        )
        for name, kind in (("apples", "fruit"), ("bananas", None))
    }
    card = PromptCard(BACKBONE, "cherries", "sentiment", seed=0)
    return {**sources, "cherries": Prompt(tuned.prompt.values, card)}
