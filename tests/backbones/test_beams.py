"""Beam search: what the same search in plain Python finds, whatever stands beside a row."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest

from jpt.backbones.generation import Generation, beam_search, greedy
from jpt.errors import InputError
from jpt.parallel import batch_sharding, make_mesh, place, replicated
from tests.backbones.golden import FAST_COMPILE
from tests.backbones.test_generation import CLOSE, rows_of
from tests.backbones.toy_writer import VOCABULARY, ToyCase, ToyWriter, draw_case, plain_beams

pytestmark = pytest.mark.usefixtures("plain_programs")

ENDS = (3, 11, 17)


@partial(jax.jit, static_argnums=(0, 5, 6, 7, 8), compiler_options=FAST_COMPILE)
def search(
    module, params, tokens, lengths, prompt, max_new, ends, beams=3, length_penalty=1.0
) -> Generation:
    return beam_search(
        module, params, tokens, lengths, prompt, max_new, ends, beams, length_penalty
    )


def write(case: ToyCase, *options: object) -> Generation:
    found = search(ToyWriter(), case.params, case.tokens, case.lengths, case.prompt, *options)
    return jax.device_get(found)


@pytest.mark.parametrize("prompt", ["one", "a row", "none"])
@pytest.mark.parametrize(
    ("beams", "max_new", "n_ends", "penalty"),
    [
        (2, 7, 1, 1.0),
        (3, 9, 1, 1.0),
        (4, 5, 2, 1.0),
        (5, 6, 3, 1.0),
        (3, 7, 0, 1.0),
        (3, 1, 1, 1.0),
        (1, 6, 2, 1.0),
        (3, 9, 2, 0.0),
        (3, 9, 2, 0.5),
        (4, 9, 2, 1.4),
        (3, 9, 2, -1.0),
    ],
)
def test_tokens_are_those_of_a_plain_search(
    prompt: str, beams: int, max_new: int, n_ends: int, penalty: float
) -> None:
    lengths, told = set(), 0
    for seed in range(8):
        case, ends = draw_case(seed, prompt), ENDS[:n_ends]
        for row, tokens in enumerate(rows_of(write(case, max_new, ends, beams, penalty))):
            expected, margin = plain_beams(case.score(row), max_new, ends, beams, penalty)
            if margin > CLOSE:
                assert tokens == expected, (seed, row)
                lengths.add(len(tokens))
                told += 1
    assert told >= 24
    if n_ends == 0 or max_new == 1:
        assert lengths == {max_new}
    else:
        assert len(lengths) > 1


def test_it_finds_more_probable_texts_than_greedy_search() -> None:
    gains = []
    for seed in range(6):
        case = draw_case(seed)
        inputs = (ToyWriter(), case.params, case.tokens, case.lengths, case.prompt, 6)
        both = (rows_of(jax.device_get(greedy(*inputs))), rows_of(write(case, 6, (), 4)))
        for row, texts in enumerate(zip(*both, strict=True)):
            score = case.score(row)
            first, second = (
                sum(score(tuple(text[:place]))[word] for place, word in enumerate(text))
                for text in texts
            )
            gains.append(second - first)
    assert np.mean(gains) > 0.05 and min(gains) > -0.5


def test_rows_do_not_know_of_each_other_nor_of_padding() -> None:
    case = draw_case(2, "a row", rows=6)
    found = rows_of(write(case, 8, ENDS))
    assert len({len(row) for row in found}) > 1, "some should end early, some late"
    order = np.array([4, 0, 3, 5, 1, 2])
    turned = ToyCase(case.params, case.tokens[order], case.lengths[order], case.prompt[order])
    assert rows_of(write(turned, 8, ENDS)) == [found[row] for row in order]
    wider = np.concatenate([case.tokens, np.full((6, 5), 9, np.int32)], axis=1)
    assert rows_of(write(ToyCase(case.params, wider, case.lengths, case.prompt), 8, ENDS)) == found
    alone = ToyCase(case.params, case.tokens[3:4], case.lengths[3:4], case.prompt[3:4])
    assert rows_of(write(alone, 8, ENDS)) == [found[3]]


def test_is_compiled_once_for_a_shape_and_a_number_of_beams() -> None:
    traced: list[str] = []
    module = ToyWriter(on_trace=traced.append)
    for seed, penalty in ((0, 1.0), (1, 0.5), (2, 2.0)):
        case = draw_case(seed)
        inputs = (module, case.params, case.tokens, case.lengths, case.prompt)
        beam_search(*inputs, 5, (seed,), beams=2, length_penalty=penalty)
    assert traced.count("start") == 1
    beam_search(*inputs, 5, (seed,), beams=3)
    assert traced.count("start") == 2


def test_a_mesh_changes_nothing() -> None:
    mesh = make_mesh("data:4,model:2")
    case = draw_case(5, rows=8)
    inputs = place((case.tokens, case.lengths), batch_sharding(mesh, 8))
    params, prompt = place((case.params, case.prompt), replicated(mesh))
    found = search(ToyWriter(), params, *inputs, prompt, 8, ENDS)
    assert rows_of(jax.device_get(found)) == rows_of(write(case, 8, ENDS))


def test_more_beams_than_continuations_are_refused() -> None:
    case = draw_case(0)
    with pytest.raises(InputError, match=f"{VOCABULARY} words; use 11 beams or less"):
        write(case, 4, (3,), 12)
    with pytest.raises(InputError, match="7 beams with 3 tokens .* rank 28 .* use 5 beams"):
        write(case, 4, ENDS, 7)
    assert len(rows_of(write(case, 4, (3,), 11))) == 4


def test_a_larger_penalty_favours_long_texts() -> None:
    lengths = {
        penalty: np.mean(
            [write(draw_case(seed), 9, (0, 1, 2, 3), 3, penalty).lengths for seed in range(8)]
        )
        for penalty in (-1.0, 1.0, 2.0)
    }
    assert lengths[-1.0] + 0.5 < lengths[1.0] < lengths[2.0] - 0.5, lengths
