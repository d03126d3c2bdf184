"""DOC"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import jpt
from jpt.cli import app
from jpt.cli.commands import report
from jpt.errors import InputError
from jpt.prompts.store import save_prompt
from jpt.results.prompt_table import read_activations
from jpt.testing import write_tiny_backbone
from jpt.types import Prompt, PromptCard
from tests.helpers.projector_case import source_prompts, write_case
from tests.helpers.running import type_command
from tests.helpers.study import write_scores, write_transfer_record
from tests.helpers.toys import write_task

# --- export


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a command in this process and gives exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        return type_command(arguments, monkeypatch, capsys)

    return call


def test_there_and_back(run, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 128)).astype(np.float32)
    card = PromptCard("builtin/gpt2-mini", "builtin/imdb", layout="decoder", seed=4)
    file, back = tmp_path / "imdb.safetensors", tmp_path / "back.safetensors"
    save_prompt(file, Prompt(values, card))
    code, out, _ = run("export", "peft", file, "--out", tmp_path / "adapter")
    assert code == 0 and "builtin/imdb on builtin/gpt2-mini: 3 rows x 128" in out
    code, out, _ = run("import", "peft", tmp_path / "adapter", "--out", back, "--json")
    assert code == 0
    record = json.loads(out.splitlines()[-1])
    assert record["out"] == str(back) and record["task"] == "builtin/imdb"
    assert back.read_bytes() == file.read_bytes()


def test_what_cannot_be_expressed_is_one_line(run, tmp_path: Path) -> None:
    card = PromptCard("builtin/bert-small", "builtin/imdb")
    save_prompt(tmp_path / "p.safetensors", Prompt(np.ones((3, 128), np.float32), card))
    code, out, err = run("export", "peft", tmp_path / "p.safetensors", "--out", tmp_path / "a")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and "[MASK]" in err and "an encoder" in err
    code, out, err = run("import", "peft", tmp_path / "none", "--out", tmp_path / "q.safetensors")
    assert code == 2 and err.count("\n") == 1 and "no such file" in err
    assert not (tmp_path / "q.safetensors").exists()


# --- neurons


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny RoBERTa, a task and three prompts."""
    folder = tmp_path_factory.mktemp("study")
    model = write_tiny_backbone(folder / "roberta", "roberta")
    write_task(folder / "mood")
    (folder / "prompts").mkdir()
    for name, values in zip("abc", np.random.default_rng(0).normal(0, 1, (3, 4, 32)), strict=True):
        prompt = jpt.Prompt(values.astype(np.float32), jpt.PromptCard(str(model), f"task-{name}"))
        jpt.save_prompt(folder / "prompts" / f"{name}.safetensors", prompt)
    return folder


@pytest.fixture
def neurons_run(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(command: str, *options: object) -> tuple[int, str, str]:
        words = [command, "--prompts", place / "prompts", *options]
        return type_command(words, monkeypatch, capsys)

    return call


@pytest.mark.plain_programs
def test_text_then_indicators(neurons_run, place: Path) -> None:
    out = place / "text.npz"
    options = ("--probe", "text", "--task", place / "mood", "--rows", "9", "--positions", "0,-1")
    code, stdout, stderr = neurons_run("neurons", "--out", out, *options, "--json")
    assert code == 0, stderr
    record, found = json.loads(stdout), read_activations(out)
    assert record["probe"] == found.probe and record["probe"]["positions"] == [0, -1]
    assert record["share_activated"] == pytest.approx(found.rates.mean())
    assert "means over 9 rows of mood validation" in stderr
    code, stdout, _ = neurons_run("indicators", "--neurons", out, "--out", place / "study")
    assert code == 0 and "activation_cka_all" in stdout and "cosine of the shares" in stdout
    with (place / "study" / "indicators.csv").open() as file:
        own = [row for row in csv.DictReader(file) if row["prompt_a"] == row["prompt_b"]]
    for name in ("cosine_rows", "euclidean_rows", "neuron_jaccard", "activation_cka"):
        assert [float(row[name]) for row in own] == [1, 1, 1], name


@pytest.mark.plain_programs
def test_start_is_the_paper_s_and_says_so(neurons_run, place: Path) -> None:
    code, stdout, _ = neurons_run("neurons", "--out", place / "start.npz", "--json")
    assert code == 0 and json.loads(stdout)["probe"] == {"kind": "start"}
    assert read_activations(place / "start.npz").rates is None


@pytest.mark.plain_programs
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--task", "mood"), "task applies to text, but probe is start"),
        (("--probe", "text"), "probe is text, but task is not set"),
        (("--probe", "text", "--task", "MOOD", "--rows", "99"), "has 42 rows; ask for 42"),
        (("--probe", "text", "--task", "MOOD", "--positions", "40"), "positions is 40, but"),
        (("--stack", "encoder"), "has one stack; omit it"),
        (("--chunk-mb", "-1"), "chunk_mb is -1.0; give a number of megabytes above 0"),
    ],
)
def test_wrong_options(neurons_run, place: Path, options: tuple[str, ...], said: str) -> None:
    named = [str(place / "mood") if word == "MOOD" else word for word in options]
    code, _, stderr = neurons_run("neurons", "--out", place / "wrong.npz", *named)
    assert code == 2 and said in stderr and not (place / "wrong.npz").exists()


# --- project


