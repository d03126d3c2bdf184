"""The ungrouped commands: tune, evaluate, transfer, neurons, mask, report and others."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from jpt.cli.options import (
    AnswerTokensOption,
    BackboneOption,
    BatchSizeOption,
    CardBackboneOption,
    CheckpointEveryOption,
    CheckpointMinutesOption,
    ClipNormOption,
    DataOption,
    DropoutOption,
    DtypeOption,
    EvalBatchSizeOption,
    EvalEveryOption,
    GroupByLengthOption,
    InitOption,
    JsonOption,
    LabelScoringOption,
    LearningRateOption,
    LengthOption,
    LogOption,
    MaxTokensOption,
    MeshOption,
    ObjectiveOption,
    PromptOption,
    RematOption,
    RunOutOption,
    SeedPromptsOption,
    SettingsOption,
    SplitOption,
    StackOption,
    StepsOption,
    StudyOutOption,
    TaskOption,
    TasksDataOption,
    TasksOption,
    TestSplitOption,
    TokensPerBatchOption,
    TopLayersOption,
    TunedScoringOption,
    complete_backbone,
    complete_task,
    complete_tasks,
    omit,
    print_result,
    split_names,
    with_processes,
)
from jpt.distributed import is_first, on_first
from jpt.errors import InputError, unknown_name

# Options have the names of the Python API, so that a command passes on its locals().

# --- Tuning and evaluation


@with_processes
def tune(
    backbone: BackboneOption,
    task: TaskOption,
    out: RunOutOption,
    init: InitOption = "random",
    steps: StepsOption = None,
    batch_size: BatchSizeOption = None,
    tokens_per_batch: TokensPerBatchOption = None,
    learning_rate: LearningRateOption = None,
    clip_norm: ClipNormOption = None,
    length: LengthOption = None,
    max_tokens: MaxTokensOption = None,
    answer_tokens: AnswerTokensOption = None,
    group_by_length: GroupByLengthOption = None,
    seed: Annotated[
        int, typer.Option(help="Random seed (prompt initialisation, data order, dropout).")
    ] = 0,
    eval_every: EvalEveryOption = None,
    checkpoint_every: CheckpointEveryOption = None,
    checkpoint_minutes: CheckpointMinutesOption = None,
    eval_batch_size: EvalBatchSizeOption = 64,
    dtype: DtypeOption = "float32",
    dropout: DropoutOption = "off",
    objective: ObjectiveOption = None,
    label_scoring: LabelScoringOption = None,
    remat: RematOption = "dots",
    mesh: MeshOption = None,
    data: DataOption = None,
    predictions: Annotated[
        bool, typer.Option(help="Write predictions for all test rows to OUT/predictions.jsonl.")
    ] = False,
    log: LogOption = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Seeds S1,S2,...: tune one prompt each in OUT/seed-S; report mean and deviation."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Tune a soft prompt for a task; the backbone stays frozen.

    Omitted options default to the values in the backbone's tuning.json, if it has one, and
    otherwise to the paper's values.

    Example: jpt tune --backbone builtin/bert-small --task builtin/rotten_tomatoes --out runs/rt
    """
    options = omit(locals(), "backbone", "task", "out", "seeds", "json") | {"progress": True}
    if seeds is not None:
        from jpt.tuning.tune import parse_seeds, tune_seeds

        del options["seed"]
        several = tune_seeds(backbone, task, parse_seeds(seeds), out, **options)
        print_result(several.record, several.describe(), json)
        return
    from jpt.tuning.tune import tune as run

    result = run(backbone, task, out, **options)
    print_result(result.record, result.describe(), json)


