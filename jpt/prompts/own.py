"""Which prompt is a task's own, and what type of task a prompt is for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jpt.types import PromptCard


def own_prompts(
    targets: Iterable[str], cards: Mapping[str, PromptCard]
) -> tuple[dict[str, str], list[str]]:
    """Finds the prompt that was tuned for each target."""
    # The own prompt is the one whose card names the target; where none does, the one that is called
    # like the target (imported prompts: the authors' file names); where several do, the one of them
    # that is called like it. Anything else is not guessed.
    own: dict[str, str] = {}
    notes: list[str] = []
    for target in targets:
        found = [name for name, card in cards.items() if short_task(card.task) == target]
        if target in cards and (not found or target in found):
            found = [target]
        if len(found) == 1:
            own[target] = found[0]
        elif found:
            notes.append(
                f"{target} has {len(found)} prompts of its own ({', '.join(found[:3])}) and none is"
                " called like it: relative performance is not defined"
            )
        else:
            notes.append(f"{target} has no prompt of its own: relative performance is not defined")
    return own, notes


def short_task(name: str) -> str:
    """Gives the name of a task in tables."""
    return name.rstrip("/").rsplit("/", 1)[-1]
