"""What a shell is told to complete: commands, options, and the names that come with jpt."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from jpt.backbones.registry import backbone_names
from jpt.cli import app
from jpt.cli.options import complete_backbone, complete_task, complete_tasks
from jpt.tasks.catalog import task_names

PROGRAM = "import sys; sys.argv = ['jpt']; from jpt.cli.app import main; main()"


def complete(words: str, **environment: str) -> list[str]:
    """What bash is told for the last of some words, an empty one after a space."""
    told = {"_JPT_COMPLETE": "complete_bash", "COMP_WORDS": words}
    told["COMP_CWORD"] = str(words.count(" "))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **told, **environment},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


def options(command=None, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every option of every command."""
    command = get_command(app.app) if command is None else command
    yield from ((path, parameter) for parameter in command.params)
    for name, below in getattr(command, "commands", {}).items():
        yield from options(below, f"{path} {name}".strip())


def test_names_are_those_that_there_are() -> None:
    assert complete_backbone("") == backbone_names()
    assert complete_task("") == list(task_names())
    assert complete_backbone("./my/") == complete_task("./my/") == []


def test_several_names_are_completed_one_by_one() -> None:
    assert complete_tasks("builtin/imdb_o") == ["builtin/imdb_opening"]
    assert complete_tasks("sst2,imd") == ["sst2,imdb"]
    assert "sst2,sst2" not in complete_tasks("sst2,s") and complete_tasks("x,y,zz") == []


def test_commands_options_and_values() -> None:
    assert complete("jpt tu") == ["tune"]
    assert {"train", "apply", "evaluate"} <= set(complete("jpt project "))
    assert complete("jpt tune --task builtin/rotten_t") == ["builtin/rotten_tomatoes"]
    assert "--backbone" in complete("jpt tune --ba")


TYPED_FREELY = {"import reference", "import peft", "export peft"}


def test_every_backbone_and_task_is_completed() -> None:
    wanted = {"backbone", "target_backbone", "source_backbone", "task", "tasks"}
    found = [(path, p) for path, p in options() if p.name in wanted and path not in TYPED_FREELY]
    assert len(found) > 15
    for path, parameter in found:
        context = typer.Context(get_command(app.app))
        names = [item.value for item in parameter.shell_complete(context, "builtin/")]
        assert any(name.startswith("builtin/") for name in names), (path, parameter.name)


def test_completing_loads_no_jax() -> None:
    script = """
import sys
from jpt.cli.options import complete_backbone, complete_tasks
assert complete_backbone("") and complete_tasks("")
heavy = set(sys.modules) & {"jax", "transformers", "datasets", "matplotlib"}
sys.exit(f"loaded: {heavy}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine")
def test_bash_completes_from_the_script_that_jpt_shows(tmp_path: Path) -> None:
    program = tmp_path / "jpt"
    program.write_text(f'#!/bin/bash\nexec {sys.executable} -c "{PROGRAM}" "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    shown = subprocess.run(
        [str(program)],
        env={**environment, "_JPT_COMPLETE": "source_bash"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    asked = 'COMP_WORDS=(jpt tune --backbone builtin/bert-s); COMP_CWORD=3; _jpt_completion "jpt"'
    done = subprocess.run(
        ["bash", "-c", f'{shown}\n{asked}\necho "${{COMPREPLY[@]}}"'],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["builtin/bert-small"], done.stderr


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("words", ["jpt tu", "jpt tune --task builtin/", "jpt tune --backbone "])
def test_completing_takes_less_than_half_a_second(words: str) -> None:
    """Of the processor: other work beside it counts for nothing."""
    assert complete(words)  # compiles what is new
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert complete(words)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 0.5