@with_processes
def evaluate(
    prompt: PromptOption,
    task: TaskOption,
    split: SplitOption = "test",
    backbone: CardBackboneOption = None,
    max_tokens: MaxTokensOption = None,
    answer_tokens: AnswerTokensOption = None,
    label_scoring: TunedScoringOption = None,
    settings: SettingsOption = "tuned",
    eval_batch_size: EvalBatchSizeOption = 64,
    dtype: DtypeOption = "float32",
    mesh: MeshOption = None,
    data: DataOption = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Output file for the predictions of all rows (JSON lines).")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Score a prompt on its own task or on another one (zero-shot transfer).

    Example: jpt evaluate --prompt runs/rt --task builtin/imdb
    """
    options = omit(locals(), "prompt", "task", "json")
    from jpt.tuning.evaluate import describe_score
    from jpt.tuning.evaluate import evaluate as score_prompt

    score = score_prompt(prompt, task, **options)
    record = {"prompt": str(prompt), "task": task, "split": split, **score.summary()}
    print_result(record, describe_score(score, task, split), json)


# --- Studies of transfer


@with_processes
def quickstart(
    out: StudyOutOption = Path("jpt-quickstart"),
    backbone: BackboneOption = "builtin/bert-small",
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Tasks T1,T2,...; defaults to built-in tasks of three types.",
            autocompletion=complete_tasks,
        ),
    ] = None,
    steps: StepsOption = None,
    seed: Annotated[int, typer.Option(help="Random seed (prompt initialisation, data order).")] = 0,
    mesh: MeshOption = None,
    json: JsonOption = False,
) -> None:
    """Run a whole study on built-in models and tasks, offline: tune, transfer, compare, report.

    Example: jpt quickstart
    """
    options = omit(locals(), "out", "tasks", "json")
    from jpt.recipes.quickstart import TASKS
    from jpt.recipes.quickstart import quickstart as run

    result = run(out, tasks=split_names(tasks) or TASKS, progress=True, **options)
    print_result(result.record, result.describe(), json)


@with_processes
def transfer(
    prompts: SeedPromptsOption,
    out: StudyOutOption,
    tasks: TasksOption = None,
    split: TestSplitOption = "test",
    backbone: CardBackboneOption = None,
    random: Annotated[bool, typer.Option(help="Also score an untrained random prompt.")] = True,
    untouched: Annotated[
        bool, typer.Option(help="Also score the backbone without a prompt (column none).")
    ] = True,
    seed: Annotated[int, typer.Option(help="Random seed of the untrained prompt.")] = 0,
    max_tokens: MaxTokensOption = None,
    label_scoring: TunedScoringOption = None,
    settings: SettingsOption = "tuned",
    eval_batch_size: EvalBatchSizeOption = 64,
    dtype: DtypeOption = "float32",
    mesh: MeshOption = None,
    data: TasksDataOption = None,
    json: JsonOption = False,
) -> None:
    """Score every prompt on every task without further tuning (zero-shot transfer).

    For prompts with several seeds ('jpt tune --seeds') the matrix has the mean; transfer.json has
    the score of each seed and the standard deviation.

    Example: jpt transfer --prompts study/prompts --tasks builtin/imdb,builtin/rotten_tomatoes
    --out study
    """
    options = omit(locals(), "prompts", "tasks", "out", "json")
    from jpt.transfer.zero_shot import transfer_matrix

    result = transfer_matrix(prompts, split_names(tasks), out, progress=True, **options)
    print_result(result.record, f"{result.describe()}\nwritten: {out}/transfer.csv", json)


@with_processes
def warm_start(
    task: TaskOption,
    sources: Annotated[
        str, typer.Option(help="Source prompts FILE,...: prompt files or run folders.")
    ],
    out: StudyOutOption,
    backbone: CardBackboneOption = None,
    seeds: Annotated[
        str, typer.Option(help="Random seeds S1,S2,... (data order, vanilla initialisation).")
    ] = "0,1,2",
    copy_moments: Annotated[
        bool,
        typer.Option(
            "--copy-moments",
            help="Also copy Adam's moments, as the authors' script does; requires run folders.",
        ),
    ] = False,
    tolerance: Annotated[
        float, typer.Option(help="Distance from a run's best score that counts as converged.")
    ] = 0.01,
    steps: StepsOption = None,
    batch_size: BatchSizeOption = None,
    tokens_per_batch: TokensPerBatchOption = None,
    learning_rate: LearningRateOption = None,
    length: Annotated[
        int | None, typer.Option(help="Number of prompt tokens; defaults to the sources'.")
    ] = None,
    max_tokens: MaxTokensOption = None,
    answer_tokens: AnswerTokensOption = None,
    group_by_length: GroupByLengthOption = None,
    eval_every: EvalEveryOption = None,
    checkpoint_every: CheckpointEveryOption = None,
    eval_batch_size: EvalBatchSizeOption = 64,
    dtype: DtypeOption = "float32",
    dropout: DropoutOption = "off",
    objective: ObjectiveOption = None,
    label_scoring: LabelScoringOption = None,
    remat: RematOption = "dots",
    mesh: MeshOption = None,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Tune on a task from source prompts and from a random start, and compare convergence.

    Writes OUT/warm_start.json with both speed-ups, curves.csv and warm_start.svg.

    Example: jpt warm-start --task builtin/imdb_negation --sources runs/first_person,runs/imdb
    --out runs/warm
    """
    options = omit(locals(), "task", "sources", "out", "seeds", "json")
    from jpt.report.figures import warm_start_figure
    from jpt.transfer.warm_start import warm_start as run
    from jpt.tuning.tune import parse_seeds

    options |= {"seeds": parse_seeds(seeds), "progress": True}
    result = run(task, split_names(sources) or [], out, **options)
    figure = on_first(lambda: str(warm_start_figure(out)))
    text = f"{result.describe()}\nwritten: {out}/warm_start.json, {figure}"
    print_result(result.record, text, json)


@with_processes
def sweep(
    grid: Annotated[
        Path, typer.Argument(help="TOML file: [fixed], [grid], [[zip]], [search], [run].")
    ],
    out: StudyOutOption,
    shard: Annotated[
        str | None, typer.Option(help="Shard i/n of the runs, for job arrays that share OUT.")
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(help="Where to train: ray, for a Ray cluster (requires jpt[cluster])."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of the Ray cluster; defaults to the running one."),
    ] = None,
    needs: Annotated[
        str | None,
        typer.Option(help="Ray resources per group of runs, for instance GPU:1,CPU:4."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="Number of trials of [search] (requires jpt[search]).")
    ] = None,
    mesh: MeshOption = None,
    json: JsonOption = False,
) -> None:
    """Tune a prompt for every combination of options in a file and write a table of scores.

    The file has [fixed] (constant values), [grid] (every combination of lists and ranges), [[zip]]
    (lists that vary together) and [run] (slots: number of runs trained at once; memory_gb). Keys
    are the options of jpt tune: backbone, task, data, steps, seed, learning_rate, ... [search] has
    ranges without a count: each trial samples a value from every range and trains the combinations
    of the rest of the file with it.

    On a Ray cluster, paths must be the same on every node. Set slots in [run], because its default
    depends on the machine that starts the sweep.

    Example: jpt sweep grid.toml --out sweeps/rates
    """
    from jpt.recipes.sweep import sweep as run

    workers = _workers(on, address, needs)
    result = run(grid, out, shard=shard, trials=trials, mesh=mesh, workers=workers, progress=True)
    print_result(result.record, result.describe(), json)


def _workers(on: str | None, address: str | None, needs: str | None) -> Any:
    """Return the sweep's workers; None trains in this process."""
    if on is None:
        if address or needs:
            raise InputError("address and needs require --on ray; add it or leave them out")
        return None
    if on != "ray":
        raise unknown_name("value of --on", on, ("ray",))
    from jpt.recipes.sweep_ray import ray_workers

    return ray_workers(address, needs)


@with_processes
def recommend(
    task: TaskOption,
    prompts: SeedPromptsOption,
    out: Annotated[
        Path | None, typer.Option(help="Folder for recommend.json and the probe's run.")
    ] = None,
    labels: Annotated[
        int | None,
        typer.Option(
            help="Number of labelled train rows; default 64, or all if fewer; 0 for none."
        ),
    ] = None,
    probe_steps: Annotated[
        int, typer.Option(help="Optimizer steps of the probe, a briefly tuned prompt.")
    ] = 60,
    learning_rate: LearningRateOption = None,
    known: Annotated[
        Path | None,
        typer.Option(help="transfer.csv of the same prompts, for evaluating the rankings."),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(help="Ranking to select by: zero_shot, neuron_overlap, cosine_average, ..."),
    ] = None,
    layers: TopLayersOption = None,
    backbone: CardBackboneOption = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed (rows, probe); defaults to the sources'.")
    ] = None,
    max_tokens: MaxTokensOption = None,
    eval_batch_size: EvalBatchSizeOption = 64,
    dtype: DtypeOption = "float32",
    mesh: MeshOption = None,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Rank source prompts for a new task with few or no labels, before tuning.

    Example: jpt recommend --task builtin/imdb --prompts study/prompts --known study/transfer.csv
    """
    options = omit(locals(), "task", "prompts", "out", "json")
    from jpt.recipes.recommend import recommend as run

    result = run(task, prompts, out, progress=True, **options)
    print_result(result.record, result.describe(), json)


# --- Neurons and indicators


@with_processes
def neurons(
    prompts: SeedPromptsOption,
    out: Annotated[Path, typer.Option(help="Output file, for instance neurons.npz.")],
    probe: Annotated[
        str, typer.Option(help="Input: start (prompt and start token, as in the paper) or text.")
    ] = "start",
    task: Annotated[
        str | None,
        typer.Option(
            help="Task of the text: a name (see 'jpt tasks') or a folder.",
            autocompletion=complete_task,
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(help="Split of the text: train, validation or test.")
    ] = "validation",
    rows: Annotated[
        int | None, typer.Option(help="Number of random rows of text; default 64, or all if fewer.")
    ] = None,
    positions: Annotated[
        str, typer.Option(help="Token positions: answer, text (mean over its tokens), or 0,-1.")
    ] = "answer",
    max_tokens: MaxTokensOption = None,
    seed: Annotated[int, typer.Option(help="Random seed for sampling rows.")] = 0,
    backbone: CardBackboneOption = None,
    dtype: DtypeOption = "float32",
    mesh: MeshOption = None,
    stack: StackOption = None,
    chunk_mb: Annotated[
        float, typer.Option(help="Approximate memory per chunk in MB; no effect on results.")
    ] = 256,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Record the feed-forward neurons that each prompt activates, in one compiled call.

    Example: jpt neurons --prompts study/prompts --out study/neurons.npz
    """
    options = omit(locals(), "prompts", "out", "json")
    from jpt.neurons.probe import activated_neurons, describe_activations
    from jpt.neurons.selection import describe_redundancy

    found = activated_neurons(prompts, out, progress=probe == "text", **options)
    record, text = describe_activations(found)
    record["redundancy"], shares = describe_redundancy(found)
    print_result({"out": str(out), **record}, f"{text}{shares}\nwritten: {out}", json)


MaskedTasksOption = Annotated[
    str | None,
    typer.Option(
        help="Tasks to score T1,T2,..., with --prompts; default: all.",
        autocompletion=complete_tasks,
    ),
]


@with_processes
def mask(
    out: StudyOutOption,
    prompt: Annotated[Path | None, typer.Option(help="Prompt file or run folder.")] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Task to score, with --prompt; defaults to the task in the card.",
            autocompletion=complete_task,
        ),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Folder of prompts; each is scored on its own task.")
    ] = None,
    tasks: MaskedTasksOption = None,
    ratio: Annotated[float, typer.Option(help="Fraction of neurons to mask.")] = 0.2,
    layers: Annotated[
        str | None, typer.Option(help="Layer range, from 0, such as 9-11; default: all layers.")
    ] = None,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Mask this fraction of each layer.")
    ] = False,
    kinds: Annotated[
        str | None,
        typer.Option(
            help="Kinds of masks: in_task,random,other,common,specific; default: all that apply."
        ),
    ] = None,
    random_draws: Annotated[int, typer.Option(help="Number of random masks.")] = 3,
    neurons: Annotated[
        Path | None, typer.Option(help="Output file of 'jpt neurons' for selecting neurons.")
    ] = None,
    stack: StackOption = None,
    split: TestSplitOption = "test",
    seed: Annotated[int, typer.Option(help="Random seed of the random masks.")] = 0,
    backbone: CardBackboneOption = None,
    max_tokens: MaxTokensOption = None,
    label_scoring: TunedScoringOption = None,
    settings: SettingsOption = "tuned",
    eval_batch_size: EvalBatchSizeOption = 64,
    dtype: DtypeOption = "float32",
    mesh: MeshOption = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of rows; with --prompts, a folder of rows per task.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Score prompts with the neurons that they activate masked, or with other neurons masked.

    Example: jpt mask --prompts study/prompts --ratio 0.2 --out study
    """
    options = omit(locals(), "prompt", "task", "prompts", "tasks", "out", "json")
    given, scored = _prompts_and_tasks(prompt, task, prompts, tasks)
    from jpt.neurons.masking import mask_neurons
    from jpt.report.figures import mask_figure

    options["kinds"] = split_names(kinds)
    result = mask_neurons(given, scored, out, progress=True, **options)
    figure = on_first(lambda: str(mask_figure(out)))
    text = f"{result.describe()}\nwritten: {out}/mask.json, {out}/mask.csv, {figure}"
    print_result(result.record, text, json)


def _prompts_and_tasks(
    prompt: Path | None, task: str | None, prompts: Path | None, tasks: str | None
) -> tuple[Path, str | list[str] | None]:
    """Return one prompt with a task, or a folder of prompts with their tasks."""
    if (prompt is None) == (prompts is None):
        given = "both" if prompt else "neither"
        raise InputError(
            f"expected one of --prompt and --prompts, got {given}; give a file or a folder"
        )
    if (tasks if prompt else task) is not None:
        pair = "--tasks with --prompt" if prompt else "--task with --prompts"
        raise InputError(f"got {pair}; use --task with --prompt, --tasks with --prompts")
    return (prompt, task) if prompt else (prompts, split_names(tasks))


def indicators(
    prompts: SeedPromptsOption,
    out: Annotated[Path, typer.Option(help="Folder for indicators.csv, types.json and more.")],
    neurons: Annotated[
        Path | None, typer.Option(help="Output file of 'jpt neurons' for the same prompts.")
    ] = None,
    transfer: Annotated[
        Path | None, typer.Option(help="transfer.csv of 'jpt transfer' for the same prompts.")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Target tasks T1,T2,..., whose prompts are compared; default: all.",
            autocompletion=complete_tasks,
        ),
    ] = None,
    layers: TopLayersOption = None,
    json: JsonOption = False,
) -> None:
    """Compute similarity indicators for pairs of prompts and correlate them with transfer scores.

    Example: jpt indicators --prompts study/prompts --neurons study/neurons.npz
    --transfer study/transfer.csv --out study
    """
    options = omit(locals(), "prompts", "out", "tasks", "json")
    from jpt.indicators.correlation import study_indicators

    study = study_indicators(prompts, out, tasks=split_names(tasks), progress=True, **options)
    print_result(study.record, study.describe(), json)


def report(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="Study folder: output folder of jpt transfer and other commands."
        ),
    ],
    json: JsonOption = False,
) -> None:
    """Write DIR/report.html: figures, tables and findings of a study on one page.

    Example: jpt report study
    """
    from jpt.report.report import summarize, write_report

    path = write_report(folder)
    findings = summarize(folder)
    text = "\n".join([*findings, f"written: {path}"])
    print_result({"report": str(path), "findings": findings}, text, json)


# --- Import and generation


def import_reference(
    source: Annotated[
        Path,
        typer.Argument(help="Folder of NAME.npy or NAME/task_prompt files, or one file."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for NAME.safetensors files.")],
    backbone: Annotated[
        str | None,
        typer.Option(help="Hub id of the backbone; defaults to the one in the folder name."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Import prompts that the paper's authors released.

    Example: jpt import reference prompts/roberta-base --out study/prompts
    """
    from jpt.recipes.interop import describe_import
    from jpt.recipes.interop import import_reference as run

    record, text = describe_import(run(source, out, backbone), out)
    print_result(record, text, json)


