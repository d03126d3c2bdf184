"""The start-token and the text probe: values, chunks, meshes, files and options."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jpt
from jpt.backbones.registry import Backbone
from jpt.config import ProbeOptions, parse_positions
from jpt.data.encode import EncodedSplit, encode_split
from jpt.data.rows import read_rows
from jpt.neurons.probe import (
    activated_neurons,
    plan_chunk,
    position_weights,
    probe_bank,
    text_input,
)
from jpt.parallel import make_mesh
from jpt.results.prompt_table import read_activations, write_activations
from jpt.tasks.catalog import load_task
from jpt.testing import tiny_encoder, write_tiny_backbone
from jpt.types import Activations, Prompt, PromptCard
from tests.helpers.golden import read
from tests.helpers.running import raises
from tests.helpers.toys import write_task

pytestmark = pytest.mark.plain_programs

BACKBONE = "builtin/bert-small"


def make_prompts(count: int, length: int = 5) -> dict[str, Prompt]:
    bank = np.random.default_rng(0).normal(0, 0.5, (count, length, 128)).astype(np.float32)
    card = PromptCard(BACKBONE, "t")
    return {f"p{number}": Prompt(values, card) for number, values in enumerate(bank)}


ONE = jnp.ones(1, jnp.int32)


@pytest.mark.parametrize("first_position", [0, 1])
def test_the_bank_equals_each_prompt_alone(first_position: int) -> None:
    module, params = tiny_encoder(num_hidden_layers=3)
    bank = jnp.asarray(np.random.default_rng(1).normal(0, 1, (4, 5, 32)), jnp.float32)
    start, options = jnp.array([[1]], jnp.int32), {"first_position": first_position}
    together, _ = probe_bank(module, params, bank, start, ONE, **options)
    assert together.shape == (4, 3, 1, 48)
    options |= {"capture_neurons": True, "every_position": True}
    for number, prompt in enumerate(bank):
        # All positions of all layers: the mask token is at 0, the start token last.
        neurons = module.apply({"params": params}, start, ONE, prompt, **options).neurons
        assert neurons.shape == (3, 1, 1 + 5 + 1, 48)
        np.testing.assert_allclose(together[number], neurons[:, :, 0], rtol=0, atol=1e-6)


def test_position_start_token_and_non_linearity() -> None:
    module, params = tiny_encoder()
    bank = jnp.asarray(np.random.default_rng(1).normal(0, 1, (1, 5, 32)), jnp.float32)
    plain, shifted, other = (
        probe_bank(module, params, bank, jnp.array([[token]], jnp.int32), ONE, first_position=at)[0]
        for token, at in ((1, 0), (1, 1), (7, 0))
    )
    assert float(jnp.abs(plain - shifted).max()) > 1e-4
    assert float(jnp.abs(plain - other).max()) > 1e-4
    values = activated_neurons(make_prompts(2)).values
    assert values.min() > -0.2 and values.max() > 0.5  # GELU is never below -0.17


def test_order_changes_nothing_and_names_are_sorted(tmp_path: Path) -> None:
    prompts = make_prompts(3)
    found = activated_neurons(prompts, tmp_path / "neurons.npz")
    turned = activated_neurons(dict(reversed(prompts.items())))
    assert found.names == turned.names == ("p0", "p1", "p2")
    np.testing.assert_array_equal(found.values, turned.values)
    assert found.values.shape == (3, 4, 512) and found.values.dtype == np.float32
    alone = activated_neurons({"p1": prompts["p1"]})
    scale = np.abs(found.values).max()
    np.testing.assert_allclose(alone.values[0], found.values[1], rtol=0, atol=1e-5 * scale)
    stored = read_activations(tmp_path / "neurons.npz")
    assert stored.names == found.names
    np.testing.assert_array_equal(stored.values, found.values)


def test_invalid_prompts_and_truncated_files(tmp_path: Path) -> None:
    prompts, medium = make_prompts(2), {"backbone": "builtin/bert-medium"}
    mixed = {**prompts, "p1": make_prompts(1, length=6)["p0"]}
    for given, options, message in (
        (mixed, {}, "prompt p1: expected length 5, that of prompt p0, got 6"),
        (tmp_path / "nothing", {}, "there is no such file"),
        (make_prompts(1, length=257), {}, "at most 256 prompt tokens .*, got 257"),
        (prompts, medium, "128"),
    ):
        raises(activated_neurons, given, tmp_path / "out.npz", match=message, **options)
    assert not (tmp_path / "out.npz").exists()
    file = tmp_path / "neurons.npz"
    write_activations(file, Activations(("a",), np.ones((1, 200, 300), np.float32)))
    file.write_bytes(file.read_bytes()[:-40])
    raises(read_activations, file, match="neurons.npz: expected an activations file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activations": None}, "expected an activations file"),
        ({"activations": np.ones((2, 3, 4))}, r"got \[1\] and \[2, 3, 4\]"),
        ({"activations": np.full((1, 3, 4), np.nan)}, "NaN"),
        ({"names": np.array(["a", "a"]), "activations": np.ones((2, 3, 4))}, "got a 2 times"),
        ({"names": np.array(["a"], object)}, "expected an activ"),
        ({"rates": np.ones((1, 3, 3))}, r"expected rates \[1, 3, 4\] of floats, got \[1, 3, 3\]"),
        ({"rates": np.full((1, 3, 4), 1.1)}, "a rate is outside 0 to 1"),
        ({"cka": np.ones((1, 3, 3))}, r"expected cka \[3, 1, 1\] of floats, got \[1, 3, 3\]"),
        ({"probe": np.array("{")}, "expected an activations file"),
        ({"probe": np.array('"text"')}, "expected a probe of kind .*got .text."),
    ],
)
def test_invalid_files(tmp_path: Path, change: dict, message: str) -> None:
    arrays = {"names": np.array(["a"]), "activations": np.ones((1, 3, 4)), **change}
    kept = {name: array for name, array in arrays.items() if array is not None}
    np.savez(tmp_path / "neurons.npz", **kept)
    raises(read_activations, tmp_path / "neurons.npz", match=message)


@pytest.mark.slow
def test_both_stacks_of_t5() -> None:
    backbone = jpt.load_backbone("builtin/t5-mini")
    values = np.random.default_rng(3).normal(0, 1, (2, 5, 128)).astype(np.float32)
    card = PromptCard(backbone.name, "t", layout="encoder_decoder")
    prompts = {f"p{number}": Prompt(rows, card) for number, rows in enumerate(values)}
    found = {stack: activated_neurons(prompts, stack=stack) for stack in ("decoder", "encoder")}
    np.testing.assert_array_equal(activated_neurons(prompts).values, found["decoder"].values)
    for stack, activations in found.items():
        # One prompt alone; the encoder at every position, the start token last.
        start = jnp.array([[backbone.start_id]], jnp.int32)
        options = {"capture_neurons": True, "neuron_stack": stack, "every_position": True}
        output = backbone.module.apply(
            {"params": backbone.params}, start, ONE, values[1], **options
        )
        np.testing.assert_allclose(activations.values[1], output.neurons[:, 0, -1], atol=1e-5)
    raises(activated_neurons, make_prompts(1), stack="encoder", match="has one stack")
    raises(activated_neurons, prompts, stack="both", match="stack")


WIDTH, LENGTH, ROWS = 32, 3, 6


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = ["a film", "the film is fine", "a bad film , not good", "dull", "a lovely number 4"]
    lines = "".join(f'{{"text": "{text}", "label": "bad"}}\n' for text in (*texts, "boring film"))
    return write_task(tmp_path_factory.mktemp("task"), validation=lines)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return jpt.load_backbone(write_tiny_backbone(tmp_path_factory.mktemp("bert"), "bert"))


@pytest.fixture(scope="module")
def prompts(backbone: Backbone) -> dict[str, Prompt]:
    random = np.random.default_rng(0)
    card = PromptCard(backbone.name, "mood")
    bank = random.normal(0, 1, (3, LENGTH, WIDTH)).astype(np.float32)
    return {name: Prompt(values, card) for name, values in zip("abc", bank, strict=True)}


@pytest.fixture(scope="module")
def found(prompts: dict[str, Prompt], backbone: Backbone, task: Path) -> Activations:
    return activated_neurons(prompts, backbone=backbone, probe="text", task=task)


@pytest.fixture(scope="module")
def by_row(prompts: dict[str, Prompt], backbone: Backbone, task: Path) -> list[list[np.ndarray]]:
    definition = load_task(task)
    rows = read_rows(definition, "validation")
    split = encode_split(rows, definition, backbone.tokenizer, 30, "encoder")
    model, options = (backbone.module, backbone.params), {"every_position": True}

    def read_alone(tokens: np.ndarray, prompt: Prompt) -> np.ndarray:
        row = jnp.asarray(tokens[None]), jnp.array([len(tokens)]), jnp.asarray(prompt.values)
        return np.asarray(read(*model, *row, capture_neurons=True, **options).neurons[:, 0])

    ids = [split.tokens[a:b] for a, b in zip(split.offsets[:-1], split.offsets[1:], strict=True)]
    return [[read_alone(tokens, prompt) for tokens in ids] for prompt in prompts.values()]


@pytest.mark.parametrize("positions", ["answer", "text", "0,-1"])
def test_means_equal_rows_read_alone(positions: str, prompts, backbone, task, by_row) -> None:
    options = {"probe": "text", "task": task, "positions": positions}
    found = activated_neurons(prompts, backbone=backbone, **options)
    text = 1 + LENGTH
    at = {"answer": slice(1), "text": slice(text, None), "0,-1": [text, -1]}[positions]
    values = [np.mean([row[:, at].mean(1) for row in rows], axis=0) for rows in by_row]
    rates = [np.mean([(row[:, at] > 0).mean(1) for row in rows], axis=0) for rows in by_row]
    np.testing.assert_allclose(found.values, np.stack(values), rtol=0, atol=2e-6)
    np.testing.assert_allclose(found.rates, np.stack(rates), rtol=0, atol=1e-6)
    assert found.cka.shape == (2, 3, 3)


def test_each_prompt_alone_and_any_order(prompts, backbone, task, found, tmp_path: Path) -> None:
    options = {"backbone": backbone, "probe": "text", "task": task}
    turned = activated_neurons(dict(reversed(prompts.items())), tmp_path / "n.npz", **options)
    for name in ("values", "rates", "cka"):
        np.testing.assert_array_equal(getattr(turned, name), getattr(found, name))
    alone = activated_neurons({"b": prompts["b"]}, **options)
    np.testing.assert_allclose(alone.values[0], found.values[1], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(alone.rates[0], found.rates[1])
    again = read_activations(tmp_path / "n.npz")
    assert again.probe == found.probe and again.names == found.names
    for name in ("values", "rates", "cka"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
    expected = {"kind": "text", "task": "mood", "split": "validation", "rows": ROWS, "seed": 0}
    assert expected.items() <= found.probe.items() and found.probe["positions"] == "answer"


def test_rows_are_sampled_and_need_the_position(backbone: Backbone, task: Path) -> None:
    definition = load_task(task)
    rows = [{"text": row["text"]} for row in read_rows(definition, "validation")]

    def sample(seed: int) -> EncodedSplit:
        options = ProbeOptions("text", definition, rows=4, seed=seed, data={"validation": rows})
        return text_input(backbone, options, LENGTH).split

    first, again, other = sample(0), sample(0), sample(1)
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert first.n_rows == 4 and first.tokens.tolist() != other.tokens.tolist()
    options = ProbeOptions(probe="text", task=task, positions=6)  # the seventh token
    given = text_input(backbone, options, LENGTH)
    lengths = given.split.lengths
    assert given.record["rows"] == len(lengths) < ROWS
    assert lengths.tolist() == [8]  # the others have 3 to 6
    with pytest.raises(jpt.InputError, match="positions: expected .* longest of 6 rows, got 99"):
        text_input(backbone, dataclasses.replace(options, positions=99), LENGTH)


def test_too_few_and_too_many_rows(prompts, backbone: Backbone, task: Path) -> None:
    found = activated_neurons(prompts, backbone=backbone, probe="text", task=task, rows=1)
    assert found.cka is None and set(np.unique(found.rates)) == {0, 1}
    options = {"backbone": backbone, "probe": "text", "task": task}
    with pytest.raises(jpt.InputError, match="at most 6, as mood validation has, got 7"):
        activated_neurons(prompts, rows=7, **options)
    with pytest.raises(jpt.InputError, match="41 tokens, but .* has 40 positions"):
        activated_neurons(prompts, max_tokens=41, **options)


@pytest.mark.parametrize(
    ("positions", "chosen"), [("answer", "answer"), ((0, -1, 0), (0, -1)), ("-1", (-1,)), (2, (2,))]
)
def test_positions(positions, chosen) -> None:
    assert parse_positions(positions) == chosen


def test_weights_of_positions_leave_padding_out() -> None:
    lengths = np.array([3, 1])
    assert position_weights("text", lengths, 4)[0].tolist() == pytest.approx([1 / 3] * 3 + [0])
    assert position_weights((2,), lengths, 4).tolist() == [[0, 0, 1, 0], [0] * 4]
    assert position_weights((-2, -1), lengths, 4).tolist() == [[0, 0.5, 0.5, 0], [1, 0, 0, 0]]


@pytest.fixture
def plan(backbone: Backbone, task: Path):
    given = text_input(backbone, ProbeOptions(probe="text", task=task), LENGTH)

    def call(chunk_mb: float, prompts: int = 100, mesh=None) -> tuple[int, int]:
        options = ProbeOptions(probe="text", task=task, chunk_mb=chunk_mb)
        return plan_chunk(backbone, (prompts, LENGTH), given, options, mesh)

    return call


def test_chunks_fill_the_budget_and_are_divisible_by_mesh_axes(plan) -> None:
    assert plan(1e-9) == (1, 1) and plan(1e9) == (100, ROWS)
    sizes = [plan(mb) for mb in (0.02, 0.05, 0.5, 2, 4)]
    assert sizes == sorted(sizes) and len(set(sizes)) == 5
    assert all(prompts == 1 or rows == ROWS for prompts, rows in sizes)
    mesh = make_mesh("prompt:4,data:2")
    assert plan(1e-9, 10, mesh) == (4, 2), "one prompt and one row on each device"
    assert plan(1e9, 10, mesh) == (12, ROWS), "ten prompts, padded to twelve"


@pytest.mark.parametrize(
    ("mesh", "chunk_mb"), [("prompt:2,data:2,model:2", 256), ("prompt:4", 1e-9)]
)
def test_a_mesh_changes_no_number(found, prompts, backbone, task, mesh: str, chunk_mb) -> None:
    options = {"probe": "text", "task": task, "chunk_mb": chunk_mb}
    split = activated_neurons(prompts, backbone=backbone, mesh=mesh, **options)
    for name in ("values", "rates", "cka"):
        expected = getattr(found, name)
        assert np.abs(getattr(split, name) - expected).max() <= 1e-5 * np.abs(expected).max(), name


WRONG = [
    ({"probe": "words"}, "probe is 'words'; expected one of start, text"),
    ({"probe": "text"}, "probe is text, but task is not set"),
    ({"task": "sst2", "rows": 3}, "task and rows apply to text, but probe is start"),
    ({"positions": "0"}, "positions applies to text"),
    ({"chunk_mb": 0}, "chunk_mb is 0; give a number of megabytes above 0"),
    ({"chunk_mb": float("nan")}, "chunk_mb is nan"),
    ({"probe": "text", "task": "x", "rows": 0}, "rows is 0; give a whole number"),
    ({"probe": "text", "task": "x", "positions": "first"}, "positions is 'first'; expected answer"),
    ({"probe": "text", "task": "x", "positions": ()}, r"positions is \(\)"),
    ({"probe": "text", "task": "x", "positions": (0.5,)}, r"positions is \(0.5,\)"),
    ({"probe": "text", "task": "nowhere"}, "nowhere"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_invalid_options(options: dict, message: str, prompts, backbone, tmp_path: Path) -> None:
    with pytest.raises(jpt.InputError, match=message):
        activated_neurons(prompts, tmp_path / "n.npz", backbone=backbone, **options)
    assert not list(tmp_path.iterdir())


def test_the_decoder_of_t5_has_no_text_positions(tmp_path: Path, task: Path) -> None:
    backbone = jpt.load_backbone(write_tiny_backbone(tmp_path / "t5", "t5"))
    card = PromptCard(backbone.name, "mood", layout="encoder_decoder")
    bank = {"a": Prompt(np.ones((LENGTH, WIDTH), np.float32), card)}
    options = {"backbone": backbone, "probe": "text", "task": task, "positions": "text"}
    with pytest.raises(jpt.InputError, match="set stack to encoder, or positions to answer"):
        activated_neurons(bank, **options)
    found = activated_neurons(bank, stack="encoder", **options)
    assert found.probe["stack"] == "encoder" and found.rates.max() > 0
