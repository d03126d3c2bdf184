"""Initial prompts: values, and their dependence on seed, backbone and kind."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jpt.errors import InputError
from jpt.prompts.initialisers import (
    Init,
    initial_generator,
    initial_values,
    parse_init,
    sampled_ids,
)
from jpt.prompts.store import save_prompt
from jpt.types import Prompt, PromptCard

ROWS, WIDTH = 200, 8
# Row i is i everywhere, so that a prompt shows its ids.
TABLE = np.repeat(np.arange(ROWS, dtype=np.float32)[:, None], WIDTH, axis=1)


def make(init: str, **changes: Any) -> np.ndarray:
    options: dict[str, Any] = {
        "seed": 0,
        "backbone": "builtin/bert-small",
        "length": 20,
        "embedding": TABLE,
        "ids": np.arange(50, 150),
        "label_ids": [60, 7],
        "encode": lambda text: [int(word) for word in text.split()],
    }
    return initial_values(parse_init(init), **{**options, **changes})


def ids_of(values: np.ndarray) -> list[int]:
    assert (values == values[:, :1]).all()
    return values[:, 0].astype(int).tolist()


@pytest.mark.parametrize("init", ["random", "vocab", "labels", "text:5 6"])
def test_form_and_repetition(init: str) -> None:
    values = make(init)
    assert (values.shape, values.dtype) == ((20, WIDTH), np.float32)
    np.testing.assert_array_equal(values, make(init))


@pytest.mark.parametrize("init", ["random", "vocab", "labels"])
def test_seed_and_backbone_change_it_and_the_task_does_not(init: str) -> None:
    values = make(init)
    assert not np.array_equal(values, make(init, seed=1))
    assert not np.array_equal(values, make(init, backbone="builtin/bert-tiny"))
    if init != "labels":
        np.testing.assert_array_equal(values, make(init, label_ids=[1, 2, 3]))


def test_kinds_have_different_random_numbers() -> None:
    first, second = (initial_generator(0, "bert", kind).random() for kind in ("random", "vocab"))
    assert first != second


PINNED = np.array([-0.3079025447368622, -1.1737834215164185, -0.017041033133864403], np.float32)


def test_random_is_normal_and_pinned() -> None:
    values = make("random", length=4000)
    assert abs(values.mean()) < 5e-4
    assert abs(values.std() - 0.02) < 5e-4
    assert abs(np.corrcoef(values[:, 0], values[:, 1])[0, 1]) < 0.08
    # Literal, so that a change of the random numbers is noticed.
    np.testing.assert_array_equal(make("random", std=1.0)[0, :3], PINNED)
    np.testing.assert_array_equal(make("random", length=5), make("random", length=9)[:5])


def test_vocab_is_a_sample_without_repeats() -> None:
    drawn = ids_of(make("vocab"))
    assert len(set(drawn)) == 20
    assert set(drawn) <= set(range(50, 150))
    assert drawn != sorted(drawn)
    assert max(drawn) > 100  # of the first 20 ids none would be
    assert sorted(ids_of(make("vocab", length=100))) == list(range(50, 150))


def test_vocab_smaller_than_the_prompt() -> None:
    drawn = ids_of(make("vocab", ids=np.array([3, 4, 5]), length=7))
    assert sorted(drawn[:3]) == sorted(drawn[3:6]) == [3, 4, 5]
    with pytest.raises(InputError, match="expected text tokens in the vocabulary"):
        make("vocab", ids=np.array([], np.int64))


def test_labels_come_first_and_once() -> None:
    drawn = ids_of(make("labels", length=101))
    assert drawn[:2] == [60, 7]
    assert sorted(drawn[2:]) == [i for i in range(50, 150) if i != 60]
    assert ids_of(make("labels", length=2)) == [60, 7]
    with pytest.raises(InputError, match="length of at least 2, .* got 1; set length to 2"):
        make("labels", length=1)


def test_text_is_repeated_or_cut() -> None:
    assert ids_of(make("text:5 6 7", length=7)) == [5, 6, 7, 5, 6, 7, 5]
    assert ids_of(make("text:5 6 7", length=2)) == [5, 6]
    with pytest.raises(InputError, match="expected words of the vocabulary, got none"):
        make("text:x", encode=lambda _: [])


def test_another_prompt(tmp_path: Path) -> None:
    other = np.random.default_rng(0).normal(size=(20, WIDTH)).astype(np.float32)
    file = tmp_path / "other.safetensors"
    save_prompt(file, Prompt(other, PromptCard("bert", "sst2")))
    np.testing.assert_array_equal(make(f"prompt:{file}"), other)
    with pytest.raises(InputError, match="expected length 10, got 20; set length to 20"):
        make(f"prompt:{file}", length=10)
    with pytest.raises(InputError, match=r"expected width 9, .* got 8 \(tuned on bert\)"):
        make(f"prompt:{file}", embedding=np.zeros((5, 9), np.float32))
    with pytest.raises(InputError, match="no such file"):
        make(f"prompt:{tmp_path / 'nowhere' / 'a.safetensors'}")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_embeddings_of_jax(dtype: Any) -> None:
    values = make("labels", embedding=jnp.asarray(TABLE).astype(dtype))
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, make("labels"))


def test_id_outside_the_table() -> None:
    with pytest.raises(InputError, match="vocabulary size 200, got 200"):
        make("text:200")


def test_sampled_ids_leave_out_special_and_unused_tokens() -> None:
    other = ["[PAD]", "[unused12]", "<extra_id_3>", "madeupword0002", "<0x0A>", "<|endoftext|>"]
    other, text = [*other, "[MASK]"], ["the", "##s", "unused", "\u0120film", "["]
    kept = sampled_ids([*other, *text], special={0, 6})
    assert kept.tolist() == [*range(7, 12)]


@pytest.mark.parametrize(
    "text, init",
    [
        ("random", Init("random")),
        ("vocab", Init("vocab")),
        ("labels", Init("labels")),
        ("text:good: or bad", Init("text", "good: or bad")),
        ("prompt:a/b.safetensors", Init("prompt", "a/b.safetensors")),
    ],
)
def test_parse_init(text: str, init: Init) -> None:
    assert parse_init(text) == init


@pytest.mark.parametrize(
    "text, message",
    [
        ("randm", "unknown init 'randm'; did you mean random"),
        ("", "unknown init ''.*known: labels, prompt:FILE, random, text:WORDS, vocab"),
        ("text", "expected text:WORDS, got 'text'"),
        ("text: ", "expected text:WORDS, got 'text: '"),
        ("prompt:", "expected prompt:FILE"),
        ("random:1", "expected random without an argument, got 'random:1'"),
        ("vocab:", "expected vocab without an argument"),
    ],
)
def test_parse_init_refuses(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_init(text)