@pytest.fixture
def project_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a command in this process and gives exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        return type_command(["project", *arguments], monkeypatch, capsys)

    return call


@pytest.mark.plain_programs
def test_train_apply_evaluate(project_run, tmp_path: Path) -> None:
    target, tasks = write_case(tmp_path)
    (tmp_path / "prompts").mkdir()
    for name, prompt in source_prompts().items():
        jpt.save_prompt(tmp_path / "prompts" / f"{name}.safetensors", prompt)
    sources = ("--sources", tmp_path / "prompts", "--tasks", f"{tasks[0]},{tasks[1]}")
    train = ("train", *sources, "--target-backbone", target, "--out", tmp_path / "run")
    small = ("--steps", 2, "--bottleneck", 4, "--batch-size", 4, "--max-tokens", 16)
    code, out, err = project_run(*train, *small, "--json")
    assert code == 0, err
    record = json.loads(out.splitlines()[-1])
    assert record["tasks"] == ["mood", "amusing"] and record["steps"] == 2
    assert "mean_score" in err and "projector.safetensors" in err

    apply = ("apply", "--projector", tmp_path / "run", "--prompts", tmp_path / "prompts")
    code, out, err = project_run(*apply, "--out", tmp_path / "projected", "--json")
    assert code == 0, err
    assert json.loads(out)["width"] == 20
    assert jpt.load_prompt(tmp_path / "projected" / "a_first.safetensors").values.shape == (5, 20)

    given = ("--projector", tmp_path / "run", "--methods", "untrained", "--max-tokens", 16)
    code, out, err = project_run(
        "evaluate", *sources, *given, "--out", tmp_path / "table", "--json"
    )
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
        code, out, err = project_run(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), (arguments, err)
        assert err.startswith("jpt: ") and needle in err, err
    assert not (tmp_path / "two").exists()


# --- report


def test_report_prints_where_the_page_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scores(tmp_path)
    write_transfer_record(tmp_path)
    report(tmp_path, json=True)
    record = json.loads(capsys.readouterr().out)
    page = Path(record["report"])
    assert page == tmp_path / "report.html" and len(record["findings"]) == 3
    text = page.read_text(encoding="utf-8")
    assert all(finding.replace("'", "&#x27;") in text for finding in record["findings"])
    report(tmp_path)
    assert capsys.readouterr().out.endswith(f"written: {page}\n")


def test_report_of_a_folder_without_a_study(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no study"):
        report(tmp_path)


# --- warm start


@pytest.fixture
def warm_start_place(tmp_path: Path) -> Path:
    """A tiny model, a task and two prompts."""
    model = write_tiny_backbone(tmp_path / "bert", "bert")
    write_task(tmp_path / "mood")
    for name in ("one", "two"):
        prompt = jpt.Prompt(np.ones((4, 32), np.float32), jpt.PromptCard(str(model), "x"))
        jpt.save_prompt(tmp_path / f"{name}.safetensors", prompt)
    return tmp_path


@pytest.fixture
def warm_start_run(
    warm_start_place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def call(sources: str, *options: str) -> tuple[int, str, str]:
        files = ",".join(
            str(warm_start_place / f"{name}.safetensors") for name in sources.split(",")
        )
        command = ["warm-start", "--task", str(warm_start_place / "mood"), "--sources", files]
        command += [
            "--out",
            str(warm_start_place / "out"),
            "--steps",
            "2",
            "--batch-size",
            "4",
            *options,
        ]
        return type_command(command, monkeypatch, capsys)

    return call


@pytest.mark.plain_programs
def test_a_whole_study(warm_start_run, warm_start_place: Path) -> None:
    code, out, err = warm_start_run("one,two", "--seeds", "0,1", "--max-tokens", "16", "--json")
    assert code == 0, err
    record = json.loads(out.splitlines()[-1])
    assert record["seeds"] == [0, 1] and list(record["sources"]) == ["one", "two"]
    assert record["settings"]["steps"] == 2 and record["settings"]["max_tokens"] == 16
    assert {path.name for path in (warm_start_place / "out").iterdir()} == {
        "seed-0", "seed-1", "warm_start.json", "curves.csv", "warm_start.svg",
    }  # fmt: skip
    assert "run 6 of 6: two, seed 1" in err and "speed-up against vanilla" in err


@pytest.mark.plain_programs
@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        ("one,one", (), "two sources are named one"),
        ("one,thre", (), "thre.safetensors"),
        ("one", ("--eval-every", "3"), "eval_every is 3, but a run has 2 steps"),
        ("one", ("--seeds", "0,x"), "give comma-separated whole numbers"),
        ("one", ("--copy-moments",), "is not a run folder; to copy moments"),
        ("one", ("--length", "5"), "length is 5, but source one has 4 rows"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    warm_start_run, warm_start_place: Path, sources, options, message
) -> None:
    code, out, err = warm_start_run(sources, *options)
    assert (code, out) == (2, "")
    assert err.startswith("jpt: ") and err.count("\n") == 1 and message in err, err
    assert not (warm_start_place / "out").exists()


@pytest.mark.plain_programs
def test_help_has_an_example(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["jpt", "warm-start", "--help"])
    with pytest.raises(SystemExit) as end:
        app.main()
    assert end.value.code == 0
    assert "Example: jpt warm-start" in " ".join(capsys.readouterr().out.split())
