"""The jpt command: runs, invalid input, help, version and shell completion."""

import json
import os
import pickle
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
import numpy as np
import pytest
import typer
from safetensors.numpy import save_file
from typer.main import get_command

import jpt
from jpt.backbones.registry import BUILTIN, backbone_names
from jpt.cli import app
from jpt.cli.commands import version_text
from jpt.cli.options import complete_backbone, complete_task, complete_tasks
from jpt.tasks.catalog import task_names
from tests.helpers.toys import write_task

TUNE = ("tune", "--backbone", "builtin/bert-small", "--steps", "2", "--eval-every", "1")


TEXT: dict[str, Any] = {"capture_output": True, "text": True}


def run_python(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], env={**os.environ, **environment}, **TEXT)


def assert_refused(result: tuple[int, str, str], *needles: str) -> None:
    code, out, err = result
    assert (code, out) == (2, ""), (code, err)
    assert err.startswith("jpt: ") and err.count("\n") == 1 and "Traceback" not in err, err
    for needle in needles:
        assert needle in err, (needle, err)


@pytest.fixture
def task(tmp_path: Path) -> str:
    return str(write_task(tmp_path / "mood"))


def test_tune_writes_a_run_and_returns_at_once_when_repeated(run, task, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = (*TUNE, "--task", task, "--out", out, "--json")
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
    code, stdout, _ = run("evaluate", "--prompt", out, "--task", task, "--json")
    assert code == 0
    assert json.loads(stdout.splitlines()[-1])["accuracy"] == record["test"]["accuracy"]


@pytest.mark.parametrize(
    ("arguments", "needles"),
    [
        (("--task", "builtin/rotten_tomatos"), ("did you mean builtin/rotten_tomatoes",)),
        (("--backbone", "builtin/bert-smal"), ("builtin/bert-small",)),
        (("--task", "no/such/folder"), ("no/such/folder",)),
        (("--max-tokens", "9999"), ("9999", "positions", "max_tokens")),
        (("--length", "9999"), ("got 9999", "set length to 256")),
        *[(("--steps", "0"), ("steps is 0",)), (("--dtype", "float16"), ("bfloat16",))],
        *[(("--dtype", "int8"), ("int8",)), (("--learning-rate", "-1"), ("learning_rate",))],
        (("--init", "randon"), ("randon", "random")),
        (("--init", "prompt:nothing.safetensors"), ("nothing.safetensors",)),
        *[(("--mesh", "data:99"), ("99", "devices")), (("--mesh", "rows:2"), ("rows",))],
    ],
)
def test_invalid_options_write_nothing(run, task, tmp_path, arguments, needles):
    out = tmp_path / "run"
    assert_refused(run(*TUNE, "--task", task, "--out", out, *arguments), *needles)
    assert not out.exists()


TOML = """name = "mood"
type = "sentiment"
fields = ["text"]
labels = ["bad", "good"]
template = "{text}"
"""
WORDS = '[label_words]\nbad = "bad"\ngood = "goodishly"\n'


@pytest.mark.parametrize(
    ("changes", "needles"),
    [
        ({"toml": TOML}, ("no label words",)),
        ({"toml": TOML + WORDS}, ("goodishly", "3 tokens")),
        ({"train": '{"text": "x", "label": "ugly"}\n'}, ("ugly", "train.jsonl")),
        ({"validation": ""}, ("validation",)),
        ({"train": '{"text": "x", "label": "bad"}\n{"text": \n'}, ("train.jsonl", "2")),
        ({"test": '{"label": "bad"}\n'}, ("test.jsonl", "text")),
    ],
)
def test_a_broken_task_folder_is_refused(run, tmp_path, changes, needles):
    task, out = write_task(tmp_path / "mood", **changes), tmp_path / "run"
    assert_refused(run(*TUNE, "--task", task, "--out", out), *needles)
    assert not out.exists()


def test_output_folders_in_use_are_refused(run, task, tmp_path: Path) -> None:
    command = (*TUNE, "--task", task, "--out")
    assert run(*command, tmp_path / "run")[0] == 0
    assert_refused(run(*command, tmp_path / "run", "--seed", "7"), "seed was 0 and is now 7")
    (tmp_path / "other").mkdir()
    file = tmp_path / "other" / "thesis.txt"
    file.write_text("keep me")
    assert_refused(run(*command, tmp_path / "other"), "not empty")
    assert_refused(run(*command, file), "got a file")
    assert_refused(run(*command, file / "run"), "thesis.txt")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(run, task, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    assert_refused(run(*TUNE, "--task", task, "--out", tmp_path / "closed" / "run"), "closed")


@pytest.mark.parametrize("damage", ["truncated", "text", "nan", "width", "missing"])
def test_a_broken_prompt_file_is_refused(run, task, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "p.safetensors"
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
    needle = {"width": "96", "missing": "p.safetensors"}.get(damage, str(path))
    assert_refused(run("evaluate", "--prompt", path, "--task", task), needle)


def test_a_prompt_of_another_backbone_needs_the_option(run, task, tmp_path: Path) -> None:
    card = jpt.PromptCard(backbone="builtin/bert-medium", task="mood")
    jpt.save_prompt(tmp_path / "p.safetensors", jpt.Prompt(np.zeros((4, 128), np.float32), card))
    command = ("evaluate", "--prompt", tmp_path / "p.safetensors", "--task", task)
    assert_refused(run(*command), "128")
    assert run(*command, "--backbone", "builtin/bert-small")[0] == 0


def test_a_malicious_checkpoint_does_not_run(run, task, tmp_path: Path) -> None:
    folder, marker = tmp_path / "model", tmp_path / "marker"
    shutil.copytree(BUILTIN / "bert-small", folder)
    (folder / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Evil()}))
    command = ("tune", "--backbone", folder, "--task", task, "--out", tmp_path / "run")
    assert_refused(run(*command), "pytorch_model.bin")
    assert not marker.exists()


def test_listings(run, task) -> None:
    _, out, _ = run("backbones", "--json")
    names = [entry["name"] for entry in json.loads(out.splitlines()[-1])["backbones"]]
    assert {"builtin/bert-small", "builtin/bert-medium"} <= set(names)
    _, out, _ = run("tasks", "--json")
    listed = json.loads(out.splitlines()[-1])["tasks"]
    assert {"sst2", "imdb", "mnli", "qqp", "builtin/imdb"} <= {entry["name"] for entry in listed}
    code, out, _ = run("tasks", task, "--backbone", "builtin/bert-small")
    assert code == 0
    assert "good = 'good' (" in out and "[CLS] a fine film" in out


def test_versions_machine_and_devices() -> None:
    first, second, third = version_text().splitlines()
    assert first == f"jpt {jpt.__version__}"
    assert second.startswith(f"python {platform.python_version()} · jax {version('jax')} · ")
    assert f"numpy {version('numpy')}" in second and platform.machine() in second
    assert platform.node() not in second
    assert third == f"devices: {jax.device_count()} x {jax.devices()[0].device_kind}"


@pytest.mark.slow
@pytest.mark.parametrize("platforms", ["cuda", "nothing"])
def test_missing_devices_are_reported(platforms: str) -> None:
    if platforms == "cuda" and jax.default_backend() != "cpu":
        pytest.skip("this machine has such devices")
    done = run_python("-m", "jpt.cli", "--version", JAX_PLATFORMS=platforms)
    assert done.returncode == 0, done.stderr
    assert f"devices: none (JAX_PLATFORMS={platforms}): " in done.stdout


WIDEST = 80


def commands(command=None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    command = get_command(app.app) if command is None else command
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


ALL = list(commands())


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_help_fits_the_terminal_and_has_an_example(path, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(WIDEST))
    code, out, _ = run(*path, "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= WIDEST
    example = " ".join(out.split()).partition("Example: ")[2]
    assert "Commands:" in out or f"jpt {' '.join(path)} " in f"{example} "


def test_help_loads_no_heavy_library() -> None:
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
    done = run_python("-c", script.format(paths=ALL))
    assert done.returncode == 0, done.stderr


MISTAKES = [
    *[(("tune", "--stepz", "3"), "--steps"), (("tune", "--batchsize", "3"), "--batch-size")],
    (("tune", "--learning_rate", "3"), "--learning-rate"),
    *[(("evaluate", "--promt", "a"), "--prompt"), (("export", "peft", "a", "--ot", "b"), "--out")],
    *[(("evaluat",), "evaluate"), (("exprt", "peft"), "export"), (("import", "pefd"), "peft")],
    (("project", "trian"), "train"),
]


@pytest.mark.parametrize(("arguments", "nearest"), MISTAKES, ids=lambda value: str(value))
def test_mistakes_name_the_nearest(run, arguments: tuple[str, ...], nearest: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert nearest in err.splitlines()[-1]
    assert "Traceback" not in err


def cpu_seconds(command: list[str], **environment: str) -> float:
    options = {"env": {**os.environ, **environment}, "stdout": subprocess.DEVNULL, "check": True}
    subprocess.run(command, **options)  # compiles what is new
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, **options)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("path", [("tune",), ("import", "peft"), ("project", "train")])
def test_help_takes_less_than_a_second(path: tuple[str, ...]) -> None:
    assert cpu_seconds([sys.executable, "-m", "jpt.cli", *path, "--help"]) < 1.0


PROGRAM = "import sys; sys.argv = ['jpt']; from jpt.cli.app import main; main()"


def completion_variables(words: str) -> dict[str, str]:
    count = str(words.count(" "))
    return {"_JPT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": count}


def complete(words: str) -> list[str]:
    done = run_python("-c", PROGRAM, **completion_variables(words))
    assert done.stderr == ""
    return done.stdout.split()


def options(command=None, path: str = "") -> Iterator[tuple[str, Any]]:
    command = get_command(app.app) if command is None else command
    yield from ((path, parameter) for parameter in command.params)
    for name, below in getattr(command, "commands", {}).items():
        yield from options(below, f"{path} {name}".strip())


def test_names_options_and_values_are_completed() -> None:
    assert complete_backbone("") == backbone_names()
    assert complete_task("") == list(task_names())
    assert complete_backbone("./my/") == complete_task("./my/") == []
    assert complete_tasks("builtin/imdb_o") == ["builtin/imdb_opening"]
    assert complete_tasks("sst2,imd") == ["sst2,imdb"]
    assert "sst2,sst2" not in complete_tasks("sst2,s") and complete_tasks("x,y,zz") == []
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
    done = run_python("-c", script)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine")
def test_bash_completes(tmp_path: Path) -> None:
    program = tmp_path / "jpt"
    program.write_text(f'#!/bin/bash\nexec {sys.executable} -c "{PROGRAM}" "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    source = {**environment, "_JPT_COMPLETE": "source_bash"}
    shown = subprocess.run([str(program)], env=source, check=True, **TEXT).stdout
    asked = 'COMP_WORDS=(jpt tune --backbone builtin/bert-s); COMP_CWORD=3; _jpt_completion "jpt"'
    script = f'{shown}\n{asked}\necho "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", script], env=environment, **TEXT)
    assert done.stdout.split() == ["builtin/bert-small"], done.stderr


BARE = "import typer; a = typer.Typer(); a.command()(lambda: None); a(['--help'])"


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("words", ["jpt tu", "jpt tune --task builtin/", "jpt tune --backbone "])
def test_completing_takes_less_than_two_bare_commands(words: str) -> None:
    assert complete(words)
    found = cpu_seconds([sys.executable, "-c", PROGRAM], **completion_variables(words))
    assert found < 2 * cpu_seconds([sys.executable, "-c", BARE])
