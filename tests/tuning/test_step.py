"""The train step: gradients, Adam, clipping, dropout, padding and donation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jpt.config import TuneOptions
from jpt.testing import tiny_batch, tiny_encoder
from jpt.tuning.losses import Answer, label_logits, label_loss
from jpt.tuning.step import build_train_step, init_state, paper_train_step, prompt_optimizer
from jpt.types import Batch
from tests.helpers.errors import refused

pytestmark = pytest.mark.plain_programs

ANSWER = Answer(jnp.array([3, 4], jnp.int32))


def start(rows: int = 6) -> jax.Array:
    return 0.02 * jax.random.normal(jax.random.key(1), (rows, 32))


def assert_close(found, expected) -> None:
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def test_adam_by_hand() -> None:
    module, params = tiny_encoder()
    rate = 3e-2
    optimizer = optax.chain(optax.trace(0.0), prompt_optimizer(rate))
    step, state = build_train_step(module, optimizer), init_state(start(), optimizer)
    prompt = np.asarray(start(), np.float64)
    first, second = np.zeros_like(prompt), np.zeros_like(prompt)
    for number in range(1, 6):
        state, _ = step(params, state, tiny_batch(), ANSWER)
        gradient = np.asarray(state.optimizer[0].trace, np.float64)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        corrected = np.sqrt(second / (1 - 0.999**number)) + 1e-6
        prompt -= rate * (first / (1 - 0.9**number)) / corrected
        assert_close(state.prompt, prompt)


def test_gradient_of_the_loss_written_out() -> None:
    module, params = tiny_encoder()
    batch, optimizer = tiny_batch(), optax.trace(0.0)
    step = build_train_step(module, optimizer)
    state, metrics = step(params, init_state(start(), optimizer), batch, ANSWER)

    @jax.jit
    @jax.value_and_grad
    def loss_of(prompt: jax.Array) -> jax.Array:
        logits = module.apply({"params": params}, batch.tokens, batch.lengths, prompt).logits
        picked = logits[:, np.array([3, 4])]
        picked = picked - jax.nn.logsumexp(picked, axis=1, keepdims=True)
        return -jnp.mean(picked[jnp.arange(2), batch.labels])

    loss, gradient = loss_of(start())
    assert float(metrics.loss) == pytest.approx(float(loss), rel=1e-6)
    assert_close(state.optimizer.trace, gradient)


def test_rows_of_weight_zero_change_nothing() -> None:
    module, params = tiny_encoder()
    # The gradient itself: AdamW's first step is its sign, which rounding flips near 0.
    optimizer = optax.trace(0.0)
    step = build_train_step(module, optimizer)
    plain = tiny_batch()
    padded = Batch(
        np.concatenate([plain.tokens, plain.tokens[::-1]]),
        np.concatenate([plain.lengths, plain.lengths[::-1]]),
        np.array([0, 1, 1, 1], np.int32),
        np.array([1, 1, 0, 0], np.float32),
    )
    (one, one_metrics), (other, other_metrics) = (
        step(params, init_state(start(), optimizer), batch, ANSWER) for batch in (plain, padded)
    )
    assert_close(other.optimizer.trace, np.asarray(one.optimizer.trace))
    np.testing.assert_allclose(one_metrics.loss, other_metrics.loss, rtol=1e-6)
    assert float(one_metrics.accuracy) == float(other_metrics.accuracy)


def test_shared_programs_and_donated_state() -> None:
    module, params = tiny_encoder()
    state = init_state(start(), prompt_optimizer(1e-2))
    before = jax.tree.map(np.asarray, params)
    build_train_step(module, prompt_optimizer(1e-2))(params, state, tiny_batch(), ANSWER)
    assert state.prompt.is_deleted()
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, params), before)
    module, params = tiny_encoder()
    step = build_train_step(module, prompt_optimizer(1e-2))
    for ids in ([3, 4], [9, 12], [40, 7]):
        answer = Answer(jnp.array(ids, jnp.int32))
        step(params, init_state(start(), prompt_optimizer(1e-2)), tiny_batch(), answer)
    assert step._cache_size() == 1


def test_gradients_are_clipped_as_by_optax() -> None:
    module, params = tiny_encoder()

    def first(clip_norm: float | None) -> tuple[np.ndarray, float]:
        step = paper_train_step(module, 1e-2, 0, clip_norm=clip_norm)
        state = init_state(start(), prompt_optimizer(1e-2))
        state, metrics = step(params, state, tiny_batch(), ANSWER)
        # Adam's update does not depend on the gradient's size, its moments do.
        mean = np.asarray(optax.tree.get(state.optimizer, "mu"), np.float64) / 0.1
        return mean, float(metrics.gradient_norm)

    gradient, norm = first(None)
    assert np.linalg.norm(gradient) == pytest.approx(norm, rel=1e-5)
    clipped, logged = first(norm / 4)
    assert logged == pytest.approx(norm, rel=1e-6), "the norm before clipping is logged"
    np.testing.assert_allclose(clipped, gradient / 4, rtol=1e-4, atol=1e-7 * norm)
    mine = prompt_optimizer(0.1, clip_norm=1.5)
    chain = optax.chain(optax.clip_by_global_norm(1.5), prompt_optimizer(0.1))
    prompt = other = jnp.zeros((3, 4))
    state, chained = mine.init(prompt), chain.init(prompt)
    assert jax.tree.structure(state) == jax.tree.structure(prompt_optimizer(0.1).init(prompt))
    random = np.random.default_rng(0)
    with jax.numpy_dtype_promotion("standard"):
        for size in 10.0 ** random.uniform(-3, 3, 10):
            gradient = jnp.asarray(size * random.normal(size=(3, 4)), jnp.float32)
            updates, state = mine.update(gradient, state, prompt)
            prompt = optax.apply_updates(prompt, updates)
            updates, chained = chain.update(gradient, chained, other)
            other = optax.apply_updates(other, updates)
    np.testing.assert_array_equal(prompt, other)


@pytest.mark.parametrize("option", ["clip_norm", "checkpoint_minutes", "learning_rate"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True, "1"])
def test_invalid_amounts_are_refused(option: str, value: object) -> None:
    refused(TuneOptions, match=f"{option} is .*positive number", **{option: value})


def test_loss_is_that_of_optax_over_the_label_words() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(7, 3)).astype(np.float32)
    labels, weights = random.integers(0, 3, 7), np.array([1, 1, 0, 1, 0, 1, 1], np.float32)
    loss, accuracy = label_loss(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(weights))
    kept = weights > 0
    expected = optax.softmax_cross_entropy_with_integer_labels(logits[kept], labels[kept]).mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert float(accuracy) == pytest.approx((logits.argmax(1) == labels)[kept].mean())


def test_dropout_is_a_function_of_seed_and_step() -> None:
    module, params = tiny_encoder()
    module = module.clone(dropout_rate=0.3)
    prompts = []
    steps = [build_train_step(module, prompt_optimizer(1e-2), seed) for seed in (0, 1)]
    for step in (steps[0], steps[0], steps[1]):
        state = init_state(start(), prompt_optimizer(1e-2))
        for _ in range(3):
            state, _ = step(params, state, tiny_batch(), ANSWER)
        prompts.append(np.asarray(state.prompt))
    np.testing.assert_array_equal(prompts[0], prompts[1])
    assert not np.array_equal(prompts[0], prompts[2])


def test_one_prompt_per_row_is_the_bank_form() -> None:
    module, params = tiny_encoder()
    bank = jax.random.normal(jax.random.key(2), (2, 6, 32))
    score = jax.jit(label_logits, static_argnums=0)
    together = score(module, params, bank, tiny_batch(), ANSWER)
    for row in range(2):
        alone = score(module, params, bank[row], tiny_batch(), ANSWER)[row]
        np.testing.assert_allclose(together[row], alone, atol=1e-5 * np.abs(alone).max())
