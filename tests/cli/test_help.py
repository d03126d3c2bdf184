"""What the command line says of itself: in 80 columns, at once, with the nearest name."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator

import pytest
from typer.main import get_command

from jpt.cli import app

WIDEST = 80


def commands(command=None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command and group, the program itself first."""
    command = get_command(app.app) if command is None else command
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


ALL = list(commands())


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["jpt", *arguments])
    with pytest.raises(SystemExit) as end:
        app.main()
    return int(end.value.code or 0), *capsys.readouterr()


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_help_fits_the_terminal(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDEST))
    code, out, _ = run(capsys, monkeypatch, *path, "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= WIDEST
    example = " ".join(out.split()).partition("Example: ")[2]
    assert "Commands:" in out or f"jpt {' '.join(path)} " in example


def test_no_help_loads_what_it_does_not_need() -> None:
    script = """
import sys
import jpt.cli.app
for path in {paths}:
    try:
        jpt.cli.app.app([*path, "--help"])
    except SystemExit as end:
        assert end.code == 0, path
heavy = set(sys.modules) & {{"jax", "numpy", "transformers", "datasets", "matplotlib", "wandb"}}
sys.exit(f"loaded: {{heavy}}" if heavy else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", script.format(paths=ALL)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


MISTAKES = [
    (("tune", "--stepz", "3"), "--steps"),
    (("tune", "--batchsize", "3"), "--batch-size"),
    (("tune", "--learning_rate", "3"), "--learning-rate"),
    (("evaluate", "--promt", "a"), "--prompt"),
    (("export", "peft", "a", "--ot", "b"), "--out"),
    (("evaluat",), "evaluate"),
    (("exprt", "peft"), "export"),
    (("import", "pefd"), "peft"),
    (("project", "trian"), "train"),
]


@pytest.mark.parametrize(("arguments", "nearest"), MISTAKES, ids=lambda value: str(value))
def test_mistakes_name_the_nearest(
    arguments: tuple[str, ...],
    nearest: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, out, err = run(capsys, monkeypatch, *arguments)
    assert (code, out) == (2, "")
    assert nearest in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("path", [("tune",), ("import", "peft"), ("project", "train")])
def test_help_takes_less_than_a_second(path: tuple[str, ...]) -> None:
    """Of the processor: other work beside it counts for nothing."""
    command = [sys.executable, "-m", "jpt.cli", *path, "--help"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)  # compiles what is new
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True, env={**os.environ})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 1.0
