"""DOC"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import pytest
import typer
from typer.main import get_command

import jpt
from jpt.backbones.registry import backbone_names
from jpt.cli import app
from jpt.cli.commands import version_text
from jpt.cli.options import complete_backbone, complete_task, complete_tasks
from jpt.tasks.catalog import task_names
from tests.helpers.running import type_command
from tests.helpers.toys import write_task

# --- cli

ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu"}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a command in this process and gives exit code, stdout and stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        return type_command(arguments, monkeypatch, capsys)

    return call


TUNE = ("tune", "--backbone", "builtin/bert-small", "--steps", "2", "--eval-every", "1")


def assert_refused(code: int, out: str, err: str, *needles: str) -> None:
    """Asserts exit code 2 and one line on stderr that says what, and no traceback."""
    assert code == 2, (code, err)
    assert out == ""
    assert err.startswith("jpt: ") and err.count("\n") == 1, err
    assert "Traceback" not in err
    for needle in needles:
        assert needle in err, (needle, err)


def test_tune_writes_a_whole_run_and_returns_at_once_when_repeated(run, tmp_path: Path) -> None:
    task, out = write_task(tmp_path / "mood"), tmp_path / "run"
    command = (*TUNE, "--task", str(task), "--out", str(out), "--json")
    code, stdout, stderr = run(*command)
    assert code == 0, stderr
    record = json.loads(stdout.splitlines()[-1])
    assert record["steps"] == 2 and 0 <= record["test"]["accuracy"] <= 1
    assert "frozen weights" in stderr and "'good'" in stderr
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "metrics.jsonl", "prompt.safetensors", "last.safetensors"} <= names
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    assert run(*command)[0] == 0
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before

    code, stdout, _ = run("evaluate", "--prompt", str(out), "--task", str(task), "--json")
    assert code == 0
    assert json.loads(stdout.splitlines()[-1])["accuracy"] == record["test"]["accuracy"]


@pytest.mark.parametrize(
    ("arguments", "needles"),
    [
        (("--task", "builtin/rotten_tomatos"), ("did you mean builtin/rotten_tomatoes",)),
        (("--task", "no/such/folder"), ("no/such/folder",)),
        (("--max-tokens", "9999"), ("9999", "positions", "max_tokens")),
        (("--length", "9999"), ("9999", "positions")),
        (("--steps", "0"), ("steps is 0",)),
        (("--dtype", "float16"), ("bfloat16",)),
        (("--dtype", "int8"), ("int8",)),
        (("--learning-rate", "-1"), ("learning_rate",)),
        (("--init", "randon"), ("randon", "random")),
        (("--init", "prompt:nothing.safetensors"), ("nothing.safetensors",)),
        (("--mesh", "data:99"), ("99", "devices")),
        (("--mesh", "rows:2"), ("rows",)),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    run, tmp_path: Path, arguments: tuple[str, ...], needles: tuple[str, ...]
) -> None:
    task = () if "--task" in arguments else ("--task", str(write_task(tmp_path / "mood")))
    out = tmp_path / "run"
    assert_refused(*run(*TUNE, *task, "--out", str(out), *arguments), *needles)
    assert not out.exists()


def test_an_unknown_backbone_names_the_nearest(run, tmp_path: Path) -> None:
    command = ("tune", "--backbone", "builtin/bert-smal", "--task", "builtin/imdb")
    result = run(*command, "--out", str(tmp_path / "run"))
    assert_refused(*result, "builtin/bert-small")


TOML = (
    'name = "mood"\ntype = "sentiment"\nfields = ["text"]\nlabels = ["bad", "good"]\n'
    'template = "{text}"\n'
)


@pytest.mark.parametrize(
    ("changes", "needles"),
    [
        ({"toml": TOML}, ("no label words",)),
        (
            {"toml": TOML + '[label_words]\nbad = "bad"\ngood = "goodishly"\n'},
            ("goodishly", "piece"),
        ),
        ({"train": '{"text": "x", "label": "ugly"}\n'}, ("ugly", "train.jsonl")),
        ({"validation": ""}, ("validation",)),
        ({"train": '{"text": "x", "label": "bad"}\n{"text": \n'}, ("train.jsonl", "2")),
        ({"test": '{"label": "bad"}\n'}, ("test.jsonl", "text")),
    ],
)
def test_a_broken_task_folder_is_refused(
    run, tmp_path: Path, changes: dict[str, str], needles: tuple[str, ...]
) -> None:
    task, out = write_task(tmp_path / "mood", **changes), tmp_path / "run"
    assert_refused(*run(*TUNE, "--task", str(task), "--out", str(out)), *needles)
    assert not out.exists()


def test_the_folder_of_another_run_is_refused(run, tmp_path: Path) -> None:
    task, out = write_task(tmp_path / "mood"), tmp_path / "run"
    command = (*TUNE, "--task", str(task), "--out", str(out))
    assert run(*command)[0] == 0
    assert_refused(*run(*command, "--seed", "7"), "seed was 0 and is now 7")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("keep me")
    assert_refused(*run(*command[:-1], str(tmp_path / "other")), "not empty")
    assert_refused(*run(*command[:-1], str(tmp_path / "other" / "thesis.txt")), "is a file")


@pytest.mark.parametrize("damage", ["truncated", "text", "nan", "width", "missing"])
def test_a_broken_prompt_file_is_refused(run, tmp_path: Path, damage: str) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    import jpt

    task, path = write_task(tmp_path / "mood"), tmp_path / "p.safetensors"
    values = np.zeros((4, 128 if damage != "width" else 96), np.float32)
    prompt = jpt.Prompt(values, jpt.PromptCard(backbone="builtin/bert-small", task="mood"))
    jpt.save_prompt(path, prompt)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:200])
    elif damage == "text":
        path.write_text("not a tensor in sight")
    elif damage == "nan":
        values[2, 3] = np.nan
        save_file({"prompt": values}, path)
    elif damage == "missing":
        path.unlink()
    result = run("evaluate", "--prompt", str(path), "--task", str(task))
    assert_refused(*result, {"width": "96", "missing": "p.safetensors"}.get(damage, str(path)))


def test_a_prompt_of_another_backbone_needs_to_be_asked_for(run, tmp_path: Path) -> None:
    import numpy as np

    import jpt

    path, task = tmp_path / "p.safetensors", write_task(tmp_path / "mood")
    card = jpt.PromptCard(backbone="builtin/bert-medium", task="mood")
    jpt.save_prompt(path, jpt.Prompt(np.zeros((4, 128), np.float32), card))
    command = ("evaluate", "--prompt", str(path), "--task", str(task))
    assert_refused(*run(*command), "128")
    assert run(*command, "--backbone", "builtin/bert-small")[0] == 0


def test_a_malicious_checkpoint_does_not_run(run, tmp_path: Path) -> None:
    import pickle
    import shutil

    from jpt.backbones.registry import BUILTIN

    folder, marker = tmp_path / "model", tmp_path / "marker"
    shutil.copytree(BUILTIN / "bert-small", folder)
    (folder / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Evil()}))
    task = write_task(tmp_path / "mood")
    command = ("tune", "--backbone", str(folder), "--task", str(task))
    assert_refused(*run(*command, "--out", str(tmp_path / "run")), "pytorch_model.bin")
    assert not marker.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(run, tmp_path: Path) -> None:
    task = write_task(tmp_path / "mood")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    assert_refused(*run(*TUNE, "--task", str(task), "--out", str(closed / "run")), "closed")


def test_a_folder_below_a_file_is_refused(run, tmp_path: Path) -> None:
    task = write_task(tmp_path / "mood")
    (tmp_path / "file").write_text("x")
    out = tmp_path / "file" / "run"
    assert_refused(*run(*TUNE, "--task", str(task), "--out", str(out)), "file")


@pytest.mark.parametrize("command", ["tune", "evaluate", "tasks", "backbones", "check"])
def test_every_help_tells_what_it_does_with_an_example(run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"Example: jpt {command}" in " ".join(out.split())


def test_listings_are_machine_readable(run) -> None:
    code, out, _ = run("backbones", "--json")
    assert code == 0
    names = [entry["name"] for entry in json.loads(out.splitlines()[-1])["backbones"]]
    assert {"builtin/bert-small", "builtin/bert-medium"} <= set(names)
    code, out, _ = run("tasks", "--json")
    listed = json.loads(out.splitlines()[-1])["tasks"]
    assert {"sst2", "imdb", "mnli", "qqp", "builtin/imdb"} <= {entry["name"] for entry in listed}


def test_one_task_is_shown_with_ids_and_rows(run, tmp_path: Path) -> None:
    task = write_task(tmp_path / "mood")
    code, out, _ = run("tasks", str(task), "--backbone", "builtin/bert-small")
    assert code == 0
    assert "good = 'good' (" in out and "[CLS] a fine film" in out


def test_help_is_fast_and_loads_no_jax() -> None:
    script = (
        "import sys, jpt.cli.app; sys.exit('jax' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT).returncode == 0


# --- version


def test_versions_machine_and_devices() -> None:
    first, second, third = version_text().splitlines()
    assert first == f"jpt {jpt.__version__}"
    assert second.startswith(f"python {platform.python_version()} · jax {version('jax')} · ")
    assert f"numpy {version('numpy')}" in second and platform.machine() in second
    assert platform.node() not in second
    assert third == f"devices: {jax.device_count()} x {jax.devices()[0].device_kind}"


@pytest.mark.parametrize("platforms", ["cuda", "nothing"])
def test_devices_that_are_not_there_are_said(platforms: str) -> None:
    if platforms == "cuda" and jax.default_backend() != "cpu":
        pytest.skip("this machine has such devices")
    done = subprocess.run(
        [sys.executable, "-m", "jpt.cli", "--version"],
        env={**os.environ, "JAX_PLATFORMS": platforms},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"devices: none (JAX_PLATFORMS={platforms}): " in done.stdout


# --- help

WIDEST = 80


def commands(command=None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command and group, the program itself first."""
    command = get_command(app.app) if command is None else command
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


ALL = list(commands())


def help_run(
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
    code, out, _ = help_run(capsys, monkeypatch, *path, "--help")
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
    code, out, err = help_run(capsys, monkeypatch, *arguments)
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


# --- completion

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
