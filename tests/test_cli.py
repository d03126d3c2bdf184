"""The command line as a user meets it: one line and exit code 2 for what they can mend."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.toy_task import write_task
from tests.typed import type_command

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
    assert "weights frozen" in stderr and "'good'" in stderr
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
