"""Measure how often the embedding indicators choose the best source for the authors' prompts.

Leave-one-out on the authors' zero-shot scores: each target's in-task prompt is compared with all
other prompts, the most similar one is chosen, and its score is compared with the best one's. Two
baselines: a source of the target's type, and the accuracy on 64 rows (simulated from the scores).

Command:
    python experiments/paper/choose_source.py --reference DIR

Time: 1 s per backbone on two cores. Result (share of targets whose first source is the best one;
mean regret, the best score less that of the first source; a random choice in the last line):

    roberta-base, 14 targets    best   regret
    E_concat                    14 %   0.210
    E_average                    7 %   0.207
    C_concat                    36 %   0.101
    C_average                   57 %   0.048
    same type                   47 %   0.085
    accuracy on 64 rows         59 %   0.022
    chance                       8 %   0.214

    t5-base, 17 targets         best   regret
    E_concat                     6 %   0.104
    E_average                    6 %   0.104
    C_concat                    24 %   0.078
    C_average                   53 %   0.018
    same type                   42 %   0.045
    accuracy on 64 rows         42 %   0.024
    chance                       6 %   0.158

With t5-base, accuracy on 64 rows is for the 13 targets with labels, where chance has a regret of
0.188; it is not simulated for generative tasks.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jpt
from jpt.results.records import LeaveOneOut

ROWS = 64
LINES = {
    "euclidean_concat": "E_concat",
    "euclidean_average": "E_average",
    "cosine_concat": "C_concat",
    "cosine_average": "C_average",
    "same_type": "same type",
    "zero_shot": f"accuracy on {ROWS} rows",
}


def main() -> None:
    """Print a table for each backbone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--backbones", nargs="*", default=["roberta-base", "t5-base"])
    arguments = parser.parse_args()
    for backbone in arguments.backbones:
        prompts = jpt.import_reference(arguments.reference / "prompts" / backbone)
        matrix = arguments.reference / "transfer" / f"{backbone}.csv"
        found = jpt.leave_one_out(jpt.compute_indicators(prompts), matrix, rows=ROWS)
        print("\n".join(table(backbone, found)))


def table(backbone: str, found: LeaveOneOut) -> list[str]:
    """Format the results of one backbone, one line per ranking."""
    lines = [f"{f'{backbone}, {len(found.targets)} targets':<28}best   regret"]
    for name, label in LINES.items():
        record = found.rankings[name]
        lines.append(f"{label:<26}{100 * record.hits:4.0f} %   {record.regret:.3f}")
    record = found.rankings["cosine_concat"]
    lines.append(f"{'chance':<26}{100 * record.chance_hits:4.0f} %   {record.chance_regret:.3f}")
    return [*lines, ""]


if __name__ == "__main__":
    main()
