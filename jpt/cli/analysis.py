"""Commands that compare prompts, and that bring in those of the paper's authors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jpt.cli.completion import complete_tasks
from jpt.cli.options import JsonOption, print_result
from jpt.cli.studies import SeedPromptsOption, split_names


def indicators(
    prompts: SeedPromptsOption,
    out: Annotated[Path, typer.Option(help="Folder for indicators.csv, types.json and more.")],
    neurons: Annotated[
        Path | None, typer.Option(help="File of 'jpt neurons' with the same prompts.")
    ] = None,
    transfer: Annotated[
        Path | None, typer.Option(help="transfer.csv of 'jpt transfer' with the same prompts.")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Only these targets and prompts for them: T1,T2,...; default all.",
            autocompletion=complete_tasks,
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="Of neuron_overlap, from 0, as 9-11; by default the top three."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Compare prompts by vectors and neurons, and hold that against what the transfers did.

    Example: jpt indicators --prompts study/prompts --neurons study/neurons.npz
    --transfer study/transfer.csv --out study
    """
    from jpt.analysis.indicator_study import study_indicators

    study = study_indicators(
        prompts,
        out,
        neurons=neurons,
        transfer=transfer,
        tasks=split_names(tasks),
        layers=layers,
        progress=True,
    )
    print_result(study.record, study.describe(), json)


def import_reference(
    source: Annotated[
        Path,
        typer.Argument(help="Folder of NAME.npy files or of NAME/task_prompt, or one file."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for NAME.safetensors files.")],
    backbone: Annotated[
        str | None, typer.Option(help="Hub id; by default what the folder's name says.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Import prompts that the paper's authors released.

    Example: jpt import reference prompts/roberta-base --out study/prompts
    """
    from jpt.recipes.import_reference import describe_import
    from jpt.recipes.import_reference import import_reference as run

    record, text = describe_import(run(source, out, backbone), out)
    print_result(record, text, json)
