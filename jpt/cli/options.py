"""Options that several commands share, shell completion, and distributed start."""

from __future__ import annotations

import functools
import inspect
import json as json_format
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from jpt.distributed import quiet_others, start_processes

# --- Shell completion

_BUILTIN = Path(__file__).parent.parent / "backbones" / "builtin"


def complete_backbone(incomplete: str) -> list[str]:
    """Complete a built-in backbone; nothing for a path or hub id, so that the shell lists files."""
    # From the folders alone: completion must not wait for jax.
    names = sorted(f"builtin/{config.parent.name}" for config in _BUILTIN.glob("*/config.json"))
    return [name for name in names if name.startswith(incomplete)]


def complete_task(incomplete: str) -> list[str]:
    """Complete the name of a catalog or built-in task."""
    from jpt.tasks.catalog import task_names

    return [name for name in task_names() if name.startswith(incomplete)]


def complete_tasks(incomplete: str) -> list[str]:
    """Complete the last of several comma-separated tasks.

    Example:
        >>> complete_tasks("imdb,movie")
        ['imdb,movie_rationales']
    """
    *before, last = incomplete.split(",")
    fitting = [name for name in complete_task(last) if name not in before]
    return [",".join([*before, name]) for name in fitting]


# --- Backbones, tasks and prompts

BackboneOption = Annotated[
    str,
    typer.Option(
        help="Built-in name (see 'jpt backbones'), model folder, or hub id.",
        autocompletion=complete_backbone,
    ),
]
CardBackboneOption = Annotated[
    str | None,
    typer.Option(
        help="Backbone; defaults to the one in the prompt card.", autocompletion=complete_backbone
    ),
]
TaskOption = Annotated[
    str,
    typer.Option(
        help="Task name (see 'jpt tasks'), or folder with a task.toml or named after a task.",
        autocompletion=complete_task,
    ),
]
TasksOption = Annotated[
    str | None,
    typer.Option(
        help="Target tasks T1,T2,...; defaults to those in the prompt cards.",
        autocompletion=complete_tasks,
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(help="Folder with train, validation, test rows: .jsonl, .csv, .parquet."),
]
TasksDataOption = Annotated[
    Path | None, typer.Option(help="Folder with a folder of rows for each catalog task.")
]
SplitOption = Annotated[str, typer.Option(help="Split to score: train, validation or test.")]
TestSplitOption = Annotated[
    str, typer.Option(help="Split to score; validation for tasks without it.")
]
PromptOption = Annotated[Path, typer.Option(help="Prompt file or run folder.")]
PromptArgument = Annotated[Path, typer.Argument(help="Prompt file or run folder.")]
SeedPromptsOption = Annotated[
    Path,
    typer.Option(help="Folder of prompts: NAME.safetensors, runs NAME/, or seeds NAME/seed-S/."),
]

# --- Training

StudyOutOption = Annotated[Path, typer.Option(help="Output folder; re-run to resume.")]
RunOutOption = Annotated[Path, typer.Option(help="Run folder; re-run to resume.")]
InitOption = Annotated[
    str,
    typer.Option(help="Prompt initialisation: random, vocab, labels, text:WORDS or prompt:FILE."),
]
StepsOption = Annotated[int | None, typer.Option(help="Number of optimizer steps.")]
BatchSizeOption = Annotated[int | None, typer.Option(help="Rows per step.")]
TokensPerBatchOption = Annotated[
    int | None, typer.Option(help="Token budget per batch, in place of --batch-size.")
]
LearningRateOption = Annotated[float | None, typer.Option(help="Constant AdamW learning rate.")]
ClipNormOption = Annotated[
    float | None, typer.Option(help="Maximum gradient norm; no clipping by default.")
]
LengthOption = Annotated[int | None, typer.Option(help="Number of prompt tokens.")]
MaxTokensOption = Annotated[
    int | None, typer.Option(help="Maximum text length in tokens, special tokens included.")
]
AnswerTokensOption = Annotated[
    int | None,
    typer.Option(help="Maximum generated answer length in tokens; defaults to the task's."),
]
GroupByLengthOption = Annotated[
    bool | None, typer.Option(help="Group rows of similar length in batches, to reduce padding.")
]
EvalEveryOption = Annotated[
    int | None, typer.Option(help="Steps between evaluations on validation.")
]
CheckpointEveryOption = Annotated[int | None, typer.Option(help="Steps between checkpoints.")]
CheckpointMinutesOption = Annotated[
    float | None, typer.Option(help="Maximum minutes between checkpoints.")
]
DropoutOption = Annotated[
    str, typer.Option(help="Dropout: off, or paper (the model's rates, inside its layers).")
]
ObjectiveOption = Annotated[
    str | None, typer.Option(help="Classes of the cross-entropy loss: labels or vocabulary.")
]
LogOption = Annotated[str | None, typer.Option(help="Additional loggers: tensorboard,wandb.")]

# --- Models and scoring

LabelScoringOption = Annotated[
    str | None,
    typer.Option(
        help="T5 and decoders: phrase (default, all tokens of a label word) or first_token."
    ),
]
TunedScoringOption = Annotated[
    str | None,
    typer.Option(help="phrase or first_token; defaults to how the target's prompt was tuned."),
]
SettingsOption = Annotated[
    str,
    typer.Option(
        help="Template and label words: tuned (those of the target's prompt) or task (of the task)."
    ),
]
EvalBatchSizeOption = Annotated[int, typer.Option(help="Maximum evaluation batch size.")]
DtypeOption = Annotated[str, typer.Option(help="Weight and matmul dtype: float32 or bfloat16.")]
RematOption = Annotated[
    str,
    typer.Option(help="Rematerialisation in the backward pass: dots, full (least memory), none."),
]
StackOption = Annotated[str | None, typer.Option(help="T5 stack: decoder (default) or encoder.")]
TopLayersOption = Annotated[
    str | None,
    typer.Option(help="Layer range of neuron_overlap, from 0, such as 9-11; default: top three."),
]
MeshOption = Annotated[
    str | None,
    typer.Option(
        help="Devices per mesh axis, such as prompt:2,data:4,model:1; default: all on data."
    ),
]

# --- Output

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")
]


