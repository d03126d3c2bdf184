"""Banks of prompts: stacked and taken apart again."""

from __future__ import annotations

import numpy as np
import pytest

from jpt.errors import InputError
from jpt.prompts.store import stack_prompts, unstack_prompts
from jpt.types import Prompt, PromptCard

CARDS = [PromptCard("bert", task) for task in ("sst2", "imdb", "mnli")]


def prompt(number: int, rows: int = 4, width: int = 3) -> Prompt:
    return Prompt(np.full((rows, width), number, np.float32), CARDS[number])


def test_there_and_back() -> None:
    prompts = {card.task: prompt(number) for number, card in enumerate(CARDS)}
    bank = stack_prompts(prompts)
    assert (bank.shape, bank.dtype) == ((3, 4, 3), np.float32)
    assert bank[:, 0, 0].tolist() == [0, 1, 2]
    back = unstack_prompts(bank, CARDS)
    bank[:] = 7
    assert [found.card for found in back] == CARDS
    for found, wanted in zip(back, prompts.values(), strict=True):
        np.testing.assert_array_equal(found.values, wanted.values)


@pytest.mark.parametrize("rows, width, size", [(5, 3, "5 x 3"), (4, 2, "4 x 2")])
def test_mixed_shapes(rows: int, width: int, size: str) -> None:
    prompts = {"first": prompt(0), "second": prompt(1), "third": prompt(2, rows, width)}
    with pytest.raises(InputError, match=f"prompt third is {size} and prompt first 4 x 3"):
        stack_prompts(prompts)


def test_what_is_no_bank() -> None:
    with pytest.raises(InputError, match="needs at least one"):
        stack_prompts({})
    with pytest.raises(InputError, match="2 cards for 3 prompts"):
        unstack_prompts(np.zeros((3, 4, 3), np.float32), CARDS[:2])
    with pytest.raises(InputError, match="this one is 4 x 3"):
        unstack_prompts(np.zeros((4, 3), np.float32), CARDS)
