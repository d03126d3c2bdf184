"""Greedy search: what a plain loop finds, in one program that ends when all rows have ended."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpt.backbones.generation import NOTHING, Generation, greedy, is_end
from jpt.parallel import batch_sharding, make_mesh, place, replicated
from tests.backbones.golden import FAST_COMPILE
from tests.backbones.toy_writer import VOCABULARY, ToyCase, ToyWriter, draw_case, plain_greedy

# Sums in float32 differ from those in float64 by a hundredth of this.
CLOSE = 1e-4
NEW = 8


@partial(jax.jit, static_argnums=(0, 5, 6), compiler_options=FAST_COMPILE)
def search(module, params, tokens, lengths, prompt, max_new, ends) -> Generation:
    return greedy(module, params, tokens, lengths, prompt, max_new, ends)


def write(case: ToyCase, max_new: int, ends: tuple[int, ...] = ()) -> Generation:
    found = search(ToyWriter(), case.params, case.tokens, case.lengths, case.prompt, max_new, ends)
    return jax.device_get(found)


def rows_of(found: Generation) -> list[list[int]]:
    """The tokens of each row; behind them must be nothing."""
    for row, length in zip(*found, strict=True):
        assert (row[:length] >= 0).all() and (row[length:] == NOTHING).all()
    return [row[:length].tolist() for row, length in zip(*found, strict=True)]


@pytest.mark.parametrize("prompt", ["one", "a row", "none"])
@pytest.mark.parametrize("ends", [(), (3,), (3, 11)])
def test_tokens_are_those_of_a_plain_loop(prompt: str, ends: tuple[int, ...]) -> None:
    lengths, told = set(), 0
    for seed in range(12):
        case = draw_case(seed, prompt)
        found = rows_of(write(case, NEW, ends))
        for row, tokens in enumerate(found):
            expected, margin = plain_greedy(case.score(row), NEW, ends)
            if margin > CLOSE:
                assert tokens == expected, (seed, row)
                lengths.add(len(tokens))
                told += 1
    assert told >= 40
    assert lengths == {NEW} if not ends else len(lengths) > 3


def test_one_token_is_the_best_of_the_start() -> None:
    case = draw_case(1)
    found = rows_of(write(case, 1, (3,)))
    assert found == [[int(case.score(row)(()).argmax())] for row in range(4)]


def test_rows_do_not_know_of_each_other_nor_of_padding() -> None:
    case, ends = draw_case(2, "a row", rows=6), (4, 9, 17)
    found = rows_of(write(case, NEW, ends))
    assert len({len(row) for row in found}) > 1, "some should end early, some late"
    order = np.array([4, 0, 3, 5, 1, 2])
    turned = ToyCase(case.params, case.tokens[order], case.lengths[order], case.prompt[order])
    assert rows_of(write(turned, NEW, ends)) == [found[row] for row in order]
    wider = np.concatenate([case.tokens, np.full((6, 5), 9, np.int32)], axis=1)
    for row in (0, 3):
        wider[row, case.lengths[row] :] = 22
    assert (
        rows_of(write(ToyCase(case.params, wider, case.lengths, case.prompt), NEW, ends)) == found
    )
    for row in range(2):
        one = slice(row, row + 1)
        alone = ToyCase(case.params, case.tokens[one], case.lengths[one], case.prompt[one])
        assert rows_of(write(alone, NEW, ends)) == [found[row]]


def test_loop_ends_when_the_last_row_has_ended() -> None:
    steps: list[int] = []
    module = ToyWriter(on_step=lambda: steps.append(1))
    case = draw_case(3)
    inputs = (case.tokens, case.lengths, case.prompt)
    longest = search(module, case.params, *inputs, 12, ())
    jax.effects_barrier()
    assert len(steps) == 11, "the last token need not be read"
    # Whatever each row writes third, ends it: no row goes on behind that.
    ends = tuple({int(token) for token in longest.tokens[:, 2]})
    steps.clear()
    found = search(module, case.params, *inputs, 12, ends)
    jax.effects_barrier()
    assert int(found.lengths.max()) <= 3
    assert len(steps) == int(found.lengths.max()) - 1


def test_is_compiled_once_for_a_shape() -> None:
    traced: list[str] = []
    module = ToyWriter(on_trace=traced.append)
    for seed, end in ((0, 3), (1, 5), (2, 9)):
        case = draw_case(seed)
        greedy(module, case.params, case.tokens, case.lengths, case.prompt, 5, (end,))
    assert traced.count("start") == 1
    first = len(traced)
    greedy(module, case.params, case.tokens, case.lengths, case.prompt, 6, (end,))
    assert len(traced) == 2 * first
    assert not any(kind == "advance" for kind in traced[:1])


def test_a_mesh_changes_nothing() -> None:
    mesh, ends = make_mesh("data:4,model:2"), (3, 11)
    case = draw_case(5, rows=8)
    inputs = place((case.tokens, case.lengths), batch_sharding(mesh, 8))
    params, prompt = place((case.params, case.prompt), replicated(mesh))
    found = search(ToyWriter(), params, *inputs, prompt, NEW, ends)
    assert rows_of(jax.device_get(found)) == rows_of(write(case, NEW, ends))


def test_ends_are_found_wherever_they_stand() -> None:
    tokens = jnp.arange(VOCABULARY).reshape(1, VOCABULARY)
    assert np.flatnonzero(is_end(tokens, jnp.array([4, 0]))).tolist() == [0, 4]
    assert not is_end(tokens, jnp.zeros((0,), jnp.int32)).any()
