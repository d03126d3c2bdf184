"""`jpt.fit` with losses, parameters and optimizers of one's own."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

import jpt
from jpt.testing import write_tiny_backbone
from tests.helpers.running import crash_at, raises, read_log
from tests.helpers.toys import write_task

pytestmark = pytest.mark.plain_programs

TARGET = np.linspace(-1, 1, 12).reshape(3, 4).astype(np.float32)
OPTIONS: dict[str, Any] = {"steps": 8, "eval_every": 4, "batch_size": 4, "length": 5}


def distance(frozen: jax.Array, params: Any, batch: jax.Array, key: jax.Array) -> tuple[Any, None]:
    noise = 0.01 * jax.random.normal(key, frozen.shape)
    return jnp.square(batch * params["a"] @ params["b"] - frozen + noise).sum(), None


def problem(**changes: Any) -> jpt.Problem:
    random = np.random.default_rng(0)
    parts: dict[str, Any] = {
        "frozen": jnp.asarray(TARGET),
        "init": {"a": random.normal(size=(3, 2)), "b": random.normal(size=(2, 4))},
        "loss": distance,
        "batch": lambda step: jnp.float32(1 + step % 2),
        "evaluate": lambda params: -float(np.abs(params["a"] @ params["b"] - TARGET).max()),
        "config": {"method": "factors"},
        "learning_rate": 0.1,
        "seed": 3,
        **{"steps": 20, "eval_every": 5},
    }
    return jpt.Problem(**{**parts, **changes})


@pytest.mark.parametrize("optimizer", [optax.sgd(1e-2, momentum=0.9), optax.adafactor(1e-2)])
def test_any_optimizer_steps_as_in_a_plain_loop(optimizer: optax.GradientTransformation) -> None:
    found = jpt.fit(problem(optimizer=optimizer))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), problem().init)
    state, scores = optimizer.init(params), []
    with jax.numpy_dtype_promotion("standard"):
        for step in range(20):
            key = jax.random.fold_in(jax.random.key(3), step)
            batch = jnp.float32(1 + step % 2)
            of = lambda p, batch=batch, key=key: distance(jnp.asarray(TARGET), p, batch, key)[0]  # noqa: E731
            updates, state = optimizer.update(jax.grad(of)(params), state, params)
            params = optax.apply_updates(params, updates)
            scores.append(problem().evaluate(jax.tree.map(np.asarray, params)))
    for name, leaf in params.items():
        np.testing.assert_allclose(found.last[name], leaf, rtol=1e-4, atol=1e-6)
    scored = {step: scores[step - 1] for step in (5, 10, 15, 20)}
    assert found.best.step == max(scored, key=scored.__getitem__)
    assert found.best.score == pytest.approx(max(scored.values()), rel=1e-4)


def test_a_run_is_written_resumed_and_returned(tmp_path: Path) -> None:
    whole = jpt.fit(problem(), tmp_path / "whole")
    with crash_at(12):
        jpt.fit(problem(), tmp_path / "run")
    found = jpt.fit(problem(), tmp_path / "run")
    again = jpt.fit(problem(loss=None), tmp_path / "run")  # trains nothing
    for each in (found, again):
        jax.tree.map(np.testing.assert_array_equal, each.best.params, whole.best.params)
        jax.tree.map(np.testing.assert_array_equal, each.last, whole.last)
        assert each.best[1:] == whole.best[1:]
    assert read_log(tmp_path / "run") == read_log(tmp_path / "whole")
    assert "accuracy" not in read_log(tmp_path / "run")[0]
    stored = load_file(tmp_path / "run" / "params.safetensors")
    assert stored.keys() == {"a", "b"}
    np.testing.assert_array_equal(stored["a"], whole.best.params["a"])
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["validation"]["evaluation"] == pytest.approx(whole.best.score)
    assert (record["best_step"], record["steps"]) == (whole.best.step, 20)
    other = problem(config={"method": "other"})
    raises(jpt.fit, other, tmp_path / "run", match="method was 'factors' and is now 'ot")


def test_numbers_that_are_not_finite_stop_the_run(tmp_path: Path) -> None:
    far = problem(optimizer=optax.sgd(1e6))
    with pytest.raises(jpt.DivergedError, match="non-finite loss at step"):
        jpt.fit(far, tmp_path / "far")
    nan = problem(evaluate=lambda params: float("nan"))
    with pytest.raises(jpt.DivergedError, match="validation loss 0.0, score nan"):
        jpt.fit(nan)


@dataclasses.dataclass(frozen=True)
class LowRank:
    """A prompt as the product of two matrices."""

    rank: int

    def init(self, rows: Any) -> dict[str, np.ndarray]:
        left, singular, right = np.linalg.svd(np.asarray(rows, np.float64), full_matrices=False)
        return {"left": (left * singular)[:, : self.rank], "right": right[: self.rank]}

    def rows(self, params: Any) -> Any:
        return params["left"] @ params["right"]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[jpt.Backbone, Path]:
    root = tmp_path_factory.mktemp("given")
    return jpt.load_backbone(write_tiny_backbone(root / "bert", "bert")), write_task(root / "mood")


def test_the_problem_of_tuning_is_that_of_tune(given: tuple[Any, Path], tmp_path: Path) -> None:
    tuned = jpt.tune(*given, tmp_path / "tuned", **OPTIONS)
    found = jpt.fit(jpt.tuning_problem(*given, **OPTIONS), tmp_path / "fitted")
    np.testing.assert_array_equal(found.last, tuned.last.values)
    for name in ("prompt.safetensors", "last.safetensors", "config.json"):
        assert (tmp_path / "fitted" / name).read_bytes() == (tmp_path / "tuned" / name).read_bytes()
    assert read_log(tmp_path / "fitted") == read_log(tmp_path / "tuned")


def test_a_parametrisation_of_ones_own(given: tuple[Any, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    mine = jpt.tuning_problem(*given, parametrisation=LowRank(2), **OPTIONS)
    assert {name: leaf.shape for name, leaf in mine.init.items()} == {
        "left": (5, 2),
        "right": (2, 32),
    }
    with crash_at(6):
        jpt.fit(mine, out)
    assert jpt.load_prompt(out).card.steps == 4, "the best prompt so far"
    found = jpt.fit(mine, out)
    prompt = jpt.load_prompt(out)
    np.testing.assert_allclose(prompt.values, LowRank(2).rows(found.best.params), rtol=1e-6)
    assert np.linalg.matrix_rank(prompt.values) == 2
    assert (
        jpt.evaluate(prompt, given[1], backbone=given[0]).value == found.record["test"]["accuracy"]
    )
    plain = jpt.tuning_problem(*given, **OPTIONS)
    raises(jpt.fit, plain, out, match="parametrisation was .LowRank.rank=2.. and is now")
