"""The train step: bits, custom loops; scoring in chunks of prompts and rows."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jpt.backbones.registry import FAMILIES
from jpt.config import TuneOptions
from jpt.data.encode import EncodedSplit
from jpt.parallel import make_mesh, parameter_shardings, place
from jpt.testing import tiny_batch, tiny_config, tiny_encoder, tiny_model
from jpt.tuning import bound_task
from jpt.tuning.bound_task import Batching, bank_logits, plan_chunks, prompts_at_once
from jpt.tuning.losses import NO_TOKEN, Answer, NeuronMask, label_logits, label_loss
from jpt.tuning.step import Optimizer, adamw, init_state
from jpt.types import Batch
from tests.helpers.running import answer_step, raises

pytestmark = pytest.mark.plain_programs


ANSWER = Answer(jnp.array([3, 4], jnp.int32))


def start(rows: int = 6) -> jax.Array:
    return 0.02 * jax.random.normal(jax.random.key(1), (rows, 32))


def assert_close(found, expected) -> None:
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def test_adam_by_hand() -> None:
    module, params = tiny_encoder()
    rate = 3e-2
    optimizer = optax.chain(optax.trace(0.0), adamw(rate))
    step, state = answer_step(module, optimizer), init_state(start(), optimizer)
    prompt = np.asarray(start(), np.float64)
    first, second = np.zeros_like(prompt), np.zeros_like(prompt)
    for number in range(1, 6):
        state, _ = step(params, state, tiny_batch(), ANSWER)
        gradient = np.asarray(state.opt_state[0].trace, np.float64)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        corrected = np.sqrt(second / (1 - 0.999**number)) + 1e-6
        prompt -= rate * (first / (1 - 0.9**number)) / corrected
        assert_close(state.params, prompt)


def test_gradient_of_the_loss_written_out() -> None:
    module, params = tiny_encoder()
    batch, optimizer = tiny_batch(), optax.trace(0.0)
    step = answer_step(module, optimizer)
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
    assert_close(state.opt_state.trace, gradient)


def test_rows_of_weight_zero_change_nothing() -> None:
    module, params = tiny_encoder()
    # The gradient itself: AdamW's first step is its sign, which rounding flips near 0.
    optimizer = optax.trace(0.0)
    step = answer_step(module, optimizer)
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
    assert_close(other.opt_state.trace, np.asarray(one.opt_state.trace))
    np.testing.assert_allclose(one_metrics.loss, other_metrics.loss, rtol=1e-6)
    assert float(one_metrics.accuracy) == float(other_metrics.accuracy)


def test_shared_programs_and_donated_state() -> None:
    module, params = tiny_encoder()
    state = init_state(start(), adamw(1e-2))
    before = jax.tree.map(np.asarray, params)
    answer_step(module, adamw(1e-2))(params, state, tiny_batch(), ANSWER)
    assert state.params.is_deleted()
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, params), before)
    module, params = tiny_encoder()
    step = answer_step(module, Optimizer())
    for ids in ([3, 4], [9, 12], [40, 7]):
        answer = Answer(jnp.array(ids, jnp.int32))
        step(params, init_state(start(), adamw(1e-2)), tiny_batch(), answer)
    assert step.program._cache_size() == 1


@pytest.mark.slow
def test_gradients_are_clipped_as_by_optax() -> None:
    module, params = tiny_encoder()

    def first(clip_norm: float | None) -> tuple[np.ndarray, float]:
        step = answer_step(module, Optimizer(clip_norm=clip_norm))
        state = init_state(start(), adamw(1e-2))
        state, metrics = step(params, state, tiny_batch(), ANSWER)
        # Adam's update does not depend on the gradient's size, its moments do.
        mean = np.asarray(optax.tree.get(state.opt_state, "mu"), np.float64) / 0.1
        return mean, float(metrics.gradient_norm)

    gradient, norm = first(None)
    assert np.linalg.norm(gradient) == pytest.approx(norm, rel=1e-5)
    clipped, logged = first(norm / 4)
    assert logged == pytest.approx(norm, rel=1e-6), "the norm before clipping is logged"
    np.testing.assert_allclose(clipped, gradient / 4, rtol=1e-4, atol=1e-7 * norm)
    mine = Optimizer(clip_norm=1.5)(0.1)
    chain = optax.chain(optax.clip_by_global_norm(1.5), adamw(0.1))
    prompt = other = jnp.zeros((3, 4))
    state, chained = mine.init(prompt), chain.init(prompt)
    assert jax.tree.structure(state) == jax.tree.structure(adamw(0.1).init(prompt))
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
    raises(TuneOptions, match=f"{option} is .*positive number", **{option: value})


def test_loss_is_that_of_optax_over_the_label_words() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(7, 3)).astype(np.float32)
    labels, weights = random.integers(0, 3, 7), np.array([1, 1, 0, 1, 0, 1, 1], np.float32)
    loss, accuracy = label_loss(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(weights))
    kept = weights > 0
    expected = optax.softmax_cross_entropy_with_integer_labels(logits[kept], labels[kept]).mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert float(accuracy) == pytest.approx((logits.argmax(1) == labels)[kept].mean())


@pytest.mark.slow
def test_dropout_is_a_function_of_seed_and_step() -> None:
    module, params = tiny_encoder()
    module = module.clone(dropout_rate=0.3)
    prompts = []
    steps = [answer_step(module, adamw(1e-2), seed) for seed in (0, 1)]
    for step in (steps[0], steps[0], steps[1]):
        state = init_state(start(), adamw(1e-2))
        for _ in range(3):
            state, _ = step(params, state, tiny_batch(), ANSWER)
        prompts.append(np.asarray(state.params))
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


BATCHING = Batching(batch_size=4, max_tokens=12, pad=0)


def split_of(rows: int) -> EncodedSplit:
    random = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(random.integers(2, 12, rows))]).astype(np.int64)
    tokens = random.integers(3, 61, offsets[-1]).astype(np.int32)
    return EncodedSplit(tokens, offsets, random.integers(0, 2, rows).astype(np.int32), 0)


def prompts_of(*rows: int) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    return [random.normal(0, 0.3, (count, 32)).astype(np.float32) for count in rows]


@cache
def scored(family: str, mesh_text: str, masked: bool = False) -> np.ndarray:
    module, params = tiny_model(family)
    mesh = make_mesh(mesh_text)
    shardings, _ = parameter_shardings(params, FAMILIES[family].weights.partition, mesh)
    words = None if family == "bert" else jnp.array([[7, 9], [8, NO_TOKEN]], jnp.int32)
    prompts = prompts_of(5, 5, 5)
    prompts.insert(2, None)
    mask = NeuronMask(jnp.ones((2, 48), jnp.float32).at[:, ::3].set(0)) if masked else None
    answer = Answer(jnp.array([7, 8], jnp.int32), words)
    return bank_logits(
        module, place(params, shardings), prompts, split_of(10), answer, BATCHING, mesh, mask
    )


ALL = ("bert", "t5", "gpt2", "llama")
AXES = "prompt:2,data:2,model:2"


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [AXES, "prompt:8", "prompt:4,data:2"])
@pytest.mark.parametrize("family", ALL)
def test_bank_scores_equal_single_scores(family: str, mesh: str) -> None:
    found, expected = scored(family, mesh), scored(family, "data:1")
    assert np.abs(expected[0] - expected[1]).max() > 1e-4, "prompts have to differ"
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.slow
def test_masked_bank() -> None:
    found, expected = scored("bert", "prompt:2", True), scored("bert", "data:1", True)
    assert np.abs(expected - scored("bert", "data:1")).max() > 1e-4
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_cpu_scores_one_by_one_without_the_prompt_axis() -> None:
    assert prompts_at_once(None) == prompts_at_once(make_mesh("data:4,model:2")) == 1
    assert prompts_at_once(make_mesh("prompt:4")) >= 4


def plan(prompts: list[np.ndarray | None], mesh: str) -> list[bound_task.Chunk]:
    config = FAMILIES["bert"].config(tiny_config("bert"))
    return plan_chunks(config, prompts, split_of(10), BATCHING, 0, make_mesh(mesh))


def test_every_prompt_is_in_one_chunk_with_its_values() -> None:
    prompts = prompts_of(5, 4, 5, 5, 4, 5, 5)
    prompts.insert(3, None)
    for mesh in ("data:1", "prompt:2", "prompt:4"):
        found = plan(prompts, mesh)
        assert sorted(index for chunk in found for index in chunk.indices) == list(range(8))
        for chunk in found:
            values = [chunk.values] if len(chunk.indices) == 1 else np.asarray(chunk.values)
            for index, each in zip(chunk.indices, values, strict=False):
                np.testing.assert_array_equal(each, prompts[index])
    sizes = {len(np.asarray(c.values)) for c in plan(prompts, "prompt:4") if len(c.indices) > 1}
    assert sizes == {8, 4}, "5 prompts of one length and 2 of the other, padded to the axis"


def test_chunks_keep_the_memory_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_of(*[5] * 100)
    assert len(plan(prompts, "prompt:2")) == 1
    # 12 + 5 + 1 tokens of 6 x 32 + 48 states and neurons and 4 heads' attention, 4 rows, float32:
    one_mb = 4 * 4 * (18 * (6 * 32 + 48) + 4 * 18**2) / 2**20
    for budget_mb, expected in ((10.5 * one_mb, [20] * 5), (0, [2] * 50)):
        monkeypatch.setattr(bound_task, "BANK_MB", budget_mb)
        assert [len(chunk.indices) for chunk in plan(prompts, "prompt:2")] == expected
