"""The path of docs/getting-started.md, typed word for word in an empty folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
TYPED = [text for language, text in BLOCKS if not language and not text.startswith("pip ")]
TUNED = ("imdb_first_person", "imdb_number", "rotten_tomatoes", "imdb_ending")


def type_block(block: str, folder: Path) -> str:
    """Runs a block as a shell does, offline, with this environment's jpt; gives what it prints."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    # An address where nothing answers: whoever asks for the network fails at once.
    offline = {"HF_HUB_OFFLINE": "1", "http_proxy": "http://127.0.0.1:9", "PATH": path}
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=folder,
        env={**os.environ, **offline},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, f"{block}\n{run.stdout[-2000:]}\n{run.stderr[-2000:]}"
    return run.stdout


def test_the_page_is_read_whole() -> None:
    """Every command of the page is in a block that is typed; outputs are none."""
    commands = re.findall(r"^jpt \S+", "".join(TYPED), re.MULTILINE)
    assert len(commands) == len(re.findall(r"^jpt \S+", PAGE, re.MULTILINE)) > 10
    assert all(language == "text" for language, text in BLOCKS if text not in TYPED and language)


@pytest.mark.slow
def test_every_command_works_in_an_empty_folder(tmp_path: Path) -> None:
    if shutil.which("bash") is None:
        pytest.skip("no bash here")
    printed = "".join(type_block(block, tmp_path) for block in TYPED)

    assert "all is well" in printed and "absent = 'without' (386)" in printed
    study = tmp_path / "study"
    for name in TUNED:
        test = json.loads((study / "prompts" / name / "result.json").read_text())["test"]
        assert test["accuracy"] > test["majority"] + 0.05, (name, test)
        assert f"builtin/{name} on builtin/bert-small: test accuracy" in printed

    matrix = (study / "transfer.csv").read_text().splitlines()
    assert len(matrix) == 1 + 4 * (4 + 2)  # four prompts, an untrained one and none
    for file in ("relative.csv", "neurons.npz", "indicators.csv", "correlation.json"):
        assert (study / file).stat().st_size > 0
    assert "All 4 own prompts score above the majority class" in printed
    page = (study / "report.html").read_text()
    assert all(name in page for name in TUNED)

    assert "[good] a film to love" in printed
    for run in ("mood", "warm"):
        record = json.loads((tmp_path / "runs" / run / "result.json").read_text())
        assert record["validation"]["accuracy"] > record["validation"]["majority"], run
    assert re.search(r"^mood validation: accuracy \S+ over 4 rows", printed, re.MULTILINE)
