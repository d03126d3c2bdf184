"""Greedy and beam search: equal to plain loops and to torch, independent of batch and padding."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpt.backbones.generation import NO_TOKEN, Generation, beam_search, greedy, is_end
from jpt.backbones.layers import Cache
from jpt.errors import InputError
from jpt.parallel import batch_sharding, make_mesh, place, replicated
from tests.helpers.golden import (
    DECODERS,
    ENCODERS,
    EQUAL,
    FAST_COMPILE,
    FIXTURES,
    T5S,
    advance,
    ask,
    difference,
    load_golden,
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

CLOSE = 1e-4  # sums in float32 differ from those in float64 by a hundredth of this
NEW, ENDS = 8, (3, 11, 17)
# beams, new tokens, end tokens, length penalty
SEARCHES = [(2, 7, 1, 1.0), (3, 9, 1, 1.0), (4, 5, 2, 1.0), (5, 6, 3, 1.0), (3, 7, 0, 1.0)]
SEARCHES += [(3, 1, 1, 1.0), (1, 6, 2, 1.0), (3, 9, 2, 0.0), (3, 9, 2, 0.5), (4, 9, 2, 1.4)]
SEARCHES += [(3, 9, 2, -1.0)]
GREEDY = 0  # number of beams
both_searches = pytest.mark.parametrize("beams", [GREEDY, 3])
# beam searches compile much and run little
compiled_plainly = pytest.mark.plain_programs


@partial(jax.jit, static_argnums=(0, 5, 6, 7, 8), compiler_options=FAST_COMPILE)
def search(
    module, params, tokens, lengths, prompt, max_new, ends, beams=GREEDY, length_penalty=1.0
) -> Generation:
    inputs = (module, params, tokens, lengths, prompt, max_new, ends)
    return beam_search(*inputs, beams, length_penalty) if beams else greedy(*inputs)


def generate(case: ToyCase, *options: object) -> list[list[int]]:
    inputs = (case.params, case.tokens, case.lengths, case.prompt)
    found = jax.device_get(search(ToyWriter(), *inputs, *options))
    for row, length in zip(*found, strict=True):
        assert (row[:length] >= 0).all() and (row[length:] == NO_TOKEN).all()
    return [row[:length].tolist() for row, length in zip(*found, strict=True)]


@pytest.mark.parametrize("prompt", ["one", "a row", "none"])
@pytest.mark.parametrize("ends", [(), (3,), (3, 11)])
def test_greedy_search_equals_a_plain_loop(prompt: str, ends: tuple[int, ...]) -> None:
    lengths, compared = set(), 0
    for seed in range(12):
        case = draw_case(seed, prompt)
        for row, tokens in enumerate(generate(case, NEW, ends)):
            expected, margin = plain_greedy(case.score(row), NEW, ends)
            if margin > CLOSE:
                assert tokens == expected, (seed, row)
                lengths.add(len(tokens))
                compared += 1
    assert compared >= 40
    assert lengths == {NEW} if not ends else len(lengths) > 3


@compiled_plainly
@pytest.mark.parametrize("prompt", ["one", "a row", "none"])
@pytest.mark.parametrize(("beams", "max_new", "n_ends", "penalty"), SEARCHES)
def test_beam_search_equals_a_plain_search(
    prompt: str, beams: int, max_new: int, n_ends: int, penalty: float
) -> None:
    lengths, compared = set(), 0
    for seed in range(8):
        case, ends = draw_case(seed, prompt), ENDS[:n_ends]
        for row, tokens in enumerate(generate(case, max_new, ends, beams, penalty)):
            expected, margin = plain_beams(case.score(row), max_new, ends, beams, penalty)
            if margin > CLOSE:
                assert tokens == expected, (seed, row)
                lengths.add(len(tokens))
                compared += 1
    assert compared >= 24
    assert lengths == {max_new} if n_ends == 0 or max_new == 1 else len(lengths) > 1


def test_one_token_is_the_best_of_the_start() -> None:
    case = draw_case(1)
    expected = [[int(case.score(row)(()).argmax())] for row in range(4)]
    assert generate(case, 1, (3,)) == expected


@compiled_plainly
@pytest.mark.parametrize(("beams", "ends"), [(GREEDY, (4, 9, 17)), (3, ENDS)])
def test_rows_are_independent_of_each_other_and_of_padding(
    beams: int, ends: tuple[int, ...]
) -> None:
    case = draw_case(2, "a row", rows=6)
    found = generate(case, NEW, ends, beams)
    assert len({len(row) for row in found}) > 1, "some should end early, some late"
    order = np.array([4, 0, 3, 5, 1, 2])
    moved = ToyCase(case.params, case.tokens[order], case.lengths[order], case.prompt[order])
    assert generate(moved, NEW, ends, beams) == [found[row] for row in order]
    wide = np.concatenate([case.tokens, np.full((6, 5), 9, np.int32)], axis=1)
    for row in (0, 3):
        wide[row, case.lengths[row] :] = 22
    padded = ToyCase(case.params, wide, case.lengths, case.prompt)
    assert generate(padded, NEW, ends, beams) == found
    for row in (0, 1, 3):
        one = slice(row, row + 1)
        alone = ToyCase(case.params, case.tokens[one], case.lengths[one], case.prompt[one])
        assert generate(alone, NEW, ends, beams) == [found[row]]


def test_loop_stops_when_the_last_row_has_ended() -> None:
    steps: list[int] = []
    module = ToyWriter(on_step=lambda: steps.append(1))
    case = draw_case(3)
    inputs = (case.tokens, case.lengths, case.prompt)
    longest = search(module, case.params, *inputs, 12, ())
    jax.effects_barrier()
    assert len(steps) == 11, "the last token need not be read"
    # The third tokens of all rows become end tokens.
    ends = tuple({int(token) for token in longest.tokens[:, 2]})
    steps.clear()
    found = search(module, case.params, *inputs, 12, ends)
    jax.effects_barrier()
    assert int(found.lengths.max()) <= 3
    assert len(steps) == int(found.lengths.max()) - 1


@compiled_plainly
@both_searches
def test_compiles_once_for_a_shape(beams: int) -> None:
    traced: list[str] = []
    module = ToyWriter(on_trace=traced.append)

    def run(seed: int, max_new: int, beams: int, penalty: float = 1.0) -> None:
        case = draw_case(seed)
        inputs = (module, case.params, case.tokens, case.lengths, case.prompt, max_new, (seed,))
        if beams:
            beam_search(*inputs, beams, penalty)
        else:
            greedy(*inputs)

    for seed, penalty in ((0, 1.0), (1, 0.5), (2, 2.0)):
        run(seed, 5, beams, penalty)
    first = len(traced)
    assert traced.count("start") == 1 and traced[0] == "start"
    if beams:
        run(2, 5, beams + 1)
        assert traced.count("start") == 2
    else:
        run(2, 6, beams)
        assert len(traced) == 2 * first


@compiled_plainly
@pytest.mark.parametrize(("beams", "ends"), [(GREEDY, (3, 11)), (3, ENDS)])
def test_mesh_changes_nothing(beams: int, ends: tuple[int, ...]) -> None:
    mesh, case = make_mesh("data:4,model:2"), draw_case(5, rows=8)
    inputs = place((case.tokens, case.lengths), batch_sharding(mesh, 8))
    params, prompt = place((case.params, case.prompt), replicated(mesh))
    split = ToyCase(params, *inputs, prompt)
    assert generate(split, NEW, ends, beams) == generate(case, NEW, ends, beams)


def test_ends_are_found_at_every_position() -> None:
    tokens = jnp.arange(VOCABULARY).reshape(1, VOCABULARY)
    assert np.flatnonzero(is_end(tokens, jnp.array([4, 0]))).tolist() == [0, 4]
    assert not is_end(tokens, jnp.zeros((0,), jnp.int32)).any()


@compiled_plainly
def test_beam_search_finds_more_probable_texts_than_greedy_search() -> None:
    gains = []
    for seed in range(6):
        case = draw_case(seed)
        both = zip(generate(case, 6, ()), generate(case, 6, (), 4), strict=True)
        for row, texts in enumerate(both):
            score = case.score(row)
            first, second = (
                sum(score(tuple(text[:step]))[token] for step, token in enumerate(text))
                for text in texts
            )
            gains.append(second - first)
    assert np.mean(gains) > 0.05 and min(gains) > -0.5


@compiled_plainly
def test_more_beams_than_continuations_are_refused() -> None:
    case = draw_case(0)
    with pytest.raises(InputError, match=f"{VOCABULARY} tokens; use 11 beams or fewer"):
        generate(case, 4, (3,), 12)
    with pytest.raises(InputError, match="7 beams with 3 end tokens rank 28 .* use 5 beams"):
        generate(case, 4, ENDS, 7)
    assert len(generate(case, 4, (3,), 11)) == 4


@compiled_plainly
def test_a_larger_penalty_favours_long_texts() -> None:
    def mean_length(penalty: float) -> float:
        found = [generate(draw_case(seed), 9, (0, 1, 2, 3), 3, penalty) for seed in range(8)]
        return float(np.mean([len(row) for rows in found for row in rows]))

    assert mean_length(-1.0) + 0.5 < mean_length(1.0) < mean_length(2.0) - 0.5


@compiled_plainly
@pytest.mark.parametrize(
    ("name", "kind"), [("gpt2_untied", "one"), ("llama_grouped", "a row"), ("qwen2_untied", "none")]
)
def test_generated_token_by_token_equals_reading_it_all(name: str, kind: str) -> None:
    golden = load_golden(name)
    decoder, (tokens, lengths, prompt) = golden.module(), golden.batch
    prompt = {"one": prompt, "a row": golden.rows_of_prompts(), "none": None}[kind]
    new = np.random.default_rng(1).integers(0, golden.config.vocabulary, (4, 5), np.int32)
    # [B, T + N]: text and new tokens without padding between them, to be read at once.
    whole = np.zeros((4, tokens.shape[1] + 5), np.int32)
    for row, length in enumerate(golden.stored["lengths"]):
        whole[row, : length + 5] = [*golden.stored["tokens"][row, :length], *new[row]]
    expected = ask(golden, jnp.asarray(whole), lengths + 5, prompt, every_position=True).logits
    scores, memory = start(decoder, golden.params, tokens, lengths, prompt, 5)
    shapes = jax.tree.map(jnp.shape, memory)
    for step in range(6):
        assert difference(scores, expected[np.arange(4), lengths - 1 + step]) < EQUAL
        if step < 5:
            scores, memory = advance(decoder, golden.params, jnp.asarray(new[:, step]), memory)
            # One program for all steps: the cost of a token does not grow.
            assert jax.tree.map(jnp.shape, memory) == shapes
    assert int(memory.steps) == 5


@cache
def started(name: str, is_shared: bool) -> Cache:
    golden = load_golden(name)
    tokens, lengths, prompt = golden.batch
    prompt = prompt if is_shared else golden.rows_of_prompts()
    return start(golden.module(), golden.params, tokens, lengths, prompt, 5)[1]


@compiled_plainly
@pytest.mark.parametrize(
    ("name", "is_shared"),
    [
        ("gpt2_tied", True),
        ("llama_grouped", True),
        ("llama_grouped", False),
        ("qwen2_untied", True),
    ],
)
def test_cache_has_rows_on_its_second_axis(name: str, is_shared: bool) -> None:
    golden, memory = load_golden(name), started(name, is_shared)
    config, (tokens, _, prompt) = golden.config, golden.batch
    head = (config.key_heads, config.head_width)
    for part in (memory.context, memory.generated):
        assert all(leaf.shape[1] == 4 and leaf.shape[3:] == head for leaf in jax.tree.leaves(part))
    found = {leaf.shape[2] for leaf in jax.tree.leaves(memory.context)}
    assert found == {tokens.shape[1]} | (set() if is_shared else {prompt.shape[0]})
    assert {leaf.shape[2] for leaf in jax.tree.leaves(memory.generated)} == {5}
    layers = [leaf.shape[0] for leaf in jax.tree.leaves(memory.generated)]
    assert sum(layers) == 2 * config.layers
    shared = {leaf.shape[1:] for leaf in jax.tree.leaves(memory.shared)}
    assert shared == ({(prompt.shape[0], *head)} if is_shared else set())


@compiled_plainly
@pytest.mark.parametrize("name", ["gpt2_tied", "llama_grouped"])
def test_cache_may_be_reordered_and_repeated_by_row(name: str) -> None:
    # As in beam search: rows are taken along the second axis of every leaf.
    golden, memory = load_golden(name), started(name, True)
    decoder, order = golden.module(), jnp.array([2, 2, 0, 3, 1, 2])
    tokens = jnp.array([5, 6, 7, 8])
    _, memory = advance(decoder, golden.params, tokens, memory)
    scores, _ = advance(decoder, golden.params, tokens[::-1], memory)
    taken = memory.replace(
        context=jax.tree.map(lambda leaf: leaf[:, order], memory.context),
        generated=jax.tree.map(lambda leaf: leaf[:, order], memory.generated),
        lengths=memory.lengths[order],
    )
    found, _ = advance(decoder, golden.params, tokens[::-1][order], taken)
    assert difference(found, scores[order]) < EQUAL


NAMES = (*T5S, *DECODERS)
SEARCH = re.compile(r"greedy_tokens|beam(?P<beams>\d+)_n\d+_tokens")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mesh", ["data:1", "data:2,model:4"])
def test_generated_texts_are_those_of_torch(mesh: str, name: str) -> None:
    golden, devices = load_golden(name), make_mesh(mesh)
    rows, prompt = batch_sharding(devices, len(golden.batch[0])), golden.batch[2]
    inputs = (*place(golden.batch[:2], rows), place(prompt, replicated(devices)))
    inputs, ends = (golden.split(devices), *inputs), (golden.fields["eos_token_id"],)
    searches = [name for name in golden.stored if SEARCH.fullmatch(name)]
    searches = sorted(searches, key=lambda name: golden.stored[name].shape[1])
    assert len(searches) > 4
    if mesh != "data:1":
        # Compiling takes seconds there: of each number of beams the longest texts.
        searches = {SEARCH.fullmatch(name)["beams"]: name for name in searches}.values()
    for name in searches:
        expected = golden.stored[name]
        beams = int(SEARCH.fullmatch(name)["beams"] or GREEDY)
        found = search(golden.module(), *inputs, expected.shape[1], ends, beams)
        assert np.array_equal(found.tokens, expected), name
        assert np.array_equal(found.lengths, (expected >= 0).sum(axis=1)), name


def test_every_fixture_is_in_a_list() -> None:
    assert {path.name for path in FIXTURES.iterdir()} == {*ENCODERS, *NAMES}
