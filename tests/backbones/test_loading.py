"""From named tensors to parameters: stacks, parts of fused tensors, memory, and back."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpt.backbones import registry
from jpt.backbones.loading import TensorRule, load_parameters, write_parameters
from jpt.backbones.registry import find_folder
from jpt.errors import InputError
from jpt.io.tensors import open_tensors, write_safetensors
from jpt.testing import write_tiny_backbone
from tests.backbones.checkpoints import Dictionary

LAYERS, WIDTH = 3, 4
RULES = [
    TensorRule("embeddings/word", "wte", (7, WIDTH)),
    *[
        TensorRule(
            f"layer/{name}/kernel", "h.{layer}.qkv", (WIDTH, 9), layers=LAYERS, part=(place, 3)
        )
        for place, name in enumerate(("query", "key", "value"))
    ],
    TensorRule("side/layers/up", "s.{layer}.up", (5, WIDTH), transpose=True, layers=2),
]


def checkpoint() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = {"wte": (7, WIDTH)}
    shapes |= {f"h.{layer}.qkv": (WIDTH, 9) for layer in range(LAYERS)}
    shapes |= {f"s.{layer}.up": (5, WIDTH) for layer in range(2)}
    return {
        name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }


def test_layers_are_stacked_and_the_last_one_stands_apart_where_the_rule_says_so() -> None:
    tensors = checkpoint()
    params = load_parameters(Dictionary(tensors), RULES)
    assert set(params) == {"embeddings", "layers", "last_layer", "side"}
    for place, name in enumerate(("query", "key", "value")):
        part = slice(3 * place, 3 * place + 3)
        lower = np.stack([tensors[f"h.{layer}.qkv"][:, part] for layer in range(LAYERS - 1)])
        assert np.array_equal(params["layers"][name]["kernel"], lower)
        assert np.array_equal(params["last_layer"][name]["kernel"], tensors["h.2.qkv"][:, part])
    up = np.stack([tensors[f"s.{layer}.up"].T for layer in range(2)])
    assert np.array_equal(params["side"]["layers"]["up"], up)


def test_writing_is_the_inverse_of_loading() -> None:
    tensors = checkpoint()
    written = write_parameters(load_parameters(Dictionary(tensors), RULES), RULES)
    assert written.keys() == tensors.keys()
    assert all(np.array_equal(written[name], tensors[name]) for name in tensors)


def test_a_missing_layer_of_a_fused_tensor_is_named_once() -> None:
    tensors = checkpoint()
    del tensors["h.1.qkv"]
    tensors["h.0.qkv"] = tensors["h.0.qkv"][:, :6]
    with pytest.raises(InputError) as error:
        load_parameters(Dictionary(tensors), RULES, where="the folder x")
    assert str(error.value) == (
        "the folder x does not fit its config.json; missing: h.1.qkv; "
        "misshaped: h.0.qkv is [4, 6], expected [4, 9]"
    )


def test_each_parameter_is_placed_once_whole_and_in_its_dtype() -> None:
    placed: list[str] = []

    def place(path: str, values: np.ndarray) -> jax.Array:
        assert values.dtype == jnp.bfloat16
        placed.append(path)
        return jnp.asarray(values)

    params = load_parameters(Dictionary(checkpoint()), RULES, dtype=jnp.bfloat16, place=place)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    assert sorted(placed) == sorted("/".join(key.key for key in path) for path, _ in leaves)


def test_host_memory_beyond_the_result_stays_below_twice_the_largest_stack(tmp_path: Path) -> None:
    layers, width = 6, 256
    random = np.random.default_rng(0)
    tensors = {
        f"{name}.{layer}": random.standard_normal((width, width)).astype(np.float32)
        for name in ("a", "b", "c", "d")
        for layer in range(layers)
    }
    write_safetensors(tmp_path / "model.safetensors", tensors)
    rules = [
        TensorRule(f"layers/{name}", f"{name}.{{layer}}", (width, width), True, layers=layers)
        for name in ("a", "b", "c", "d")
    ]
    source = open_tensors(tmp_path)

    def drop(path: str, values: np.ndarray) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(values.shape, values.dtype)

    tracemalloc.start()
    load_parameters(source, rules, place=drop)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    largest_bytes = layers * width * width * 4
    assert largest_bytes < peak_bytes < 2 * largest_bytes


def test_the_first_models_are_found_by_their_old_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the paper and the cards of its prompts name them; a folder of that name comes first."""
    asked: list[str] = []
    monkeypatch.setattr(registry, "_download", lambda hub_id: asked.append(hub_id) or tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("roberta-base", "t5-base", "google-bert/bert-base-uncased"):
        find_folder(name)
    expected = ["FacebookAI/roberta-base", "google-t5/t5-base", "google-bert/bert-base-uncased"]
    assert asked == expected
    own = write_tiny_backbone(tmp_path / "roberta-base", "roberta")
    assert find_folder("roberta-base").resolve() == own.resolve()
    assert asked == expected
    with pytest.raises(InputError, match="unknown backbone 'roberta-bose'"):
        find_folder("roberta-bose")
