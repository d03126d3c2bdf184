"""The projector is what numpy computes, and its file says all that it takes to run it again."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jpt
from jpt.config import ProjectorOptions
from jpt.io.tensors import read_header, write_safetensors
from jpt.testing import tiny_batch, tiny_model
from jpt.transfer.projector import (
    Projector,
    ProjectorCard,
    TrainedProjector,
    initial_parameters,
    project,
    save_projector,
)
from jpt.tuning.losses import Answer, answer_loss
from jpt.types import PromptCard
from tests.transfer.projector_case import SOURCE, source_prompt

ROWS, WIDTH, BOTTLENECK, TARGET_ROWS, TARGET_WIDTH = 5, 12, 7, 4, 10


def draw(projector: Projector, seed: int = 0) -> dict:
    """First weights, all of them moved so that none is 0 or 1."""
    params = initial_parameters(projector, ROWS, WIDTH, seed)
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: leaf + random.normal(0, 0.3, leaf.shape).astype(np.float32), params
    )


def numpy_project(params: dict, prompt: np.ndarray, activation: str, norm: bool) -> np.ndarray:
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    hidden = prompt.reshape(-1).astype(np.float64) @ weights["down"]["kernel"]
    hidden = hidden + weights["down"]["bias"]
    act = {"tanh": np.tanh, "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x)}[activation]
    rows = act(hidden) @ weights["up"]["kernel"] + weights["up"]["bias"]
    rows = rows.reshape(TARGET_ROWS, TARGET_WIDTH)
    if not norm:
        return rows
    mean, variance = rows.mean(1, keepdims=True), rows.var(1, keepdims=True)
    return (rows - mean) / np.sqrt(variance + 1e-5) * weights["norm"]["scale"] + weights["norm"][
        "bias"
    ]


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("activation", ["leaky_relu", "tanh"])
def test_forward_pass_is_what_numpy_gives(activation: str, norm: bool) -> None:
    projector = Projector(TARGET_ROWS, TARGET_WIDTH, BOTTLENECK, activation, norm)
    params = draw(projector)
    prompts = np.stack([source_prompt(seed, "mood").values for seed in range(3)])
    found = project(projector, params, prompts)
    expected = np.stack([numpy_project(params, p, activation, norm) for p in prompts])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, project(projector, params, prompts))
    np.testing.assert_allclose(project(projector, params, prompts[1]), found[1], atol=1e-5)


def test_per_token_maps_each_row_alone_and_alike() -> None:
    projector = Projector(ROWS, TARGET_WIDTH, per_token=True, layer_norm=False)
    params, rows = draw(projector), source_prompt(0, "mood").values
    assert set(params) == {"row"}
    found = project(projector, params, rows)
    plain = rows @ np.asarray(params["row"]["kernel"]) + np.asarray(params["row"]["bias"])
    np.testing.assert_allclose(found, np.where(plain > 0, plain, 0.01 * plain), atol=1e-5)
    np.testing.assert_allclose(
        project(projector, params, rows[::-1].copy())[::-1], found, atol=1e-6
    )


def test_first_weights_are_even_within_the_bound_of_torch() -> None:
    params = initial_parameters(Projector(40, 50, bottleneck=100), 30, 20, seed=3)
    for name, fan_in in (("down", 600), ("up", 100)):
        for part in ("kernel", "bias"):
            values = np.asarray(params[name][part])
            bound = 1 / math.sqrt(fan_in)
            assert bound * 0.9 < np.abs(values).max() <= bound, (name, part)
            assert abs(values.std() - bound / math.sqrt(3)) < bound * 0.1, (name, part)
    again = initial_parameters(Projector(40, 50, bottleneck=100), 30, 20, seed=3)
    other = initial_parameters(Projector(40, 50, bottleneck=100), 30, 20, seed=4)
    np.testing.assert_array_equal(params["up"]["kernel"], again["up"]["kernel"])
    assert not np.array_equal(params["up"]["kernel"], other["up"]["kernel"])
    assert not np.array_equal(params["down"]["bias"], params["up"]["bias"][:100])


def test_rescaled_rows_have_the_norm_that_was_asked_for() -> None:
    projector = Projector(TARGET_ROWS, TARGET_WIDTH, BOTTLENECK, rescale_to=0.37)
    params = initial_parameters(projector, ROWS, WIDTH)
    rows = project(projector, params, source_prompt(0, "mood").values)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 0.37, rtol=1e-3)


@pytest.mark.parametrize(("model_type", "is_same"), [("bert", True), ("t5", False)])
def test_what_rescaling_does_to_results(model_type: str, is_same: bool) -> None:
    """BERT normalises its input at once; T5 adds it to what later layers see."""
    module, params = tiny_model(model_type)
    rows = np.random.default_rng(1).normal(0, 1, (TARGET_ROWS, 32)).astype(np.float32)
    answer = Answer(jnp.array([7, 8]))
    loss = jax.jit(lambda rows: answer_loss(module, params, rows, tiny_batch(), answer)[0])
    losses = [float(loss(rows * scale)) for scale in (np.float32(1), np.float32(0.25))]
    assert (abs(losses[0] - losses[1]) < 1e-5) == is_same, losses


@pytest.fixture
def trained() -> TrainedProjector:
    card = ProjectorCard(
        source_backbone=SOURCE,
        target_backbone="some/target",
        target_layout="encoder_decoder",
        objective="task",
        tasks=("mood", "amusing"),
        source_length=ROWS,
        source_width=WIDTH,
        target_length=TARGET_ROWS,
        target_width=TARGET_WIDTH,
        bottleneck=BOTTLENECK,
        activation="tanh",
        rescale_to=0.5,
        seed=3,
        steps=20,
        score=0.75,
    )
    return TrainedProjector(card, draw(card.module()))


def test_a_saved_projector_comes_back_whole(trained: TrainedProjector, tmp_path: Path) -> None:
    file = tmp_path / "projector.safetensors"
    save_projector(file, trained)
    found = jpt.load_projector(tmp_path)
    assert dataclasses.replace(found.card, jpt_version=None) == trained.card
    assert found.card.jpt_version == jpt.__version__
    prompt = source_prompt(4, "mood")
    np.testing.assert_array_equal(found(prompt), trained(prompt))
    np.testing.assert_array_equal(jpt.load_projector(file)(prompt), trained(prompt))
    first = file.read_bytes()
    save_projector(file, found)
    assert file.read_bytes() == first, "equal projectors give equal bytes"


def _rewrite(file: Path, change) -> None:
    tensors, metadata = read_header(file)
    values = {name: tensor.read() for name, tensor in tensors.items()}
    card = json.loads(metadata["card"])
    change(values, card)
    write_safetensors(file, values, {"card": json.dumps(card)})


CHANGES = [
    (lambda values, card: values.pop("up/bias"), "no weights 'up/bias'"),
    (lambda values, card: values.update(more=np.ones(2, np.float32)), "holds 'more'"),
    (lambda values, card: card.update(bottleneck=8), r"the shape \[7\], and .* have \[8\]"),
    (lambda values, card: card.update(target_width=11), "of two projectors"),
    (lambda values, card: card.update(activation="relu"), "one of leaky_relu, tanh"),
    (lambda values, card: card.update(layer_norm="yes"), "true or false expected"),
    (lambda values, card: card.update(source_length=0), "a whole number above 0"),
    (lambda values, card: card.pop("objective"), "names no objective"),
    (lambda values, card: card.pop("source_backbone"), "is no projector"),
    (lambda values, card: card.update(tasks="mood"), "a list of names"),
    (lambda values, card: values["down/bias"].fill(np.nan), "holds NaN"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_wrong_files_are_told(trained: TrainedProjector, tmp_path: Path, change, message) -> None:
    file = tmp_path / "projector.safetensors"
    save_projector(file, trained)
    _rewrite(file, change)
    with pytest.raises(jpt.InputError, match=message):
        jpt.load_projector(file)


def test_files_that_are_no_projectors(tmp_path: Path) -> None:
    with pytest.raises(jpt.InputError, match="unfinished run"):
        jpt.load_projector(tmp_path)
    with pytest.raises(jpt.InputError, match="gone"):
        jpt.load_projector(tmp_path / "gone.safetensors")
    prompt = source_prompt(0, "mood")
    jpt.save_prompt(tmp_path / "prompt.safetensors", prompt)
    with pytest.raises(jpt.InputError, match="is no projector"):
        jpt.load_projector(tmp_path / "prompt.safetensors")


def test_values_that_are_not_finite_are_not_written(trained, tmp_path: Path) -> None:
    broken = jax.tree.map(lambda leaf: leaf * np.float32(np.nan), trained.params)
    with pytest.raises(jpt.InputError, match="NaN or infinity"):
        save_projector(tmp_path / "p.safetensors", dataclasses.replace(trained, params=broken))
    assert not list(tmp_path.iterdir())


def test_prompts_of_other_sizes_and_models_are_refused(trained: TrainedProjector) -> None:
    with pytest.raises(jpt.InputError, match="has 6 rows of 12 .* reads 5 rows of 12"):
        trained(source_prompt(0, "mood", rows=6))
    with pytest.raises(jpt.InputError, match="has 5 rows of 13 .* reads 5 rows of 12"):
        trained(source_prompt(0, "mood", width=13))
    other = dataclasses.replace(source_prompt(0, "mood"), card=PromptCard("else/where", "mood"))
    with pytest.raises(jpt.InputError, match="tuned on else/where, but .* of some/source-model"):
        trained(other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "relu"}, "one of leaky_relu, tanh"),
        ({"bottleneck": 0}, "bottleneck is 0"),
        ({"per_token": True, "layer_norm": True}, "no layer_norm"),
        ({"per_token": True, "rescale": True}, "rescale"),
        ({"layer_norm": False, "rescale": True}, "rescale"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(jpt.InputError, match=message):
        ProjectorOptions(**options)
