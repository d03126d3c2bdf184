"""A target's own prompt is the one whose card names it; nothing else is guessed."""

from __future__ import annotations

from jpt.results.prompt_table import match_in_task_prompts
from jpt.types import PromptCard


def cards(**tasks: str) -> dict[str, PromptCard]:
    return {name: PromptCard("bert", task) for name, task in tasks.items()}


def test_the_card_counts_and_not_the_name() -> None:
    own, notes = match_in_task_prompts(["imdb"], cards(imdb="sst2", other="builtin/imdb"))
    assert own == {"imdb": "other"} and notes == []


def test_the_name_counts_where_no_card_names_the_target() -> None:
    own, _ = match_in_task_prompts(["ethicsjustice"], cards(ethicsjustice="justice", sst2="sst2"))
    assert own == {"ethicsjustice": "ethicsjustice"}


def test_of_several_the_one_of_that_name() -> None:
    own, notes = match_in_task_prompts(["imdb"], cards(imdb="imdb", imdb_seed_1="imdb"))
    assert own == {"imdb": "imdb"} and notes == []
    own, notes = match_in_task_prompts(["imdb"], cards(imdb_seed_0="imdb", imdb_seed_1="imdb"))
    assert own == {}
    assert "imdb has 2 prompts of its own (imdb_seed_0, imdb_seed_1)" in notes[0]


def test_none_is_said() -> None:
    own, notes = match_in_task_prompts(["imdb", "mnli"], cards(a="imdb"))
    assert own == {"imdb": "a"}
    assert notes == ["mnli has no prompt of its own: relative performance is not defined"]
