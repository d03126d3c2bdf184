"""The command `jpt warm-start`: a whole study, and one line for what a user can mend."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import jpt
from jpt.cli import app
from jpt.testing import write_tiny_backbone
from tests.toy_task import write_task
from tests.typed import type_command

pytestmark = pytest.mark.usefixtures("plain_programs")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A tiny model, a task and two prompts."""
    model = write_tiny_backbone(tmp_path / "bert", "bert")
    write_task(tmp_path / "mood")
    for name in ("one", "two"):
        prompt = jpt.Prompt(np.ones((4, 32), np.float32), jpt.PromptCard(str(model), "x"))
        jpt.save_prompt(tmp_path / f"{name}.safetensors", prompt)
    return tmp_path


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(sources: str, *options: str) -> tuple[int, str, str]:
        files = ",".join(str(place / f"{name}.safetensors") for name in sources.split(","))
        command = ["warm-start", "--task", str(place / "mood"), "--sources", files]
        command += ["--out", str(place / "out"), "--steps", "2", "--batch-size", "4", *options]
        return type_command(command, monkeypatch, capsys)

    return call


def test_a_whole_study(run, place: Path) -> None:
    code, out, err = run("one,two", "--seeds", "0,1", "--max-tokens", "16", "--json")
    assert code == 0, err
    record = json.loads(out.splitlines()[-1])
    assert record["seeds"] == [0, 1] and list(record["sources"]) == ["one", "two"]
    assert record["settings"]["steps"] == 2 and record["settings"]["max_tokens"] == 16
    assert {path.name for path in (place / "out").iterdir()} == {
        "seed-0", "seed-1", "warm_start.json", "curves.csv", "warm_start.svg",
    }  # fmt: skip
    assert "run 6 of 6: two, seed 1" in err and "speed-up against vanilla" in err


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        ("one,one", (), "two sources are named one"),
        ("one,thre", (), "thre.safetensors"),
        ("one", ("--eval-every", "3"), "eval_every is 3, but a run has 2 steps"),
        ("one", ("--seeds", "0,x"), "give whole numbers with commas between"),
        ("one", ("--copy-moments",), "is no run folder; to copy moments"),
        ("one", ("--length", "5"), "length is 5, but source one has 4 rows"),
    ],
)
def test_what_a_user_can_mend_is_one_line(run, place: Path, sources, options, message) -> None:
    code, out, err = run(sources, *options)
    assert (code, out) == (2, "")
    assert err.startswith("jpt: ") and err.count("\n") == 1 and message in err, err
    assert not (place / "out").exists()


def test_help_has_an_example(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["jpt", "warm-start", "--help"])
    with pytest.raises(SystemExit) as end:
        app.main()
    assert end.value.code == 0
    assert "Example: jpt warm-start" in " ".join(capsys.readouterr().out.split())
