"""What a shell completes after --backbone and --task: the names that come with jpt."""

from __future__ import annotations

from pathlib import Path

_BUILTIN = Path(__file__).parent.parent / "backbones" / "builtin"


def complete_backbone(incomplete: str) -> list[str]:
    """Lists the built-in backbones that begin so; their folders are looked at, jax is not loaded.

    Args:
        incomplete: what is typed so far.

    Returns:
        The names; none where a path or a hub id is meant, so that the shell completes files.

    Example:
        >>> complete_backbone("builtin/bert-s")
        ['builtin/bert-small']
    """
    names = sorted(f"builtin/{config.parent.name}" for config in _BUILTIN.glob("*/config.json"))
    return [name for name in names if name.startswith(incomplete)]


def complete_task(incomplete: str) -> list[str]:
    """Lists the tasks with a name that begin so.

    Args:
        incomplete: what is typed so far.

    Returns:
        The names.

    Example:
        >>> complete_task("movie")
        ['movie_rationales']
    """
    from jpt.tasks.registry import task_names

    return [name for name in task_names() if name.startswith(incomplete)]


def complete_tasks(incomplete: str) -> list[str]:
    """Completes the last of several names with commas between them.

    Args:
        incomplete: what is typed so far.

    Returns:
        The whole of what is typed with each name that fits its end and does not yet stand in it.

    Example:
        >>> complete_tasks("imdb,movie")
        ['imdb,movie_rationales']
    """
    *before, last = incomplete.split(",")
    fitting = [name for name in complete_task(last) if name not in before]
    return [",".join([*before, name]) for name in fitting]