@with_processes
def generate(
    prompt: Annotated[Path | None, typer.Option(help="Prompt file or run folder.")] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Backbone; defaults to the prompt's. Required without --prompt.",
            autocompletion=complete_backbone,
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(help="Maximum number of new tokens per continuation.")
    ] = 32,
    beams: Annotated[int, typer.Option(help="Beam width; 1 is greedy decoding.")] = 1,
    eval_batch_size: EvalBatchSizeOption = 16,
    dtype: DtypeOption = "float32",
    mesh: MeshOption = None,
    json: JsonOption = False,
) -> None:
    r"""Continue the lines of stdin: one continuation per line, with new lines written as \n.

    Example: echo 'The film was' | jpt generate --backbone models/gpt2 --max-tokens 20
    """
    options = omit(locals(), "prompt", "json")
    from jpt.prompts.store import load_prompt
    from jpt.recipes.generate import generate as run

    if prompt is None and backbone is None:
        raise InputError("expected a prompt or a backbone; give --prompt FILE or --backbone NAME")
    loaded = None if prompt is None else load_prompt(prompt)
    if is_first() and sys.stdin.isatty():
        typer.echo("reading lines from the terminal; end with Ctrl-D", err=True)
    found = run(loaded, on_first(lambda: read_lines(sys.stdin.buffer)), progress=True, **options)
    record = {
        "prompt": None if prompt is None else str(prompt),
        "backbone": loaded.card.backbone if backbone is None else backbone,
        "max_tokens": max_tokens,
        "beams": beams,
        "lines": len(found),
        "continuations": found,
    }
    print_result(record, "\n".join(map(one_line, found)), json)


