"""DOC"""

from __future__ import annotations

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jpt.backbones.generation import NOTHING, Generation, beam_search, greedy, is_end
from jpt.backbones.layers import Cache
from jpt.errors import InputError
from jpt.parallel import batch_sharding, make_mesh, place, replicated
from jpt.types import Parameters
from tests.helpers.golden import (
    DECODERS,
    FAST_COMPILE,
    FIXTURES,
    T5S,
    Golden,
    advance,
    difference,
    load_golden,
    read,
    start,
)
from tests.helpers.plain_models import (
    VOCABULARY,
    ToyCase,
    ToyWriter,
    draw_case,
    plain_beams,
    plain_greedy,
)

# --- generation

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


# --- beams

ENDS = (3, 11, 17)


@partial(jax.jit, static_argnums=(0, 5, 6, 7, 8), compiler_options=FAST_COMPILE)
def beams_search(
    module, params, tokens, lengths, prompt, max_new, ends, beams=3, length_penalty=1.0
) -> Generation:
    return beam_search(
        module, params, tokens, lengths, prompt, max_new, ends, beams, length_penalty
    )


def beams_write(case: ToyCase, *options: object) -> Generation:
    found = beams_search(ToyWriter(), case.params, case.tokens, case.lengths, case.prompt, *options)
    return jax.device_get(found)


@pytest.mark.plain_programs
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
        for row, tokens in enumerate(rows_of(beams_write(case, max_new, ends, beams, penalty))):
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


@pytest.mark.plain_programs
def test_it_finds_more_probable_texts_than_greedy_search() -> None:
    gains = []
    for seed in range(6):
        case = draw_case(seed)
        inputs = (ToyWriter(), case.params, case.tokens, case.lengths, case.prompt, 6)
        both = (rows_of(jax.device_get(greedy(*inputs))), rows_of(beams_write(case, 6, (), 4)))
        for row, texts in enumerate(zip(*both, strict=True)):
            score = case.score(row)
            first, second = (
                sum(score(tuple(text[:place]))[word] for place, word in enumerate(text))
                for text in texts
            )
            gains.append(second - first)
    assert np.mean(gains) > 0.05 and min(gains) > -0.5


@pytest.mark.plain_programs
def test_beams_rows_do_not_know_of_each_other_nor_of_padding() -> None:
    case = draw_case(2, "a row", rows=6)
    found = rows_of(beams_write(case, 8, ENDS))
    assert len({len(row) for row in found}) > 1, "some should end early, some late"
    order = np.array([4, 0, 3, 5, 1, 2])
    turned = ToyCase(case.params, case.tokens[order], case.lengths[order], case.prompt[order])
    assert rows_of(beams_write(turned, 8, ENDS)) == [found[row] for row in order]
    wider = np.concatenate([case.tokens, np.full((6, 5), 9, np.int32)], axis=1)
    assert (
        rows_of(beams_write(ToyCase(case.params, wider, case.lengths, case.prompt), 8, ENDS))
        == found
    )
    alone = ToyCase(case.params, case.tokens[3:4], case.lengths[3:4], case.prompt[3:4])
    assert rows_of(beams_write(alone, 8, ENDS)) == [found[3]]


@pytest.mark.plain_programs
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


@pytest.mark.plain_programs
def test_beams_a_mesh_changes_nothing() -> None:
    mesh = make_mesh("data:4,model:2")
    case = draw_case(5, rows=8)
    inputs = place((case.tokens, case.lengths), batch_sharding(mesh, 8))
    params, prompt = place((case.params, case.prompt), replicated(mesh))
    found = beams_search(ToyWriter(), params, *inputs, prompt, 8, ENDS)
    assert rows_of(jax.device_get(found)) == rows_of(beams_write(case, 8, ENDS))


@pytest.mark.plain_programs
def test_more_beams_than_continuations_are_refused() -> None:
    case = draw_case(0)
    with pytest.raises(InputError, match=f"{VOCABULARY} words; use 11 beams or less"):
        beams_write(case, 4, (3,), 12)
    with pytest.raises(InputError, match="7 beams with 3 tokens .* rank 28 .* use 5 beams"):
        beams_write(case, 4, ENDS, 7)
    assert len(rows_of(beams_write(case, 4, (3,), 11))) == 4


@pytest.mark.plain_programs
def test_a_larger_penalty_favours_long_texts() -> None:
    lengths = {
        penalty: np.mean(
            [beams_write(draw_case(seed), 9, (0, 1, 2, 3), 3, penalty).lengths for seed in range(8)]
        )
        for penalty in (-1.0, 1.0, 2.0)
    }
    assert lengths[-1.0] + 0.5 < lengths[1.0] < lengths[2.0] - 0.5, lengths


# --- decoder writing

EQUAL = 1e-5


@pytest.mark.plain_programs
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


@pytest.mark.plain_programs
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


@pytest.mark.plain_programs
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


# --- generation golden

NAMES = (*T5S, *DECODERS)
SEARCH = re.compile(r"greedy_tokens|beam(?P<beams>\d+)_n\d+_tokens")


@partial(jax.jit, static_argnums=(0, 1, 2, 3), compiler_options=FAST_COMPILE)
def generation_golden_write(
    module: nn.Module, max_new: int, end: int, beams: int, params: Parameters, *inputs: jax.Array
) -> Generation:
    if beams == 1:
        return greedy(module, params, *inputs, max_new, (end,))
    return beam_search(module, params, *inputs, max_new, (end,), beams)


def on_mesh(golden: Golden, text: str) -> tuple[Parameters, jax.Array, jax.Array, jax.Array]:
    """Weights and inputs on the devices of a mesh."""
    mesh, (tokens, lengths, prompt) = make_mesh(text), golden.batch
    rows = batch_sharding(mesh, len(lengths))
    return golden.split(mesh), *place((tokens, lengths), rows), place(prompt, replicated(mesh))


# Each takes seconds to compile: some fixtures always, the others with the slow tests.
ALWAYS = {
    "data:1": ("t5_gated", "gpt2_tied", "llama_grouped"),
    "data:2,model:4": ("llama_grouped",),
}
CASES = [
    pytest.param(mesh, name, marks=() if name in always else pytest.mark.slow)
    for mesh, always in ALWAYS.items()
    for name in NAMES
]


@pytest.mark.parametrize(("mesh", "name"), CASES)
def test_what_is_written_is_identical(mesh: str, name: str) -> None:
    golden = load_golden(name)
    inputs, end = on_mesh(golden, mesh), golden.fields["eos_token_id"]
    searches = [name for name in golden.stored if SEARCH.fullmatch(name)]
    searches = sorted(searches, key=lambda search: golden.stored[search].shape[1])
    assert len(searches) > 4
    if mesh != "data:1":
        # Compiling takes seconds there: of each number of beams the longest texts.
        searches = {SEARCH.fullmatch(search)["beams"]: search for search in searches}.values()
    for search in searches:
        expected = golden.stored[search]
        beams = int(SEARCH.fullmatch(search)["beams"] or 1)
        found = generation_golden_write(golden.module(), expected.shape[1], end, beams, *inputs)
        assert np.array_equal(found.tokens, expected), search
        assert np.array_equal(found.lengths, (expected >= 0).sum(axis=1)), search


def test_every_fixture_that_holds_texts_is_read() -> None:
    kinds = {path.name.split("_")[0] for path in FIXTURES.iterdir()} - {"bert", "roberta"}
    assert kinds == {"t5", "gpt2", "llama", "qwen2"}
    folders = {path.name for path in FIXTURES.iterdir() if path.name.split("_")[0] in kinds}
    assert folders == set(NAMES)
