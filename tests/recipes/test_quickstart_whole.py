"""The command of the README as a newcomer types it: offline, in time, and every prompt learns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.alone]


def test_quickstart_learns_every_task_and_keeps_its_limits(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jpt.cli", "quickstart", "--json"]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "http_proxy": "http://127.0.0.1:9"}
    run = subprocess.run(command, cwd=tmp_path, env=offline, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    record = json.loads(run.stdout.splitlines()[-1])
    print(f"quickstart: {record['elapsed_s']} s, {record['peak_memory_mb']} MB")
    assert record["peak_memory_mb"] < 2048
    assert record["elapsed_s"] < 360
    folder = tmp_path / "jpt-quickstart"
    scores = {
        file.parent.name: json.loads(file.read_text())["test"]
        for file in (folder / "prompts").glob("*/result.json")
    }
    assert len(scores) >= 6
    for name, test in scores.items():
        assert test["accuracy"] >= test["majority"] + 0.08, (name, test)
    page = (folder / "report.html").read_text()
    assert all(name in page for name in scores)
    again = subprocess.run(command, cwd=tmp_path, env=offline, capture_output=True, text=True)
    assert json.loads(again.stdout.splitlines()[-1]) == record
    assert "[1/" not in again.stderr  # nothing was done again
