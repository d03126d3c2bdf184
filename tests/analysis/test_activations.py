"""The probe of all prompts at once is the probe of each, read where the paper reads it."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jpt
from jpt.neurons.probe import activated_neurons, probe_bank
from jpt.results.prompt_table import read_activations, write_activations
from jpt.testing import tiny_encoder
from jpt.types import Activations, Prompt, PromptCard

pytestmark = pytest.mark.usefixtures("plain_programs")

BACKBONE = "builtin/bert-small"


def make_prompts(count: int, length: int = 5, width: int = 128) -> dict[str, Prompt]:
    random = np.random.default_rng(0)
    return {
        f"p{number}": Prompt(
            random.normal(0, 0.5, (length, width)).astype(np.float32), PromptCard(BACKBONE, "t")
        )
        for number in range(count)
    }


ONE = jnp.ones(1, jnp.int32)


@pytest.mark.parametrize("first_position", [0, 1])
def test_the_bank_is_each_prompt_alone_the_plain_way(first_position: int) -> None:
    module, params = tiny_encoder(num_hidden_layers=3)
    bank = jnp.asarray(np.random.default_rng(1).normal(0, 1, (4, 5, 32)), jnp.float32)
    start = jnp.array([[1]], jnp.int32)
    together, _ = probe_bank(module, params, bank, start, ONE, first_position=first_position)
    assert together.shape == (4, 3, 1, 48)
    for number, prompt in enumerate(bank):
        # Every position of every layer is computed; the mask stands at 0, the start token last.
        neurons = module.apply(
            {"params": params},
            start,
            ONE,
            prompt,
            capture_neurons=True,
            every_position=True,
            first_position=first_position,
        ).neurons
        assert neurons.shape == (3, 1, 1 + 5 + 1, 48)
        np.testing.assert_allclose(together[number], neurons[:, :, 0], rtol=0, atol=1e-6)


def test_positions_and_start_token_count() -> None:
    module, params = tiny_encoder()
    bank = jnp.asarray(np.random.default_rng(1).normal(0, 1, (1, 5, 32)), jnp.float32)
    start, other = jnp.array([[1]], jnp.int32), jnp.array([[7]], jnp.int32)
    plain, _ = probe_bank(module, params, bank, start, ONE)
    shifted, _ = probe_bank(module, params, bank, start, ONE, first_position=1)
    otherwise, _ = probe_bank(module, params, bank, other, ONE)
    assert float(jnp.abs(plain - shifted).max()) > 1e-4
    assert float(jnp.abs(plain - otherwise).max()) > 1e-4


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


def test_values_are_those_after_the_non_linearity() -> None:
    values = activated_neurons(make_prompts(2)).values
    assert values.min() > -0.2 and values.max() > 0.5  # GELU is nowhere below -0.17


def test_wrong_prompts(tmp_path: Path) -> None:
    prompts = make_prompts(2)
    mixed = {**prompts, "p1": make_prompts(1, length=6)["p0"]}
    with pytest.raises(jpt.InputError, match="prompt p1 has the length 6 and prompt p0 5"):
        activated_neurons(mixed, tmp_path / "out.npz")
    with pytest.raises(jpt.InputError, match="there is no such file"):
        activated_neurons(tmp_path / "nothing", tmp_path / "out.npz")
    with pytest.raises(jpt.InputError, match="257 rows is longer than the 256 positions"):
        activated_neurons(make_prompts(1, length=257), tmp_path / "out.npz")
    with pytest.raises(jpt.InputError, match="128"):
        activated_neurons(prompts, tmp_path / "out.npz", backbone="builtin/bert-medium")
    assert not (tmp_path / "out.npz").exists()


WHOLE = {"names": np.array(["a"]), "activations": np.ones((1, 3, 4))}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"names": np.array(["a"])}, "no file of activations"),
        ({"names": np.array(["a"]), "activations": np.ones((2, 3, 4))}, r"\[1\] and activations"),
        ({"names": np.array(["a"]), "activations": np.full((1, 3, 4), np.nan)}, "NaN"),
        ({"names": np.array(["a", "a"]), "activations": np.ones((2, 3, 4))}, "names a 2 times"),
        ({"names": np.array(["a"], object), "activations": np.ones((1, 3, 4))}, "no file of"),
        ({**WHOLE, "rates": np.ones((1, 3, 3))}, r"rates is \[1, 3, 3\] .*; \[1, 3, 4\] of floats"),
        ({**WHOLE, "rates": np.full((1, 3, 4), 1.1)}, "a rate is outside 0 to 1"),
        ({**WHOLE, "cka": np.ones((1, 3, 3))}, r"cka is \[1, 3, 3\] .*; \[3, 1, 1\] of floats"),
        ({**WHOLE, "probe": np.array("{")}, "no file of activations"),
        ({**WHOLE, "probe": np.array('"text"')}, "probe is 'text'; an object with kind"),
    ],
)
def test_files_that_are_none(tmp_path: Path, arrays: dict, message: str) -> None:
    np.savez(tmp_path / "neurons.npz", **arrays)
    with pytest.raises(jpt.InputError, match=message):
        read_activations(tmp_path / "neurons.npz")


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "neurons.npz"
    write_activations(file, Activations(("a",), np.ones((1, 200, 300), np.float32)))
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(jpt.InputError, match="neurons.npz is no file of activations"):
        read_activations(file)


def test_either_stack_of_a_t5_is_read_on_request() -> None:
    backbone = jpt.load_backbone("builtin/t5-mini")
    values = np.random.default_rng(3).normal(0, 1, (2, 5, 128)).astype(np.float32)
    card = PromptCard(backbone.name, "t", layout="encoder_decoder")
    prompts = {f"p{number}": Prompt(rows, card) for number, rows in enumerate(values)}
    found = {stack: activated_neurons(prompts, stack=stack) for stack in ("decoder", "encoder")}
    np.testing.assert_array_equal(activated_neurons(prompts).values, found["decoder"].values)
    for stack, activations in found.items():
        # The plain way: one prompt alone; the encoder at every position, the start token last.
        output = backbone.module.apply(
            {"params": backbone.params},
            jnp.array([[backbone.start_id]], jnp.int32),
            jnp.ones(1, jnp.int32),
            values[1],
            capture_neurons=True,
            neuron_stack=stack,
            every_position=True,
        )
        np.testing.assert_allclose(activations.values[1], output.neurons[:, 0, -1], atol=1e-5)
    with pytest.raises(jpt.InputError, match="has one stack"):
        activated_neurons(make_prompts(1), stack="encoder")
    with pytest.raises(jpt.InputError, match="stack"):
        activated_neurons(prompts, stack="both")
