"""Runs trained together end as they do alone: slots, meshes and packed batches."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jpt
from jpt.backbones.registry import FAMILIES
from jpt.config import TuneOptions
from jpt.data import batches
from jpt.errors import InputError
from jpt.parallel import make_mesh, parameter_shardings, place, replicated
from jpt.testing import tiny_model, write_tiny_backbone
from jpt.tuning import multi_run
from jpt.tuning.losses import Answer, AnswerLoss
from jpt.tuning.multi_run import (
    SlotRun,
    fit_runs,
    pack_runs,
    read_diverged,
    run_sharding,
    stack_answers,
    stack_batches,
    stack_trees,
)
from jpt.tuning.run_dir import RunFolder
from jpt.tuning.step import Optimizer, compile_steps, init_state
from jpt.tuning.tune import prepare_run
from jpt.types import Batch
from tests.helpers.running import answer_step, assert_equal_runs, raises, read_log
from tests.helpers.toys import json_lines, write_task

COMMON = {"eval_every": 5, "checkpoint_every": 4, "batch_size": 6, "length": 5}
THREE = (
    'name = "degree"\ntype = "sentiment"\nfields = ["text"]\nlabels = ["low", "middle", "high"]\n'
    'template = "{text}"\n[label_words]\nlow = "bad"\nmiddle = "new"\nhigh = "good"\n'
)
RUNS = {
    "mood-0": ("mood", {"steps": 20, "seed": 0, "learning_rate": 0.01}),
    "degree-0": ("degree", {"steps": 20, "seed": 0, "learning_rate": 0.003}),
    "mood-1": ("mood", {"steps": 12, "seed": 1, "learning_rate": 0.003, "init": "vocab"}),
    "degree-2": ("degree", {"steps": 8, "seed": 2, "learning_rate": 0.01}),
}


class Counter:
    def __init__(self) -> None:
        self.steps, self.ends = 0, []

    def stepped(self, steps: int, rows_per_s: float) -> None:
        self.steps += steps

    def scored(self, run: str, score: object) -> None:
        assert run in RUNS

    def ended(self, run: str, record: dict[str, object]) -> None:
        self.ends.append(run)

    def say(self, line: str) -> None:
        assert "compile" in line or line.startswith("warning: ")


class Group:
    def __init__(self, folder: Path) -> None:
        words = {"low": "awful", "middle": "plain", "high": "lovely and quite unforgettable " * 3}
        text = json_lines(
            {"text": f"{words[k]} film {n}", "label": k} for n in range(9) for k in words
        )
        splits = dict.fromkeys(("train", "validation", "test"), text)
        self.tasks = {
            "mood": write_task(folder / "mood"),
            "degree": write_task(folder / "degree", toml=THREE, **splits),
        }
        self.backbone = jpt.load_backbone("builtin/bert-small")

    def prepare(self, out: Path, *names: str, **more: object) -> dict[str, SlotRun]:
        runs = {}
        for name in names or RUNS:
            task, options = RUNS[name]
            given = TuneOptions(**{**COMMON, **options, **more})
            parts = prepare_run(self.backbone, self.tasks[task], None, given)
            runs[name] = SlotRun(parts, RunFolder(out / name, parts.config()))
        return runs

    def fit(self, out: Path, runs: dict[str, SlotRun] | None = None, slots: int = 3) -> Counter:
        runs, progress = runs or self.prepare(out), Counter()
        (schedule,) = pack_runs({name: RUNS[name][1]["steps"] for name in runs}, slots)
        fit_runs(runs, schedule, out / "b", progress)
        return progress


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Group:
    return Group(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def alone(group: Group, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    for name, (task, options) in RUNS.items():
        jpt.tune(group.backbone, group.tasks[task], out / name, **COMMON, **options)
    return out


@pytest.fixture(scope="module")
def together(group: Group, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("together")
    progress = group.fit(out)
    assert progress.steps == sum(options["steps"] for _, options in RUNS.values())
    assert sorted(progress.ends) == sorted(RUNS)
    return out


@pytest.mark.parametrize("name", RUNS)
def test_run_ends_as_it_does_alone(alone: Path, together: Path, name: str) -> None:
    for file in ("prompt.safetensors", "last.safetensors"):
        mine, other = jpt.load_prompt(together / name / file), jpt.load_prompt(alone / name / file)
        assert mine.card == other.card
        np.testing.assert_allclose(mine.values, other.values, atol=1e-5 * abs(other.values).max())
    for mine, other in zip(read_log(together / name), read_log(alone / name), strict=True):
        assert (mine["step"], mine["split"]) == (other["step"], other["split"])
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-5)
    mine, other = (json.loads((at / name / "result.json").read_text()) for at in (together, alone))
    assert mine["test"]["accuracy"] == other["test"]["accuracy"]
    assert mine["best_step"] == other["best_step"]


@pytest.mark.parametrize("stop_at", [3, 13])
def test_crashed_group_resumes_bit_identically(
    group: Group, together: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    real = multi_run.group_step

    def failing(*arguments: object) -> object:
        step, left = real(*arguments), [stop_at]

        def run(*given: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise RuntimeError("crash")
            return step(*given)

        return run

    with monkeypatch.context() as broken:
        broken.setattr(multi_run, "group_step", failing)
        with pytest.raises(RuntimeError, match="crash"):
            group.fit(tmp_path)
    group.fit(tmp_path)
    for name in RUNS:
        assert_equal_runs(tmp_path / name, together / name)


def test_diverged_run_harms_no_other(group: Group, together: Path, tmp_path: Path) -> None:
    runs = group.prepare(tmp_path)
    runs["degree-0"].parts.initial[0, 0] = np.nan
    group.fit(tmp_path, runs)
    found = read_diverged(tmp_path / "degree-0")
    assert found is not None and found["step"] == 1 and "nan" in found["diverged"]
    assert not (tmp_path / "degree-0" / "result.json").exists()
    for name in ("mood-0", "mood-1", "degree-2"):
        mine = (tmp_path / name / "prompt.safetensors").read_bytes()
        assert mine == (together / name / "prompt.safetensors").read_bytes()


def test_groups_in_use_or_of_different_sizes_are_refused(group: Group, tmp_path: Path) -> None:
    runs = group.prepare(tmp_path, "mood-0", "degree-0")
    with runs["degree-0"].folder.lock(), pytest.raises(InputError, match="in use by another run"):
        group.fit(tmp_path, runs, slots=2)
    runs = group.prepare(tmp_path / "sizes", "mood-0")
    runs |= group.prepare(tmp_path / "sizes", "degree-0", batch_size=4)
    raises(group.fit, tmp_path / "sizes", runs, slots=2, match="same backbone, sizes and obj")


RATES = (0.01, 0.003, 0.1, 0.01)
LABELS = ((7, 8), (9, 10, 11), (12, 8), (7, 9, 11))


def batch_of(number: int) -> Batch:
    random = np.random.default_rng(number)
    width = 6 + 4 * (number % 2)
    lengths = random.integers(2, width, 4).astype(np.int32)
    tokens = random.integers(5, 60, (4, width)).astype(np.int32)
    return Batch(tokens, lengths, np.array([0, 1, 1, 0], np.int32), np.ones(4, np.float32))


def starts(width: int) -> list[np.ndarray]:
    random = np.random.default_rng(9)
    return [0.3 * random.standard_normal((5, width), np.float32) for _ in RATES]


def group_steps(family: str, mesh_text: str, packed: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return the losses of two steps of four runs, and Adam's moments of the first gradients."""
    module, params = tiny_model(family)
    mesh = make_mesh(mesh_text)
    shardings, _ = parameter_shardings(params, FAMILIES[family].weights.partition, mesh)
    rows = NamedSharding(mesh, PartitionSpec("prompt", "data"))
    answer = stack_answers([Answer(jnp.asarray(ids)) for ids in LABELS])
    given = place(
        (answer, jnp.asarray(RATES), jnp.zeros(len(RATES), jnp.uint32)), run_sharding(mesh)
    )
    blank = [init_state(values) for values in starts(32)]
    state = place(stack_trees(blank), run_sharding(mesh))
    shards = mesh.shape["data"] if packed else None
    batch = stack_batches([batch_of(number) for number in range(4)], 0, shards)
    assert (batch.packed_index is not None) == packed
    batch = place(batch, rows)
    out = (run_sharding(mesh), replicated(mesh))
    step, losses, first = compile_steps(AnswerLoss(module), Optimizer(), out), [], None
    frozen = (place(params, shardings), given[0])
    for _ in range(2):
        state, metrics = step(frozen, state, batch, *given[1:])
        losses.append(np.asarray(metrics.loss))
        first = np.asarray(optax.tree.get(state.opt_state, "mu")) if first is None else first
    return np.stack(losses), first


