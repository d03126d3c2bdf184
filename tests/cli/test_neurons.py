"""The command `jpt neurons` with both probes, and `jpt indicators` on what it wrote."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import jpt
from jpt.results.prompt_table import read_activations
from jpt.testing import write_tiny_backbone
from tests.toy_task import write_task
from tests.typed import type_command

pytestmark = pytest.mark.usefixtures("plain_programs")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny RoBERTa, a task and three prompts."""
    folder = tmp_path_factory.mktemp("study")
    model = write_tiny_backbone(folder / "roberta", "roberta")
    write_task(folder / "mood")
    (folder / "prompts").mkdir()
    for name, values in zip("abc", np.random.default_rng(0).normal(0, 1, (3, 4, 32)), strict=True):
        prompt = jpt.Prompt(values.astype(np.float32), jpt.PromptCard(str(model), f"task-{name}"))
        jpt.save_prompt(folder / "prompts" / f"{name}.safetensors", prompt)
    return folder


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(command: str, *options: object) -> tuple[int, str, str]:
        words = [command, "--prompts", place / "prompts", *options]
        return type_command(words, monkeypatch, capsys)

    return call


def test_text_then_indicators(run, place: Path) -> None:
    out = place / "text.npz"
    options = ("--probe", "text", "--task", place / "mood", "--rows", "9", "--positions", "0,-1")
    code, stdout, stderr = run("neurons", "--out", out, *options, "--json")
    assert code == 0, stderr
    record, found = json.loads(stdout), read_activations(out)
    assert record["probe"] == found.probe and record["probe"]["positions"] == [0, -1]
    assert record["share_activated"] == pytest.approx(found.rates.mean())
    assert "means over 9 rows of mood validation" in stderr
    code, stdout, _ = run("indicators", "--neurons", out, "--out", place / "study")
    assert code == 0 and "activation_cka_all" in stdout and "cosine of the shares" in stdout
    with (place / "study" / "indicators.csv").open() as file:
        own = [row for row in csv.DictReader(file) if row["prompt_a"] == row["prompt_b"]]
    for name in ("cosine_rows", "euclidean_rows", "neuron_jaccard", "activation_cka"):
        assert [float(row[name]) for row in own] == [1, 1, 1], name


def test_start_is_the_paper_s_and_says_so(run, place: Path) -> None:
    code, stdout, _ = run("neurons", "--out", place / "start.npz", "--json")
    assert code == 0 and json.loads(stdout)["probe"] == {"kind": "start"}
    assert read_activations(place / "start.npz").rates is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--task", "mood"), "task chooses what text is read, but the probe is start"),
        (("--probe", "text"), "probe is text, but no task says whose"),
        (("--probe", "text", "--task", "MOOD", "--rows", "99"), "has 42 rows; ask for 42"),
        (("--probe", "text", "--task", "MOOD", "--positions", "40"), "positions is 40, but"),
        (("--stack", "encoder"), "has one stack; leave it out"),
        (("--chunk-mb", "-1"), "chunk_mb is -1.0; give a number of megabytes above 0"),
    ],
)
def test_wrong_options(run, place: Path, options: tuple[str, ...], said: str) -> None:
    named = [str(place / "mood") if word == "MOOD" else word for word in options]
    code, _, stderr = run("neurons", "--out", place / "wrong.npz", *named)
    assert code == 2 and said in stderr and not (place / "wrong.npz").exists()
