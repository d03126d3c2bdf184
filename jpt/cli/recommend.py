"""The command that says which source prompt to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jpt.cli.options import (
    DataOption,
    DtypeOption,
    JsonOption,
    MeshOption,
    TaskOption,
    print_result,
)
from jpt.cli.several import with_processes
from jpt.cli.studies import OtherBackboneOption, SeedPromptsOption

_NOT_PASSED_ON = ("task", "prompts", "out", "json")


@with_processes
def recommend(
    task: TaskOption,
    prompts: SeedPromptsOption,
    out: Annotated[
        Path | None, typer.Option(help="Folder for recommend.json and the probe's run.")
    ] = None,
    labels: Annotated[
        int | None,
        typer.Option(help="Train rows with labels; 64 or all if fewer; 0: none has any."),
    ] = None,
    probe_steps: Annotated[int, typer.Option(help="Steps of the probe prompt.")] = 60,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of the probe; the backbone's choice.")
    ] = None,
    known: Annotated[
        Path | None,
        typer.Option(help="transfer.csv of the same prompts, to judge the rankings on."),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(help="Ranking that chooses: zero_shot, neuron_overlap, cosine_average, ..."),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Of neuron_overlap, from 0, as 9-11; the top three.")
    ] = None,
    backbone: OtherBackboneOption = None,
    seed: Annotated[
        int | None, typer.Option(help="Of rows and probe; by default that of the sources.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest text in tokens.")] = None,
    eval_batch_size: Annotated[int, typer.Option(help="Most rows scored at once.")] = 64,
    dtype: DtypeOption = "float32",
    mesh: MeshOption = None,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Rank source prompts for a new task with few labels or none, before it is tuned for.

    Example: jpt recommend --task builtin/imdb --prompts study/prompts --known study/transfer.csv
    """
    # Every option goes on under its own name, which is that of the Python API.
    options = {name: value for name, value in locals().items() if name not in _NOT_PASSED_ON}
    from jpt.recipes.recommend import recommend as run

    result = run(task, prompts, out, progress=True, **options)
    print_result(result.record, result.describe(), json)