@cache
def single_steps(family: str) -> tuple[np.ndarray, np.ndarray]:
    module, params = tiny_model(family)
    losses, first = [], []
    for number, values in enumerate(starts(32)):
        state = init_state(values)
        answer = Answer(jnp.asarray(LABELS[number]))
        step = answer_step(module, Optimizer(), rate=RATES[number])
        losses.append([])
        for count in range(2):
            state, metrics = step(params, state, batch_of(number), answer)
            losses[-1].append(float(metrics.loss))
            if count == 0:
                first.append(np.asarray(optax.tree.get(state.opt_state, "mu")))
    return np.asarray(losses).T, np.stack(first)


def assert_near(found: Any, expected: Any) -> None:
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


EVERY_AXIS = "prompt:2,data:2,model:2"
CASES = [
    (family, mesh)
    for family in ("bert", "t5", "gpt2", "llama")
    for mesh in ("prompt:1", EVERY_AXIS, "prompt:4,model:2", "model:4")
]


def assert_runs_as_alone(found: tuple[np.ndarray, np.ndarray], family: str) -> None:
    (losses, first), (plain_losses, plain_first) = found, single_steps(family)
    assert np.abs(losses[1] - losses[0]).min() > 1e-5, "every run has to move"
    assert_near(losses, plain_losses)
    for run in range(len(RATES)):
        assert_near(first[run], plain_first[run])


