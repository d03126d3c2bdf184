"""The grouped commands: export, mix, project, prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jpt.cli.commands import SeedPromptsOption, StudyOtherBackboneOption, split_names
from jpt.cli.options import (
    AnswerTokensOption,
    DataOption,
    DtypeOption,
    JsonOption,
    LabelScoringOption,
    MeshOption,
    RematOption,
    TaskOption,
    complete_backbone,
    complete_tasks,
    print_result,
    with_processes,
)

# --- Commands that carry a prompt to PEFT and back

export_app = typer.Typer(
    help="Write prompts in the form of other software.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@export_app.callback()
def root() -> None:
    """Keeps ``peft`` a command of its own: typer folds a group of one command into it."""


@export_app.command("peft")
def export_peft(
    file: Annotated[Path, typer.Argument(help="Prompt file, or folder of a run.")],
    out: Annotated[Path, typer.Option(help="Adapter folder, new or empty.")],
    backbone: Annotated[
        str | None, typer.Option(help="What PEFT shall call the model; by default as the card.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write a prompt of a decoder or T5 as an adapter folder that PEFT loads.

    Example: jpt export peft study/prompts/imdb --out adapters/imdb
    """
    from jpt.recipes.interop import export_peft as run

    result = run(file, out, backbone)
    print_result(result.record, result.describe(), json)


