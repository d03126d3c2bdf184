"""Projectors: forward pass, files, both training objectives, and agreement with torch."""

import dataclasses
import json
import math
import shutil
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import jpt
from jpt.config import ProjectorOptions
from jpt.io.tensors import read_header, write_safetensors
from jpt.results.prompt_table import short_task
from jpt.testing import tiny_batch, tiny_model
from jpt.transfer import projector as module
from jpt.transfer.projector import (
    Projector,
    ProjectorCard,
    ProjectorPlan,
    TrainedProjector,
    initial_parameters,
    project,
    save_projector,
)
from jpt.tuning import trainer
from jpt.tuning.bound_task import _score_step
from jpt.tuning.losses import Answer, answer_loss
from jpt.tuning.step import TrainState, bind_step, init_state
from jpt.types import Batch, Prompt, PromptCard
from tests.helpers.golden import FIXTURES as BACKBONES
from tests.helpers.golden import load_golden
from tests.helpers.running import raises
from tests.helpers.toys import SIZES, SOURCE, source_prompt, source_prompts, write_case

pytestmark = pytest.mark.plain_programs

ROWS, WIDTH, BOTTLENECK, TARGET_ROWS, TARGET_WIDTH = 5, 12, 7, 4, 10


def sample_weights(projector: Projector, seed: int = 0) -> dict:
    """Return initial weights, moved so that none is 0 or 1."""
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
    rows = (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + 1e-5)
    return rows * weights["norm"]["scale"] + weights["norm"]["bias"]


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("activation", ["leaky_relu", "tanh"])
def test_forward_pass_equals_numpy(activation: str, norm: bool) -> None:
    projector = Projector(TARGET_ROWS, TARGET_WIDTH, BOTTLENECK, activation, norm)
    params = sample_weights(projector)
    prompts = np.stack([source_prompt(seed, "mood").values for seed in range(3)])
    found = project(projector, params, prompts)
    expected = np.stack([numpy_project(params, p, activation, norm) for p in prompts])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, project(projector, params, prompts))
    np.testing.assert_allclose(project(projector, params, prompts[1]), found[1], atol=1e-5)


def test_per_token_weights_and_rescaled_norms() -> None:
    projector = Projector(ROWS, TARGET_WIDTH, per_token=True, layer_norm=False)
    params, rows = sample_weights(projector), source_prompt(0, "mood").values
    assert set(params) == {"row"}
    found = project(projector, params, rows)
    plain = rows @ np.asarray(params["row"]["kernel"]) + np.asarray(params["row"]["bias"])
    np.testing.assert_allclose(found, np.where(plain > 0, plain, 0.01 * plain), atol=1e-5)
    turned = project(projector, params, rows[::-1].copy())[::-1]
    np.testing.assert_allclose(turned, found, atol=1e-6)
    projector = Projector(TARGET_ROWS, TARGET_WIDTH, BOTTLENECK, rescale_to=0.37)
    params = initial_parameters(projector, ROWS, WIDTH)
    rows = project(projector, params, source_prompt(0, "mood").values)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 0.37, rtol=1e-3)


def test_initial_weights_are_uniform_within_the_bound_of_torch() -> None:
    params, again, other = (
        initial_parameters(Projector(40, 50, bottleneck=100), 30, 20, seed) for seed in (3, 3, 4)
    )
    for name, fan_in in (("down", 600), ("up", 100)):
        for part in ("kernel", "bias"):
            values = np.asarray(params[name][part])
            bound = 1 / math.sqrt(fan_in)
            assert bound * 0.9 < np.abs(values).max() <= bound, (name, part)
            assert abs(values.std() - bound / math.sqrt(3)) < bound * 0.1, (name, part)
    np.testing.assert_array_equal(params["up"]["kernel"], again["up"]["kernel"])
    assert not np.array_equal(params["up"]["kernel"], other["up"]["kernel"])
    assert not np.array_equal(params["down"]["bias"], params["up"]["bias"][:100])