@pytest.mark.slow
@pytest.mark.plain_programs
@pytest.mark.parametrize(("family", "mesh"), [("gpt2", "prompt:4,data:2"), *CASES])
def test_group_on_a_mesh(family: str, mesh: str) -> None:
    assert_runs_as_alone(group_steps(family, mesh), family)


@pytest.mark.slow
@pytest.mark.plain_programs
@pytest.mark.parametrize(
    ("family", "mesh"), [("gpt2", EVERY_AXIS), ("bert", EVERY_AXIS), ("t5", "prompt:2")]
)
def test_packed_group(monkeypatch: pytest.MonkeyPatch, family: str, mesh: str) -> None:
    monkeypatch.setattr(batches, "MOST_SHARES", batches.SHARES)
    assert_runs_as_alone(group_steps(family, mesh, packed=True), family)


@pytest.mark.plain_programs
def test_runs_are_sharded_over_their_axis() -> None:
    mesh = make_mesh("prompt:4")
    blank = [init_state(values) for values in starts(32)]
    state = place(stack_trees(blank), run_sharding(mesh))
    assert {shard.data.shape for shard in state.params.addressable_shards} == {(1, 5, 32)}


# A small learning rate: where a gradient is close to zero, AdamW's step follows its rounding.
OPTIONS: dict[str, Any] = {"steps": 6, "batch_size": 4, "length": 3, "learning_rate": 0.005}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = json_lines(
        {"text": f"the film {'is good and ' * (8 * (n % 3 == 0))}{word} {n}", "label": label}
        for n in range(9)
        for label, word in (("good", "fine"), ("bad", "poor"))
    )
    splits = dict.fromkeys(("train", "validation", "test"), text)
    return write_task(tmp_path_factory.mktemp("task"), **splits)


def load_tiny(tmp_path: Path, kind: str) -> jpt.Backbone:
    return jpt.load_backbone(write_tiny_backbone(tmp_path / kind, kind))


def list_batches(backbone: jpt.Backbone, task: Path, **more: Any) -> list[Batch]:
    return list(jpt.training_batches(backbone, task, **{**OPTIONS, **more}))


@pytest.mark.plain_programs
@pytest.mark.parametrize(("mesh", "shards"), [("data:1", 1), ("data:2", 2), ("model:2", 1)])
def test_packed_index_of_training_batches(tmp_path, task: Path, mesh: str, shards: int) -> None:
    found = list_batches(load_tiny(tmp_path, "llama"), task, mesh=mesh)
    packed = [batch for batch in found if batch.packed_index is not None]
    assert packed
    for batch in packed:
        tokens = batch.tokens.reshape(shards, -1)
        texts = (np.arange(batch.tokens.shape[1]) < batch.lengths[:, None]).reshape(shards, -1)
        for index, row, is_text in zip(batch.packed_index, tokens, texts, strict=True):
            np.testing.assert_array_equal(row[index[index < row.size]], row[is_text])


@pytest.mark.plain_programs
def test_rows_of_similar_lengths_stay_padded(tmp_path: Path, task: Path) -> None:
    found = list_batches(load_tiny(tmp_path, "bert"), task, group_by_length=True)
    assert {batch.packed_index is None for batch in found} == {True}


@pytest.mark.slow
@pytest.mark.plain_programs
@pytest.mark.parametrize(
    ("mesh", "kind"),
    [(mesh, kind) for mesh in ("data:1", "data:2,model:2") for kind in ("bert", "t5", "llama")],
)
def test_packed_run_ends_as_a_padded_one(tmp_path, task, monkeypatch, kind: str, mesh: str) -> None:
    backbone = load_tiny(tmp_path, kind)
    assert any(batch.packed_index is not None for batch in list_batches(backbone, task, mesh=mesh))
    packed = jpt.tune(backbone, task, **OPTIONS, mesh=mesh)
    monkeypatch.setattr(batches, "MOST_SHARES", 0)
    padded = jpt.tune(backbone, task, **OPTIONS)
    found, expected = packed.last.values, padded.last.values
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    losses = [
        [line["loss"] for line in run.history if line["split"] == "train"]
        for run in (packed, padded)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
