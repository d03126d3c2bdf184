"""The whole path on every layout: tune, evaluate, transfer, neurons, each from files alone."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

import jpt
from jpt.backbones.registry import check_lengths
from jpt.testing import tiny_batch, tiny_model, write_tiny_backbone
from jpt.tuning.losses import Answer
from jpt.tuning.step import build_train_step, init_state, prompt_optimizer
from jpt.tuning.tune import TuneResult
from tests.toy_task import write_task

pytestmark = pytest.mark.usefixtures("plain_programs")

LAYOUTS = {"bert": "encoder", "t5": "encoder_decoder", "gpt2": "decoder", "llama": "decoder"}
TYPES = [name for name in LAYOUTS if name != "bert"]
SHORT = {"length": 5, "max_tokens": 16, "batch_size": 8, "eval_batch_size": 16}
SETTINGS = {"steps": 20, "eval_every": 10, "learning_rate": 2e-2, **SHORT}


@pytest.fixture(scope="module", params=[*TYPES[:2], pytest.param(TYPES[2], marks=pytest.mark.slow)])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_backbone(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def mood(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("task") / "mood")


@pytest.fixture(scope="module")
def tuned(backbone: Path, mood: Path, tmp_path_factory: pytest.TempPathFactory) -> TuneResult:
    out = tmp_path_factory.mktemp("runs") / "mood"
    return jpt.tune(backbone, mood, out, **SETTINGS)


def test_the_prompts_file_scores_what_the_run_says(
    tuned: TuneResult, backbone: Path, mood: Path
) -> None:
    # That prompts learn is seen on the built-in models; one of random weights hardly listens.
    score = jpt.evaluate(tuned.folder, mood, max_tokens=16)
    assert score.value == tuned.record["test"]["accuracy"]
    model_type = jpt.load_backbone(backbone).model_type
    assert tuned.prompt.card.layout == LAYOUTS[model_type]


def test_padding_and_batch_size_change_no_prediction(tuned: TuneResult, mood: Path) -> None:
    plain = jpt.evaluate(tuned.prompt, mood, max_tokens=16)
    other = jpt.evaluate(tuned.prompt, mood, max_tokens=40, eval_batch_size=7)
    np.testing.assert_array_equal(plain.predictions, other.predictions)
    assert other.loss == pytest.approx(plain.loss, rel=1e-5)


def test_a_mesh_changes_no_number(tuned: TuneResult, mood: Path) -> None:
    plain = jpt.evaluate(tuned.prompt, mood, max_tokens=16)
    split = jpt.evaluate(tuned.prompt, mood, max_tokens=16, mesh="data:2,model:4")
    assert split.loss == pytest.approx(plain.loss, rel=1e-5)
    np.testing.assert_array_equal(plain.predictions, split.predictions)


def test_it_transfers_and_its_neurons_are_read(
    tuned: TuneResult, backbone: Path, mood: Path
) -> None:
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


def test_a_prompt_of_another_layout_is_refused(tuned: TuneResult, mood: Path) -> None:
    with pytest.raises(jpt.InputError, match="width|wide|layout"):
        jpt.evaluate(tuned.prompt, mood, backbone="builtin/bert-small")


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("objective", ["labels", "vocabulary"])
def test_the_loss_is_the_objective_written_out(model_type: str, objective: str) -> None:
    module, params = tiny_model(model_type)
    batch, ids = tiny_batch(), np.array([7, 30])
    prompt = np.random.default_rng(0).normal(0, 1, (4, 32)).astype(np.float32)
    optimizer = prompt_optimizer(1e-2)
    step = build_train_step(module, optimizer, objective=objective)
    _, metrics = step(params, init_state(prompt, optimizer), batch, Answer(jnp.asarray(ids)))
    logits = np.asarray(
        jax.jit(module.apply)({"params": params}, batch.tokens, batch.lengths, prompt).logits
    )
    words = logits[:, ids] if objective == "labels" else logits
    right = batch.labels if objective == "labels" else ids[batch.labels]
    expected = -log_softmax(words, axis=-1)[np.arange(2), right].mean()
    assert float(metrics.loss) == pytest.approx(expected, rel=1e-5)
    answered = logits[:, ids].argmax(axis=-1)
    assert float(metrics.accuracy) == pytest.approx((answered == batch.labels).mean())


def test_lengths_are_refused_with_the_arithmetic(tmp_path: Path) -> None:
    decoder = jpt.load_backbone(write_tiny_backbone(tmp_path / "gpt2", "gpt2"))
    with pytest.raises(jpt.InputError, match=r"prompt 50 \+ text 31 = 81 tokens, but .* has 80"):
        check_lengths(decoder, 50, 31)
    check_lengths(decoder, 50, 30)
    t5 = jpt.load_backbone(write_tiny_backbone(tmp_path / "t5", "t5"))
    check_lengths(t5, 2048, 100_000)
    with pytest.raises(jpt.InputError, match="2049 rows is longer than the 2048"):
        check_lengths(t5, 2049, 10)


def test_an_unknown_family_is_named_with_the_nearest(tmp_path: Path) -> None:
    folder = write_tiny_backbone(tmp_path, "gpt2")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"gpt2"', '"gpt3"'))
    with pytest.raises(jpt.InputError, match="unknown model_type 'gpt3'; did you mean gpt2"):
        jpt.load_backbone(folder)