@pytest.mark.parametrize(("model_type", "is_same"), [("bert", True), ("t5", False)])
def test_rescaling_changes_only_models_without_input_norm(model_type: str, is_same: bool) -> None:
    model, params = tiny_model(model_type)
    rows = np.random.default_rng(1).normal(0, 1, (TARGET_ROWS, 32)).astype(np.float32)
    answer = Answer(jnp.array([7, 8]))
    loss = jax.jit(lambda rows: answer_loss(model, params, rows, tiny_batch(), answer)[0])
    losses = [float(loss(rows * scale)) for scale in (np.float32(1), np.float32(0.25))]
    assert (abs(losses[0] - losses[1]) < 1e-5) == is_same, losses


@pytest.fixture
def trained() -> TrainedProjector:
    what = (SOURCE, "some/target", "encoder_decoder", "task", ("mood", "amusing"))
    options = {"activation": "tanh", "rescale_to": 0.5, "seed": 3, "steps": 20, "score": 0.75}
    card = ProjectorCard(*what, ROWS, WIDTH, TARGET_ROWS, TARGET_WIDTH, BOTTLENECK, **options)
    return TrainedProjector(card, sample_weights(card.module()))


def test_save_and_load(trained: TrainedProjector, tmp_path: Path) -> None:
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
    (lambda values, card: values.pop("up/bias"), "expected weights 'up/bias'"),
    (lambda values, card: values.update(more=np.ones(2, np.float32)), "unexpected weights 'more'"),
    (lambda values, card: card.update(bottleneck=8), r"expected shape \[8\] .* got \[7\]"),
    (lambda values, card: card.update(target_width=11), "the card is of another projector"),
    (lambda values, card: card.update(activation="relu"), "one of leaky_relu, tanh"),
    (lambda values, card: card.update(layer_norm="yes"), "expected true or false"),
    (lambda values, card: card.update(source_length=0), "a whole number above 0"),
    (lambda values, card: card.pop("objective"), "objective is missing"),
    (lambda values, card: card.pop("source_backbone"), "expected a projector"),
    (lambda values, card: card.update(tasks="mood"), "a list of names"),
    (lambda values, card: values["down/bias"].fill(np.nan), "holds NaN"),
    *(
        (
            lambda values, card, dtype=dtype: values.update(
                {"up/bias": values["up/bias"].astype(dtype)}
            ),
            f"expected floating-point weights, got {dtype} in up/bias",
        )
        for dtype in ("int8", "bool")
    ),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_invalid_files(trained: TrainedProjector, tmp_path: Path, change, message) -> None:
    file = tmp_path / "projector.safetensors"
    save_projector(file, trained)
    _rewrite(file, change)
    raises(jpt.load_projector, file, match=message)


@pytest.mark.parametrize(
    ("file", "message"),
    [(".", "finished run"), ("gone.safetensors", "gone"), ("p.safetensors", "expected a proj")],
)
def test_files_without_projector(tmp_path: Path, file: str, message: str) -> None:
    jpt.save_prompt(tmp_path / "p.safetensors", source_prompt(0, "mood"))
    raises(jpt.load_projector, tmp_path / file, match=message)


def test_non_finite_weights_are_not_written(trained, tmp_path: Path) -> None:
    broken = jax.tree.map(lambda leaf: leaf * np.float32(np.nan), trained.params)
    with pytest.raises(jpt.InputError, match="NaN or infinity"):
        save_projector(tmp_path / "p.safetensors", dataclasses.replace(trained, params=broken))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 6}, r"expected shape \[5, 12\] .* got \[6, 12\]"),
        ({"width": 13}, r"expected shape \[5, 12\] .* got \[5, 13\]"),
        ({}, "expected a prompt of some/source-model, .* got one of else/where"),
    ],
)
def test_prompts_of_other_shape_or_model(trained: TrainedProjector, change, message: str) -> None:
    other = source_prompt(0, "mood", **change)
    if not change:
        other = dataclasses.replace(other, card=PromptCard("else/where", "mood"))
    raises(trained, other, match=message)


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
def test_invalid_options(options: dict, message: str) -> None:
    raises(ProjectorOptions, match=message, **options)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[jpt.Backbone, list[Path]]:
    folder, tasks = write_case(tmp_path_factory.mktemp("case"))
    return jpt.load_backbone(folder), tasks


