"""The README says what is true: its Python runs, its commands exist, its install lines stand."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from jpt.cli import app
from jpt.data import builtin_rows
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


def test_the_first_two_blocks_install_and_run_and_test() -> None:
    first, second = blocks("")[:2]
    assert first.startswith("pip install -e . && jpt ") and first.count("\n") == 1
    assert second == "pip install -e '.[dev]' && pytest\n"


@pytest.fixture
def fewer_rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Cuts the built-in tasks to a third of their rows."""
    builtin_rows._make_split.cache_clear()
    for split, size in builtin_rows.SIZES.items():
        monkeypatch.setitem(builtin_rows.SIZES, split, size // 3)
    yield
    builtin_rows._make_split.cache_clear()


@pytest.mark.usefixtures("fewer_rows")
def test_python_blocks_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One after the other, as a reader types them."""
    monkeypatch.chdir(tmp_path)
    first, second, third = blocks("python")
    names: dict[str, object] = {}
    exec(compile(first, "README.md", "exec"), names)
    out = capsys.readouterr().out
    assert "majority class" in out and "accuracy" in out
    assert (tmp_path / "rotten_tomatoes.safetensors").exists()
    exec(compile(second, "README.md", "exec"), names)
    out = capsys.readouterr().out
    overlap = float(re.search("overlap of neurons: (.*)", out)[1])
    assert 0 < overlap < 1
    assert -1 <= float(re.search("Spearman with transfer: (.*)", out)[1]) <= 1
    page = (tmp_path / "study" / "report.html").read_text()
    assert "imdb_first_person" in page
    exec(compile(third, "README.md", "exec"), names)
    out = capsys.readouterr().out
    assert out.startswith("mood on builtin/bert-small: validation accuracy")


def test_the_task_of_ones_own_loads(tmp_path: Path) -> None:
    import jpt

    (tmp_path / "task.toml").write_text(next(b for b in blocks("toml") if "label_words" in b))
    task = jpt.load_task(tmp_path)
    assert task.labels == ("bad", "good")
    assert task.words("bert") == {"bad": ("terrible",), "good": ("great", "fine")}
    line = re.search(r"with `(\{.*?\})`\non a line", README)[1]
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text(f"{line}\n" * 4)
    result = jpt.tune("builtin/bert-small", tmp_path, steps=2, batch_size=2, eval_batch_size=4)
    assert result.record["test"]["rows"] == 4


def test_every_command_line_has_real_commands_and_options() -> None:
    commands = get_command(app).commands
    lines = [
        part for block in blocks("") for line in block.splitlines() for part in line.split("&&")
    ]
    lines += re.findall(r"`(jpt [^`]+)`", README)
    seen = set()
    for line in lines:
        words = [word for word in shlex.split(line) if word != "..."]
        if not words or words[0] != "jpt" or words[1].startswith("-"):
            continue
        command = commands[words[1]]
        if isinstance(command, TyperGroup):
            command = command.commands[words[2]]
        options = {option for parameter in command.params for option in parameter.opts}
        given = {word for word in words[2:] if word.startswith("--")}
        assert given <= options, (line, given - options)
        seen.add(words[1])
    assert seen == set(commands), "the README shows every command there is, and no other"


def test_no_placeholder_is_left() -> None:
    assert "PLACEHOLDER" not in README
