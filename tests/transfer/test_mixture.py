"""Learnt mixtures: gradient, start, result, resuming; ensembles: the mean in closed form."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp, softmax

import jpt
from jpt.cli import app
from jpt.prompts.arithmetic import softmax_weights
from jpt.testing import tiny_batch, tiny_model, write_tiny_backbone
from jpt.transfer.mixture import MixtureLoss, MixtureResult, mix, score_ensemble
from jpt.tuning.losses import Answer, label_logits
from jpt.types import Prompt, PromptCard
from tests.helpers.running import raises
from tests.helpers.toys import BACKBONE, LENGTH, SHORT, planted, write_easy

pytestmark = pytest.mark.plain_programs

LEARN = {"steps": 30, "learning_rate": 0.2, "eval_every": 15, **SHORT}


@pytest.fixture(scope="module")
def backbone() -> jpt.Backbone:
    return jpt.load_backbone(BACKBONE)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_easy(tmp_path_factory.mktemp("tasks") / "easy")


@pytest.fixture(scope="module")
def sources(backbone: jpt.Backbone, task: Path) -> dict[str, Prompt]:
    return planted(backbone, task)


@pytest.fixture(scope="module")
def learnt(backbone, task, sources, tmp_path_factory) -> MixtureResult:
    out = tmp_path_factory.mktemp("runs") / "mixture"
    return jpt.learn_mixture(backbone, task, sources, out, **LEARN)


def test_loss_and_gradient_equal_scipy_and_central_differences() -> None:
    module, params = tiny_model("bert")
    random = np.random.default_rng(0)
    bank = random.normal(0, 1, (3, 4, 32)).astype(np.float32)
    answer, batch = Answer(jnp.array([7, 8])), tiny_batch()

    @jax.jit
    def of_prompt(prompt):
        return label_logits(module, params, prompt, batch, answer)

    def reference(values: np.ndarray) -> float:
        weights = softmax(values.astype(np.float64), axis=0)
        prompt = sum(weights[k][:, None] * bank[k] for k in range(3))
        scores = np.asarray(of_prompt(jnp.asarray(prompt, jnp.float32)), np.float64)
        return -log_softmax(scores, axis=-1)[np.arange(2), batch.labels].mean()

    def loss(values):
        return MixtureLoss(module)((params, jnp.asarray(bank), answer), values, batch)[0]

    for columns in (1, 4):
        logits = random.normal(0, 1, (3, columns)).astype(np.float32)
        found, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(logits))
        assert float(found) == pytest.approx(reference(logits), rel=1e-5)
        for k in range(3):
            for row in range(columns):
                step = np.zeros_like(logits)
                step[k, row] = 0.25
                # Richardson extrapolation: float32 does not allow narrow differences.
                wide = (reference(logits + step) - reference(logits - step)) / 0.5
                near = (reference(logits + step / 2) - reference(logits - step / 2)) / 0.25
                assert float(gradient[k, row]) == pytest.approx((4 * near - wide) / 3, abs=3e-5)
        np.testing.assert_allclose(gradient.sum(0), 0, atol=1e-6)
        assert np.abs(gradient).max() > 1e-3


def test_mixing_and_softmax() -> None:
    bank = jnp.asarray(np.random.default_rng(0).normal(0, 1, (3, 4, 5)), jnp.float32)
    np.testing.assert_allclose(mix(bank, jnp.zeros((3, 1))), bank.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(mix(bank, jnp.array([[0.0], [100.0], [0.0]])), bank[1])
    logits = np.random.default_rng(0).normal(0, 5, (4, 3)).astype(np.float32)
    np.testing.assert_allclose(softmax_weights(logits), jax.nn.softmax(logits, 0), rtol=2e-6)


def test_the_good_source_gets_most_of_the_weight_in_any_order(
    learnt, sources, task, backbone
) -> None:
    options = {"backbone": backbone, "max_tokens": 20}
    assert list(learnt.weights) == sorted(sources)
    assert learnt.weights["cherries"] > 0.8, learnt.weights
    np.testing.assert_allclose(learnt.row_weights.sum(0), 1, rtol=1e-12)
    record = learnt.record
    assert record["validation"]["accuracy"] > record["average"]["accuracy"]
    assert jpt.evaluate(learnt.prompt, task, **options).value == record["test"]["accuracy"] == 1.0
    mixed = sum(learnt.weights[name] * sources[name].values for name in sources)
    np.testing.assert_allclose(learnt.prompt.values, mixed, rtol=1e-5, atol=1e-6)
    start = jpt.evaluate(jpt.average_prompts(sources), task, **options)
    assert record["average"]["accuracy"] == start.value
    assert record["average"]["loss"] == pytest.approx(start.loss, rel=1e-5)
    assert learnt.history[0]["step"] == 0
    again = jpt.learn_mixture(backbone, task, dict(reversed(sources.items())), **LEARN)
    assert again.weights == learnt.weights
    np.testing.assert_array_equal(again.prompt.values, learnt.prompt.values)


def test_the_run_folder_holds_an_ordinary_prompt(learnt, sources, task, backbone) -> None:
    again = jpt.learn_mixture(backbone, task, sources, learnt.folder, **LEARN)
    assert again.record == learnt.record and again.history == learnt.history
    np.testing.assert_array_equal(jpt.load_prompt(learnt.folder).values, learnt.prompt.values)
    card = jpt.load_prompt(learnt.folder).card
    assert (card.task, card.task_type, card.init) == ("easy", "sentiment", "mixture")
    assert card.source.startswith("mixture of cherries (0.")
    other = {**sources, "apples": sources["bananas"]}
    with pytest.raises(jpt.InputError, match="holds another run: sources.apples was"):
        jpt.learn_mixture(backbone, task, other, learnt.folder, **LEARN)


def test_a_stopped_run_is_resumed(learnt, sources, task, backbone) -> None:
    broken = learnt.folder.parent / "broken"
    jpt.learn_mixture(backbone, task, sources, broken, checkpoint_every=15, **LEARN)
    (broken / "result.json").unlink()
    (broken / "prompt.safetensors").unlink()
    newest = max((broken / "checkpoints").iterdir(), key=lambda path: int(path.name))
    for file in sorted(newest.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    newest.rmdir()
    again = jpt.learn_mixture(backbone, task, sources, broken, checkpoint_every=15, **LEARN)
    assert again.weights == learnt.weights
    assert [line["step"] for line in again.history if line["split"] == "validation"] == [0, 15, 30]


@pytest.mark.slow
def test_per_row_weights(sources, task, backbone) -> None:
    found = jpt.learn_mixture(backbone, task, sources, per_row=True, **{**LEARN, "steps": 15})
    assert found.row_weights.shape == (3, LENGTH)
    np.testing.assert_allclose(found.row_weights.sum(0), 1, rtol=1e-12)
    assert found.row_weights.std(axis=1).max() > 0
    bank = np.stack([sources[name].values for name in sorted(sources)])
    mixed = (found.row_weights[:, :, None] * bank).sum(0)
    np.testing.assert_allclose(found.prompt.values, mixed, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_generative_task(tmp_path: Path) -> None:
    model = jpt.load_backbone(write_tiny_backbone(tmp_path / "t5", "t5"))
    parts, echo = writers(model.name), write_echo(tmp_path / "echo")
    options = {"steps": 4, "batch_size": 8, "max_tokens": 8, "eval_batch_size": 8}
    found = jpt.learn_mixture(model, echo, parts, **options, learning_rate=0.5)
    assert sum(found.weights.values()) == pytest.approx(1)
    assert found.record["validation"]["rows"] == 8 and "test" not in found.record
    options = {"split": "validation", "backbone": model, "max_tokens": 8}
    average = jpt.evaluate(jpt.average_prompts(parts), echo, **options)
    assert found.record["average"]["loss"] == pytest.approx(average.loss, rel=1e-5)


def test_generative_tasks_have_no_ensembles(tmp_path: Path) -> None:
    echo = write_echo(tmp_path / "echo")
    with pytest.raises(jpt.InputError, match="task echo: .* got a generative one"):
        jpt.evaluate_ensemble(writers("no model is looked for"), echo)


def writers(backbone: str) -> dict[str, Prompt]:
    random = np.random.default_rng(0).normal(0, 1, (2, 3, 32)).astype(np.float32)
    card = PromptCard(backbone, "x", layout="encoder_decoder")
    return {name: Prompt(each, card) for name, each in zip("ab", random, strict=True)}


def write_echo(folder: Path) -> Path:
    folder.mkdir()
    rows = [json.dumps({"text": f"number {n}", "said": str(n)}) for n in range(8)]
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "task.toml").write_text(
        'name = "echo"\ntype = "copy"\nfields = ["text"]\nanswer = "said"\n'
        'answer_tokens = 3\nmetric = "exact_match"\n[templates]\nencoder_decoder = "{text}"\n'
    )
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 5}, "length: not an option of a mixture"),
        ({"init": "vocab"}, "init: not an option of a mixture"),
        ({"steps": 0}, "steps is 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"max_tokens": 9999}, "9999"),
    ],
)
def test_invalid_options(change, message, sources, task, backbone, tmp_path) -> None:
    with pytest.raises(jpt.InputError, match=message):
        jpt.learn_mixture(backbone, task, sources, tmp_path / "run", **{**LEARN, **change})
    assert not (tmp_path / "run").exists()


def test_incompatible_prompts(sources, task, backbone) -> None:
    with pytest.raises(jpt.InputError, match="at least 2 prompts"):
        jpt.learn_mixture(backbone, task, {"one": sources["cherries"]})
    card = dataclasses.replace(sources["apples"].card, first_position=1)
    mixed = {**sources, "apples": dataclasses.replace(sources["apples"], card=card)}
    for call in (
        jpt.average_prompts,
        lambda parts: jpt.learn_mixture(backbone, task, parts),
        lambda parts: jpt.evaluate_ensemble(parts, task, backbone=backbone),
    ):
        raises(call, mixed, match="expected first position")
    with pytest.raises(jpt.InputError, match="expected a prompt of width .* got width 128"):
        jpt.learn_mixture("builtin/bert-medium", task, sources)


@pytest.mark.parametrize("combine", ["log_probs", "probs"])
def test_an_ensemble_of_one_prompt(combine: str, sources, task, backbone) -> None:
    options = {"backbone": backbone, "max_tokens": 20}
    alone = jpt.evaluate(sources["apples"], task, **options)
    found = jpt.evaluate_ensemble({"x": sources["apples"]}, task, combine=combine, **options)
    assert found.value == alone.value and found.loss == pytest.approx(alone.loss, rel=1e-12)
    np.testing.assert_array_equal(found.predictions, alone.predictions)
    np.testing.assert_allclose(found.log_probs, alone.log_probs, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("weights", [None, {"apples": 3, "bananas": 0, "cherries": 1}])
def test_an_ensemble_is_the_mean_in_closed_form(weights, sources, task, backbone) -> None:
    options = {"backbone": backbone, "max_tokens": 20}
    alone = {name: jpt.evaluate(prompt, task, **options) for name, prompt in sources.items()}
    share = {"apples": 0.75, "bananas": 0.0, "cherries": 0.25}
    share = share if weights else dict.fromkeys(sources, 1 / 3)
    logs = {name: log_softmax(score.log_probs, axis=-1) for name, score in alone.items()}
    mean = sum(share[name] * logs[name] for name in sources)
    geometric = mean - logsumexp(mean, axis=-1, keepdims=True)
    arithmetic = np.log(sum(share[name] * np.exp(logs[name]) for name in sources))
    turned = dict(reversed(sources.items()))
    for combine, expected in (("log_probs", geometric), ("probs", arithmetic)):
        found = score_ensemble(turned, task, weights=weights, combine=combine, **options)
        np.testing.assert_allclose(found.score.log_probs, expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(found.score.predictions, expected.argmax(-1))
        labels = np.array([1, 0] * 7)
        assert found.score.value == np.mean(expected.argmax(-1) == labels)
        assert found.score.loss == pytest.approx(-expected[np.arange(14), labels].mean())
        values = [{n: s.value for n, s in each.items()} for each in (found.members, alone)]
        assert values[0] == values[1] and found.weights == pytest.approx(share)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"combine": "votes"}, "combine.*(expected|; expected) one of log_probs"),
        ({"weights": [1]}, "expected 3 numbers .* got 1"),
        ({"backbone": "builtin/bert-medium"}, "expected a prompt of width .* got width 128"),
    ],
)
def test_invalid_ensembles(change, message, sources, task, backbone) -> None:
    raises(jpt.evaluate_ensemble, sources, task, match=message, **{"backbone": backbone, **change})


def test_the_command(sources, task, learnt, tmp_path, monkeypatch, capsys) -> None:
    for name, prompt in sources.items():
        jpt.save_prompt(tmp_path / f"{name}.safetensors", prompt)
    words = ["--steps", "30", "--learning-rate", "0.2", "--eval-every", "15"]
    words += ["--max-tokens", "20", "--batch-size", "8", "--out", str(tmp_path / "run"), "--json"]
    start = ["jpt", "mix", "learn", "--prompts", str(tmp_path), "--task", str(task)]
    monkeypatch.setattr(sys, "argv", [*start, *words])
    with pytest.raises(SystemExit) as end:
        app.main()
    assert not end.value.code
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["weights"] == learnt.weights
    assert f"{learnt.weights['cherries']:.3f}  cherries" in err