def import_peft(
    source: Annotated[str, typer.Argument(help="Adapter folder of prompt tuning, or its hub id.")],
    out: Annotated[Path, typer.Option(help="File for the prompt: NAME.safetensors.")],
    backbone: Annotated[
        str | None, typer.Option(help="Instead of the base model that the adapter names.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="What it was tuned for; else the card, or 'unknown'.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Import a prompt that PEFT has trained.

    Example: jpt import peft adapters/imdb --out study/prompts/imdb.safetensors
    """
    from jpt.recipes.interop import import_peft as run

    result = run(source, out, backbone, task)
    print_result(result.record, result.describe(), json)


# --- Commands that make one prompt, or one answer, of several prompts

mix_app = typer.Typer(
    help="Make one prompt, or one answer, of several prompts.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

NamesOption = Annotated[
    str | None, typer.Option(help="Only these prompts of the folder: A,B,...; default all.")
]
WeightsOption = Annotated[
    str | None,
    typer.Option(help="A=2,B=1,...: shares, divided by their sum; by default all alike."),
]


@mix_app.command()
def average(
    prompts: SeedPromptsOption,
    out: Annotated[Path, typer.Option(help="File to write, for instance mean.safetensors.")],
    names: NamesOption = None,
    weights: WeightsOption = None,
    json: JsonOption = False,
) -> None:
    """Average several prompts into one, a start for a new task.

    Example: jpt mix average --prompts study/prompts --names imdb,sst2 --out mean.safetensors
    """
    from jpt.prompts.arithmetic import average_prompts, choose_parts, parse_weights
    from jpt.prompts.store import save_prompt

    parts = choose_parts(prompts, split_names(names))
    mean = average_prompts(parts, None if weights is None else parse_weights(weights))
    save_prompt(out, mean)
    rows, width = mean.values.shape
    record = {"out": str(out), "source": mean.card.source, "rows": rows, "width": width}
    text = f"{mean.card.source}: {rows} rows x {width}\nwritten: {out}"
    print_result(record, f"{text}; start from it with --init prompt:{out} --length {rows}", json)


@mix_app.command()
@with_processes
def learn(
    prompts: SeedPromptsOption,
    task: TaskOption,
    out: Annotated[Path, typer.Option(help="Run folder; the same command goes on there.")],
    names: NamesOption = None,
    backbone: StudyOtherBackboneOption = None,
    per_row: Annotated[
        bool, typer.Option(help="Weights for each row of the prompt, not one a prompt.")
    ] = False,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 100,
    learning_rate: Annotated[float, typer.Option(help="Of the weights' logits.")] = 0.1,
    batch_size: Annotated[int | None, typer.Option(help="Rows a step.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest text in tokens.")] = None,
    seed: Annotated[int, typer.Option(help="Of the row order.")] = 0,
    eval_every: Annotated[int | None, typer.Option(help="Steps between validations.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between saves.")] = None,
    eval_batch_size: Annotated[int, typer.Option(help="Most rows scored at once.")] = 64,
    dtype: DtypeOption = "float32",
    mesh: MeshOption = None,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Learn on a task how much of each prompt goes into a start for it; the prompts stay frozen.

    Example: jpt mix learn --prompts study/prompts --task builtin/imdb --out runs/imdb-mixture
    """
    from jpt.prompts.arithmetic import choose_parts
    from jpt.transfer.mixture import learn_mixture

    result = learn_mixture(
        backbone,
        task,
        choose_parts(prompts, split_names(names)),
        out,
        per_row=per_row,
        steps=steps,
        learning_rate=learning_rate,
        batch_size=batch_size,
        max_tokens=max_tokens,
        seed=seed,
        eval_every=eval_every,
        checkpoint_every=checkpoint_every,
        eval_batch_size=eval_batch_size,
        dtype=dtype,
        mesh=mesh,
        data=data,
        progress=True,
    )
    print_result(result.record, result.describe(), json)


@mix_app.command()
@with_processes
def ensemble(
    prompts: SeedPromptsOption,
    task: TaskOption,
    names: NamesOption = None,
    weights: WeightsOption = None,
    combine: Annotated[
        str, typer.Option(help="log_probs or probs: what is averaged over the prompts.")
    ] = "log_probs",
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    backbone: StudyOtherBackboneOption = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest text in tokens.")] = None,
    label_scoring: LabelScoringOption = "phrase",
    eval_batch_size: Annotated[int, typer.Option(help="Most rows scored at once.")] = 64,
    dtype: DtypeOption = "float32",
    mesh: MeshOption = None,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Score several prompts together on a task: each reads every row, the answers are averaged.

    Example: jpt mix ensemble --prompts study/prompts --task builtin/imdb
    """
    from jpt.prompts.arithmetic import choose_parts, parse_weights
    from jpt.transfer.mixture import score_ensemble

    found = score_ensemble(
        choose_parts(prompts, split_names(names)),
        task,
        weights=None if weights is None else parse_weights(weights),
        combine=combine,
        split=split,
        backbone=backbone,
        max_tokens=max_tokens,
        label_scoring=label_scoring,
        eval_batch_size=eval_batch_size,
        dtype=dtype,
        mesh=mesh,
        data=data,
    )
    record = {"prompts": str(prompts), "task": task, "split": split, **found.record}
    print_result(record, found.describe(task, split), json)


# --- Commands of the cross-model projector: train, apply, evaluate

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
    from jpt.transfer.projector import train_projector

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
    from jpt.transfer.projection import apply_projector

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
    from jpt.transfer.projection import evaluate_projector

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


project_app = typer.Typer(
    help="Turn prompts of one model into prompts of another.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (train, apply, evaluate):
    project_app.command()(_command)


# --- Commands for prompts: one of them in words, a whole folder, a library of them on a hub

prompts_app = typer.Typer(
    help="Look at prompts, in words or a whole folder; share them on a hub.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

FolderArgument = Annotated[
    Path, typer.Argument(help="Folder of NAME.safetensors, runs NAME/, or seeds NAME/seed-S/.")
]
RepoArgument = Annotated[
    str, typer.Argument(help="OWNER/NAME on the hub of HF_ENDPOINT, else huggingface.co.")
]


@prompts_app.command()
def show(
    prompt: Annotated[Path, typer.Argument(help="Prompt file, or folder of a run.")],
    backbone: StudyOtherBackboneOption = None,
    top: Annotated[int, typer.Option(help="Nearest pieces of a row.")] = 3,
    json: JsonOption = False,
) -> None:
    """Show the vocabulary nearest to each row, the norms, and how far the rows have moved.

    Example: jpt prompts show study/prompts/imdb.safetensors
    """
    from jpt.recipes.library import describe_reading, show_prompt

    found = show_prompt(prompt, backbone=backbone, top=top)
    print_result(found.record, describe_reading(found), json)


@prompts_app.command()
def ls(folder: FolderArgument, json: JsonOption = False) -> None:
    """List the prompts of a folder with task, backbone, size, score and mean norm.

    Example: jpt prompts ls study/prompts
    """
    from jpt.recipes.library import describe_entries, read_entries

    entries = read_entries(folder)
    print_result({"prompts": [entry.record for entry in entries]}, describe_entries(entries), json)


@prompts_app.command()
def verify(
    folder: FolderArgument,
    backbone: StudyOtherBackboneOption = None,
    json: JsonOption = False,
) -> None:
    """Check that every prompt can be read, is finite, has a whole card and fits its backbone.

    Example: jpt prompts verify study/prompts
    """
    from jpt.errors import InputError
    from jpt.recipes.library import describe_entries, read_entries, verify_entries

    entries = verify_entries(read_entries(folder), backbone)
    record = {"prompts": [entry.record for entry in entries]}
    print_result(record, describe_entries(entries, verified=True), json)
    broken = [entry.name for entry in entries if entry.faults]
    if broken:
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise InputError(
            f"{len(broken)} of {len(entries)} prompts in {folder} are broken:"
            f" {', '.join(broken[:5])}{more}; see above"
        )


@prompts_app.command()
def push(
    folder: FolderArgument,
    repo: RepoArgument,
    private: Annotated[
        bool,
        typer.Option(
            "--private",
            help="Create it private; else public, unless its organization's default is private.",
        ),
    ] = False,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, default main; a missing one is created.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Upload the prompts of a folder to a Hugging Face hub, in one commit.

    All are verified first. Prompts, an index (prompts.json) and a model card are sent, nothing
    else; a missing repository is created; prompts there that the folder lacks stay.

    Example: jpt prompts push study/prompts me/prompts --private
    """
    from jpt.recipes.library import push_prompts

    result = push_prompts(folder, repo, private=private, message=message, revision=revision)
    print_result(result.record, result.describe(), json)


@prompts_app.command()
def pull(
    repo: RepoArgument,
    out: Annotated[Path, typer.Option(help="Folder for the prompts.")],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit; default main.")
    ] = None,
    only: Annotated[str | None, typer.Option(help="Names of prompts: NAME,NAME.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files here that differ.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Download the prompts of a repository on a Hugging Face hub, and no other file of it.

    All are read before the first is written; hub.json says which commit they came from.

    Example: jpt prompts pull me/prompts --out study/prompts
    """
    from jpt.recipes.library import pull_prompts

    result = pull_prompts(repo, out, revision=revision, only=split_names(only), overwrite=overwrite)
    print_result(result.record, result.describe(), json)
