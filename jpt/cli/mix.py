"""Commands that make one prompt, or one answer, of several prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jpt.cli.options import (
    DataOption,
    DtypeOption,
    JsonOption,
    LabelScoringOption,
    MeshOption,
    TaskOption,
    print_result,
)
from jpt.cli.several import with_processes
from jpt.cli.studies import OtherBackboneOption, SeedPromptsOption, split_names

app = typer.Typer(
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


@app.command()
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
    from jpt.prompts.mixture import average_prompts, choose_parts, parse_weights
    from jpt.prompts.store import save_prompt

    parts = choose_parts(prompts, split_names(names))
    mean = average_prompts(parts, None if weights is None else parse_weights(weights))
    save_prompt(out, mean)
    rows, width = mean.values.shape
    record = {"out": str(out), "source": mean.card.source, "rows": rows, "width": width}
    text = f"{mean.card.source}: {rows} rows x {width}\nwritten: {out}"
    print_result(record, f"{text}; start from it with --init prompt:{out} --length {rows}", json)


@app.command()
@with_processes
def learn(
    prompts: SeedPromptsOption,
    task: TaskOption,
    out: Annotated[Path, typer.Option(help="Run folder; the same command goes on there.")],
    names: NamesOption = None,
    backbone: OtherBackboneOption = None,
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
    from jpt.prompts.mixture import choose_parts
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


@app.command()
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
    backbone: OtherBackboneOption = None,
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
    from jpt.prompts.mixture import choose_parts, parse_weights
    from jpt.transfer.mixture_ensemble import score_ensemble

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
