"""A prompt is scored on its own task as it was tuned, by every command."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jpt
from jpt.prompts.store import read_card
from jpt.testing import write_tiny_backbone
from jpt.types import Scoring
from tests.helpers.running import raises
from tests.helpers.toys import MOOD_TOML, json_lines, write_task

pytestmark = pytest.mark.plain_programs

SHORT = ("--length", "4", "--batch-size", "8", "--eval-every", "10", "--learning-rate", "0.03")


def write_late(folder: Path, toml: str = MOOD_TOML) -> Path:
    """Write a task whose texts name the label early and its opposite late."""
    opposite = {"good": "bad", "bad": "good"}
    text = json_lines(
        {"text": f"a {word} film {n} and then it was {opposite[word]} {n}", "label": word}
        for n in range(12)
        for word in opposite
    )
    return write_task(folder, toml=toml, **dict.fromkeys(("train", "validation", "test"), text))


@pytest.fixture(scope="module", params=["bert", "t5"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_backbone(tmp_path_factory.mktemp(request.param) / "model", request.param)


def last(found: tuple[int, str, str]) -> dict[str, Any]:
    assert found[0] == 0, found[2]
    return json.loads(found[1].splitlines()[-1])


def warnings(found: tuple[int, str, str]) -> list[str]:
    assert found[0] == 0, found[2]
    lines = [line for line in found[1].splitlines() if line.startswith("warning: ")]
    return [line for line in lines if "get the prediction" not in line]


def tuned(run: Any, model: Path, task: Path, out: Path, *options: object) -> float:
    words = ("tune", "--backbone", model, "--task", task, "--out", out, "--steps", "10", *SHORT)
    return last(run(*words, *options, "--json"))["test"]["accuracy"]


def test_every_command_scores_a_prompt_as_tuned(run, model: Path, tmp_path: Path) -> None:
    task, prompts = write_late(tmp_path / "mood"), tmp_path / "prompts"
    score = tuned(run, model, task, prompts / "mood", "--max-tokens", "6", "--predictions")
    lines = (prompts / "mood" / "predictions.jsonl").read_text()
    answers = tmp_path / "answers.jsonl"
    words = ("evaluate", "--prompt", prompts / "mood", "--task", task)
    assert last(run(*words, "--predictions", answers, "--json"))["accuracy"] == score
    assert answers.read_text() == lines
    longer = last(run(*words, "--max-tokens", "20", "--json"))
    assert longer["loss"] != last(run(*words, "--json"))["loss"]
    assert longer["notes"] == [
        f"{prompts / 'mood'}: tuned with max_tokens 6; scored with max_tokens 20"
    ]
    write_task(tmp_path / "other", toml=MOOD_TOML.replace('"mood"', '"other"'))
    tuned(run, model, tmp_path / "other", prompts / "other")
    matrix = ("transfer", "--prompts", prompts, "--tasks", f"{task},{tmp_path / 'other'}")
    run(*matrix, "--out", tmp_path / "matrix")
    found = jpt.read_transfer(tmp_path / "matrix" / "transfer.csv")
    assert found.values[found.targets.index("mood"), found.prompts.index("mood")] == score
    record = json.loads((tmp_path / "matrix" / "transfer.json").read_text())
    assert not any("tuned with" in note for note in record["notes"])
    masked = last(run("mask", "--prompt", prompts / "mood", "--task", task, "--ratio", "0.2",
                      "--out", tmp_path / "masked", "--json"))  # fmt: skip
    assert masked["targets"]["mood"]["unmasked"] == score


def test_label_words_and_template_are_those_of_tuning(run, model: Path, tmp_path: Path) -> None:
    task = write_late(tmp_path / "mood")
    score = tuned(run, model, task, tmp_path / "run")
    loss = last(run("evaluate", "--prompt", tmp_path / "run", "--task", task, "--json"))["loss"]
    swapped = MOOD_TOML.replace('bad = "bad"\ngood = "good"', 'bad = "good"\ngood = "bad"')
    words = ("evaluate", "--prompt", tmp_path / "run", "--task", task)
    write_late(tmp_path / "mood", swapped)
    found = last(run(*words, "--json"))
    assert (found["accuracy"], found["loss"]) == (score, loss)
    assert warnings(run(*words)) == [
        f"warning: {tmp_path / 'run'}: task mood now has label words bad = good, good = bad; scored"
        " with bad = bad, good = good, as tuned"
    ]
    today = last(run(*words, "--settings", "task", "--json"))
    assert today["loss"] != loss
    (note,) = today["notes"]
    assert "tuned with label words bad = bad, good = good; scored with label words" in note
    write_late(tmp_path / "mood", MOOD_TOML.replace('"{text}"', '"it says {text}"'))
    assert last(run(*words, "--json"))["loss"] == loss
    (line,) = warnings(run(*words))
    assert "now has template 'it says {text}'" in line or "now has template" in line


def test_other_weights_and_another_dtype_are_named(run, tmp_path: Path) -> None:
    model = write_tiny_backbone(tmp_path / "model", "bert")
    task = write_late(tmp_path / "mood")
    tuned(run, model, task, tmp_path / "run")
    words = ("evaluate", "--prompt", tmp_path / "run", "--task", task)
    assert warnings(run(*words)) == []
    (line,) = warnings(run(*words, "--dtype", "bfloat16"))
    assert line.endswith("tuned with dtype float32; scored with dtype bfloat16")
    file = model / "model.safetensors"
    tensors = {name: 1.01 * values for name, values in load_file(file).items()}
    save_file(tensors, file)
    (line,) = warnings(run(*words))
    assert "tuned with weights " in line and "; scored with weights " in line


def test_first_token_scoring_is_inherited(run, tmp_path: Path) -> None:
    model = write_tiny_backbone(tmp_path / "model", "llama")
    toml = MOOD_TOML.replace('bad = "bad"\ngood = "good"', 'bad = "bad film"\ngood = "good film"')
    task = write_late(tmp_path / "mood", toml)
    score = tuned(
        run, model, task, tmp_path / "run", "--label-scoring", "first_token", "--max-tokens", "20"
    )
    words = ("evaluate", "--prompt", tmp_path / "run", "--task", task)
    found = last(run(*words, "--json"))
    assert found["accuracy"] == score and "notes" not in found
    (line,) = warnings(run(*words, "--label-scoring", "phrase"))
    assert "tuned with label_scoring first_token; scored with label_scoring phrase" in line


def test_the_card_has_what_a_score_depends_on(run, tmp_path: Path) -> None:
    model, task = write_tiny_backbone(tmp_path / "model", "bert"), write_late(tmp_path / "mood")
    tuned(run, model, task, tmp_path / "run", "--max-tokens", "7")
    scoring = jpt.load_prompt(tmp_path / "run").card.scoring
    backbone = jpt.load_backbone(model)
    ids = {word: ((backbone.tokenizer.word_tokens(word)[0],),) for word in ("bad", "good")}
    words = {"bad": ("bad",), "good": ("good",)}
    expected = Scoring(("{text}",), words, ids, 7, "phrase", None, backbone.fingerprint)
    assert scoring == Scoring(**{**vars(expected), "split": "validation"})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_tokens", 0, "scoring.max_tokens to be an integer of at least 1, got 0"),
        ("max_tokens", True, "max_tokens to be an integer"),
        ("template", "text", "scoring.template to be a list of texts"),
        ("label_words", [["bad"]], "scoring.label_words to be lists of words by label"),
        ("label_ids", {"bad": [[-1]]}, "scoring.label_ids to be lists of token ids"),
        ("label_ids", {"bad": [[1]]}, "expected scoring.label_ids for the words"),
        ("label_scoring", "first_piece", "one of phrase, first_token"),
    ],
)
def test_a_broken_card_is_refused(field: str, value: object, message: str) -> None:
    scoring = {"template": ["{text}"], "label_words": {"bad": ["bad"], "good": ["good"]}}
    scoring |= {"label_ids": {"bad": [[1]], "good": [[2]]}, "max_tokens": 5}
    card = {"backbone": "b", "task": "t", "scoring": {**scoring, "label_scoring": "phrase"}}
    assert read_card("file", json.dumps(card)).scoring.max_tokens == 5
    card["scoring"][field] = value
    raises(read_card, "file", json.dumps(card), match=message)
    raises(read_card, "file", json.dumps({**card, "scoring": 3}), match="a table")


def test_cards_without_settings_stay_readable(run, tmp_path: Path) -> None:
    model, task = write_tiny_backbone(tmp_path / "model", "bert"), write_late(tmp_path / "mood")
    values = np.zeros((4, 32), np.float32)
    prompt = jpt.Prompt(values, jpt.PromptCard(str(model), str(task), score=0.5))
    jpt.save_prompt(tmp_path / "old.safetensors", prompt)
    assert "scoring" not in jpt.load_prompt(tmp_path / "old.safetensors").card.to_json()
    words = ("evaluate", "--prompt", tmp_path / "old.safetensors", "--task", task, "--json")
    assert "notes" not in last(run(*words))


def test_two_prompts_of_a_task_are_scored_as_the_one_of_its_name(run, tmp_path: Path) -> None:
    model, task = write_tiny_backbone(tmp_path / "model", "bert"), write_late(tmp_path / "mood")
    prompts = tmp_path / "prompts"
    score = tuned(run, model, task, prompts / "mood", "--max-tokens", "6")
    tuned(run, model, task, prompts / "other", "--max-tokens", "9")
    out = tmp_path / "matrix"
    assert run("transfer", "--prompts", prompts, "--tasks", task, "--out", out)[0] == 0
    found = jpt.read_transfer(out / "transfer.csv")
    assert found.values[0, found.prompts.index("mood")] == score
    notes = json.loads((out / "transfer.json").read_text())["notes"]
    assert "other: tuned with max_tokens 9; scored with max_tokens 6" in notes
    probe = ("neurons", "--probe", "text", "--prompts", prompts, "--task", task, "--rows", "4")
    record = last(run(*probe, "--out", tmp_path / "neurons.npz", "--json"))["probe"]
    assert record["max_tokens"] == 6 and record["notes"] == notes[-1:]


@pytest.mark.slow
def test_projected_prompts_are_scored_as_their_projector_was_trained(run, tmp_path: Path) -> None:
    source = write_tiny_backbone(tmp_path / "source", "bert", hidden_size=24)
    target, task = write_tiny_backbone(tmp_path / "target", "bert"), write_late(tmp_path / "mood")
    tuned(run, source, task, tmp_path / "prompts" / "mood")
    size = ("--steps", "10", "--eval-every", "10", "--bottleneck", "5", "--max-tokens", "6")
    sources = ("--sources", tmp_path / "prompts", "--target-backbone", target)
    projector, out = tmp_path / "projector", tmp_path / "out"
    assert run("project", "train", *sources, "--tasks", task, "--out", projector, *size)[0] == 0
    given = ("--projector", projector, "--sources", tmp_path / "prompts")
    words = ("project", "evaluate", *given, "--tasks", task, "--split", "validation")
    record = last(run(*words, "--out", out, "--json"))
    score = jpt.load_projector(projector).card.score
    table = jpt.read_transfer(out / "projection.csv")
    assert table.values[0, table.prompts.index("projector")] == score and not record["notes"]
    (file,) = (out / "projected" / "projector").iterdir()
    assert jpt.load_prompt(file).card.scoring.max_tokens == 6
    words = ("evaluate", "--prompt", file, "--task", task, "--split", "validation", "--json")
    assert last(run(*words))["accuracy"] == score
    more = ("--targets", tmp_path / "targets", "--out", tmp_path / "more", "--json")
    tuned(run, target, task, tmp_path / "targets" / "mood", "--max-tokens", "9")
    (note,) = last(run("project", "evaluate", *given, "--tasks", task, *more))["notes"]
    assert note.startswith("projector: tuned with max_tokens 6; scored with max_tokens 9")
