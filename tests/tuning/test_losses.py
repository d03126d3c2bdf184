"""Objectives, label scoring, generative tasks and layouts."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp

import jpt
from jpt.backbones.registry import check_lengths
from jpt.config import TuneOptions
from jpt.testing import tiny_batch, tiny_model, write_tiny_backbone
from jpt.tuning.bound_task import resolve_options
from jpt.tuning.losses import NO_TOKEN, Answer, answer_loss, label_scores
from jpt.tuning.step import Optimizer, init_state
from jpt.tuning.tune import TuneResult
from jpt.types import Batch, Score
from tests.helpers.running import answer_step, raises
from tests.helpers.toys import json_lines, write_task

pytestmark = pytest.mark.plain_programs

LAYOUTS = {"bert": "encoder", "t5": "encoder_decoder", "gpt2": "decoder", "llama": "decoder"}

both_layouts = pytest.mark.parametrize("model_type", ["t5", "llama"])
# Label 0 has the words (7 9 8) and (10), label 1 the word (30 11).
TOKENS = np.array([[7, 9, 8], [10, NO_TOKEN, NO_TOKEN], [30, 11, NO_TOKEN]])
ANSWER = Answer(jnp.array([7, 10, 30]), jnp.asarray(TOKENS), jnp.array([0, 0, 1]), 2)


def prompt_of(width: int = 32) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (4, width)).astype(np.float32)


def step_by_step(model_type: str, batch: Batch, word: list[int]) -> np.ndarray:
    module, params = tiny_model(model_type)
    found = []
    for index, token in enumerate(word):
        before = np.array(word[:index], np.int32)
        tokens, lengths, given = np.asarray(batch.tokens), np.asarray(batch.lengths), {}
        if model_type == "t5":
            start = np.concatenate([[0], before]).astype(np.int32)
            given["decoder_tokens"] = jnp.asarray(np.tile(start, (len(tokens), 1)))
        elif index:
            tokens = np.pad(tokens, ((0, 0), (0, index)))
            for row, length in enumerate(lengths):
                tokens[row, length : length + index] = before
            lengths = lengths + index
        inputs = (jnp.asarray(tokens), jnp.asarray(lengths.astype(np.int32)), prompt_of())
        logits = np.asarray(jax.jit(module.apply)({"params": params}, *inputs, **given).logits)
        logits = logits[:, -1] if model_type == "t5" else logits
        found.append(log_softmax(logits.astype(np.float64), axis=-1)[:, token])
    return np.stack(found, axis=1)


@both_layouts
@pytest.mark.parametrize("objective", ["labels", "vocabulary"])
def test_scores_and_loss_written_out(model_type: str, objective: str) -> None:
    inputs, batch = (*tiny_model(model_type), prompt_of(), tiny_batch(), ANSWER), tiny_batch()
    loss, accuracy = jax.jit(answer_loss, static_argnums=(0, 5))(*inputs, objective)
    words = [step_by_step(model_type, batch, [t for t in row if t != NO_TOKEN]) for row in TOKENS]
    first, second, third = (word.sum(axis=1) for word in words)
    scores = np.stack([logsumexp([first, second], axis=0), third], axis=1)
    if objective == "labels":
        found = jax.jit(label_scores, static_argnums=0)(*inputs)
        np.testing.assert_allclose(found, scores, rtol=1e-5)
    if objective == "labels":
        expected = -log_softmax(scores, axis=1)[np.arange(2), batch.labels].mean()
    else:  # the tokens of each row's right word: row 0 has three, row 1 two
        expected = -np.concatenate([words[0][0], words[2][1]]).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(accuracy) == pytest.approx((scores.argmax(1) == batch.labels).mean())


@both_layouts
def test_loss_of_generated_answers_is_that_of_each_row(model_type: str) -> None:
    module, params = tiny_model(model_type)
    answers = np.array([[7, 9, 4, 0], [10, 4, 0, 0]], np.int32)
    lengths = np.array([3, 2], np.int32)
    batch = tiny_batch()._replace(answers=answers, answer_lengths=lengths)
    run = jax.jit(answer_loss, static_argnums=(0, 5))
    loss, accuracy = run(module, params, prompt_of(), batch, ANSWER, "labels")
    rows = [
        step_by_step(model_type, tiny_batch(), answers[row, : lengths[row]].tolist())[row]
        for row in range(2)
    ]
    assert float(loss) == pytest.approx(-np.concatenate(rows).mean(), rel=1e-5)
    assert 0 <= float(accuracy) <= 1
    half = batch._replace(weights=np.array([1, 0], np.float32))
    loss, _ = run(module, params, prompt_of(), half, ANSWER, "labels")
    assert float(loss) == pytest.approx(-rows[0].mean(), rel=1e-5)


def score_words(tmp_path: Path, model_type: str, bad: Any, good: str, **options: str) -> Score:
    if not (folder := tmp_path / model_type).exists():
        write_tiny_backbone(folder, model_type)
    words = {"default": {"bad": bad, "good": good}}
    task = dataclasses.replace(jpt.load_task(write_task(tmp_path / "mood")), label_words=words)
    card = jpt.PromptCard(str(folder), "mood", layout=LAYOUTS[model_type])
    return jpt.evaluate(jpt.Prompt(prompt_of(), card), task, max_tokens=16, **options)


def test_label_words_of_several_tokens(tmp_path: Path) -> None:
    # "dull film" has two tokens in the toy vocabulary.
    phrase = score_words(tmp_path, "t5", "dull film", "fine")
    first = score_words(tmp_path, "t5", "dull film", "fine", label_scoring="first_token")
    short = score_words(tmp_path, "t5", "dull", "fine")
    assert first.loss == short.loss and phrase.loss != first.loss
    assert score_words(tmp_path, "t5", "dull film", "dull bright").rows == first.rows
    with pytest.raises(jpt.InputError, match="the same first token .*label_scoring phrase"):
        score_words(tmp_path, "t5", "dull film", "dull bright", label_scoring="first_token")
    words = ("dull", "poor", "awful")
    single = [score_words(tmp_path, "bert", word, "fine").log_probs for word in words]
    odds = [each[:, 0] - each[:, 1] for each in single]
    several = score_words(tmp_path, "bert", words, "fine").log_probs
    np.testing.assert_allclose(
        several[:, 0] - several[:, 1], logsumexp(odds, axis=0), rtol=1e-4, atol=1e-6
    )


def write_echo(folder: Path) -> Path:
    """Write a generative task whose answer is the word of its text after "number"."""
    folder.mkdir(parents=True)
    (folder / "task.toml").write_text(
        'type = "copy"\nfields = ["text"]\nanswer = "said"\nanswer_tokens = 3\n'
        'metric = "exact_match"\n[templates]\nencoder_decoder = "{text}"\n'
    )
    random = np.random.default_rng(1)
    for split, count in (("train", 64), ("validation", 16), ("test", 24)):
        rows = []
        for _ in range(count):
            digit = random.integers(10)
            text = f"the film is number {digit}" + " good" * random.integers(4)
            rows.append({"text": text, "said": [str(digit), f"{digit} good"]})
        (folder / f"{split}.jsonl").write_text(json_lines(rows))
    return folder


SHORT = {"length": 5, "max_tokens": 16, "batch_size": 8, "eval_batch_size": 16}


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["t5", "gpt2"])
def test_generative_task_from_tuning_to_transfer(model_type: str, tmp_path: Path) -> None:
    folder = write_tiny_backbone(tmp_path / "model", model_type)
    echo = write_echo(tmp_path / "echo")
    settings = {"steps": 20, "eval_every": 10, "learning_rate": 3e-2, **SHORT}
    tuned = jpt.tune(folder, echo, tmp_path / "run", predictions=True, **settings)
    lines = [json.loads(line) for line in (tmp_path / "run/predictions.jsonl").open()]
    found = np.mean([line["prediction"] in line["answers"] for line in lines])
    assert len(lines) == 24 and found == tuned.record["test"]["exact_match"]
    assert set(tuned.record["test"]["measures"]) >= {"exact_match", "token_f1", "bleu", "rougeL"}
    score = jpt.evaluate(tuned.folder, echo, max_tokens=16, eval_batch_size=7)
    assert list(score.predictions) == [line["prediction"] for line in lines]
    assert score.loss == pytest.approx(tuned.record["test"]["loss"], rel=1e-5)
    matrix = jpt.transfer_matrix({"echo": tuned.prompt}, [echo], max_tokens=16)
    assert matrix.matrix.values[0, 0] == pytest.approx(score.value)


def test_generative_tasks_need_a_decoder_and_positions(tmp_path: Path) -> None:
    echo = write_echo(tmp_path / "echo")
    with pytest.raises(jpt.InputError, match="layout encoder.*use a T5 or a decoder"):
        jpt.tune("builtin/bert-small", echo, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    mood = write_task(tmp_path / "mood")
    with pytest.raises(jpt.InputError, match="answer_tokens is 5, but task mood has labels"):
        jpt.tune("builtin/bert-small", mood, answer_tokens=5)
    folder = write_tiny_backbone(tmp_path / "gpt2", "gpt2")
    with pytest.raises(jpt.InputError, match=r"prompt 70 \+ text 8 \+ answer 3 = 81 tokens, but"):
        jpt.tune(folder, echo, length=70, max_tokens=8)
    backbone, task = jpt.load_backbone(folder), jpt.load_task(echo)
    assert resolve_options(TuneOptions(length=70), backbone, task).max_tokens == 7


TYPES = ("t5", "gpt2", "llama")
SETTINGS = {"steps": 20, "eval_every": 10, "learning_rate": 2e-2, **SHORT}


@pytest.fixture(scope="module", params=[*TYPES[:2], pytest.param(TYPES[2], marks=pytest.mark.slow)])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_backbone(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def mood(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("task") / "mood")


@pytest.fixture(scope="module")
def tuned(backbone: Path, mood: Path, tmp_path_factory: pytest.TempPathFactory) -> TuneResult:
    return jpt.tune(backbone, mood, tmp_path_factory.mktemp("runs") / "mood", **SETTINGS)


def test_prompt_file_has_the_score_of_the_run(
    tuned: TuneResult, backbone: Path, mood: Path
) -> None:
    # That prompts learn is tested with the built-in models; these have random weights.
    assert jpt.evaluate(tuned.folder, mood, max_tokens=16).value == tuned.record["test"]["accuracy"]
    assert tuned.prompt.card.layout == LAYOUTS[jpt.load_backbone(backbone).model_type]


@pytest.mark.parametrize(
    "options",
    [{"max_tokens": 40, "eval_batch_size": 7}, {"max_tokens": 16, "mesh": "data:2,model:4"}],
)
def test_padding_batch_size_and_mesh_change_no_prediction(tuned, mood: Path, options) -> None:
    plain = jpt.evaluate(tuned.prompt, mood, max_tokens=16)
    other = jpt.evaluate(tuned.prompt, mood, **options)
    np.testing.assert_array_equal(plain.predictions, other.predictions)
    assert other.loss == pytest.approx(plain.loss, rel=1e-5)


def test_transfer_neurons_and_other_layouts(tuned: TuneResult, backbone: Path, mood: Path) -> None:
    result = jpt.transfer_matrix({"mood": tuned.prompt}, [mood], max_tokens=16)
    assert result.matrix.values[0, 0] == tuned.record["test"]["accuracy"]
    found = jpt.activated_neurons({"mood": tuned.prompt})
    assert found.values.shape == (1, 2, 48)
    model = jpt.load_backbone(backbone)
    tokens, lengths = jnp.array([[model.start_id]], jnp.int32), jnp.array([1], jnp.int32)
    output = model.module.apply(
        {"params": model.params}, tokens, lengths, tuned.prompt.values, capture_neurons=True
    )
    np.testing.assert_allclose(found.values[0], output.neurons[:, 0], atol=1e-5)
    with pytest.raises(jpt.InputError, match="width|wide|layout"):
        jpt.evaluate(tuned.prompt, mood, backbone="builtin/bert-small")


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("objective", ["labels", "vocabulary"])
def test_loss_of_the_train_step_written_out(model_type: str, objective: str) -> None:
    module, params = tiny_model(model_type)
    batch, ids = tiny_batch(), np.array([7, 30])
    prompt = prompt_of()
    step = answer_step(module, Optimizer(), objective=objective)
    _, metrics = step(params, init_state(prompt), batch, Answer(jnp.asarray(ids)))
    logits = np.asarray(
        jax.jit(module.apply)({"params": params}, batch.tokens, batch.lengths, prompt).logits
    )
    words = logits[:, ids] if objective == "labels" else logits
    right = batch.labels if objective == "labels" else ids[batch.labels]
    expected = -log_softmax(words, axis=-1)[np.arange(2), right].mean()
    assert float(metrics.loss) == pytest.approx(expected, rel=1e-5)
    answered = logits[:, ids].argmax(axis=-1)
    assert float(metrics.accuracy) == pytest.approx((answered == batch.labels).mean())


def test_lengths_are_refused_with_their_sum(tmp_path: Path) -> None:
    decoder = jpt.load_backbone(write_tiny_backbone(tmp_path / "gpt2", "gpt2"))
    with pytest.raises(jpt.InputError, match=r"prompt 50 \+ text 31 = 81 tokens, but .* has 80"):
        check_lengths(decoder, 50, 31)
    check_lengths(decoder, 50, 30)
    t5 = jpt.load_backbone(write_tiny_backbone(tmp_path / "t5", "t5"))
    check_lengths(t5, 2048, 100_000)
    raises(check_lengths, t5, 2049, 10, match="at most 2048 prompt tokens .*, got 2049")


def test_unknown_family_names_the_nearest(tmp_path: Path) -> None:
    folder = write_tiny_backbone(tmp_path, "gpt2")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"gpt2"', '"gpt3"'))
    raises(jpt.load_backbone, folder, match="unknown model_type 'gpt3'; did you mean gpt2")
