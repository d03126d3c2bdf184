"""Run one side of a comparison as a process: wait for a line, run steps, report the time.

Started by ``steps.py``. The first line is the case; each later one requests steps. Both sides are
alive at the same time and alternate, so that other load on the machine affects both.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rows import write_rows, write_task


class Side(NamedTuple):
    """The operations of a side."""

    step: Callable[[int], Any]
    reset: Callable[[], None]
    flops: Callable[[int], float]
    shapes: list[tuple[int, ...]]


def main() -> None:
    """Answer each line on stdin with one on stdout."""
    case = json.loads(sys.stdin.readline())
    answers, sys.stdout = sys.stdout, sys.stderr
    started_s = time.perf_counter()
    side = jpt_side(case) if case["side"] == "jpt" else torch_side(case)
    loaded_s, loaded_mb = time.perf_counter() - started_s, peak_mb()
    # Compile every shape, then start again.
    first: dict[tuple[int, ...], float] = {}
    for number, shape in enumerate(side.shapes):
        if shape not in first:
            started_s = time.perf_counter()
            float(side.step(number))
            first[shape] = time.perf_counter() - started_s
    side.reset()
    ready = {"load_s": loaded_s, "loaded_mb": loaded_mb, "first_s": list(first.values())}
    print(json.dumps(ready), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(do(side, json.loads(line))), file=answers, flush=True)


def do(side: Side, asked: dict[str, Any]) -> dict[str, Any]:
    """Run the requested steps."""
    started_s, cpu_s = time.perf_counter(), time.process_time()
    # Read at the end only, so that no step waits for the one before.
    losses = [float(loss) for loss in [side.step(number) for number in asked["steps"]]]
    spent = {"wall_s": time.perf_counter() - started_s, "cpu_s": time.process_time() - cpu_s}
    flops = sum(side.flops(number) for number in asked["steps"]) if asked.get("flops") else None
    return {**spent, "losses": losses, "flops": flops, "peak_mb": peak_mb()}


def peak_mb() -> float:
    """Return the peak memory of this process."""
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def jpt_side(case: dict[str, Any]) -> Side:
    """Build the step and batches of `jpt.tune`."""
    import jax

    import jpt

    dtype = case["options"].get("dtype", "float32")
    backbone = jpt.load_backbone(case["model"], dtype=dtype)
    given = {"backbone": backbone, "task": case["task"], "data": case["data"]}
    step, first = jpt.train_step(**given, **case["options"])
    batches = list(jpt.training_batches(**given, **case["options"]))
    if step.answer.label_tokens is not None:
        raise SystemExit(f"{case['task']}: the label words have several tokens")
    folder = Path(case["folder"])
    where = {"device": case["device"], "dtype": dtype}
    write_task(folder / "task.json", backbone, step.answer.label_ids, **where)
    named = {str(number): batch for number, batch in enumerate(batches)}
    write_rows(folder / "rows.npz", named, start=np.asarray(first.params))
    copy = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 1, state))
    states = [copy(first)]

    def run(number: int) -> Any:
        states[0], metrics = step(states[0], batches[number])
        return metrics.loss

    def reset() -> None:
        states[0] = copy(first)

    def flops(number: int) -> float:
        return count_flops(jax.make_jaxpr(step)(first, batches[number]).jaxpr)

    return Side(run, reset, flops, [shape_of(batch) for batch in batches])


def shape_of(batch: Any) -> tuple[int, ...]:
    """Return rows, tokens and packed size, which a step is compiled for."""
    return (*batch.tokens.shape, *(() if batch.packed_index is None else batch.packed_index.shape))


def torch_side(case: dict[str, Any]) -> Side:
    """Build a torch user's step on the same rows."""
    import torch_models
    from torch.utils.flop_counter import FlopCounterMode

    folder = Path(case["folder"])
    found, task = np.load(folder / "rows.npz"), json.loads((folder / "task.json").read_text())
    numbers = range(case["options"]["steps"])
    batches = [torch_models.read_rows(found, str(number)) for number in numbers]
    start, rate = found["start"], case["options"]["learning_rate"]
    model = torch_models.build(case["side"], Path(case["model"]), len(start), task)
    model.start(start, rate)

    def flops(number: int) -> float:
        counter = FlopCounterMode(display=False)
        with counter:
            model.loss_of(batches[number]).backward()
        return float(counter.get_total_flops())

    return Side(
        lambda number: model.step(batches[number]),
        lambda: model.start(start, rate),
        flops,
        [(0, 0)] * len(batches),  # nothing is compiled: one step warms up
    )


def count_flops(jaxpr: Any) -> float:
    """Count operations of all matrix products, those in a loop once per iteration."""
    total = 0.0
    for equation in jaxpr.eqns:
        repeats = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        if equation.primitive.name == "dot_general":
            total += dot_flops(equation)
        total += repeats * sum(count_flops(inner) for inner in inner_programs(equation.params))
    return total


def inner_programs(params: dict[str, Any]) -> Iterator[Any]:
    """Yield the programs that an operation runs: the body of a loop, a call."""
    for name, value in params.items():
        if name in ("jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd"):
            continue
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
            yield inner


def dot_flops(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    depth = int(np.prod([left[axis] for axis in contracted]))
    return 2.0 * depth * float(np.prod(equation.outvars[0].aval.shape))


if __name__ == "__main__":
    main()
