"""Several answers scored in one pass: against reading each of them alone behind its text."""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jpt.backbones.answers import branch_answers
from jpt.backbones.layers import AnswerScores
from jpt.parallel import batch_sharding, make_mesh, place, replicated
from tests.helpers.golden import DECODERS, FAST_COMPILE, T5S, difference, load_golden, read

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

    given = (place(tokens, rows), place(lengths, rows), prompt, place(answers, replicated(devices)))
    return jax.device_get(run(golden.split(devices), *given))


def one_by_one(name: str, answers: np.ndarray, prompt: jax.Array | None) -> np.ndarray:
    """Scores each answer by itself: every row is the text and the answer behind it."""
    golden = load_golden(name)
    tokens, lengths, _ = golden.batch
    found = np.zeros((len(lengths), COUNT, LENGTH))
    for number in range(COUNT):
        answer = np.broadcast_to(answers[:, number], (len(lengths), LENGTH))
        if name in T5S:
            start = np.full((len(lengths), 1), golden.config.start_id)
            given = jnp.asarray(np.concatenate([start, answer[:, :-1]], axis=1))
            logits = _decode(golden.module(), golden.params, tokens, lengths, prompt, given)
        else:
            longer = np.pad(np.asarray(tokens), ((0, 0), (0, LENGTH)))
            for row, length in enumerate(np.asarray(lengths)):
                longer[row, length : length + LENGTH] = answer[row]
            inputs = (jnp.asarray(longer), lengths + LENGTH, prompt)
            output = read(golden.module(), golden.params, *inputs, every_position=True)
            steps = np.asarray(lengths)[:, None] - 1 + np.arange(LENGTH)[None]
            logits = np.take_along_axis(np.asarray(output.logits), steps[..., None], axis=1)
        picked = np.asarray(answer)[..., None]
        found[:, number] = np.take_along_axis(log_softmax(logits, axis=-1), picked, axis=-1)[..., 0]
    return found


def _decode(module, params, tokens, lengths, prompt, given) -> np.ndarray:
    run = jax.jit(module.apply, compiler_options=FAST_COMPILE)
    variables = {"params": params}
    return np.asarray(run(variables, tokens, lengths, prompt, decoder_tokens=given).logits)


@every_model
@pytest.mark.parametrize("shared", [True, False])
def test_side_by_side_equals_one_by_one(name: str, shared: bool) -> None:
    golden = load_golden(name)
    answers = answers_of(name, 1 if shared else len(golden.stored["lengths"]))
    prompt = golden.batch[2] if shared else golden.rows_of_prompts()
    found = score(name, answers, prompt)
    assert difference(found.log_probs, one_by_one(name, answers, prompt)) < 1e-5


@pytest.mark.parametrize("name", ["t5_gated", "gpt2_tied"])
def test_without_a_prompt_too(name: str) -> None:
    answers = answers_of(name)
    found = score(name, answers, None)
    assert difference(found.log_probs, one_by_one(name, answers, None)) < 1e-5


@pytest.mark.parametrize("name", ["t5_gated", pytest.param("gpt2_tied", marks=pytest.mark.slow)])
def test_a_mesh_changes_no_score(name: str) -> None:
    answers, prompt = answers_of(name), load_golden(name).batch[2]
    plain, split = score(name, answers, prompt), score(name, answers, prompt, "data:2,model:4")
    assert difference(split.log_probs, plain.log_probs) < 1e-5


@every_model
def test_tokens_behind_one_another_do_not_count(name: str) -> None:
    """Another last token changes its own score only; another answer changes nobody else's."""
    answers, prompt = answers_of(name), load_golden(name).batch[2]
    changed = answers.copy()
    changed[:, 1, 2:] = (changed[:, 1, 2:] + 1) % load_golden(name).config.vocabulary
    plain, other = score(name, answers, prompt).log_probs, score(name, changed, prompt).log_probs
    is_same = np.ones((COUNT, LENGTH), bool)
    is_same[1, 2:] = False
    np.testing.assert_allclose(other[:, is_same], plain[:, is_same], atol=1e-5)
    assert np.abs(other[:, 1, 2:] - plain[:, 1, 2:]).min() > 1e-4


@pytest.mark.parametrize("name", ["t5_gated", "llama_grouped"])
def test_gradient_of_the_prompt_is_that_of_one_answer_alone(name: str) -> None:
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
def test_the_best_tokens_are_those_that_are_written(name: str) -> None:
    golden = load_golden(name)
    written = golden.stored["greedy_tokens"]
    is_generative = written >= 0
    answers = np.where(is_generative, written, 0)[:, None].astype(np.int32)
    found = score(name, answers, golden.batch[2])
    assert found.is_best[:, 0][is_generative].all()
    wrong = (answers + 1) % golden.config.vocabulary
    assert not score(name, wrong, golden.batch[2]).is_best[:, 0, 0].any()


def test_one_token_answers_need_no_line() -> None:
    branches = branch_answers(jnp.array([[[5], [6]]]))
    assert branches.tokens.shape == (1, 0) and branches.allowed.shape == (0, 0)
    for name in ("t5_gated", "gpt2_tied"):
        golden = load_golden(name)
        found = score(name, np.array([[[5], [6]]], np.int32), golden.batch[2])
        logits = np.asarray(read(golden.module(), golden.params, *golden.batch).logits)
        assert difference(found.log_probs[..., 0], log_softmax(logits, axis=-1)[:, 5:7]) < 1e-5


def test_names_are_those_of_writers() -> None:
    assert set(NAMES) <= {*T5S, *DECODERS}
