"""Commands that tune and score prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jpt.cli.completion import complete_backbone, complete_task
from jpt.cli.options import (
    AnswerTokensOption,
    BackboneOption,
    CheckpointMinutesOption,
    ClipNormOption,
    DataOption,
    DtypeOption,
    InitOption,
    JsonOption,
    LabelScoringOption,
    LogOption,
    MeshOption,
    ObjectiveOption,
    RematOption,
    TaskOption,
    TokensPerBatchOption,
    print_result,
)
from jpt.cli.several import with_processes
from jpt.errors import InputError

_NOT_PASSED_ON = ("backbone", "task", "out", "seeds", "json")


@with_processes
def tune(
    backbone: BackboneOption,
    task: TaskOption,
    out: Annotated[Path, typer.Option(help="Run folder; the same command goes on there.")],
    init: InitOption = "random",
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows a step.")] = None,
    tokens_per_batch: TokensPerBatchOption = None,
    learning_rate: Annotated[float | None, typer.Option(help="Constant rate of AdamW.")] = None,
    clip_norm: ClipNormOption = None,
    length: Annotated[int | None, typer.Option(help="Prompt rows.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Longest text in tokens, special tokens included.")
    ] = None,
    answer_tokens: AnswerTokensOption = None,
    group_by_length: Annotated[
        bool | None, typer.Option(help="Rows of like lengths in one batch, to pad less.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of initial prompt, row order and dropout.")] = 0,
    eval_every: Annotated[int | None, typer.Option(help="Steps between validations.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between saves.")] = None,
    checkpoint_minutes: CheckpointMinutesOption = None,
    eval_batch_size: Annotated[int, typer.Option(help="Most rows scored at once.")] = 64,
    dtype: DtypeOption = "float32",
    dropout: Annotated[str, typer.Option(help="off, or paper: on inside the layers.")] = "off",
    objective: ObjectiveOption = None,
    label_scoring: LabelScoringOption = "phrase",
    remat: RematOption = "dots",
    mesh: MeshOption = None,
    data: DataOption = None,
    predictions: Annotated[
        bool, typer.Option(help="Write the answer to every test row: OUT/predictions.jsonl.")
    ] = False,
    log: LogOption = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="S1,S2,...: a run each in OUT/seed-S, then mean and deviation."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Tune a soft prompt for a task; only the prompt learns.

    Options left out take the backbone's own choice (built-in ones have one), else the paper's.

    Example: jpt tune --backbone builtin/bert-small --task builtin/rotten_tomatoes --out runs/rt
    """
    # Every option goes on under its own name, which is that of the Python API.
    options = {name: value for name, value in locals().items() if name not in _NOT_PASSED_ON}
    options["progress"] = True
    if seeds is not None:
        from jpt.tuning.seeds import parse_seeds, tune_seeds

        del options["seed"]
        several = tune_seeds(backbone, task, parse_seeds(seeds), out, **options)
        print_result(several.record, several.describe(), json)
        return
    from jpt.tuning.tune import tune as run

    result = run(backbone, task, out, **options)
    print_result(result.record, result.describe(), json)


@with_processes
def evaluate(
    prompt: Annotated[Path, typer.Option(help="Prompt file, or the folder of its run.")],
    task: TaskOption,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Instead of the one that the prompt's card names.",
            autocompletion=complete_backbone,
        ),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest text in tokens.")] = None,
    answer_tokens: AnswerTokensOption = None,
    label_scoring: LabelScoringOption = "phrase",
    eval_batch_size: Annotated[int, typer.Option(help="Most rows scored at once.")] = 64,
    dtype: DtypeOption = "float32",
    mesh: MeshOption = None,
    data: DataOption = None,
    predictions: Annotated[
        Path | None, typer.Option(help="File for the answer to every row, as JSON lines.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Score a prompt on a task, its own or another (zero-shot transfer).

    Example: jpt evaluate --prompt runs/rt --task builtin/imdb
    """
    from jpt.tuning.evaluate import describe_score
    from jpt.tuning.evaluate import evaluate as score_prompt

    score = score_prompt(
        prompt,
        task,
        split=split,
        backbone=backbone,
        max_tokens=max_tokens,
        answer_tokens=answer_tokens,
        label_scoring=label_scoring,
        eval_batch_size=eval_batch_size,
        dtype=dtype,
        mesh=mesh,
        data=data,
        predictions=predictions,
    )
    record = {"prompt": str(prompt), "task": task, "split": split, **score.summary()}
    print_result(record, describe_score(score, task, split), json)


def check(
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Built-in name, folder or hub id; a config.json for a dry run.",
            autocompletion=complete_backbone,
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Task to try on it.", autocompletion=complete_task)
    ] = None,
    length: Annotated[int | None, typer.Option(help="Prompt rows.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest text in tokens.")] = None,
    dtype: DtypeOption = "float32",
    data: DataOption = None,
    mesh: Annotated[
        str | None, typer.Option(help="Dry run: devices by axis, for instance data:8,model:8.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Dry run: rows a step.")] = None,
    remat: Annotated[
        str | None, typer.Option(help="Dry run: what layers keep: dots, full or none.")
    ] = None,
    device_memory: Annotated[
        float | None, typer.Option(help="Dry run: size in GB that a device must not exceed.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Say what is wrong before an hour is lost: versions, devices, lengths, label words, 20 steps.

    With a config.json alone, a dry run: what a step of that model would need on a mesh of devices,
    compiled without weights.

    Example: jpt check --backbone builtin/bert-small --task builtin/rotten_tomatoes

    Example: jpt check --backbone t5-11b.json --mesh data:8,model:8 --dtype bfloat16
    """
    sizes = {"length": length, "max_tokens": max_tokens, "dtype": dtype}
    rows = {"task": task, "data": data}
    planned = {
        "mesh": mesh,
        "batch_size": batch_size,
        "remat": remat,
        "device_memory": device_memory,
    }
    if backbone is not None and backbone.endswith(".json"):
        from jpt.recipes.dry_run import dry_run, use_virtual_devices

        _refuse(rows, "a dry run reads no rows; leave {} out")
        use_virtual_devices(mesh)
        given = {name: value for name, value in planned.items() if value is not None}
        record, text = dry_run(backbone, **sizes, **given)
    else:
        from jpt.recipes.check import run_check

        _refuse(planned, "{} is of a dry run, which takes a config.json as --backbone")
        record, text = run_check(backbone, **sizes, **rows)
    print_result(record, text, json)
    if not record["ok"]:
        raise typer.Exit(1)


def _refuse(options: dict[str, object], message: str) -> None:
    """Refuses options that are set but mean nothing here."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if given:
        raise InputError(message.format(" and ".join(given)))
