"""The script that kills runs at random: what it must notice, and that it runs."""

from __future__ import annotations

import importlib
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import ROOT

FOLDER = ROOT / "experiments" / "reliability"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("torture")
    for name in ("torture", "killing", "victims"):
        sys.modules.pop(name, None)


def write_run(folder: Path, checkpoints: tuple[int, ...] = (15, 20), **fields: Any) -> Path:
    """A folder with the files of a finished run."""
    files = {
        "prompt.safetensors": "best",
        "last.safetensors": "last",
        "config.json": '{"seed": 0}',
        "result.json": json.dumps({"validation": {"accuracy": 0.5}, "elapsed_s": 3.0} | fields),
        "metrics.jsonl": '{"step": 10, "loss": 0.5, "elapsed_s": 1.0}\n{"step": 20, "loss": 0.4}\n',
    }
    for number, step in enumerate(checkpoints):
        files[f"checkpoints/{step}/state/d/{number + len(folder.name):032x}"] = str(step)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def differences(script: ModuleType, tmp_path: Path) -> list[str]:
    kind = script.tuning(20)
    return list(script.find_differences(kind, tmp_path / "whole", tmp_path / "killed"))


def test_clocks_and_moments_of_saves_are_no_differences(script: ModuleType, tmp_path: Path) -> None:
    write_run(tmp_path / "whole")
    write_run(tmp_path / "killed", checkpoints=(17, 20), elapsed_s=9.0)
    assert differences(script, tmp_path) == []


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("last.safetensors", "lasT", "./last.safetensors differs"),
        ("prompt.safetensors", None, "prompt.safetensors: is missing"),
        ("metrics.jsonl", '{"step": 10, "loss": 0.5}\n', "./metrics.jsonl differs"),
        ("result.json", '{"validation": {"accuracy": 0.6}}', "./result.json differs"),
        (".lock", "", ".lock: should not be there"),
        ("checkpoints/25.tmp/state", "", "checkpoints/25.tmp/: should not be there"),
        (".jpt-0.tmp", "", ".jpt-0.tmp: should not be there"),
    ],
)
def test_a_difference_is_told(
    script: ModuleType, tmp_path: Path, name: str, text: str | None, said: str
) -> None:
    write_run(tmp_path / "whole")
    path = write_run(tmp_path / "killed") / name
    if text is None:
        path.unlink()
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert said in differences(script, tmp_path)


def test_lines_done_again_are_a_loss(script: ModuleType, tmp_path: Path) -> None:
    kind, out = script.tuning(20), tmp_path / "run"
    write_run(out, checkpoints=(10,))
    (out / "result.json").unlink()
    banks = script.Banks(kind, out)
    before = banks.reached()
    kept = script.kept_lines(kind, out, before)
    assert before == {0: 10.0} and [line["step"] for line in kept["."]] == [10]
    log = out / "metrics.jsonl"
    log.write_text(log.read_text().splitlines()[0] + '\n{"step": 20, "loss": 0.3}\n')
    assert script.find_losses(kind, out, banks, before, kept) == []
    log.write_text(log.read_text().replace('"elapsed_s": 1.0', '"elapsed_s": 1.5'))
    assert "lost lines" in script.find_losses(kind, out, banks, before, kept)[0]
    (out / "checkpoints" / "10").rename(out / "checkpoints" / "5")
    assert "went from 10.0 back to 5.0" in script.find_losses(kind, out, banks, before, {})[0]


def test_kills_have_their_shares_and_take_turns(script: ModuleType) -> None:
    kills = script.plan_kills(50, random.Random(3))
    assert (
        kills == script.plan_kills(50, random.Random(3)) != script.plan_kills(50, random.Random(4))
    )
    phases = Counter(kill.phase for kill in kills)
    assert phases == {"start": 5, "steps": 20, "save": 15, "results": 10}
    for phase, count in phases.items():
        killed = sum(kill.phase == phase and kill.signal.name == "SIGKILL" for kill in kills)
        assert abs(2 * killed - count) <= 1
    assert len(script.plan_kills(2, random.Random(0))) == 2


@pytest.mark.slow
def test_two_kills_of_each_kind(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "torture.py"), "--out", str(tmp_path / "out")]
    ended = subprocess.run(
        [*command, "--kills", "2", "--steps", "60"], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    record = json.loads((tmp_path / "out" / "torture.json").read_text())
    for name in ("tune", "sweep"):
        assert sum(record[name]["kills"].values()) == 2 and record[name]["wrong"] == []
        assert record[name]["starts"] > 2
    assert "2 kills of" in ended.stdout
