"""What is compiled, how often and why: runs of like sizes share their programs."""

from __future__ import annotations

import collections
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jpt
from jpt.testing import write_tiny_backbone
from jpt.tuning import bound_task
from jpt.tuning.logging import CompileLog
from jpt.tuning.step import BoundStep
from jpt.types import Batch

CATALOG = [name for name in jpt.task_names() if not name.startswith("builtin/")]
GENERATIVE = ("multi_news", "nq_open", "samsum", "squad")


def batch_of(rows: int, tokens: int, packed_index: int | None = None) -> Batch:
    ones = np.ones(rows, np.int32)
    packed = None if packed_index is None else np.zeros((1, packed_index), np.int32)
    rest = (ones, ones, ones.astype(np.float32))
    return Batch(np.ones((rows, tokens), np.int32), *rest, packed_index=packed)


def test_a_line_says_what_was_compiled_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with CompileLog(said.append) as log:

        def step(
            rows: int,
            tokens: int,
            packed_index: int | None = None,
            elapsed_s: float = 2.06,
            cached: bool = False,
        ) -> None:
            if cached:
                jax.monitoring.record_event("/jax/compilation_cache/cache_hits")
            name = "/jax/core/compile/backend_compile_duration"
            jax.monitoring.record_event_duration_secs(name, elapsed_s, fun_name="jit(step)")
            log.stepped(batch_of(rows, tokens, packed_index))

        step(32, 48)
        step(32, 64, cached=True)
        step(16, 64)
        step(64, 96)
        step(16, 48)
        step(16, 48, packed_index=384)
        step(16, 48)
        step(99, 99, elapsed_s=0.01)  # nobody has noticed
        log.stepped(batch_of(32, 48))  # nothing was compiled
        log.scored()
    assert said == [
        "compiled the train step for 32 rows of 48 tokens in 2.1 s (first step)",
        "read the train step for 32 rows of 64 tokens from the compile cache in 2.1 s (new length)",
        "compiled the train step for 16 rows of 64 tokens in 2.1 s (new number of rows)",
        "compiled the train step for 64 rows of 96 tokens in 2.1 s "
        "(new number of rows and new length)",
        "compiled the train step for 16 rows of 48 tokens in 2.1 s (new pair of sizes)",
        "compiled the train step for 16 rows of 48 tokens packed into 384 in 2.1 s "
        "(new amount of text)",
        "compiled the train step for 16 rows of 48 tokens in 2.1 s "
        "(sizes as before: arrays lie elsewhere)",
    ]


def test_it_hears_of_every_program_while_it_is_open_and_then_no_more() -> None:
    work = jax.jit(lambda x: jnp.cos(x) + 1)
    with CompileLog() as log:
        work(jnp.ones(3))
        assert [each.name for each in log.take()].count("jit(<lambda>)") == 1
        work(jnp.ones(3))
        assert "jit(<lambda>)" not in [each.name for each in log.take()]
        work(jnp.ones(5))
        assert [each.name for each in log.take()].count("jit(<lambda>)") == 1
    work(jnp.ones(7))
    assert log.take() == []


@contextmanager
def counted() -> Iterator[dict[str, Any]]:
    """How often steps and scorings are compiled, and for which sizes they are called."""
    calls: dict[str, set[Any]] = {"step": set(), "_score_step": set()}
    real_step, real_score = BoundStep.__call__, bound_task._score_step

    def note(name: str, batch: Batch, answer: Any) -> None:
        written = None if batch.answers is None else batch.answers.shape[1]
        packed = None if batch.packed_index is None else batch.packed_index.shape[-1]
        # Bucket, label count, what only some tasks have (words of several pieces, and answers),
        # and the text of a packed batch.
        several = answer.label_tokens is not None
        sizes = (batch.tokens.shape[1], len(answer.label_ids), several, written, packed)
        calls[name].add(sizes)

    def step(self: BoundStep, params: Any, state: Any, batch: Batch, answer: Any) -> Any:
        note("step", batch, answer)
        return real_step(self, params, state, batch, answer)

    def score(module: Any, params: Any, prompts: Any, batch: Batch, answer: Any, *more: Any) -> Any:
        note("_score_step", batch, answer)
        return real_score(module, params, prompts, batch, answer, *more)

    found: dict[str, Any] = {"calls": calls}
    with pytest.MonkeyPatch.context() as patch, CompileLog() as log:
        patch.setattr(BoundStep, "__call__", step)
        patch.setattr(bound_task, "_score_step", score)
        yield found
        # A run hears what it compiles itself; this log hears all of it.
        names = collections.Counter(program.name for program in log.take())
        found["compiled"] = {name: names[f"jit({name})"] for name in calls}


