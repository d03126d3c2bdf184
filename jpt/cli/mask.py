"""The command that scores prompts without chosen neurons."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jpt.cli.completion import complete_task, complete_tasks
from jpt.cli.options import (
    DtypeOption,
    JsonOption,
    LabelScoringOption,
    MeshOption,
    print_result,
)
from jpt.cli.several import with_processes
from jpt.cli.studies import OtherBackboneOption, split_names
from jpt.errors import InputError
from jpt.processes import on_first

_NOT_PASSED_ON = ("prompt", "task", "prompts", "tasks", "out", "neurons", "data", "kinds", "json")


PromptOption = Annotated[
    Path | None, typer.Option(help="One prompt: its file, or the folder of its run.")
]
OwnTaskOption = Annotated[
    str | None,
    typer.Option(
        help="With --prompt: what is scored; by default its own task.", autocompletion=complete_task
    ),
]
FolderOption = Annotated[
    Path | None, typer.Option(help="Instead: a folder of prompts, each on its own task.")
]
OutOption = Annotated[
    Path, typer.Option(help="Folder for mask.json, mask.csv, mask.svg; the same call goes on.")
]
LayersOption = Annotated[
    str | None, typer.Option(help="First and last, from 0, as 9-11; by default all.")
]
StackOption = Annotated[
    str | None, typer.Option(help="decoder or encoder of a T5; by default its decoder.")
]
ManyDataOption = Annotated[
    Path | None,
    typer.Option(help="Folder of the task's rows; with --prompts one of such folders."),
]


@with_processes
def mask(
    out: OutOption,
    prompt: PromptOption = None,
    task: OwnTaskOption = None,
    prompts: FolderOption = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="With --prompts: only T1,T2,... are scored.", autocompletion=complete_tasks
        ),
    ] = None,
    ratio: Annotated[float, typer.Option(help="Share of the neurons that is masked.")] = 0.2,
    layers: LayersOption = None,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Take the share from each layer.")
    ] = False,
    kinds: Annotated[
        str | None, typer.Option(help="Some of own,random,other,common,specific.")
    ] = None,
    random_draws: Annotated[int, typer.Option(help="How often random neurons are drawn.")] = 3,
    neurons: Annotated[
        Path | None, typer.Option(help="File of 'jpt neurons' to choose by.")
    ] = None,
    stack: StackOption = None,
    split: Annotated[
        str, typer.Option(help="Scored split; validation where a task lacks it.")
    ] = "test",
    seed: Annotated[int, typer.Option(help="Of random neurons.")] = 0,
    backbone: OtherBackboneOption = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest text in tokens.")] = None,
    label_scoring: LabelScoringOption = "phrase",
    eval_batch_size: Annotated[int, typer.Option(help="Most rows scored at once.")] = 64,
    dtype: DtypeOption = "float32",
    mesh: MeshOption = None,
    data: ManyDataOption = None,
    json: JsonOption = False,
) -> None:
    """Score prompts while chosen neurons are masked: do they need the neurons they activate?

    Example: jpt mask --prompts study/prompts --ratio 0.2 --out study
    """
    # Every option goes on under its own name, which is that of the Python API.
    options = {name: value for name, value in locals().items() if name not in _NOT_PASSED_ON}
    given, asked = _what(prompt, task, prompts, tasks)
    from jpt.recipes.mask import mask_neurons

    options["kinds"] = split_names(kinds)
    result = mask_neurons(given, asked, out, neurons=neurons, data=data, progress=True, **options)
    from jpt.analysis.mask_figure import mask_figure

    figure = on_first(lambda: str(mask_figure(out)))
    text = f"{result.describe()}\nwritten: {out}/mask.json, {out}/mask.csv, {figure}"
    print_result(result.record, text, json)


def _what(
    prompt: Path | None, task: str | None, prompts: Path | None, tasks: str | None
) -> tuple[Path, str | list[str] | None]:
    """Prompts and tasks; one prompt with a task, or several with theirs."""
    if (prompt is None) == (prompts is None):
        came = "both" if prompt else "neither"
        raise InputError(f"{came} of --prompt and --prompts came; give a file or a folder")
    if (tasks if prompt else task) is not None:
        pair = "--tasks came with --prompt" if prompt else "--task came with --prompts"
        raise InputError(f"{pair}; --task belongs to --prompt, and --tasks to --prompts")
    return (prompt, task) if prompt else (prompts, split_names(tasks))
