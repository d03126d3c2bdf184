"""Ctrl-C and SIGTERM: one line, the right exit code, and a state to resume from."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jpt.cli.signals import Stopped, stop_on_signals
from jpt.recipes import listing
from jpt.tuning.trainer import stop_requests
from tests.helpers.toys import write_task

CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 75)]
ON_CPU = {"env": {**os.environ, "JAX_PLATFORMS": "cpu"}, "text": True}
TUNE = [sys.executable, "-m", "jpt.cli", "tune", "--backbone", "builtin/bert-small"]


@pytest.mark.parametrize(("number", "code"), CODES)
def test_a_command_ends_with_one_line(number, code, run, monkeypatch):
    def interrupted() -> None:
        try:
            signal.raise_signal(number)
        except (Exception, KeyboardInterrupt):
            pytest.fail("an except clause of a library swallowed the signal")

    before = signal.getsignal(number)
    monkeypatch.setattr(listing, "list_backbones", interrupted)
    line = f"jpt: {number.name}: stopped; re-run the command to resume\n"
    assert run("backbones") == (code, "", line)
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_ends_with_one_line(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt  # as the training loop does on a second signal

    monkeypatch.setattr(listing, "list_backbones", interrupted)
    code, _, err = run("backbones")
    assert (code, err) == (130, "jpt: interrupted; re-run the command to resume\n")


@pytest.mark.parametrize("name", ["_xla_gc_callback", "__del__"])
def test_a_signal_is_not_lost_where_an_error_would_be(name: str) -> None:
    # Python only reports what a callback of the garbage collector raises.
    names: dict[str, object] = {"signal": signal}
    exec(f"def {name}(): signal.raise_signal(signal.SIGINT)", names)
    passed = False
    with pytest.raises(Stopped), stop_on_signals():
        names[name]()
        passed = True
        time.sleep(10)
    assert passed


def test_a_swallowed_signal_is_raised_anew_and_heard_once() -> None:
    # As C code does that clears whatever error it meets.
    swallowed = 0
    with pytest.raises(Stopped), stop_on_signals():
        try:
            signal.raise_signal(signal.SIGINT)
        except Stopped:
            swallowed += 1
        time.sleep(10)
    assert swallowed == 1
    with stop_on_signals():
        with contextlib.suppress(Stopped):
            signal.raise_signal(signal.SIGINT)
        with stop_requests() as requests:
            end = time.monotonic() + 1
            while time.monotonic() < end:
                time.sleep(0.01)
    assert requests == [signal.SIGINT]


def test_the_end_of_a_command_is_not_interrupted_by_its_own_signal() -> None:
    written = False
    with pytest.raises(Stopped), stop_on_signals():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            time.sleep(0.6)  # longer than until the signal is raised anew
            written = True
    assert written
    time.sleep(0.4)


@pytest.mark.slow
@pytest.mark.alone
def test_a_run_that_was_interrupted_goes_on_and_ends_equal(tmp_path: Path) -> None:
    words = f"--task {write_task(tmp_path / 'mood')} --max-tokens 32 --steps 60 --eval-every 30"
    command = [*TUNE, *words.split(), "--checkpoint-every", "60", "--out"]
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    process = subprocess.Popen([*command, str(stopped)], stderr=subprocess.PIPE, **ON_CPU)
    while process.poll() is None and not (stopped / "metrics.jsonl").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    last = err.splitlines()[-1]
    assert last.startswith("jpt: SIGINT: saved after step") and "Traceback" not in err
    assert not (stopped / "result.json").exists()
    for folder in (stopped, whole):
        again = [*command, str(folder)]
        assert subprocess.run(again, stderr=subprocess.DEVNULL, **ON_CPU).returncode == 0
    for name in ("prompt.safetensors", "last.safetensors"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
def test_ctrl_c_while_jax_loads_is_heard(tmp_path: Path) -> None:
    words = "--task builtin/imdb_number --steps 999 --out"
    command = [*TUNE, *words.split(), str(tmp_path / "run")]
    for moment in range(12):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, **ON_CPU)
        modules = Path(f"/proc/{process.pid}/maps")
        while "jaxlib" not in modules.read_text() and process.poll() is None:
            time.sleep(0.002)  # the command has begun
        time.sleep(0.05 * moment)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err.count("\n")) == (130, 1), err
