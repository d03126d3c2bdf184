"""The commands that carry a prompt to PEFT and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jpt.prompts.store import save_prompt
from jpt.types import Prompt, PromptCard
from tests.typed import type_command


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a command in this process and gives exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        return type_command(arguments, monkeypatch, capsys)

    return call


def test_there_and_back(run, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 128)).astype(np.float32)
    card = PromptCard("builtin/gpt2-mini", "builtin/imdb", layout="decoder", seed=4)
    file, back = tmp_path / "imdb.safetensors", tmp_path / "back.safetensors"
    save_prompt(file, Prompt(values, card))
    code, out, _ = run("export", "peft", file, "--out", tmp_path / "adapter")
    assert code == 0 and "builtin/imdb on builtin/gpt2-mini: 3 rows x 128" in out
    code, out, _ = run("import", "peft", tmp_path / "adapter", "--out", back, "--json")
    assert code == 0
    record = json.loads(out.splitlines()[-1])
    assert record["out"] == str(back) and record["task"] == "builtin/imdb"
    assert back.read_bytes() == file.read_bytes()


def test_what_cannot_be_expressed_is_one_line(run, tmp_path: Path) -> None:
    card = PromptCard("builtin/bert-small", "builtin/imdb")
    save_prompt(tmp_path / "p.safetensors", Prompt(np.ones((3, 128), np.float32), card))
    code, out, err = run("export", "peft", tmp_path / "p.safetensors", "--out", tmp_path / "a")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and "[MASK]" in err and "an encoder" in err
    code, out, err = run("import", "peft", tmp_path / "none", "--out", tmp_path / "q.safetensors")
    assert code == 2 and err.count("\n") == 1 and "no such file" in err
    assert not (tmp_path / "q.safetensors").exists()
