"""Answers scored in one pass equal answers read alone behind their text."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jpt.backbones.answers import branch_answers
from jpt.backbones.layers import AnswerScores
from jpt.parallel import batch_sharding, make_mesh, place, replicated
from tests.helpers.golden import FAST_COMPILE, T5S, ask, difference, load_golden

pytestmark = pytest.mark.plain_programs

NAMES = ("t5_gated", "gpt2_tied", "llama_grouped")
COUNT, LENGTH = 3, 4
every_model = pytest.mark.parametrize("name", NAMES)


@cache
def answers_of(name: str, rows: int = 1) -> np.ndarray:
    words = load_golden(name).config.vocabulary
    return np.random.default_rng(3).integers(0, words, (rows, COUNT, LENGTH)).astype(np.int32)


def score(
    name: str, answers: np.ndarray, prompt: jax.Array | None, mesh: str = "data:1"
) -> AnswerScores:
    golden, devices = load_golden(name), make_mesh(mesh)
    tokens, lengths, _ = golden.batch
    rows = batch_sharding(devices, len(lengths))

    @partial(jax.jit, compiler_options=FAST_COMPILE)
    def run(params, tokens, lengths, prompt, answers):
        inputs = (tokens, lengths, prompt, answers)
        return golden.module().apply({"params": params}, *inputs, method="score_answers")

    inputs = (*place((tokens, lengths), rows), prompt, place(answers, replicated(devices)))
    return jax.device_get(run(golden.split(devices), *inputs))


def one_by_one(name: str, answers: np.ndarray, prompt: jax.Array | None) -> np.ndarray:
    """Log-probabilities of each answer by itself, read behind the text of every row."""
    golden = load_golden(name)
    tokens, lengths, _ = golden.batch
    found = np.zeros((len(lengths), COUNT, LENGTH))
    for number in range(COUNT):
        answer = np.broadcast_to(answers[:, number], (len(lengths), LENGTH))
        if name in T5S:
            start = np.full((len(lengths), 1), golden.config.start_id)
            given = jnp.asarray(np.concatenate([start, answer[:, :-1]], axis=1))
            logits = ask(golden, tokens, lengths, prompt, decoder_tokens=given).logits
        else:
            longer = np.pad(np.asarray(tokens), ((0, 0), (0, LENGTH)))
            for row, length in enumerate(np.asarray(lengths)):
                longer[row, length : length + LENGTH] = answer[row]
            inputs = (jnp.asarray(longer), lengths + LENGTH, prompt)
            output = ask(golden, *inputs, every_position=True)
            steps = np.asarray(lengths)[:, None] - 1 + np.arange(LENGTH)[None]
            logits = np.take_along_axis(np.asarray(output.logits), steps[..., None], axis=1)
        picked = np.asarray(answer)[..., None]
        found[:, number] = np.take_along_axis(log_softmax(logits, axis=-1), picked, axis=-1)[..., 0]
    return found


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, kind) for name in NAMES for kind in ("shared", "a row")),
        *((name, "none") for name in NAMES[:2]),
    ],
)
def test_all_at_once_equals_one_by_one(name: str, kind: str) -> None:
    golden = load_golden(name)
    answers = answers_of(name, len(golden.stored["lengths"]) if kind == "a row" else 1)
    prompts = {"shared": golden.batch[2], "a row": golden.rows_of_prompts(), "none": None}
    found = score(name, answers, prompts[kind])
    assert difference(found.log_probs, one_by_one(name, answers, prompts[kind])) < 1e-5


@pytest.mark.parametrize("name", ["t5_gated", "gpt2_tied"])
def test_a_mesh_changes_no_score(name: str) -> None:
    answers, prompt = answers_of(name), load_golden(name).batch[2]
    plain, split = score(name, answers, prompt), score(name, answers, prompt, "data:2,model:4")
    assert difference(split.log_probs, plain.log_probs) < 1e-5


@every_model
def test_scores_depend_on_earlier_tokens_of_the_answer_only(name: str) -> None:
    answers, prompt = answers_of(name), load_golden(name).batch[2]
    changed = answers.copy()
    changed[:, 1, 2:] = (changed[:, 1, 2:] + 1) % load_golden(name).config.vocabulary
    plain, other = score(name, answers, prompt).log_probs, score(name, changed, prompt).log_probs
    is_same = np.ones((COUNT, LENGTH), bool)
    is_same[1, 2:] = False
    np.testing.assert_allclose(other[:, is_same], plain[:, is_same], atol=1e-5)
    assert np.abs(other[:, 1, 2:] - plain[:, 1, 2:]).min() > 1e-4


@pytest.mark.parametrize("name", ["t5_gated", "llama_grouped"])
def test_gradient_equals_that_of_one_answer_alone(name: str) -> None:
    golden, answers = load_golden(name), answers_of(name)
    tokens, lengths, prompt = golden.batch

    @partial(jax.jit, compiler_options=FAST_COMPILE)
    @jax.grad
    def slope(prompt: jax.Array, answers: jax.Array, chosen: jax.Array) -> jax.Array:
        inputs = (tokens, lengths, prompt, answers)
        variables = {"params": golden.params}
        found = golden.module().apply(variables, *inputs, method="score_answers").log_probs
        return (found * chosen[None, :, None]).sum()

    together = slope(prompt, jnp.asarray(answers), jnp.array([0.0, 1.0, 0.0]))
    alone = slope(prompt, jnp.asarray(answers[:, 1:2]), jnp.array([1.0]))
    assert difference(together, alone) < 1e-5


@pytest.mark.parametrize("name", ["t5_gated", "gpt2_tied"])
def test_the_best_tokens_are_the_generated_ones(name: str) -> None:
    golden = load_golden(name)
    generated = golden.stored["greedy_tokens"]
    is_token = generated >= 0
    answers = np.where(is_token, generated, 0)[:, None].astype(np.int32)
    found = score(name, answers, golden.batch[2])
    assert found.is_best[:, 0][is_token].all()
    wrong = (answers + 1) % golden.config.vocabulary
    assert not score(name, wrong, golden.batch[2]).is_best[:, 0, 0].any()


@pytest.mark.slow
def test_one_token_answers_need_no_branches() -> None:
    branches = branch_answers(jnp.array([[[5], [6]]]))
    assert branches.tokens.shape == (1, 0) and branches.allowed.shape == (0, 0)
    for name in ("t5_gated", "gpt2_tied"):
        golden = load_golden(name)
        found = score(name, np.array([[[5], [6]]], np.int32), golden.batch[2])
        logits = np.asarray(ask(golden, *golden.batch).logits)
        assert difference(found.log_probs[..., 0], log_softmax(logits, axis=-1)[:, 5:7]) < 1e-5