@pytest.fixture(scope="module")
def whole(case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    backbone, tasks = case
    out = tmp_path_factory.mktemp("runs") / "whole"
    jpt.train_projector(source_prompts(), backbone, tasks=tasks, out=out, **SIZES)
    return out


def target_prompts(backbone: jpt.Backbone) -> dict[str, Prompt]:
    """Return prompts of the target, with names in another order than the source's."""
    found = {}
    for seed, (name, task) in enumerate({"x": "amusing", "y": "mood", "z": "later"}.items()):
        values = source_prompt(50 + seed, task, rows=4, width=20).values
        found[name] = Prompt(values, PromptCard(backbone.name, task))
    return found


def plan(case, objective: str = "task", targets=None, **options) -> ProjectorPlan:
    backbone, tasks = case
    asked = tasks if objective == "task" else None
    given = ProjectorOptions(**{**SIZES, **options})
    return module.plan_projector(source_prompts(), backbone, objective, asked, targets, None, given)


def test_rows_get_the_parts_of_their_task_by_seed_and_step(case) -> None:
    # The authors' code pairs prompts in the order of files with tasks in sorted order.
    backbone, _ = case
    made, words = plan(case), {"mood": ("bad", "good"), "amusing": ("dull", "fine")}
    sources = {short_task(p.card.task): p.values for p in source_prompts().values()}
    seen = []
    for step in range(12):
        batch, task = made.batch_at(step), made.log_fields(step)["task"]
        np.testing.assert_array_equal(batch.source, sources[task])
        ids = [backbone.tokenizer.find(word) for word in words[task]]
        assert batch.answer.label_ids.tolist() == ids
        film = backbone.tokenizer.find("film")
        has_film = [film in row[:n] for row, n in zip(*batch.rows[:2], strict=True)]
        assert all(has_film) if task == "mood" else not any(has_film), "rows of the task"
        seen.append(task)
    assert all(set(seen[step : step + 2]) == set(words) for step in range(0, 12, 2)), seen
    assert len(set(seen[::2])) == 2, "each round has a new order"
    first, again, other = plan(case), plan(case), plan(case, seed=1)
    for step in (7, 3):
        jax.tree.map(np.testing.assert_array_equal, first.batch_at(step), again.batch_at(step))
    tokens = [[made.batch_at(step).rows.tokens for step in range(6)] for made in (first, other)]
    assert not all(np.array_equal(*pair) for pair in zip(*tokens, strict=True))


def test_pairs_are_sampled_without_replacement_first() -> None:
    sample_pairs = module.sample_pairs
    for step in range(20):
        few = sample_pairs(3, step, batch_size=16, count=10)
        assert sorted(few[:10]) == list(range(10)) and len(few) == 16
        assert set(few[10:]) <= set(range(10))
        assert len(set(sample_pairs(3, step, batch_size=16, count=40).tolist())) == 16
    assert len({tuple(sample_pairs(3, step, 4, 40)) for step in range(20)}) == 20


def test_a_finished_run_returns_at_once(case, whole: Path) -> None:
    backbone, tasks = case
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}
    again = jpt.train_projector(source_prompts(), backbone, tasks=tasks, out=whole, **SIZES)
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()} == before
    stored = json.loads((whole / "result.json").read_text())
    assert again.record == stored and stored["tasks"] == ["mood", "amusing"]
    card = again.projector.card
    sizes = (card.source_length, card.source_width, card.target_length, card.target_width)
    assert sizes == (5, 12, 5, 20)
    assert (card.steps, card.source_backbone) == (stored["best_step"], SOURCE)
    scored = [line for line in again.history if line["split"] == "validation"]
    best = max(scored, key=lambda line: line["mean_score"])
    assert card.score == best["mean_score"] == stored["validation"]["mean_score"]
    assert np.mean(list(best["by_task"].values())) == pytest.approx(best["mean_score"])
    logged = {line["task"] for line in again.history if line["split"] == "train"}
    assert logged <= {"mood", "amusing"}


@pytest.mark.parametrize("stop_at", [5, 11])
def test_a_resumed_run_is_bit_identical(case, whole, tmp_path, monkeypatch, stop_at):
    backbone, tasks = case
    real = trainer._report

    def fail(run, progress, pending, *rest):
        if pending is not None and pending[0] == stop_at:
            raise RuntimeError("power")
        return real(run, progress, pending, *rest)

    options = {"tasks": tasks, "out": tmp_path / "run", **SIZES}
    monkeypatch.setattr(trainer, "_report", fail)
    with pytest.raises(RuntimeError, match="power"):
        jpt.train_projector(source_prompts(), backbone, **options)
    monkeypatch.setattr(trainer, "_report", real)
    file = "projector.safetensors"
    so_far = [line for line in _lines(tmp_path / "run") if line["split"] == "validation"]
    assert (tmp_path / "run" / file).exists() == bool(so_far)
    if so_far:
        card = jpt.load_projector(tmp_path / "run").card
        assert card.score == pytest.approx(max(line["mean_score"] for line in so_far))
    jpt.train_projector(source_prompts(), backbone, **options)
    assert (whole / file).read_bytes() == (tmp_path / "run" / file).read_bytes()
    assert _lines(whole) == _lines(tmp_path / "run")


