"""The grouped commands: export, mix, project, prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jpt.cli.options import (
    AnswerTokensOption,
    BackboneOption,
    BatchSizeOption,
    CardBackboneOption,
    CheckpointEveryOption,
    DataOption,
    DtypeOption,
    EvalBatchSizeOption,
    EvalEveryOption,
    JsonOption,
    LabelScoringOption,
    MaxTokensOption,
    MeshOption,
    PromptArgument,
    RematOption,
    RunOutOption,
    SeedPromptsOption,
    SplitOption,
    StepsOption,
    TaskOption,
    TasksDataOption,
    TasksOption,
    TunedScoringOption,
    complete_backbone,
    omit,
    print_result,
    split_names,
    with_processes,
)
from jpt.errors import InputError


def _group(help: str) -> typer.Typer:
    names = {"help_option_names": ["-h", "--help"]}
    return typer.Typer(help=help, no_args_is_help=True, context_settings=names)


# --- PEFT

export_app = _group("Export prompts to other software.")


@export_app.callback()
def _root() -> None:
    """Keep ``peft`` a subcommand: typer folds a group of one command into it."""


@export_app.command("peft")
def export_peft(
    file: PromptArgument,
    out: Annotated[Path, typer.Option(help="Adapter folder, new or empty.")],
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Base model name to write into the adapter config (default: from the card)."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Export a prompt of a decoder or T5 as an adapter folder for PEFT.

    Example: jpt export peft study/prompts/imdb --out adapters/imdb
    """
    from jpt.recipes.interop import export_peft as run

    result = run(file, out, backbone)
    print_result(result.record, result.describe(), json)


