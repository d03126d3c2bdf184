"""Writing on: what a decoder remembers of prompt, text and new tokens, which is enough."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpt.backbones.layers import Cache
from tests.backbones.golden import advance, difference, load_golden, read, start

pytestmark = pytest.mark.usefixtures("plain_programs")

EQUAL = 1e-5


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gpt2_untied", "one"),
        ("llama_grouped", "a row"),
        ("qwen2_untied", "none"),
    ],
)
def test_written_token_by_token_equals_reading_it_all(name: str, kind: str) -> None:
    """Each row's new tokens stand right behind its text, whatever padding lies between."""
    golden = load_golden(name)
    decoder, (tokens, lengths, prompt) = golden.module(), golden.batch
    prompt = {"one": prompt, "a row": golden.rows_of_prompts(), "none": None}[kind]
    new = np.random.default_rng(1).integers(0, golden.config.vocabulary, (4, 5), np.int32)
    # [B, T + N]: text and new tokens without the padding, to be read at once.
    whole = np.zeros((4, tokens.shape[1] + 5), np.int32)
    for row, length in enumerate(golden.stored["lengths"]):
        whole[row, : length + 5] = [*golden.stored["tokens"][row, :length], *new[row]]
    inputs = (jnp.asarray(whole), lengths + 5, prompt)
    expected = read(decoder, golden.params, *inputs, every_position=True).logits
    scores, memory = start(decoder, golden.params, tokens, lengths, prompt, 5)
    shapes = jax.tree.map(jnp.shape, memory)
    for step in range(6):
        assert difference(scores, expected[np.arange(4), lengths - 1 + step]) < EQUAL
        if step < 5:
            word = jnp.asarray(new[:, step])
            scores, memory = advance(decoder, golden.params, word, memory)
            # One program for all steps: what a token costs does not grow.
            assert jax.tree.map(jnp.shape, memory) == shapes
    assert int(memory.steps) == 5


@cache
def begun(name: str, is_shared: bool) -> Cache:
    golden = load_golden(name)
    tokens, lengths, prompt = golden.batch
    prompt = prompt if is_shared else golden.rows_of_prompts()
    return start(golden.module(), golden.params, tokens, lengths, prompt, 5)[1]


@pytest.mark.parametrize(
    ("name", "is_shared"),
    [
        ("gpt2_tied", True),
        ("llama_grouped", True),
        ("llama_grouped", False),
        ("qwen2_untied", True),
    ],
)
def test_memory_has_rows_on_its_second_axis(name: str, is_shared: bool) -> None:
    golden, memory = load_golden(name), begun(name, is_shared)
    config, (tokens, _, prompt) = golden.config, golden.batch
    head = (config.key_heads, config.head_width)
    for part in (memory.context, memory.generated):
        assert all(leaf.shape[1] == 4 and leaf.shape[3:] == head for leaf in jax.tree.leaves(part))
    found = {leaf.shape[2] for leaf in jax.tree.leaves(memory.context)}
    assert found == {tokens.shape[1]} | (set() if is_shared else {prompt.shape[0]})
    assert {leaf.shape[2] for leaf in jax.tree.leaves(memory.generated)} == {5}
    layers = [leaf.shape[0] for leaf in jax.tree.leaves(memory.generated)]
    assert sum(layers) == 2 * config.layers
    if is_shared:
        assert {leaf.shape[1:] for leaf in jax.tree.leaves(memory.shared)} == {
            (prompt.shape[0], *head)
        }
    else:
        assert memory.shared is None


@pytest.mark.parametrize("name", ["gpt2_tied", "llama_grouped"])
def test_memory_may_be_reordered_and_repeated_by_row(name: str) -> None:
    """As beam search does: rows are taken along the second axis of every leaf."""
    golden, memory = load_golden(name), begun(name, True)
    decoder, order = golden.module(), jnp.array([2, 2, 0, 3, 1, 2])
    words = jnp.array([5, 6, 7, 8])
    _, memory = advance(decoder, golden.params, words, memory)
    scores, _ = advance(decoder, golden.params, words[::-1], memory)
    taken = memory.replace(
        context=jax.tree.map(lambda leaf: leaf[:, order], memory.context),
        generated=jax.tree.map(lambda leaf: leaf[:, order], memory.generated),
        lengths=memory.lengths[order],
    )
    found, _ = advance(decoder, golden.params, words[::-1][order], taken)
    assert difference(found, scores[order]) < EQUAL