def assert_compiled_once_a_size(found: dict[str, Any], some: int) -> None:
    for name, sizes in found["calls"].items():
        assert found["compiled"][name] <= len(sizes), (name, found["compiled"], sizes)
    assert len(found["calls"]["step"]) >= some, "the runs were of one size only"


def toy_task(name: str, words: dict[str, tuple[str, ...]], tail: str) -> jpt.Task:
    rows = [
        {"text": f"the film is {word} {end}", "label": label}
        for label, each in words.items()
        for word in each
        for end in (tail, f"{tail} and {tail} number 1 , number 2 , number 3 , number 4 . " * 2)
    ]
    return jpt.Task(
        name,
        "toy",
        ("text",),
        tuple(words),
        {"encoder": ("{text}",)},
        {"default": {label: each[0] for label, each in words.items()}},
        rows={split: rows for split in ("train", "validation", "test")},
    )


GOOD, BAD = ("good", "great", "lovely"), ("bad", "awful", "boring")
TOYS: list[Callable[[], jpt.Task]] = [
    lambda: toy_task("a", {"yes": GOOD, "no": BAD}, "a film"),
    lambda: toy_task("b", {"fine": ("fine", "bright"), "poor": ("poor", "dull")}, "not"),
    lambda: toy_task("c", {"1": ("was",), "2": ("is",)}, "the the the"),
    lambda: toy_task("d", {"x": ("good",), "y": ("bad",), "z": ("not",)}, "a film"),
]


@pytest.mark.usefixtures("plain_programs")
def test_tasks_rates_and_seeds_of_like_sizes_share_their_programs(tmp_path: Path) -> None:
    backbone = jpt.load_backbone(write_tiny_backbone(tmp_path / "tiny", "bert"))
    given = {"steps": 6, "eval_every": 6, "batch_size": 2, "eval_batch_size": 4, "length": 3}
    with counted() as found:
        for number, task in enumerate(TOYS):
            options = {"learning_rate": 10.0**-number, "seed": number, "max_tokens": 40}
            jpt.tune(backbone, task(), **options, **given)
    assert_compiled_once_a_size(found, some=4)
    assert {sizes[1] for sizes in found["calls"]["step"]} == {2, 3}


@pytest.mark.slow
@pytest.mark.usefixtures("plain_programs")
@pytest.mark.parametrize("name", ["bert-small", "t5-mini", "gpt2-mini"])
def test_all_catalog_tasks_compile_once_a_bucket_and_label_count(
    name: str, reference_folder: Path
) -> None:
    """Seventeen tasks; encoders have the thirteen with labels.

    A word of several pieces and a written answer are read at several places of the model, which is
    another program by necessity. Sizes are those of the tests of these tasks, and texts up to the
    second bucket: half of the programs lie in the compile cache of tests.
    """
    backbone = jpt.load_backbone(f"builtin/{name}")
    tasks = [task for task in CATALOG if name != "bert-small" or task not in GENERATIVE]
    assert len(tasks) == (13 if name == "bert-small" else 17)
    given = {"batch_size": 8, "eval_batch_size": 16, "length": 8, "max_tokens": 48, "steps": 4}
    with counted() as found:
        for task in tasks:
            splits = {}
            for split in ("train", "validation", "test"):
                path = reference_folder / "data" / task / f"{split}.jsonl"
                with path.open(encoding="utf-8") as file:
                    splits[split] = [json.loads(line) for line in itertools.islice(file, 16)]
            jpt.tune(backbone, task, data=splits, eval_every=4, **given)
    assert_compiled_once_a_size(found, some=5)
    counts = {sizes[1] for sizes in found["calls"]["step"] if sizes[3] is None}
    assert counts == {2, 3, 4}
    assert {sizes[0] for sizes in found["calls"]["step"]} == {32, 48}, "buckets"