def read_lines(stream: BinaryIO) -> list[str]:
    r"""Read lines of UTF-8 text; empty lines count.

    Example:
        >>> import io
        >>> read_lines(io.BytesIO(b"The film\r\n\nwas"))
        ['The film', '', 'was']
    """
    content = stream.read().removeprefix(b"\xef\xbb\xbf")  # byte order mark of some editors
    if not content:
        raise InputError(
            "stdin is empty; give one text per line, for instance: echo 'The film was' | jpt"
            " generate"
        )
    lines = []
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), 1):
        try:
            lines.append(line.removesuffix(b"\r").decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(
                f"stdin, line {number}: expected UTF-8 text, got byte "
                f"{error.object[error.start]:#04x} at position {error.start + 1}; convert it, for"
                " instance with iconv -t utf-8"
            ) from None
        if "\0" in lines[-1]:
            raise InputError(
                f"stdin, line {number}: expected text, got a zero byte; give text, not binary data"
            )
    return lines


def one_line(text: str) -> str:
    r"""Escape line breaks.

    Example:
        >>> print(one_line("a good film\nit was"))
        a good film\nit was
    """
    return text.replace("\r", "\\r").replace("\n", "\\n")


# --- Listings and checks


def tasks(
    name: Annotated[
        str | None,
        typer.Argument(help="Task to show in full.", autocompletion=complete_task),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Backbone whose label token ids and encoded rows are shown.",
            autocompletion=complete_backbone,
        ),
    ] = None,
    max_tokens: MaxTokensOption = None,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """List the tasks, or show one with its template, label words and rows.

    Example: jpt tasks builtin/imdb --backbone builtin/bert-small
    """
    from jpt.recipes.listing import describe_task, list_tasks

    record, text = list_tasks() if name is None else describe_task(name, backbone, max_tokens, data)
    print_result(record, text, json)


def backbones(json: JsonOption = False) -> None:
    """List the built-in backbones.

    Example: jpt backbones --json
    """
    from jpt.recipes.listing import list_backbones

    record, text = list_backbones()
    print_result(record, text, json)


def check(
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Built-in name, folder or hub id; a config.json for a dry run.",
            autocompletion=complete_backbone,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Task for a trial run.", autocompletion=complete_task),
    ] = None,
    length: LengthOption = None,
    max_tokens: MaxTokensOption = None,
    dtype: DtypeOption = "float32",
    data: DataOption = None,
    mesh: Annotated[
        str | None,
        typer.Option(help="Dry run: devices per mesh axis, for instance data:8,model:8."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Dry run: rows per step.")] = None,
    remat: Annotated[
        str | None, typer.Option(help="Dry run: rematerialisation: dots, full or none.")
    ] = None,
    device_memory: Annotated[
        float | None, typer.Option(help="Dry run: memory limit per device in GB.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Check the setup: versions, devices, sequence lengths, label words, and a 20-step trial run.

    With a config.json as --backbone, estimate the per-device memory of a training step on a mesh
    of devices (dry run: compiled without weights).

    Example: jpt check --backbone builtin/bert-small --task builtin/rotten_tomatoes

    Example: jpt check --backbone t5-11b.json --mesh data:8,model:8 --dtype bfloat16
    """
    sizes = {"length": length, "max_tokens": max_tokens, "dtype": dtype}
    rows = {"task": task, "data": data}
    planned = {"mesh": mesh, "batch_size": batch_size, "remat": remat}
    planned |= {"device_memory": device_memory}
    if backbone is not None and backbone.endswith(".json"):
        from jpt.recipes.dry_run import dry_run, use_virtual_devices

        _refuse(rows, "a dry run reads no rows; leave out {}")
        use_virtual_devices(mesh)
        given = {name: value for name, value in planned.items() if value is not None}
        record, text = dry_run(backbone, **sizes, **given)
    else:
        from jpt.recipes.check import run_check

        _refuse(planned, "{} is for a dry run only; give a config.json as --backbone")
        record, text = run_check(backbone, **sizes, **rows)
    print_result(record, text, json)
    if not record["ok"]:
        raise typer.Exit(1)


def _refuse(options: dict[str, object], message: str) -> None:
    """Raise InputError if one of the options is set."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if given:
        raise InputError(message.format(" and ".join(given)))


def version_text() -> str:
    """Return versions, machine and devices for ``jpt --version``; loads jax."""
    from jpt.results.provenance import environment_info

    found = environment_info()
    versions = dict(found["versions"])
    first = f"jpt {versions.pop('jpt')}"
    rest = " · ".join(f"{name} {version}" for name, version in versions.items())
    return "\n".join([first, f"{rest} · {found['machine']}", f"devices: {_devices()}"])


def _devices() -> str:
    import jax

    try:
        kinds = Counter(device.device_kind for device in jax.devices())
    # What jax raises depends on what is missing: a driver, a plugin, the platform asked for.
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split()) or "jax finds no such platform"
        return f"none (JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}): {reason}"
    return ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))
