"""The commands that stand alone: tune, evaluate, transfer, neurons, mask, report and others."""

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
    complete_backbone,
    complete_task,
    complete_tasks,
    print_result,
    with_processes,
)
from jpt.errors import InputError, unknown_name
from jpt.parallel import is_first, on_first

# --- Commands that move prompts to other tasks, and the whole study

SeedPromptsOption = Annotated[
    Path,
    typer.Option(help="Folder of NAME.safetensors, run folders NAME/, or seeds NAME/seed-S/."),
]
StudyOtherBackboneOption = Annotated[
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
    backbone: StudyOtherBackboneOption = None,
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


# --- Commands that compare prompts, and that bring in those of the paper's authors


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
    from jpt.indicators.correlation import study_indicators

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
    from jpt.recipes.interop import describe_import
    from jpt.recipes.interop import import_reference as run

    record, text = describe_import(run(source, out, backbone), out)
    print_result(record, text, json)


# --- The command that lets a model write


@with_processes
def generate(
    prompt: Annotated[
        Path | None, typer.Option(help="Prompt file, or the folder of its run.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Instead of the prompt's own; alone, without a prompt.",
            autocompletion=complete_backbone,
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Most new tokens of a continuation.")] = 32,
    beams: Annotated[
        int, typer.Option(help="Continuations kept side by side; 1 takes the best token each time.")
    ] = 1,
    eval_batch_size: Annotated[int, typer.Option(help="Lines continued at once.")] = 16,
    dtype: DtypeOption = "float32",
    mesh: MeshOption = None,
    json: JsonOption = False,
) -> None:
    r"""Continue the lines of stdin: one continuation a line, new lines in it written as \n.

    Example: echo 'The film was' | jpt generate --backbone models/gpt2 --max-tokens 20
    """
    from jpt.prompts.store import load_prompt
    from jpt.recipes.generate import generate as run

    if prompt is None and backbone is None:
        raise InputError("there is nothing to write with; give --prompt FILE or --backbone NAME")
    loaded = None if prompt is None else load_prompt(prompt)
    if is_first() and sys.stdin.isatty():
        typer.echo("reading lines from the terminal up to Ctrl-D", err=True)
    found = run(
        loaded,
        on_first(lambda: read_lines(sys.stdin.buffer)),
        backbone=backbone,
        max_tokens=max_tokens,
        beams=beams,
        eval_batch_size=eval_batch_size,
        dtype=dtype,
        mesh=mesh,
        progress=True,
    )
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
    r"""Reads lines of UTF-8 text; an empty line counts.

    Args:
        stream: of bytes.

    Returns:
        The lines, without what ends them.

    Raises:
        InputError: there are none, or a line is no text.

    Example:
        >>> import io
        >>> read_lines(io.BytesIO(b"The film\r\n\nwas"))
        ['The film', '', 'was']
    """
    content = stream.read().removeprefix(b"\xef\xbb\xbf")  # a mark some editors put in front
    if not content:
        raise InputError(
            "stdin is empty; give one text a line, for instance: echo 'The film was' | jpt generate"
        )
    lines = []
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), 1):
        try:
            lines.append(line.removesuffix(b"\r").decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(
                f"line {number} of stdin is no UTF-8 text (its byte {error.start + 1} is "
                f"{error.object[error.start]:#04x}); convert it, for instance by iconv -t utf-8"
            ) from None
        if "\0" in lines[-1]:
            raise InputError(
                f"line {number} of stdin holds a zero byte; give text, not binary data"
            )
    return lines


def one_line(text: str) -> str:
    r"""Writes a text so that it stays on one line.

    Args:
        text: of any number of lines.

    Returns:
        The text with ``\n`` and ``\r`` written out.

    Example:
        >>> print(one_line("a good film\nit was"))
        a good film\nit was
    """
    return text.replace("\r", "\\r").replace("\n", "\\n")


# --- Commands that list what there is


def tasks(
    name: Annotated[
        str | None,
        typer.Argument(help="One task, to see it in full.", autocompletion=complete_task),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Show label word ids and encoded rows of this model.",
            autocompletion=complete_backbone,
        ),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest text in tokens.")] = None,
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


# --- The command that scores prompts without chosen neurons

_MASK_NOT_PASSED_ON = (
    "prompt",
    "task",
    "prompts",
    "tasks",
    "out",
    "neurons",
    "data",
    "kinds",
    "json",
)


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
MaskOutOption = Annotated[
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
    out: MaskOutOption,
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
    backbone: StudyOtherBackboneOption = None,
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
    options = {name: value for name, value in locals().items() if name not in _MASK_NOT_PASSED_ON}
    given, asked = _what(prompt, task, prompts, tasks)
    from jpt.neurons.masking import mask_neurons

    options["kinds"] = split_names(kinds)
    result = mask_neurons(given, asked, out, neurons=neurons, data=data, progress=True, **options)
    from jpt.report.figures import mask_figure

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


# --- The command that reads which neurons prompts activate

_NEURONS_NOT_PASSED_ON = ("prompts", "out", "json")


@with_processes
def neurons(
    prompts: SeedPromptsOption,
    out: Annotated[Path, typer.Option(help="File to write, for instance neurons.npz.")],
    probe: Annotated[
        str, typer.Option(help="start (prompt and start token, the paper's) or text (of a task).")
    ] = "start",
    task: Annotated[
        str | None,
        typer.Option(
            help="Whose text: a name (see 'jpt tasks') or a folder.", autocompletion=complete_task
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(help="Of the text: train, validation or test.")
    ] = "validation",
    rows: Annotated[
        int | None, typer.Option(help="Rows of text, by chance; default 64, or all if fewer.")
    ] = None,
    positions: Annotated[
        str, typer.Option(help="answer, text (mean over its tokens), or tokens: 0,-1.")
    ] = "answer",
    max_tokens: Annotated[int | None, typer.Option(help="Longest text in tokens.")] = None,
    seed: Annotated[int, typer.Option(help="Of the choice of rows.")] = 0,
    backbone: StudyOtherBackboneOption = None,
    dtype: DtypeOption = "float32",
    mesh: MeshOption = None,
    stack: Annotated[
        str | None, typer.Option(help="decoder or encoder of a T5; by default its decoder.")
    ] = None,
    chunk_mb: Annotated[
        float, typer.Option(help="Memory for what is read at once, roughly; changes no number.")
    ] = 256,
    data: Annotated[
        Path | None, typer.Option(help="Folder with train, validation, test rows of the task.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Read the feed-forward neurons that each prompt activates, in one compiled call.

    Example: jpt neurons --prompts study/prompts --out study/neurons.npz
    """
    # Every option goes on under its own name, which is that of the Python API.
    options = {
        name: value for name, value in locals().items() if name not in _NEURONS_NOT_PASSED_ON
    }
    from jpt.neurons.probe import activated_neurons, describe_activations
    from jpt.neurons.selection import describe_redundancy

    found = activated_neurons(prompts, out, progress=probe == "text", **options)
    record, text = describe_activations(found)
    record["redundancy"], shares = describe_redundancy(found)
    print_result({"out": str(out), **record}, f"{text}{shares}\nwritten: {out}", json)


# --- The command that says which source prompt to start from

_RECOMMEND_NOT_PASSED_ON = ("task", "prompts", "out", "json")


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
    backbone: StudyOtherBackboneOption = None,
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
    options = {
        name: value for name, value in locals().items() if name not in _RECOMMEND_NOT_PASSED_ON
    }
    from jpt.recipes.recommend import recommend as run

    result = run(task, prompts, out, progress=True, **options)
    print_result(result.record, result.describe(), json)


# --- The command that writes the page of a study


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder that jpt transfer and others wrote.")
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


# --- The command that runs many tunings from one file


@with_processes
def sweep(
    grid: Annotated[
        Path, typer.Argument(help="TOML file: [fixed], [grid], [[zip]], [search], [run].")
    ],
    out: Annotated[Path, typer.Option(help="Folder; the same command goes on there.")],
    shard: Annotated[
        str | None, typer.Option(help="i/n: only this part of the work, for job arrays.")
    ] = None,
    on: Annotated[
        str | None, typer.Option(help="ray: hand the work to a Ray cluster (extra cluster).")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="With ray: HOST:PORT of the cluster; default the running one, or none."),
    ] = None,
    needs: Annotated[
        str | None,
        typer.Option(help="With ray: what a bank takes of a node, for instance GPU:1,CPU:4."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="With [search]: how many settings to try (extra search).")
    ] = None,
    mesh: MeshOption = None,
    json: JsonOption = False,
) -> None:
    """Tune a prompt for every combination in a file; a table of scores at the end.

    The file has [fixed] (the same for all), [grid] (every combination of lists and ranges),
    [[zip]] (lists that go together) and [run] (places: runs at once; memory_gb). Names are those
    of the options of jpt tune: backbone, task, data, steps, seed, learning_rate, ... [search] has
    ranges without a count: every trial takes values from them and runs the rest of the file.

    On a Ray cluster paths must be the same on every node, and places, which default to what this
    machine would take, are best set in [run].

    Example: jpt sweep grid.toml --out sweeps/rates
    """
    from jpt.recipes.sweep import sweep as run

    workers = _workers(on, address, needs)
    result = run(grid, out, shard=shard, trials=trials, mesh=mesh, workers=workers, progress=True)
    print_result(result.record, result.describe(), json)


def _workers(on: str | None, address: str | None, needs: str | None) -> Any:
    """Who trains; None is this process."""
    if on is None:
        if address or needs:
            raise InputError("address and needs are for Ray; give --on ray as well")
        return None
    if on != "ray":
        raise unknown_name("place to run on", on, ("ray",))
    from jpt.recipes.sweep_ray import ray_workers

    return ray_workers(address, needs)


# --- Commands that tune and score prompts

_TUNE_NOT_PASSED_ON = ("backbone", "task", "out", "seeds", "json")


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
    options = {name: value for name, value in locals().items() if name not in _TUNE_NOT_PASSED_ON}
    options["progress"] = True
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


# --- What ``jpt --version`` says: the versions of the programs, the machine, the devices


def version_text() -> str:
    """Tells versions, machine and devices; for the devices jax is loaded."""
    from jpt.results.provenance import environment_info

    told = environment_info()
    versions = dict(told["versions"])
    first = f"jpt {versions.pop('jpt')}"
    rest = " · ".join(f"{name} {version}" for name, version in versions.items())
    return "\n".join([first, f"{rest} · {told['machine']}", f"devices: {_devices()}"])


def _devices() -> str:
    import jax

    try:
        kinds = Counter(device.device_kind for device in jax.devices())
    # What jax raises depends on what is missing: a driver, a plugin, the platform asked for.
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split()) or "jax finds no such platform"
        return f"none (JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}): {reason}"
    return ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))


# --- The command that compares starts of training

SourcesOption = Annotated[
    str, typer.Option(help="FILE,...: prompts to start from; prompt files or run folders.")
]
WarmStartOutOption = Annotated[
    Path, typer.Option(help="Folder of the study; the same command goes on there.")
]
WarmStartOtherBackboneOption = Annotated[
    str | None,
    typer.Option(
        help="Instead of the one that the sources' cards name.", autocompletion=complete_backbone
    ),
]
SeedsOption = Annotated[
    str, typer.Option(help="S1,S2,...: of row order, and of the vanilla start.")
]
CopyMomentsOption = Annotated[
    bool,
    typer.Option(
        "--copy-moments",
        help="Copy Adam's moments too, as the authors' script does; sources are run folders.",
    ),
]
ToleranceOption = Annotated[
    float, typer.Option(help="Converged: so far below the run's own best at most.")
]
WarmTokensPerBatchOption = Annotated[
    int | None, typer.Option(help="Instead: tokens a step; short rows in large batches.")
]
MaxTokensOption = Annotated[
    int | None, typer.Option(help="Longest text in tokens, special tokens included.")
]
EvalEveryOption = Annotated[
    int | None, typer.Option(help="Steps between validations; by default a twentieth of all.")
]

_WARM_START_NOT_PASSED_ON = ("task", "sources", "out", "seeds", "json")


@with_processes
def warm_start(
    task: TaskOption,
    sources: SourcesOption,
    out: WarmStartOutOption,
    backbone: WarmStartOtherBackboneOption = None,
    seeds: SeedsOption = "0,1,2",
    copy_moments: CopyMomentsOption = False,
    tolerance: ToleranceOption = 0.01,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps of each run.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows a step.")] = None,
    tokens_per_batch: WarmTokensPerBatchOption = None,
    learning_rate: Annotated[float | None, typer.Option(help="Constant rate of AdamW.")] = None,
    length: Annotated[int | None, typer.Option(help="Prompt rows; those of the sources.")] = None,
    max_tokens: MaxTokensOption = None,
    answer_tokens: AnswerTokensOption = None,
    group_by_length: Annotated[
        bool | None, typer.Option(help="Rows of like lengths in one batch, to pad less.")
    ] = None,
    eval_every: EvalEveryOption = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between saves.")] = None,
    eval_batch_size: Annotated[int, typer.Option(help="Most rows scored at once.")] = 64,
    dtype: DtypeOption = "float32",
    dropout: Annotated[str, typer.Option(help="off, or paper: on inside the layers.")] = "off",
    objective: ObjectiveOption = None,
    label_scoring: LabelScoringOption = "phrase",
    remat: RematOption = "dots",
    mesh: MeshOption = None,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Tune a task from a random start and from given prompts: how much training do they save?

    Writes OUT/warm_start.json with both speed-ups, curves.csv and warm_start.svg.

    Example: jpt warm-start --task builtin/imdb_negation --sources runs/first_person,runs/imdb
    --out runs/warm
    """
    # Every option goes on under its own name, which is that of the Python API.
    options = {
        name: value for name, value in locals().items() if name not in _WARM_START_NOT_PASSED_ON
    }
    from jpt.transfer.warm_start import warm_start as run
    from jpt.tuning.tune import parse_seeds

    files = split_names(sources) or []
    result = run(task, files, out, seeds=parse_seeds(seeds), progress=True, **options)
    from jpt.report.figures import warm_start_figure

    figure = on_first(lambda: str(warm_start_figure(out)))
    print_result(
        result.record, f"{result.describe()}\nwritten: {out}/warm_start.json, {figure}", json
    )
