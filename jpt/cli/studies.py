"""Commands that move prompts to other tasks, and the whole study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jpt.cli.completion import complete_backbone, complete_tasks
from jpt.cli.options import (
    DtypeOption,
    JsonOption,
    LabelScoringOption,
    MeshOption,
    print_result,
)
from jpt.cli.several import with_processes

SeedPromptsOption = Annotated[
    Path,
    typer.Option(help="Folder of NAME.safetensors, run folders NAME/, or seeds NAME/seed-S/."),
]
OtherBackboneOption = Annotated[
    str | None,
    typer.Option(
        help="Instead of the one that the prompts' cards name.", autocompletion=complete_backbone
    ),
]
TargetTasksOption = Annotated[
    str | None,
    typer.Option(
        help="Targets: T1,T2,...; by default those that the cards name.",
        autocompletion=complete_tasks,
    ),
]


@with_processes
def quickstart(
    out: Annotated[
        Path, typer.Option(help="Folder of the study; the same command goes on there.")
    ] = Path("jpt-quickstart"),
    backbone: Annotated[
        str,
        typer.Option(
            help="Built-in name, folder of weights, or hub id.", autocompletion=complete_backbone
        ),
    ] = "builtin/bert-small",
    tasks: Annotated[
        str | None,
        typer.Option(
            help="T1,T2,...; by default built-in tasks of three types.",
            autocompletion=complete_tasks,
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimizer steps of each prompt; the backbone's choice.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of initial prompts and row order.")] = 0,
    mesh: MeshOption = None,
    json: JsonOption = False,
) -> None:
    """Run the whole study on built-in models and tasks, offline: tune, transfer, compare, report.

    Example: jpt quickstart
    """
    from jpt.recipes.quickstart import TASKS
    from jpt.recipes.quickstart import quickstart as run

    names = split_names(tasks) or TASKS
    options = {"backbone": backbone, "steps": steps, "seed": seed, "mesh": mesh}
    result = run(out, tasks=names, progress=True, **options)
    print_result(result.record, result.describe(), json)


@with_processes
def transfer(
    prompts: SeedPromptsOption,
    out: Annotated[
        Path, typer.Option(help="Folder for transfer.csv and more; the same command goes on there.")
    ],
    tasks: TargetTasksOption = None,
    split: Annotated[
        str, typer.Option(help="Scored split; validation where a target lacks it.")
    ] = "test",
    backbone: OtherBackboneOption = None,
    random: Annotated[
        bool, typer.Option(help="Score an untrained random start as a baseline.")
    ] = True,
    untouched: Annotated[
        bool, typer.Option(help="Score the model without a prompt, as column none.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Of the random start.")] = 0,
    max_tokens: Annotated[int | None, typer.Option(help="Longest text in tokens.")] = None,
    label_scoring: LabelScoringOption = "phrase",
    eval_batch_size: Annotated[int, typer.Option(help="Most rows scored at once.")] = 64,
    dtype: DtypeOption = "float32",
    mesh: MeshOption = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with one folder of rows for each catalog task.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Score every prompt on every task, as it is (zero-shot transfer).

    Of a prompt with several seeds ('jpt tune --seeds') the matrix has the mean, and transfer.json
    each value and the standard deviation.

    Example: jpt transfer --prompts study/prompts --tasks builtin/imdb,builtin/rotten_tomatoes
    --out study
    """
    from jpt.transfer.zero_shot import transfer_matrix

    result = transfer_matrix(
        prompts,
        split_names(tasks),
        out,
        split=split,
        backbone=backbone,
        random=random,
        untouched=untouched,
        seed=seed,
        max_tokens=max_tokens,
        label_scoring=label_scoring,
        eval_batch_size=eval_batch_size,
        dtype=dtype,
        mesh=mesh,
        data=data,
        progress=True,
    )
    print_result(result.record, f"{result.describe()}\nwritten: {out}/transfer.csv", json)


def split_names(text: str | None) -> list[str] | None:
    """Takes a list of names apart.

    Args:
        text: ``"T1,T2"``, or None.

    Returns:
        The names, or None where nothing was said.

    Example:
        >>> split_names("builtin/imdb, sst2")
        ['builtin/imdb', 'sst2']
    """
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]
