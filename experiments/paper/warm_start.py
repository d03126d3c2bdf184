"""Warm start on built-in tasks: three targets, each from a source of its type and of another.

Nothing is downloaded. Tunes the source prompts, then each target from a random start and from two
sources, with 3 seeds each and the same rows in the same order, and prints both speed-ups of the
paper's section 3 (definitions: `jpt.warm_start`). Every run is an ordinary run folder, so a second
call only prints the table, and an interrupted call resumes.

Command:
    python experiments/paper/warm_start.py --out runs/warm-start

Time and result: 13 min 40 s with other jobs running, 6 min 54 s of CPU time (27 runs of 300 steps
and four sources on builtin/gpt2-mini). Test accuracy, gain in points, both speed-ups, 95% t
intervals over three seeds; the first source of a target has its type, the second another:

    imdb_opening       0.679
    imdb_closing       0.693  +1.4 [-1.7, +4.5]  1.36 [0.39, 4.71]  1.65 [0.49, 5.54]
    rotten_tomatoes    0.689  +1.1 [-2.2, +4.4]  0.93 [0.65, 1.32]  1.30 [0.80, 2.10]
    imdb_negation      0.982
    imdb_first_person  0.939  -4.3 [-9.5, +1.0]  0.72 [0.46, 1.13]  not reached
    imdb               0.971  -1.1 [-2.7, +0.5]  1.17 [1.11, 1.23]  not reached
    rotten_tomatoes    0.666
    imdb               0.691  +2.5 [-1.5, +6.6]  1.00 [0.61, 1.65]  1.69 [0.91, 3.14]
    imdb_first_person  0.599  -6.7 [-8.0, -5.3]  0.77 [0.41, 1.45]  not reached

For two of three targets the source of the same type gains and reaches the vanilla run's best score
in about 1.7 times fewer steps, in every seed, but with intervals that include 1. For the third it
loses more than the other source. The clearest effect is negative: a prompt of another type on
rotten_tomatoes.

With --copy-moments imdb_negation from imdb_first_person ends at 0.575 instead of 0.939.

With --backbone builtin/bert-small --steps 200 (two targets, 14 min 51 s with other jobs running):

    rotten_tomatoes    0.633
    imdb               0.655  +2.2 [-6.8, +11.2]    1.43 [0.32, 6.41]  2.18 (2 of 3 seeds)
    imdb_first_person  0.637  +0.4 [-6.3, +7.0]     1.26 [1.04, 1.51]  1.33 (1 of 3 seeds)
    imdb_negation      0.512
    imdb_first_person  0.938  +42.6 [+38.0, +47.2]  0.22 [0.01, 9.06]  8.81 [2.33, 33.29]
    imdb               0.562  +5.0 [-9.1, +19.2]    0.23 [0.01, 8.28]  2.31 (2 of 3 seeds)

There a random start does not learn imdb_negation in 200 steps, and a prompt of the same type does:
the paper's claim at its strongest. The convergence speed-up of 0.22 is meaningless: the vanilla run
"converges" at once, to chance level.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jpt
from jpt.transfer.warm_start import WarmStartResult

TARGETS = {
    "builtin/imdb_opening": ("builtin/imdb_closing", "builtin/rotten_tomatoes"),
    "builtin/imdb_negation": ("builtin/imdb_first_person", "builtin/imdb"),
    "builtin/rotten_tomatoes": ("builtin/imdb", "builtin/imdb_first_person"),
}
"""Each target with a source of its type and one of another type."""


def main() -> None:
    """Run the study and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/warm-start"))
    parser.add_argument("--backbone", default="builtin/gpt2-mini")
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--copy-moments", action="store_true")
    arguments = parser.parse_args()
    backbone = jpt.load_backbone(arguments.backbone)
    studies = [study(arguments, backbone, target) for target in arguments.targets]
    print(table([result.record for result in studies]))


def study(arguments: argparse.Namespace, backbone: jpt.Backbone, target: str) -> WarmStartResult:
    """Tune the missing sources of one target, then compare the starts."""
    sources = []
    for task in TARGETS[target]:
        run = arguments.out / "sources" / Path(task).name
        jpt.tune(backbone, task, run, steps=arguments.steps, progress=True)
        sources.append(run)
    folder = arguments.out / (Path(target).name + ("-moments" if arguments.copy_moments else ""))
    result = jpt.warm_start(
        target,
        sources,
        folder,
        backbone=backbone,
        seeds=arguments.seeds,
        steps=arguments.steps,
        copy_moments=arguments.copy_moments,
        progress=True,
    )
    jpt.warm_start_figure(folder)
    print(result.describe(), end="\n\n", flush=True)
    return result


def table(records: list[dict[str, Any]]) -> str:
    """Format the studies as Markdown, one row per target and source."""
    heads = (
        "target",
        "start",
        "type",
        "step 0",
        "best",
        "test",
        "gain in points",
        "convergence speed-up",
        "comparable-result speed-up",
    )
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for record in records:
        lines += [row(record, name) for name in ("vanilla", *record["sources"])]
    return "\n".join(lines)


def row(record: dict[str, Any], name: str) -> str:
    """Return one row of the table: means over seeds."""
    runs = [run for run in record["runs"] if run["run"] == name]
    means = [sum(run[of] for run in runs) / len(runs) for of in ("at_start", "best", "final")]
    cells = [record["task"], name, "", *(f"{mean:.3f}" for mean in means), "", "", ""]
    if name in record["comparisons"]:
        found = record["comparisons"][name]
        same = record["sources"][name]["type"] == record["task_type"]
        cells[2] = "same" if same else "other"
        cells[6] = interval(found["gain"], "+.1f", 100)
        cells[7] = interval(found["convergence_speed_up"], ".2f")
        cells[8] = interval(found["comparable_speed_up"], ".2f")
    return f"| {' | '.join(cells)} |"


def interval(found: dict[str, Any], form: str, times: float = 1) -> str:
    """Format a mean with its 95% interval and the number of seeds without a value."""
    without = found["seeds_without"]
    missing = f" (not reached by {without} seed{'s' * (without > 1)})" if without else ""
    if found["mean"] is None:
        return "not reached"
    text = f"{times * found['mean']:{form}}"
    if found["low"] is not None:
        high = times * found["high"]
        text += f" [{times * found['low']:{form}}, {f'{high:{form}}' if high < 1000 else '>999'}]"
    return text + missing


if __name__ == "__main__":
    main()