def _lines(folder: Path) -> list[dict]:
    clock = {"elapsed_s", "rows_per_s"}
    read = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in clock} for line in read]


@pytest.mark.parametrize(
    ("prompts", "options", "field"),
    [
        ({"a_first": source_prompt(9, "mood")}, {}, "sources.mood.sha256"),
        ({}, {"activation": "tanh"}, "activation"),
    ],
)
def test_another_run_in_the_folder(case, whole: Path, prompts, options, field: str) -> None:
    backbone, tasks = case
    given = {**source_prompts(), **prompts}
    with pytest.raises(jpt.InputError, match=f"holds another run: {field}"):
        jpt.train_projector(given, backbone, tasks=tasks, out=whole, **SIZES, **options)


def losses_of(made: ProjectorPlan, steps: int) -> list[float]:
    problem, losses = made.problem(), []
    state = problem.start().train
    run = bind_step(problem.loss, problem.optimizer, problem.learning_rate, mesh=problem.mesh)
    for step in range(steps):
        state, metrics = run(made.frozen, state, made.batch_at(step))
        losses.append(float(metrics.loss))
    return losses


@pytest.mark.slow
def test_both_objectives_reduce_their_loss(case, tmp_path: Path) -> None:
    # The tasks have opposite majority answers, so that each needs its prompt.
    backbone, folders = case
    tasks = []
    for folder, rare in zip(folders, ("bad", "good"), strict=True):
        task = shutil.copytree(folder, tmp_path / folder.name)
        lines = (task / "train.jsonl").read_text().splitlines()
        often = [line for line in lines if f'"{rare}"' not in line]
        (task / "train.jsonl").write_text("\n".join([*often, *lines[:2]]))
        toml = (task / "task.toml").read_text().replace('"dull"', '"bad"')
        (task / "task.toml").write_text(toml.replace('"fine"', '"good"'))
        tasks.append(task)
    # Random weights of a tiny model hardly react to a prompt; larger ones do.
    strong = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * np.float32(6 if path[-1].key == "kernel" else 1), backbone.params
    )
    made = plan((dataclasses.replace(backbone, params=strong), tasks), learning_rate=1e-2)
    learnt = losses_of(made, 80)
    assert np.mean(learnt[-10:]) < 0.8 * np.mean(learnt[:10]), learnt
    options = {"targets": target_prompts(backbone), "steps": 60, "learning_rate": 1e-2}
    near = losses_of(plan(case, "distance", **options), 60)
    assert near[-1] < 0.5 * near[0], near


@pytest.mark.slow
def test_the_learning_rate_counts_and_a_mesh_does_not(case) -> None:
    slow, fast = (losses_of(plan(case, learning_rate=rate), 4) for rate in (1e-6, 1e-1))
    assert slow[0] == fast[0] and abs(slow[3] - fast[3]) > 1e-3
    one, two = (losses_of(plan(case, mesh=mesh), 4) for mesh in ("data:1", "data:2"))
    np.testing.assert_allclose(one, two, rtol=1e-5)
    raises(plan, case, mesh="data:4", match="batch of 6 rows is not divisible")


