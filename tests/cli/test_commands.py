"""Commands of export, neurons, project, report and warm-start as users type them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import jpt
from jpt.cli.commands import report
from jpt.results.prompt_table import read_activations
from jpt.testing import write_tiny_backbone
from tests.helpers.running import raises
from tests.helpers.study import write_scores, write_transfer_record
from tests.helpers.toys import source_prompts, write_case, write_task

pytestmark = pytest.mark.plain_programs


def write_prompt(path: Path, values: np.ndarray, *card: str, **options: object) -> None:
    prompt = jpt.Prompt(values.astype(np.float32), jpt.PromptCard(*card, **options))
    jpt.save_prompt(path, prompt)


def assert_refused(result: tuple[int, str, str], needle: str) -> None:
    code, out, err = result
    assert (code, out) == (2, "") and err.startswith("jpt: ") and err.count("\n") == 1, err
    assert needle in err, (needle, err)


def test_export_and_import_give_the_same_file(run, tmp_path: Path) -> None:
    file, back = tmp_path / "imdb.safetensors", tmp_path / "back.safetensors"
    values = np.random.default_rng(0).normal(size=(3, 128))
    write_prompt(file, values, "builtin/gpt2-mini", "builtin/imdb", layout="decoder", seed=4)
    code, out, _ = run("export", "peft", file, "--out", tmp_path / "adapter")
    assert code == 0 and "builtin/imdb on builtin/gpt2-mini: 3 rows x 128" in out
    code, out, _ = run("import", "peft", tmp_path / "adapter", "--out", back, "--json")
    assert code == 0
    record = json.loads(out.splitlines()[-1])
    assert record["out"] == str(back) and record["task"] == "builtin/imdb"
    assert back.read_bytes() == file.read_bytes()


def test_what_peft_cannot_express_is_refused(run, tmp_path: Path) -> None:
    file, new = tmp_path / "p.safetensors", tmp_path / "q.safetensors"
    write_prompt(file, np.ones((3, 128)), "builtin/bert-small", "builtin/imdb")
    refused = run("export", "peft", file, "--out", tmp_path / "a")
    assert_refused(refused, "an encoder")
    assert "[MASK]" in refused[2]
    assert_refused(run("import", "peft", tmp_path / "none", "--out", new), "no such file")
    assert not new.exists()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    model = write_tiny_backbone(folder / "roberta", "roberta")
    write_task(folder / "mood")
    (folder / "prompts").mkdir()
    for name, values in zip("abc", np.random.default_rng(0).normal(0, 1, (3, 4, 32)), strict=True):
        path = folder / "prompts" / f"{name}.safetensors"
        write_prompt(path, values, str(model), f"task-{name}")
    return folder


@pytest.fixture
def run_on_study(run, study: Path):
    return lambda command, *options: run(command, "--prompts", study / "prompts", *options)


def test_probes_then_indicators(run_on_study, study: Path) -> None:
    out = study / "text.npz"
    options = ("--probe", "text", "--task", study / "mood", "--rows", "9", "--positions", "0,-1")
    code, stdout, stderr = run_on_study("neurons", "--out", out, *options, "--json")
    assert code == 0, stderr
    record, found = json.loads(stdout), read_activations(out)
    assert record["probe"] == found.probe and record["probe"]["positions"] == [0, -1]
    assert record["share_activated"] == pytest.approx(found.rates.mean())
    assert "means over 9 rows of mood validation" in stderr
    code, stdout, _ = run_on_study("indicators", "--neurons", out, "--out", study / "study")
    assert code == 0 and "activation_cka_all" in stdout
    assert "cosine of activation rates" in " ".join(stdout.split())
    with (study / "study" / "indicators.csv").open() as file:
        diagonal = [row for row in csv.DictReader(file) if row["prompt_a"] == row["prompt_b"]]
    for name in ("cosine_rows", "euclidean_rows", "neuron_jaccard", "activation_cka"):
        assert [float(row[name]) for row in diagonal] == [1, 1, 1], name
    code, stdout, _ = run_on_study("neurons", "--out", study / "start.npz", "--json")
    assert code == 0 and json.loads(stdout)["probe"] == {"kind": "start"}
    assert read_activations(study / "start.npz").rates is None


TEXT = ("--probe", "text", "--task", "MOOD")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--task", "mood"), "task applies to text, but probe is start"),
        (("--probe", "text"), "probe is text, but task is not set"),
        ((*TEXT, "--rows", "99"), "expected at most 42, as mood validation has, got 99"),
        ((*TEXT, "--positions", "40"), "expected one within 8 tokens"),
        (("--stack", "encoder"), "has one stack"),
        (("--chunk-mb", "-1"), "chunk_mb is -1.0; give a number of megabytes above 0"),
    ],
)
def test_invalid_probe_options(run_on_study, study, options, message):
    named = [str(study / "mood") if word == "MOOD" else word for word in options]
    code, _, stderr = run_on_study("neurons", "--out", study / "wrong.npz", *named)
    assert code == 2 and message in stderr and not (study / "wrong.npz").exists()


@pytest.mark.slow
def test_train_apply_evaluate(run, tmp_path: Path) -> None:
    target, tasks = write_case(tmp_path)
    (tmp_path / "prompts").mkdir()
    for name, prompt in source_prompts().items():
        jpt.save_prompt(tmp_path / "prompts" / f"{name}.safetensors", prompt)
    sources = ("--sources", tmp_path / "prompts", "--tasks", f"{tasks[0]},{tasks[1]}")
    train = ("project", "train", *sources, "--target-backbone", target, "--out", tmp_path / "run")
    small = ("--steps", 2, "--bottleneck", 4, "--batch-size", 4, "--max-tokens", 16)
    code, out, err = run(*train, *small, "--json")
    assert code == 0, err
    record = json.loads(out.splitlines()[-1])
    assert record["tasks"] == ["mood", "amusing"] and record["steps"] == 2
    assert "mean_score" in err and "projector.safetensors" in err
    apply = ("project", "apply", "--projector", tmp_path / "run", "--prompts", tmp_path / "prompts")
    code, out, err = run(*apply, "--out", tmp_path / "projected", "--json")
    assert code == 0, err
    assert json.loads(out)["width"] == 20
    assert jpt.load_prompt(tmp_path / "projected" / "a_first.safetensors").values.shape == (5, 20)
    given = ("--projector", tmp_path / "run", "--methods", "untrained", "--max-tokens", 16)
    evaluate = ("project", "evaluate", *sources)
    code, out, err = run(*evaluate, *given, "--out", tmp_path / "table", "--json")
    assert code == 0, err
    scores = json.loads(out.splitlines()[-1])["scores"]
    assert list(scores) == ["mood", "amusing"]
    assert list(scores["mood"]) == ["random", "run", "untrained"]
    assert (tmp_path / "table" / "projection.csv").is_file()
    two = tmp_path / "two"
    wrong = [
        ((*train[:-1], two, "--objective", "distance"), "distance objective needs prompts"),
        ((*train[:-1], two, "--activation", "relu"), "leaky_relu, tanh"),
        ((*apply[:3], "relativ", *apply[4:], "--out", two), "relativ"),
        ((*evaluate, "--projector", tmp_path / "gone"), "gone"),
        (evaluate, "target_backbone"),
    ]
    for arguments, needle in wrong:
        assert_refused(run(*arguments), needle)
    assert not two.exists()


def test_report_prints_where_the_page_is(tmp_path: Path, capsys) -> None:
    raises(report, tmp_path, match="holds no study")
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


@pytest.fixture
def warm_start(run, tmp_path: Path):
    model = write_tiny_backbone(tmp_path / "bert", "bert")
    for name in ("one", "two"):
        write_prompt(tmp_path / f"{name}.safetensors", np.ones((4, 32)), str(model), "x")
    options = ("--task", write_task(tmp_path / "mood"), "--out", tmp_path / "out")
    options += ("--steps", "2", "--batch-size", "4")

    def call(sources: str, *more: str) -> tuple[int, str, str]:
        named = ",".join(str(tmp_path / f"{name}.safetensors") for name in sources.split(","))
        return run("warm-start", "--sources", named, *options, *more)

    return call


@pytest.mark.slow
def test_a_whole_study(warm_start, tmp_path: Path) -> None:
    code, out, err = warm_start("one,two", "--seeds", "0,1", "--max-tokens", "16", "--json")
    assert code == 0, err
    record = json.loads(out.splitlines()[-1])
    assert record["seeds"] == [0, 1] and list(record["sources"]) == ["one", "two"]
    assert record["settings"]["steps"] == 2 and record["settings"]["max_tokens"] == 16
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"seed-0", "seed-1", "warm_start.json", "curves.csv", "warm_start.svg"}
    assert "run 6 of 6: two, seed 1" in err and "speed-up" in err


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        ("one,one", (), "source one: given twice"),
        ("one,thre", (), "thre.safetensors"),
        ("one", ("--eval-every", "3"), "eval_every: expected at most 2"),
        ("one", ("--seeds", "0,x"), "whole numbers"),
        ("one", ("--copy-moments",), "copy moments"),
        ("one", ("--length", "5"), "length: expected 4"),
    ],
)
def test_invalid_studies_are_refused(warm_start, tmp_path: Path, sources, options, message) -> None:
    assert_refused(warm_start(sources, *options), message)
    assert not (tmp_path / "out").exists()
