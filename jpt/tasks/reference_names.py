"""Names and types of the tasks for which the paper's authors released prompts.

Their files call some tasks otherwise than the catalog does. ``recastner`` is none of the paper's 17
tasks, but its prompts were released, and the paper's types hold for it as well.
"""

from __future__ import annotations

from jpt.tasks.builtin import BUILTIN, CANDIDATES
from jpt.tasks.catalog import CATALOG
from jpt.tasks.task import BUILTIN_PREFIX

REFERENCE_TASKS: dict[str, tuple[str, str]] = {
    "imdb": ("imdb", "sentiment"),
    "sst2": ("sst2", "sentiment"),
    "laptop": ("laptop", "sentiment"),
    "restaurant": ("restaurant", "sentiment"),
    "movierationales": ("movie_rationales", "sentiment"),
    "tweetevalsentiment": ("tweeteval_sentiment", "sentiment"),
    "mnli": ("mnli", "nli"),
    "qnli": ("qnli", "nli"),
    "snli": ("snli", "nli"),
    "recastner": ("recastner", "nli"),
    "ethicsdeontology": ("deontology", "ethics"),
    "ethicsjustice": ("justice", "ethics"),
    "qqp": ("qqp", "paraphrase"),
    "mrpc": ("mrpc", "paraphrase"),
    "squad": ("squad", "qa"),
    "nq_open": ("nq_open", "qa"),
    "multi_news": ("multi_news", "summarization"),
    "samsum": ("samsum", "summarization"),
}
"""Catalog name and type of a task by the name of the authors' file."""


def task_type(name: str) -> str | None:
    """Looks up the type of a task."""
    for known in (CATALOG, BUILTIN, CANDIDATES):
        task = known.get(name) or known.get(BUILTIN_PREFIX + name)
        if task is not None:
            return task.type
    types = {**dict(REFERENCE_TASKS.values()), **{k: v for k, (_, v) in REFERENCE_TASKS.items()}}
    return types.get(name)