def test_the_backbone_is_held_once_and_never_changes(case) -> None:
    backbone, _ = case
    before = jax.tree.map(np.array, backbone.params)
    made = plan(case)
    leaves = (jax.tree.leaves(tree) for tree in (backbone.params, made.frozen))
    for given, used in zip(*leaves, strict=True):
        assert given.unsafe_buffer_pointer() == used.unsafe_buffer_pointer()
    problem, batch = made.problem(), made.batch_at(0)
    state = problem.start().train
    step = bind_step(problem.loss, problem.optimizer, 5e-3)
    compiled = step.lower(made.frozen, state, batch).compile()
    memory, state_bytes = compiled.memory_analysis(), _bytes(state)
    inputs = _bytes(made.frozen) + state_bytes + _bytes(batch)
    assert memory.argument_size_in_bytes == pytest.approx(inputs, rel=0.02)
    assert memory.output_size_in_bytes == pytest.approx(state_bytes, rel=0.02)
    assert memory.alias_size_in_bytes == pytest.approx(state_bytes, rel=0.02), "state is donated"
    losses_of(made, 2)
    jax.tree.map(np.testing.assert_array_equal, before, backbone.params)


def _bytes(tree) -> int:
    return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree))


def test_distance_learns_pairs_of_one_task_and_measures_the_others(case) -> None:
    backbone, _ = case
    sources = {**source_prompts(), "c": source_prompt(5, "later")}
    targets = target_prompts(backbone)
    options = {"targets": targets, "objective": "distance", "learning_rate": 1e-2, **SIZES}
    options |= {"steps": 40, "layer_norm": False}
    found = jpt.train_projector(sources, backbone, tasks=["mood", "amusing"], **options)
    assert found.projector.card.tasks == ("mood", "amusing")
    assert found.projector.card.target_length == 4, "as long as the target's own"
    result = found.record["validation"]
    error = {}
    for name, target in (("a_first", "y"), ("b_second", "x"), ("c", "z")):
        squares = np.square(found.projector(sources[name]) - targets[target].values)
        error[short_task(sources[name].card.task)] = float(squares.mean())
    assert {**result["by_task"], **result["unseen"]} == pytest.approx(error, rel=1e-4)
    assert set(result["unseen"]) == {"later"} and result["error"] < error["later"]
    assert all("accuracy" not in line for line in found.history)
    alone = jpt.train_projector(sources, backbone, **options)
    assert alone.projector.card.tasks == ("amusing", "later", "mood"), "all that both have"


@pytest.mark.slow
def test_rescaled_target_and_other_length(case) -> None:
    backbone, tasks = case
    options = {"tasks": tasks[:1], "rescale": True, "length": 7, **SIZES, "steps": 1}
    found = jpt.train_projector(source_prompts(), backbone, **options)
    norm = np.linalg.norm(np.asarray(backbone.params["embeddings"]["word"]), axis=1).mean()
    assert found.projector.card.rescale_to == pytest.approx(norm, rel=1e-5)
    rows = found.projector(source_prompts()["a_first"])
    assert rows.shape == (7, 20)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), norm, rtol=0.05)


def test_invalid_input_is_reported_before_anything_compiles(case, tmp_path: Path) -> None:
    backbone, tasks = case
    programs = (module.project_on_device, _score_step)
    before = [program._cache_size() for program in programs]
    same = Prompt(np.ones((5, 20), np.float32), PromptCard(backbone.name, "mood"))
    (tmp_path / "empty").mkdir()
    strange = {"one": source_prompt(1, "no_such_task")}
    mixed = {**source_prompts(), "more": source_prompt(3, "mood", rows=6)}
    twice = {**source_prompts(), "more": source_prompt(3, "mood")}
    prompts, targets, on = source_prompts(), target_prompts(backbone), {"tasks": tasks}
    elsewhere = {"x": dataclasses.replace(targets["x"], card=PromptCard("b", "mood"))}
    distance = (prompts, backbone, "distance")
    wrong = [
        ((same, backbone), {"tasks": tasks[:1]}, "expected another model than the source"),
        (distance, {}, "needs prompts tuned on the target"),
        ((tmp_path / "empty", backbone), {}, "holds no prompts"),
        ((strange, backbone), {}, "task of prompt one's card: unknown task 'no_such_task'"),
        ((strange, backbone), on, "task mood: expected 1 prompt among the .* got no prompt"),
        ((mixed, backbone), on, "length 5, that of prompt a_first, got 6"),
        ((twice, backbone), on, r"got 2 prompts \(a_first, more\)"),
        ((prompts, backbone, "both"), {}, "expected one of task, distance"),
        ((prompts, backbone), {"tasks": []}, "tasks: expected at least one"),
        ((prompts, "builtin/bert-smal"), on, "did you mean"),
        ((prompts, backbone), {**on, "length": 99}, "99"),
        ((prompts, backbone), {**on, "per_token": True, "length": 6}, "length: expected 5.*got 6"),
        (distance, {"targets": {"z": targets["z"]}}, "tune at least one task on both"),
        (distance, {"targets": elsewhere}, "targets: expected prompts of .*got prompts of b"),
        (distance, {"targets": targets, "length": 9}, "length: expected 4, .* got 9"),
    ]
    for given, options, message in wrong:
        raises(jpt.train_projector, *given, out=tmp_path / "run", match=message, **options)
    assert not (tmp_path / "run").exists()
    assert [program._cache_size() for program in programs] == before