def print_result(record: dict[str, Any], text: str, json: bool) -> None:
    """Print the text, or with `json` the record on stdout and the text on stderr."""
    stream = sys.stderr if json else sys.stdout
    # Terminals with a legacy encoding show "?" instead of failing.
    encoding = getattr(stream, "encoding", None) or "utf-8"
    typer.echo(text.encode(encoding, "replace").decode(encoding), err=json)
    if json:
        typer.echo(json_format.dumps(record))


# --- Option values


def split_names(text: str | None) -> list[str] | None:
    """Split comma-separated names.

    Example:
        >>> split_names("builtin/imdb, sst2")
        ['builtin/imdb', 'sst2']
    """
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def omit(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the values without some names: what a command passes on to the Python API."""
    return {name: value for name, value in values.items() if name not in names}


# --- Options that decorators add

_NO_COMPILE_CACHE = {
    "no_compile_cache": Annotated[
        bool,
        typer.Option(
            "--no-compile-cache",
            help="Compile without the persistent cache (~/.cache/jpt/compiled).",
        ),
    ]
}
_PROCESSES = {
    "coordinator": Annotated[
        str | None,
        typer.Option(
            envvar="JPT_COORDINATOR",
            help="Distributed start: HOST:PORT of process 0, or auto on a TPU pod (SLURM is"
            " detected).",
        ),
    ],
    "processes": Annotated[
        int | None,
        typer.Option(envvar="JPT_PROCESSES", help="Number of processes; requires HOST:PORT."),
    ],
    "process": Annotated[
        int | None,
        typer.Option(
            envvar="JPT_PROCESS", help="Index of this process, from 0; requires HOST:PORT."
        ),
    ],
}


def _add_options(
    run: Callable[..., None], command: Callable[..., None], options: Mapping[str, Any], default: Any
) -> Callable[..., None]:
    """Set the signature that typer reads: the command's own options, then more."""
    hints = get_type_hints(command, include_extras=True)
    kept = [
        parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(command).parameters.items()
    ]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    more = [
        inspect.Parameter(name, kind, default=default, annotation=each)
        for name, each in options.items()
    ]
    run.__signature__ = inspect.Signature([*kept, *more], return_annotation=None)
    run.__annotations__ = {**hints, **options}
    return run


def with_cache_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--no-compile-cache`` to a command."""

    @functools.wraps(command)
    def run(*, no_compile_cache: bool = False, **options: Any) -> None:
        if no_compile_cache:
            from jpt.io.compile_cache import turn_off

            turn_off()
        command(**options)

    return _add_options(run, command, _NO_COMPILE_CACHE, False)


def add_cache_option(group: typer.Typer) -> typer.Typer:
    """Add ``--no-compile-cache`` to every command of a group."""
    for info in group.registered_commands:
        if info.callback is not None:
            info.callback = with_cache_option(info.callback)
    return group


def with_processes(command: Callable[..., None]) -> Callable[..., None]:
    """Let several processes run a command: all compute, the first one writes and prints."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        start_processes(**{name: options.pop(name, None) for name in _PROCESSES})
        with quiet_others():
            command(*arguments, **options)

    return _add_options(run, command, _PROCESSES, None)
