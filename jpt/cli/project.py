"""Commands of the cross-model projector: train, apply, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jpt.cli.completion import complete_backbone, complete_tasks
from jpt.cli.options import (
    AnswerTokensOption,
    DtypeOption,
    JsonOption,
    LabelScoringOption,
    MeshOption,
    RematOption,
    print_result,
)
from jpt.cli.several import with_processes
from jpt.cli.studies import split_names

SourcesOption = Annotated[
    Path, typer.Option(help="The source model's prompts: NAME.safetensors files or runs NAME/.")
]
TargetsOption = Annotated[
    Path | None, typer.Option(help="The target model's own prompts of the same tasks.")
]
TargetOption = Annotated[
    str | None,
    typer.Option(
        help="Target; by default what the projector's card names.", autocompletion=complete_backbone
    ),
]
NewTargetOption = Annotated[
    str,
    typer.Option(
        help="The frozen target: built-in name, folder of weights, or hub id.",
        autocompletion=complete_backbone,
    ),
]
TasksOption = Annotated[
    str | None,
    typer.Option(
        help="T1,T2,...; by default those that the cards name.", autocompletion=complete_tasks
    ),
]
SourceBackboneOption = Annotated[
    str | None,
    typer.Option(
        help="Where the source's words are read; default: what cards name.",
        autocompletion=complete_backbone,
    ),
]
RowsOption = Annotated[
    Path | None, typer.Option(help="Folder with one folder of rows for each catalog task.")
]
AnchorsOption = Annotated[int, typer.Option(help="Words that 'relative' holds rows against.")]

_NOT_OPTIONS = ("sources", "target_backbone", "objective", "tasks", "json")


@with_processes
def train(
    sources: SourcesOption,
    target_backbone: NewTargetOption,
    out: Annotated[Path, typer.Option(help="Run folder; the same command goes on there.")],
    objective: Annotated[
        str, typer.Option(help="task: the tasks' loss; distance: to the target's own prompts.")
    ] = "task",
    tasks: TasksOption = None,
    targets: TargetsOption = None,
    bottleneck: Annotated[int, typer.Option(help="Neurons between the two maps.")] = 768,
    activation: Annotated[str, typer.Option(help="leaky_relu or tanh.")] = "leaky_relu",
    layer_norm: Annotated[
        bool | None, typer.Option(help="Normalise each row; default yes, not per token.")
    ] = None,
    rescale: Annotated[
        bool, typer.Option(help="Bring rows to the mean norm of the target's words.")
    ] = False,
    per_token: Annotated[
        bool, typer.Option(help="One linear map, row by row, in place of the whole prompt.")
    ] = False,
    length: Annotated[int | None, typer.Option(help="The target's prompt rows.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows (distance: tasks) a step.")] = 16,
    learning_rate: Annotated[
        float | None, typer.Option(help="Constant; the target's choice, else 5e-3, distance 1e-4.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest text in tokens.")] = None,
    answer_tokens: AnswerTokensOption = None,
    label_scoring: LabelScoringOption = "phrase",
    seed: Annotated[int, typer.Option(help="Of first weights, order of tasks and rows.")] = 0,
    eval_every: Annotated[int | None, typer.Option(help="Steps between validations.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between saves.")] = None,
    eval_batch_size: Annotated[int, typer.Option(help="Most rows scored at once.")] = 64,
    dtype: DtypeOption = "float32",
    remat: RematOption = "dots",
    mesh: MeshOption = None,
    data: RowsOption = None,
    json: JsonOption = False,
) -> None:
    """Train a projector that turns prompts of one model into prompts of another.

    Example: jpt project train --sources study/prompts --target-backbone builtin/bert-medium
    --tasks builtin/imdb,builtin/rotten_tomatoes --out projector
    """
    # Every option goes on under its own name, which is that of the Python API.
    options = {name: value for name, value in locals().items() if name not in _NOT_OPTIONS}
    from jpt.transfer.projector_training import train_projector

    names = split_names(tasks)
    result = train_projector(
        sources, target_backbone, objective, tasks=names, progress=True, **options
    )
    print_result(result.record, result.describe(), json)


def apply(
    prompts: Annotated[Path, typer.Option(help="Prompts of the source model: folder or file.")],
    out: Annotated[Path, typer.Option(help="Folder for NAME.safetensors files.")],
    projector: Annotated[
        str,
        typer.Option(help="File or run; or untrained, least_squares, relative: no training."),
    ],
    target_backbone: TargetOption = None,
    source_backbone: SourceBackboneOption = None,
    length: Annotated[int | None, typer.Option(help="Of 'untrained': the target's rows.")] = None,
    anchors: AnchorsOption = 512,
    seed: Annotated[int, typer.Option(help="Of 'untrained'.")] = 0,
    json: JsonOption = False,
) -> None:
    """Project prompts into ordinary prompt files of the target model.

    Example: jpt project apply --projector projector --prompts study/prompts --out projected
    """
    from jpt.transfer.projector_apply import apply_projector

    found = apply_projector(
        projector,
        prompts,
        out,
        target_backbone=target_backbone,
        source_backbone=source_backbone,
        length=length,
        anchors=anchors,
        seed=seed,
    )
    first = next(iter(found.values()))
    rows, width = first.values.shape
    record: dict[str, Any] = {
        "out": str(out),
        "backbone": first.card.backbone,
        "length": rows,
        "width": width,
        "prompts": {name: prompt.card.source for name, prompt in found.items()},
    }
    count = f"{len(found)} prompt{'' if len(found) == 1 else 's'}"
    text = (
        f"{count} of {rows} x {width} for {first.card.backbone}\n"
        f"written: {', '.join(f'{out}/{name}.safetensors' for name in found)}"
    )
    print_result(record, text, json)


@with_processes
def evaluate(
    sources: SourcesOption,
    projector: Annotated[
        str | None, typer.Option(help="Files or runs with commas between, each a column.")
    ] = None,
    tasks: TasksOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for projection.csv and projected prompts.")
    ] = None,
    targets: TargetsOption = None,
    target_backbone: TargetOption = None,
    source_backbone: SourceBackboneOption = None,
    methods: Annotated[
        str | None,
        typer.Option(help="Of untrained, least_squares, relative; default all that fit."),
    ] = None,
    anchors: AnchorsOption = 512,
    length: Annotated[int | None, typer.Option(help="The target's rows, if open.")] = None,
    random: Annotated[bool, typer.Option(help="Score a random start as a baseline.")] = True,
    warm_start: Annotated[
        str | None, typer.Option(help="Column to tune on from, beside a random start.")
    ] = None,
    warm_steps: Annotated[int, typer.Option(help="Steps of those two tunings.")] = 50,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    seed: Annotated[int, typer.Option(help="Of random prompt, 'untrained', tuning.")] = 0,
    max_tokens: Annotated[int | None, typer.Option(help="Longest text in tokens.")] = None,
    eval_batch_size: Annotated[int, typer.Option(help="Most rows scored at once.")] = 64,
    dtype: DtypeOption = "float32",
    mesh: MeshOption = None,
    data: RowsOption = None,
    json: JsonOption = False,
) -> None:
    """Table projected prompts beside the target's own, a random one and untrained ways.

    Example: jpt project evaluate --projector projector --sources study/prompts --out table
    """
    given = dict(locals())
    from jpt.transfer.projector_evaluation import evaluate_projector

    listed = ("sources", "projector", "tasks", "methods", "out", "json")
    options = {name: value for name, value in given.items() if name not in listed}
    ways = None if methods is None else tuple(split_names(methods) or ())
    result = evaluate_projector(
        split_names(projector) or [],
        sources,
        split_names(tasks),
        out,
        methods=ways,
        progress=True,
        **options,
    )
    text = result.describe() + ("" if out is None else f"\nwritten: {out}/projection.csv")
    print_result({**result.record, "scores": result.scores}, text, json)


app = typer.Typer(
    help="Turn prompts of one model into prompts of another.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (train, apply, evaluate):
    app.command()(_command)