FILE = Path(__file__).parent / "fixtures" / "projector.safetensors"
TOLERANCE = 1e-4
TARGET = "bert_tied"


@cache
def stored() -> dict[str, np.ndarray]:
    return load_file(FILE)


def start(activation: str, objective: str) -> tuple[Projector, TrainState]:
    """Return projector and state with the stored weights, whose matrices torch has transposed."""
    found = stored()
    _, rows, width = found["targets"].shape
    params = {
        name: {"kernel": found[f"{name}.weight"].T, "bias": found[f"{name}.bias"]}
        for name in ("down", "up")
    }
    params["norm"] = {"scale": found["norm.weight"], "bias": found["norm.bias"]}
    state = init_state(params, module.OPTIMIZERS[objective])
    return Projector(rows, width, len(found["down.bias"]), activation), state


@cache
def run_tasks(activation: str, shift: int = 0) -> tuple[list[float], np.ndarray]:
    """Train ten steps; a shift gives the rows of a task the prompt of another."""
    golden, found = load_golden(TARGET), stored()
    projector, state = start(activation, "task")
    loss, losses = module.TaskLoss(golden.module(), projector), []
    step = bind_step(loss, module.OPTIMIZERS["task"], 5e-3)
    for index, task in enumerate(found["tasks"]):
        rows = (found[name][index] for name in ("tokens", "lengths", "labels"))
        batch = Batch(*map(jnp.asarray, rows), jnp.ones(len(found["labels"][index])))
        answer = Answer(jnp.asarray(found["label_ids"][task]))
        source = jnp.asarray(found["sources"][(task + shift) % 3])
        state, metrics = step(golden.params, state, module.TaskBatch(batch, source, answer))
        losses.append(float(metrics.loss))
    return losses, project(projector, state.params, found["sources"])


@pytest.mark.parametrize("activation", ["leaky_relu", "tanh"])
def test_both_objectives_agree_with_torch(activation: str) -> None:
    projector, state = start(activation, "distance")
    first = project(projector, state.params, stored()["sources"])
    np.testing.assert_allclose(first, stored()[f"{activation}/first"], rtol=1e-5, atol=1e-5)
    step = bind_step(module.DistanceLoss(projector), module.OPTIMIZERS["distance"], 1e-4)
    losses = []
    pairs = module.Pairs(jnp.asarray(stored()["sources"]), jnp.asarray(stored()["targets"]))
    for tasks in stored()["drawn"]:
        state, metrics = step(pairs, state, jnp.asarray(tasks))
        losses.append(float(metrics.loss))
    np.testing.assert_allclose(losses, stored()[f"{activation}/distance"], rtol=TOLERANCE)
    losses, projected = run_tasks(activation)
    np.testing.assert_allclose(losses, stored()[f"{activation}/task"], rtol=TOLERANCE)
    expected = stored()[f"{activation}/projected"]
    assert np.abs(projected - expected).max() < 1e-3 * np.abs(expected).max()


def test_the_fixture_reveals_wrong_activation_pairing_and_gradient() -> None:
    found = stored()
    assert FILE.stat().st_size < 200_000 and (BACKBONES / TARGET / "model.safetensors").is_file()
    assert len(set(found["tasks"].tolist())) == 3, "all tasks are trained on"
    relu, tanh = found["leaky_relu/task"], found["tanh/task"]
    assert np.abs(relu / tanh - 1).min() > 100 * TOLERANCE
    moved = np.abs(found["leaky_relu/projected"] - found["leaky_relu/first"]).max()
    assert moved > 0.1, "the gradient reaches the projector"
    losses, _ = run_tasks("leaky_relu", shift=1)
    assert np.abs(losses / relu - 1).max() > 100 * TOLERANCE, "the prompt of another task"