def import_peft(
    source: Annotated[str, typer.Argument(help="Prompt-tuning adapter folder or its hub id.")],
    out: Annotated[Path, typer.Option(help="Output file NAME.safetensors.")],
    backbone: Annotated[
        str | None, typer.Option(help="Backbone; defaults to the adapter's base model.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Task; defaults to the one in the card, or 'unknown'.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Import a prompt trained by PEFT.

    Example: jpt import peft adapters/imdb --out study/prompts/imdb.safetensors
    """
    from jpt.recipes.interop import import_peft as run

    result = run(source, out, backbone, task)
    print_result(result.record, result.describe(), json)


# --- Combinations of prompts

mix_app = _group("Combine several prompts into one prompt or one prediction.")

NamesOption = Annotated[
    str | None, typer.Option(help="Names of prompts in the folder: A,B,...; default all.")
]
WeightsOption = Annotated[
    str | None,
    typer.Option(help="Weights A=2,B=1,..., divided by their sum; equal by default."),
]


@mix_app.command()
def average(
    prompts: SeedPromptsOption,
    out: Annotated[Path, typer.Option(help="Output file, for instance mean.safetensors.")],
    names: NamesOption = None,
    weights: WeightsOption = None,
    json: JsonOption = False,
) -> None:
    """Average several prompts into one initial prompt for a new task.

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
    out: RunOutOption,
    names: NamesOption = None,
    backbone: CardBackboneOption = None,
    per_row: Annotated[
        bool, typer.Option(help="Weights per prompt token instead of per prompt.")
    ] = False,
    steps: Annotated[int, typer.Option(help="Number of optimizer steps.")] = 100,
    learning_rate: Annotated[
        float, typer.Option(help="Learning rate of the mixture logits.")
    ] = 0.1,
    batch_size: BatchSizeOption = None,
    max_tokens: MaxTokensOption = None,
    seed: Annotated[int, typer.Option(help="Random seed of the data order.")] = 0,
    eval_every: EvalEveryOption = None,
    checkpoint_every: CheckpointEveryOption = None,
    eval_batch_size: EvalBatchSizeOption = 64,
    dtype: DtypeOption = "float32",
    mesh: MeshOption = None,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Learn the weights of a weighted average of frozen prompts on a task.

    Example: jpt mix learn --prompts study/prompts --task builtin/imdb --out runs/imdb-mixture
    """
    options = omit(locals(), "prompts", "task", "out", "names", "backbone", "json")
    from jpt.prompts.arithmetic import choose_parts
    from jpt.transfer.mixture import learn_mixture

    parts = choose_parts(prompts, split_names(names))
    result = learn_mixture(backbone, task, parts, out, progress=True, **options)
    print_result(result.record, result.describe(), json)


@mix_app.command()
@with_processes
def ensemble(
    prompts: SeedPromptsOption,
    task: TaskOption,
    names: NamesOption = None,
    weights: WeightsOption = None,
    combine: Annotated[
        str, typer.Option(help="Averaged quantity: log_probs or probs.")
    ] = "log_probs",
    split: SplitOption = "test",
    backbone: CardBackboneOption = None,
    max_tokens: MaxTokensOption = None,
    label_scoring: TunedScoringOption = None,
    eval_batch_size: EvalBatchSizeOption = 64,
    dtype: DtypeOption = "float32",
    mesh: MeshOption = None,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Score an ensemble of prompts on a task, averaging their predictions per row.

    Example: jpt mix ensemble --prompts study/prompts --task builtin/imdb
    """
    options = omit(locals(), "prompts", "task", "names", "weights", "json")
    from jpt.prompts.arithmetic import choose_parts, parse_weights
    from jpt.transfer.mixture import score_ensemble

    options["weights"] = None if weights is None else parse_weights(weights)
    found = score_ensemble(choose_parts(prompts, split_names(names)), task, **options)
    record = {"prompts": str(prompts), "task": task, "split": split, **found.record}
    print_result(record, found.describe(task, split), json)


# --- Cross-model projector

SourcesOption = Annotated[
    Path, typer.Option(help="Source prompts: folder of NAME.safetensors files or runs NAME/.")
]
TargetsOption = Annotated[
    Path | None, typer.Option(help="Folder of the target backbone's prompts for the same tasks.")
]
TargetOption = Annotated[
    str | None,
    typer.Option(
        help="Target backbone; defaults to the one in the projector's card.",
        autocompletion=complete_backbone,
    ),
]
SourceBackboneOption = Annotated[
    str | None,
    typer.Option(
        help="Source backbone; defaults to the one in the prompt card.",
        autocompletion=complete_backbone,
    ),
]
AnchorsOption = Annotated[
    int, typer.Option(help="Number of anchor tokens for the 'relative' method.")
]
TargetLengthOption = Annotated[
    int | None, typer.Option(help="Number of prompt tokens of the target.")
]


@with_processes
def train(
    sources: SourcesOption,
    target_backbone: BackboneOption,
    out: RunOutOption,
    objective: Annotated[
        str, typer.Option(help="Objective: task (task loss) or distance (to the in-task prompts).")
    ] = "task",
    tasks: TasksOption = None,
    targets: TargetsOption = None,
    bottleneck: Annotated[int, typer.Option(help="Width between the two linear maps.")] = 768,
    activation: Annotated[str, typer.Option(help="Activation: leaky_relu or tanh.")] = "leaky_relu",
    layer_norm: Annotated[
        bool | None,
        typer.Option(help="Layer norm on prompt tokens; on by default unless --per-token."),
    ] = None,
    rescale: Annotated[
        bool, typer.Option(help="Rescale to the mean norm of the target's word embeddings.")
    ] = False,
    per_token: Annotated[
        bool, typer.Option(help="One linear map per prompt token instead of per prompt.")
    ] = False,
    length: TargetLengthOption = None,
    steps: StepsOption = None,
    batch_size: Annotated[int, typer.Option(help="Rows per step (distance: tasks per step).")] = 16,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Constant learning rate; defaults to the target's, else 5e-3 (distance: 1e-4)."
        ),
    ] = None,
    max_tokens: MaxTokensOption = None,
    answer_tokens: AnswerTokensOption = None,
    label_scoring: LabelScoringOption = "phrase",
    seed: Annotated[int, typer.Option(help="Random seed (weights, order of tasks and rows).")] = 0,
    eval_every: EvalEveryOption = None,
    checkpoint_every: CheckpointEveryOption = None,
    eval_batch_size: EvalBatchSizeOption = 64,
    dtype: DtypeOption = "float32",
    remat: RematOption = "dots",
    mesh: MeshOption = None,
    data: TasksDataOption = None,
    json: JsonOption = False,
) -> None:
    """Train a projector from prompts of one backbone to prompts of another.

    Example: jpt project train --sources study/prompts --target-backbone builtin/bert-medium
    --tasks builtin/imdb,builtin/rotten_tomatoes --out projector
    """
    options = omit(locals(), "sources", "target_backbone", "objective", "json")
    from jpt.transfer.projector import train_projector

    options["tasks"] = split_names(tasks)
    result = train_projector(sources, target_backbone, objective, progress=True, **options)
    print_result(result.record, result.describe(), json)


def apply(
    prompts: Annotated[Path, typer.Option(help="Source prompts: folder or file.")],
    out: Annotated[Path, typer.Option(help="Folder for NAME.safetensors files.")],
    projector: Annotated[
        str,
        typer.Option(help="Projector file or run, or untrained, least_squares or relative."),
    ],
    target_backbone: TargetOption = None,
    source_backbone: SourceBackboneOption = None,
    length: TargetLengthOption = None,
    anchors: AnchorsOption = 512,
    seed: Annotated[int, typer.Option(help="Random seed of 'untrained'.")] = 0,
    json: JsonOption = False,
) -> None:
    """Project prompts into prompt files for the target backbone.

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
        str | None, typer.Option(help="Comma-separated projector files or runs.")
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
        typer.Option(help="Untrained methods: untrained,least_squares,relative; default all."),
    ] = None,
    anchors: AnchorsOption = 512,
    length: TargetLengthOption = None,
    random: Annotated[bool, typer.Option(help="Also score an untrained random prompt.")] = True,
    warm_start: Annotated[
        str | None, typer.Option(help="Method to tune from, compared with a random start.")
    ] = None,
    warm_steps: Annotated[int, typer.Option(help="Optimizer steps of the --warm-start runs.")] = 50,
    split: SplitOption = "test",
    seed: Annotated[
        int, typer.Option(help="Random seed (random prompt, 'untrained', tuning).")
    ] = 0,
    max_tokens: MaxTokensOption = None,
    eval_batch_size: EvalBatchSizeOption = 64,
    dtype: DtypeOption = "float32",
    mesh: MeshOption = None,
    data: TasksDataOption = None,
    json: JsonOption = False,
) -> None:
    """Compare projected prompts with in-task, random and untrained baselines.

    Example: jpt project evaluate --projector projector --sources study/prompts --out table
    """
    options = omit(locals(), "sources", "projector", "tasks", "out", "json")
    from jpt.transfer.projection import evaluate_projector

    options["methods"] = None if methods is None else tuple(split_names(methods) or ())
    files = split_names(projector) or []
    names = split_names(tasks)
    result = evaluate_projector(files, sources, names, out, progress=True, **options)
    text = result.describe() + ("" if out is None else f"\nwritten: {out}/projection.csv")
    print_result({**result.record, "scores": result.scores}, text, json)


project_app = _group("Convert prompts of one backbone into prompts of another.")
for _command in (train, apply, evaluate):
    project_app.command()(_command)


# --- Prompt folders and libraries

prompts_app = _group("Inspect prompts and folders of prompts, and share them on a hub.")

FolderArgument = Annotated[
    Path, typer.Argument(help="Folder of NAME.safetensors, runs NAME/, or seeds NAME/seed-S/.")
]
RepoArgument = Annotated[
    str, typer.Argument(help="OWNER/NAME on the hub (HF_ENDPOINT, default huggingface.co).")
]


@prompts_app.command()
def show(
    prompt: PromptArgument,
    backbone: CardBackboneOption = None,
    top: Annotated[int, typer.Option(help="Nearest vocabulary tokens per prompt token.")] = 3,
    json: JsonOption = False,
) -> None:
    """Show the vocabulary nearest to each prompt token, the norms, and the drift from the start.

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
    backbone: CardBackboneOption = None,
    json: JsonOption = False,
) -> None:
    """Check that every prompt is readable, finite, has a complete card and fits its backbone.

    Example: jpt prompts verify study/prompts
    """
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
            help="Create a private repository; otherwise the owner's default applies (public).",
        ),
    ] = False,
    message: Annotated[str | None, typer.Option(help="Commit message.")] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, default main; created if missing.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Upload the prompts of a folder to a Hugging Face hub, in one commit.

    Verifies all prompts first. Uploads prompts, an index (prompts.json) and a model card only;
    creates the repository if missing; keeps prompts there that the folder lacks.

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
    only: Annotated[str | None, typer.Option(help="Only these prompts: NAME,NAME.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace local files that differ.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Download the prompts of a repository on a Hugging Face hub, and no other files.

    Reads all prompts before writing any; hub.json records the commit.

    Example: jpt prompts pull me/prompts --out study/prompts
    """
    from jpt.recipes.library import pull_prompts

    result = pull_prompts(repo, out, revision=revision, only=split_names(only), overwrite=overwrite)
    print_result(result.record, result.describe(), json)
