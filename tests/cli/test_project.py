"""``jpt project`` from training to the table, and what it says of wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import jpt
from tests.transfer.projector_case import source_prompts, write_case
from tests.typed import type_command

pytestmark = pytest.mark.usefixtures("plain_programs")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a command in this process and gives exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        return type_command(["project", *arguments], monkeypatch, capsys)

    return call


def test_train_apply_evaluate(run, tmp_path: Path) -> None:
    target, tasks = write_case(tmp_path)
    (tmp_path / "prompts").mkdir()
    for name, prompt in source_prompts().items():
        jpt.save_prompt(tmp_path / "prompts" / f"{name}.safetensors", prompt)
    sources = ("--sources", tmp_path / "prompts", "--tasks", f"{tasks[0]},{tasks[1]}")
    train = ("train", *sources, "--target-backbone", target, "--out", tmp_path / "run")
    small = ("--steps", 2, "--bottleneck", 4, "--batch-size", 4, "--max-tokens", 16)
    code, out, err = run(*train, *small, "--json")
    assert code == 0, err
    record = json.loads(out.splitlines()[-1])
    assert record["tasks"] == ["mood", "amusing"] and record["steps"] == 2
    assert "mean_score" in err and "projector.safetensors" in err

    apply = ("apply", "--projector", tmp_path / "run", "--prompts", tmp_path / "prompts")
    code, out, err = run(*apply, "--out", tmp_path / "projected", "--json")
    assert code == 0, err
    assert json.loads(out)["width"] == 20
    assert jpt.load_prompt(tmp_path / "projected" / "a_first.safetensors").values.shape == (5, 20)

    given = ("--projector", tmp_path / "run", "--methods", "untrained", "--max-tokens", 16)
    code, out, err = run("evaluate", *sources, *given, "--out", tmp_path / "table", "--json")
    assert code == 0, err
    scores = json.loads(out.splitlines()[-1])["scores"]
    assert list(scores) == ["mood", "amusing"]
    assert list(scores["mood"]) == ["random", "run", "untrained"]
    assert (tmp_path / "table" / "projection.csv").is_file()

    wrong = [
        ((*train[:-1], tmp_path / "two", "--objective", "distance"), "own prompts"),
        ((*train[:-1], tmp_path / "two", "--activation", "relu"), "leaky_relu, tanh"),
        (("apply", "--projector", "relativ", *apply[3:], "--out", tmp_path / "two"), "relativ"),
        (("evaluate", *sources, "--projector", tmp_path / "gone"), "gone"),
        (("evaluate", *sources), "target_backbone"),
    ]
    for arguments, needle in wrong:
        code, out, err = run(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), (arguments, err)
        assert err.startswith("jpt: ") and needle in err, err
    assert not (tmp_path / "two").exists()
