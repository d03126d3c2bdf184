"""Recommendation: a planted source is found, test rows are not read, invalid input is refused."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import jpt
from jpt.indicators.source_selection import leave_one_out, mutual_information
from jpt.recipes.recommend import WIDTH, Recommendation, not_distinguished
from jpt.results.prompt_table import write_transfer
from jpt.results.records import Ranking
from jpt.types import Prompt, PromptCard, TransferMatrix
from tests.helpers.running import raises
from tests.helpers.toys import BACKBONE, LENGTH, planted, write_easy

pytestmark = pytest.mark.plain_programs

QUICK = {"probe_steps": 20, "learning_rate": 0.03, "max_tokens": 20}


@pytest.fixture(scope="module")
def backbone() -> jpt.Backbone:
    return jpt.load_backbone(BACKBONE)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_easy(tmp_path_factory.mktemp("tasks") / "easy")
    (folder / "test.jsonl").write_text("broken\n")
    return folder


@pytest.fixture(scope="module")
def prompts(backbone, tmp_path_factory) -> dict[str, Prompt]:
    sources = planted(backbone, write_easy(tmp_path_factory.mktemp("whole") / "easy"))
    in_task = dataclasses.replace(sources["cherries"].card, task="easy")
    random = dataclasses.replace(sources["apples"].card, task="random", task_type=None)
    return {
        **sources,
        "mine": Prompt(sources["cherries"].values + 0.01, in_task),
        "random": Prompt(sources["apples"].values * 0.01, random),
    }


def known_scores() -> TransferMatrix:
    values = np.array([[0.5, 0.9, 0.6, 0.7, 0.4], [0.4, 0.3, 0.8, 0.5, 0.2]])
    names = ("apples", "bananas", "cherries", "mine", "random")
    return TransferMatrix(("bananas", "cherries"), names, values, ("accuracy",) * 2)


@pytest.fixture(scope="module")
def study(prompts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    (folder / "prompts").mkdir()
    for name, prompt in prompts.items():
        jpt.save_prompt(folder / "prompts" / f"{name}.safetensors", prompt)
    write_transfer(folder / "transfer.csv", known_scores())
    return folder


@pytest.fixture(scope="module")
def found(backbone, task, study) -> Recommendation:
    options = {"backbone": backbone, "known": study / "transfer.csv", **QUICK}
    return jpt.recommend(task, study / "prompts", study / "out", **options)


def test_the_planted_source_is_first(found, prompts, task, backbone) -> None:
    assert (found.source, found.by) == ("cherries", "zero_shot")
    assert list(found.record["sources"])[0] == "cherries"
    assert set(found.record["sources"]) == {"apples", "bananas", "cherries"}
    # All rows are used, as there are fewer than 64: the scores are those of the train split.
    for name in found.record["sources"]:
        score = jpt.evaluate(prompts[name], task, split="train", backbone=backbone, max_tokens=20)
        assert found.record["sources"][name]["score"] == score.value
        assert found.record["sources"][name]["loss"] == pytest.approx(score.loss, rel=1e-5)
        error = found.record["sources"][name]["standard_error"]
        assert error == score.standard_error
        assert found.record["sources"][name]["at_chance"] == (abs(score.value - 0.5) <= error)
        line = next(line for line in found.describe().splitlines() if line.startswith(name))
        assert line.split()[1].endswith("~") == (abs(score.value - 0.5) <= error)
    assert found.record["rows"] == 14 and found.rankings["same_type"].ranks()["cherries"] == 1
    assert found.rankings["same_type"].ranks() == {"apples": 2, "bananas": None, "cherries": 1}


def test_rows_of_the_probe_and_excluded_prompts(found, study) -> None:
    config = json.loads((study / "out" / "probe" / "config.json").read_text())
    rows = {name: of["rows"] for name, of in config["data"].items()}
    assert rows == {"train": 14, "validation": 14}
    assert config["steps"] == config["eval_every"] == 20
    notes = found.record["notes"]
    assert "mine: tuned for easy, excluded" in notes
    assert "random: untrained, excluded" in notes


def test_indicators_and_rankings(found, prompts, backbone, study) -> None:
    plain = jpt.compute_indicators(prompts, jpt.activated_neurons(prompts, backbone=backbone))
    expected = leave_one_out(plain, known_scores(), rows=14)
    assert set(found.known.rankings) == set(expected.rankings)
    for name, record in expected.rankings.items():
        given = dataclasses.astuple(found.known.rankings[name])
        assert given == pytest.approx(dataclasses.astuple(record))
    assert found.known.targets == ("bananas", "cherries")
    probe = jpt.load_prompt(study / "out" / "probe" / "last.safetensors")
    np.testing.assert_array_equal(found.probe.values, probe.values)
    assert probe.card.steps == 20 and probe.card.seed == 0 and probe.values.shape[0] == LENGTH
    bank = {**prompts, "zz": probe}
    neurons = jpt.activated_neurons(bank, backbone=backbone)
    whole = jpt.compute_indicators(bank, neurons)
    for name in ("neuron_overlap", "euclidean_concat", "cosine_average"):
        for source in ("apples", "bananas", "cherries"):
            value = whole.value(name, "zz", source)
            assert found.record["sources"][source]["values"][name] == pytest.approx(value)


def test_the_record_is_on_disk_and_the_command_runs(found, study, run, tmp_path) -> None:
    stored = json.loads((study / "out" / "recommend.json").read_text())
    assert stored == json.loads(json.dumps(found.record))
    words = shlex.split(found.record["command"])
    assert words[:2] == ["jpt", "tune"]
    assert f"prompt:{study / 'prompts' / 'cherries.safetensors'}" in words
    words[words.index("--task") + 1] = str(write_easy(tmp_path / "easy"))  # with test rows
    words[words.index("--out") + 1] = str(tmp_path / "run")
    code, _, err = run(*words[1:], "--steps", "1", "--learning-rate", "0.03", "--max-tokens", "20")
    assert code == 0, err
    source = jpt.load_prompt(study / "prompts" / "cherries.safetensors")
    moved = np.abs(jpt.load_prompt(tmp_path / "run").values - source.values)
    assert 0.02 < moved.max() < 0.0301  # Adam's first step is the learning rate


@pytest.mark.slow
def test_every_seed_is_a_source(backbone, task, prompts, tmp_path) -> None:
    for name, prompt in prompts.items():
        for run in ("cherries/seed-0", "cherries/seed-1") if name == "cherries" else (name,):
            file = tmp_path / "prompts" / run / "prompt.safetensors"
            file.parent.mkdir(parents=True)
            jpt.save_prompt(file, prompt)
    options = {"backbone": backbone, "known": known_scores(), **QUICK}
    found = jpt.recommend(task, tmp_path / "prompts", tmp_path / "out", **options).record
    single = jpt.recommend(task, prompts, **options).record
    values = {name: source["values"] for name, source in found["sources"].items()}
    assert sorted(values) == ["apples", "bananas", "cherries/seed-0", "cherries/seed-1"]
    of_single = {name: source["values"] for name, source in single["sources"].items()}
    for name, given in values.items():
        assert given == pytest.approx(of_single[name.split("/")[0]], abs=1e-6)
    # Both seeds are the same prompt, so their mean is that of a single one.
    assert found["known"]["rankings"] == single["known"]["rankings"]
    words = shlex.split(found["command"])
    assert words[words.index("--init") + 1] == f"prompt:{tmp_path / 'prompts' / found['source']}"
    assert found["source"] == "cherries/seed-0" and words[-1] == "runs/easy-from-cherries-seed-0"


def test_the_text_is_narrow_and_complete(found) -> None:
    lines = found.describe().splitlines()
    assert all(len(line) <= WIDTH for line in lines[:-1])
    assert lines[-1] == found.record["command"] and lines[-2].startswith("start from: cherries")
    rows = [line.split() for line in lines if re.match(r"\w+ +\d\.\d{3} ", line)]
    table = {row[0]: row[1:] for row in rows}
    assert table["cherries"][:2] == ["1.000", "1"]
    assert any(line.startswith("C_average") for line in lines)
    assert any("zero-shot (simulated)" in line for line in lines)


@pytest.mark.slow
def test_another_ranking_may_decide(backbone, task, prompts) -> None:
    options = {"backbone": backbone, "by": "same_type", **QUICK}
    reordered = dict(reversed(prompts.items()))
    again = jpt.recommend(task, reordered, labels=6, **options)
    assert (again.source, again.by, again.record["rows"]) == ("cherries", "same_type", 6)
    assert again.record["command"] is None and again.known is None
    assert list(again.record["sources"])[-1] == "bananas"  # of no known type


def test_without_labels_mutual_information_decides(backbone, prompts, tmp_path) -> None:
    texts = [{"text": f"a {word} film"} for word in ("good", "bad") * 3]
    task = jpt.load_task(write_easy(tmp_path / "easy"))
    options = {"backbone": backbone, "max_tokens": 20}
    found = jpt.recommend(task, prompts, labels=0, data={"train": texts}, **options)
    assert (found.source, found.by, found.probe) == ("cherries", "mutual_information", None)
    assert any("heuristic" in note for note in found.record["notes"])
    assert "score" not in found.record["sources"]["cherries"]
    rows = [{**row, "label": "good"} for row in texts]
    score = jpt.evaluate(prompts["cherries"], task, data={"test": rows}, **options)
    value = found.record["sources"]["cherries"]["values"]["mutual_information"]
    assert value == pytest.approx(mutual_information(score.log_probs), rel=1e-4)
    assert all(len(line) <= WIDTH for line in found.describe().splitlines())


def test_rows_depend_on_the_seed_only(task) -> None:
    from jpt.recipes.recommend import labelled_task

    loaded = jpt.load_task(task)
    first, again, other = (labelled_task(loaded, 4, seed)[0].rows for seed in (0, 0, 1))
    assert first == again and first["train"] != other["train"]
    one, notes = labelled_task(loaded, 1, 0)
    assert len(one.rows["train"]) == 1 and "no labelled row with label" in notes[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": 15}, "labels is 15, but task easy has 14 train rows"),
        ({"labels": -1}, "labels is -1"),
        ({"probe_steps": 0}, "probe_steps is 0"),
        ({"by": "mutual_information"}, "unknown ranking 'mutual_information'"),
        ({"by": "sureness"}, "which is now called mutual_information"),
        ({"by": "ON"}, "unknown ranking 'ON'"),
        ({"layers": "9-11"}, "layers: expected .* within 0 to 3, got 9-11"),
        ({"backbone": "builtin/bert-medium"}, "expected a prompt of width .* got width 128"),
        ({"labels": 0, "by": "zero_shot"}, "unknown ranking 'zero_shot'"),
    ],
)
def test_invalid_options_are_refused(options, message, task, prompts, tmp_path) -> None:
    raises(jpt.recommend, task, prompts, tmp_path / "out", match=message, **{**QUICK, **options})
    assert not (tmp_path / "out").exists()


def test_unfit_tasks_prompts_and_matrices_are_refused(task, prompts, tmp_path, study) -> None:
    with pytest.raises(jpt.InputError, match=r"none of the 1 prompts \(mine\) is for another task"):
        jpt.recommend(task, {"mine": prompts["mine"]})
    card = dataclasses.replace(prompts["apples"].card, first_position=1)
    mixed = {**prompts, "apples": dataclasses.replace(prompts["apples"], card=card)}
    raises(jpt.recommend, task, mixed, match="expected first position")
    bare = write_easy(tmp_path / "easy")
    (bare / "train.jsonl").unlink()
    for labels, fix in ((None, "--labels 0"), (0, "without labels")):
        raises(jpt.recommend, bare, prompts, labels=labels, match=f"has no train rows.*{fix}")
    rows = {"train": [{"article": "a", "summary": "b"}]}
    raises(jpt.recommend, "samsum", prompts, labels=0, data=rows, match="is generative")
    fewer = {name: prompt for name, prompt in prompts.items() if name != "bananas"}
    with pytest.raises(jpt.InputError, match="has 1 prompts that were not given .bananas;"):
        jpt.recommend(task, fewer, known=study / "transfer.csv")
    alone = TransferMatrix(("apples",), ("apples", "bananas"), np.ones((1, 2)), ("accuracy",))
    raises(jpt.recommend, task, prompts, known=alone, match="two other measured sources")


def test_sources_with_another_first_position_get_a_probe(backbone, task) -> None:
    random = np.random.default_rng(0).normal(0, 1, (2, LENGTH, 128)).astype(np.float32)
    card = PromptCard(BACKBONE, "apples", first_position=1)
    row = np.ones((1, 128), np.float32)
    sources = {n: Prompt(each, card, row) for n, each in zip("ab", random, strict=True)}
    found = jpt.recommend(task, sources, backbone=backbone, **{**QUICK, "probe_steps": 1})
    assert any("text from position 1, the probe" in note for note in found.record["notes"])
    assert not any("row 0" in note for note in found.record["notes"])
    assert found.probe.card.first_position == 1


def test_ties_missing_values_and_similar_sources() -> None:
    nan = float("nan")
    ranking = Ranking({"a": 0.5, "b": 0.75, "c": nan, "d": 0.5, "e": 0.75}, {"a": 1, "d": 2})
    assert ranking.ordered() == ["b", "e", "d", "a", "c"]
    assert ranking.ranks() == {"a": 4, "b": 1, "c": None, "d": 3, "e": 1}
    from jpt.tuning.bound_task import score_logits

    truth = np.array([0, 1] * 50)
    scores = {}
    for name, wrong in (("best", 5), ("near", 8), ("far", 30)):
        answers = truth.copy()
        answers[:wrong] = 1 - answers[:wrong]
        scores[name] = score_logits(np.eye(2)[answers], truth, ("no", "yes"), "accuracy")
    # near: 3 of 100 rows differ, mean 0.03, error 0.0171; far: 25 of 100.
    assert not_distinguished("best", scores, truth) == ["near"]


def test_the_command_line(study, task, run, tmp_path) -> None:
    mean, prompts = tmp_path / "mean.safetensors", str(study / "prompts")
    words = ("--prompts", prompts, "--task", str(task))
    code, out, err = run("recommend", *words, "--labels", "0", "--max-tokens", "20", "--json")
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["by"] == "mutual_information"
    code, out, err = run("recommend", *words, "--by", "nothing")
    assert code == 2 and out == "" and err.count("\n") == 1 and "unknown ranking" in err
    names = ("--names", "apples,cherries", "--weights", "apples=1,cherries=3")
    assert run("mix", "average", "--prompts", prompts, *names, "--out", mean)[0] == 0
    assert jpt.load_prompt(mean).card.source == "average of cherries (0.75), apples (0.25)"
    scored = ("--split", "train", "--max-tokens", "20", "--json")
    code, out, err = run("mix", "ensemble", *words, *names, *scored)
    record = json.loads(out.splitlines()[-1])
    assert code == 0 and record["weights"] == {"apples": 0.25, "cherries": 0.75}
    code, out, err = run("mix", "average", "--prompts", prompts, "--names", "apples", "--out", "x")
    assert code == 2 and "expected at least 2 prompts" in err and not Path("x").exists()
