"""Two real processes on one machine give the numbers of one, write once, and end together."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import jpt
from jpt.testing import write_tiny_backbone
from tests.helpers.toys import write_task

pytestmark = [pytest.mark.slow, pytest.mark.alone]

ROOT = Path(__file__).resolve().parent.parent
SHORT = {"steps": 8, "eval_every": 4, "checkpoint_every": 4, "learning_rate": 1e-3}
SHORT |= {"batch_size": 8, "eval_batch_size": 16, "length": 5, "max_tokens": 16}
LIMIT_S = 280
# A jpt that waits less long for a sign of life.
IMPATIENT = "import runpy, jpt.distributed; jpt.distributed.HEARTBEAT_S = 15; "
IMPATIENT += "runpy.run_module('jpt.cli', run_name='__main__')"


def words_of(options: dict[str, object]) -> list[str]:
    pairs = ([f"--{name.replace('_', '-')}", str(value)] for name, value in options.items())
    return [word for pair in pairs for word in pair]


Processes = list[subprocess.Popen[str]]


def start(*words: str, devices: int = 1, program: tuple = ("-m", "jpt.cli")) -> Processes:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        **{"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)},
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "jax"),
        **{"JPT_COORDINATOR": f"localhost:{port}", "JPT_PROCESSES": "2"},
    }
    command = [sys.executable, *program, *words]
    return [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment, "JPT_PROCESS": str(number)},
            text=True,
            **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE),
        )
        for number in (0, 1)
    ]


def finish(running: Processes, code: int = 0, text: str = "") -> list[tuple[str, str]]:
    try:
        running[1].stdin.close()
        running[1].stdin = None
        said = [process.communicate(text or None, timeout=LIMIT_S) for process in running]
    finally:
        for process in running:
            process.kill()
    codes = [process.returncode for process in running]
    assert codes == [code, code], (codes, said)
    return [(without_gloo(out), err) for out, err in said]


def without_gloo(out: str) -> str:
    lines = out.splitlines(keepends=True)
    return "".join(line for line in lines if "Gloo" not in line and "peer ranks" not in line)


def run(*words: str, devices: int = 1, text: str = "") -> dict[str, object]:
    (out, _), (other_out, other_err) = finish(start(*words, "--json", devices=devices), text=text)
    assert other_out == "" and other_err == ""
    return json.loads(out.splitlines()[-1])


def wait_for(found: Callable[[], object]) -> None:
    until = time.monotonic() + LIMIT_S
    while not found():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("tasks") / "mood")


@pytest.fixture(scope="module")
def whole(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    jpt.tune("builtin/bert-small", task, out, **SHORT, mesh="data:1")
    return out


def assert_same_run(found: Path, expected: Path) -> None:
    for name in ("prompt", "last"):
        files = (folder / f"{name}.safetensors" for folder in (found, expected))
        values, wanted = (jpt.load_prompt(file).values for file in files)
        assert np.abs(values - wanted).max() <= 1e-5 * np.abs(wanted).max()
    texts = [(folder / "metrics.jsonl").read_text() for folder in (found, expected)]
    logs = [[json.loads(line) for line in text.splitlines()] for text in texts]
    steps = [[(line["step"], line["split"]) for line in log] for log in logs]
    assert steps[0] == steps[1]
    losses = [[line["loss"] for line in log] for log in logs]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize(
    ("mesh", "devices"), [("data:2", 1), ("data:2,model:2", 2), ("prompt:2,data:2", 2)]
)
def test_a_run_is_that_of_one_process(task, whole, tmp_path, mesh, devices) -> None:
    given = {"backbone": "builtin/bert-small", "task": task, "out": tmp_path / "run", "mesh": mesh}
    record = run("tune", *words_of({**given, **SHORT}), devices=devices)
    assert_same_run(tmp_path / "run", whole)
    assert record == json.loads((tmp_path / "run" / "result.json").read_text())
    assert not list((tmp_path / "run").rglob("*tmp*")), "nothing half written is left"
    if mesh == "data:2,model:2":  # one stands for all: no array is placed any more
        again = run("tune", *words_of({**given, **SHORT}), devices=devices)
        assert again == record, "a finished run returns what it found"


def broken_run(folder: Path, out: Path) -> Path:
    shutil.copytree(folder, out)
    shutil.rmtree(out / "checkpoints" / "8")
    (out / "result.json").unlink()
    return out


@pytest.mark.long
def test_a_checkpoint_of_one_mesh_goes_on_on_another(task, whole, tmp_path) -> None:
    first = tmp_path / "first"
    jpt.tune("builtin/bert-small", task, first, **SHORT, mesh="data:2,model:2")
    assert_same_run(first, whole)
    alone = broken_run(first, tmp_path / "alone")
    jpt.tune("builtin/bert-small", task, alone, **SHORT, mesh="data:1")
    assert_same_run(alone, whole)
    both = broken_run(first, tmp_path / "both")
    given = {"backbone": "builtin/bert-small", "task": task, "out": both, "mesh": "data:2"}
    run("tune", *words_of({**given, **SHORT}))
    assert_same_run(both, whole)
    back = broken_run(both, tmp_path / "back")
    jpt.tune("builtin/bert-small", task, back, **SHORT, mesh="model:4")
    assert_same_run(back, whole)


def test_a_signal_to_one_stops_both_and_they_go_on(task: Path, tmp_path: Path) -> None:
    # So long that no machine is done before the signal comes.
    many = {**SHORT, "steps": 3000, "eval_every": 3000, "checkpoint_every": 1000}
    given = {"backbone": "builtin/bert-small", "task": task, "out": tmp_path / "run"}
    words = words_of({**given, **many, "mesh": "data:2"})
    running, log = start("tune", *words), tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: log.exists() and log.stat().st_size)
    running[1].send_signal(signal.SIGTERM)
    (_, err), (_, other_err) = finish(running, code=75)
    assert "saved after step" in err and "saved after step" in other_err
    saved = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert len(saved) == 1 and f"saved after step {saved[0]}" in err
    running = start("tune", *words)
    wait_for(lambda: json.loads(log.read_text().splitlines()[-1])["step"] > saved[0])
    running[0].send_signal(signal.SIGTERM)
    finish(running, code=75)


@pytest.mark.long
def test_scores_tables_and_neurons_are_those_of_one_process(task, whole, tmp_path) -> None:
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    shutil.copy(whole / "prompt.safetensors", prompts / "mood.safetensors")
    other = jpt.load_prompt(whole)
    jpt.save_prompt(prompts / "b.safetensors", jpt.Prompt(other.values[::-1].copy(), other.card))
    short = {"max_tokens": 16, "eval_batch_size": 16}
    found = run("evaluate", *words_of({"prompt": whole, "task": task, "mesh": "data:2", **short}))
    score = jpt.evaluate(whole, task, **short)
    assert found["accuracy"] == score.value and found["rows"] == score.rows
    assert found["loss"] == pytest.approx(score.loss, rel=1e-5)
    given = {"prompts": prompts, "tasks": task, "out": tmp_path / "matrix", **short}
    run("transfer", *words_of({**given, "mesh": "prompt:2"}))
    expected = jpt.transfer_matrix(prompts, [task], **short)
    lines = (tmp_path / "matrix" / "cells.jsonl").read_text().splitlines()
    cells = {cell["source_prompt"]: cell for cell in map(json.loads, lines)}
    assert len(lines) == len(cells) == 4, "each cell is written once"
    for (_, name), cell in expected.cells.items():
        assert cells[name]["loss"] == pytest.approx(cell.loss, rel=1e-5)
        assert cells[name]["value"] == cell.value
    file = tmp_path / "neurons.npz"
    text = {"probe": "text", "task": task, "rows": 7, "max_tokens": 16}
    run("neurons", *words_of({"prompts": prompts, "out": file, "mesh": "prompt:2", **text}))
    wanted = jpt.activated_neurons(prompts, **text)
    with np.load(file) as kept:
        difference = np.abs(kept["activations"] - wanted.values).max()
    assert difference <= 1e-5 * np.abs(wanted.values).max()
    out = tmp_path / "mask"
    given = {"prompts": prompts, "tasks": task, "out": out, "random_draws": 1, **short}
    record = run("mask", *words_of({**given, "mesh": "data:2"}))
    assert record == json.loads((out / "mask.json").read_text())
    assert (out / "mask.svg").is_file()
    again = run("mask", *words_of({**given, "mesh": "data:2"}))
    assert again == record, "a finished study is found by both"


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_matrices_split_over_processes_write_the_same_text(tmp_path: Path, family: str) -> None:
    folder = write_tiny_backbone(tmp_path / family, family)
    texts = ["the film is good", "a dull film", "not"]
    given = {"backbone": folder, "max_tokens": 6, "eval_batch_size": 4}
    record = run("generate", *words_of({**given, "mesh": "model:2"}), text="\n".join(texts) + "\n")
    expected = jpt.generate(None, texts, backbone=folder, max_tokens=6, eval_batch_size=4)
    assert record["continuations"] == expected


def test_an_error_is_told_once_by_each_and_both_end(task: Path, tmp_path: Path) -> None:
    given = {"backbone": "builtin/bert-small", "task": task, "out": tmp_path / "run"}
    said = finish(start("tune", *words_of({**given, **SHORT, "mesh": "data:1"})), code=2)
    for number, (out, err) in enumerate(said):
        assert out == "" and err.count("\n") == 1 and "which belong to 1 of 2 processes" in err
        assert err.startswith("jpt: " if number == 0 else "jpt (process 1): ")
    assert not (tmp_path / "run").exists()


def test_a_process_that_dies_takes_the_other_with_it(task: Path, tmp_path: Path) -> None:
    many = {**SHORT, "steps": 3000, "eval_every": 3000, "checkpoint_every": 3000}
    given = {"backbone": "builtin/bert-small", "task": task, "out": tmp_path / "run"}
    words = words_of({**given, **many, "mesh": "data:2"})
    running = start("tune", *words, program=("-c", IMPATIENT))
    log = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: log.exists() and log.stat().st_size)
    running[1].kill()
    try:
        assert running[0].wait(timeout=LIMIT_S) != 0
    finally:
        running[0].kill()
