"""The command that compares starts of training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jpt.cli.completion import complete_backbone
from jpt.cli.options import (
    AnswerTokensOption,
    DataOption,
    DtypeOption,
    JsonOption,
    LabelScoringOption,
    MeshOption,
    ObjectiveOption,
    RematOption,
    TaskOption,
    print_result,
)
from jpt.cli.several import with_processes
from jpt.cli.studies import split_names
from jpt.processes import on_first

SourcesOption = Annotated[
    str, typer.Option(help="FILE,...: prompts to start from; prompt files or run folders.")
]
OutOption = Annotated[
    Path, typer.Option(help="Folder of the study; the same command goes on there.")
]
OtherBackboneOption = Annotated[
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
TokensPerBatchOption = Annotated[
    int | None, typer.Option(help="Instead: tokens a step; short rows in large batches.")
]
MaxTokensOption = Annotated[
    int | None, typer.Option(help="Longest text in tokens, special tokens included.")
]
EvalEveryOption = Annotated[
    int | None, typer.Option(help="Steps between validations; by default a twentieth of all.")
]

_NOT_PASSED_ON = ("task", "sources", "out", "seeds", "json")


@with_processes
def warm_start(
    task: TaskOption,
    sources: SourcesOption,
    out: OutOption,
    backbone: OtherBackboneOption = None,
    seeds: SeedsOption = "0,1,2",
    copy_moments: CopyMomentsOption = False,
    tolerance: ToleranceOption = 0.01,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps of each run.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows a step.")] = None,
    tokens_per_batch: TokensPerBatchOption = None,
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
    options = {name: value for name, value in locals().items() if name not in _NOT_PASSED_ON}
    from jpt.transfer.warm_start import warm_start as run
    from jpt.tuning.seeds import parse_seeds

    files = split_names(sources) or []
    result = run(task, files, out, seeds=parse_seeds(seeds), progress=True, **options)
    from jpt.analysis.warm_start_figure import warm_start_figure

    figure = on_first(lambda: str(warm_start_figure(out)))
    print_result(
        result.record, f"{result.describe()}\nwritten: {out}/warm_start.json, {figure}", json
    )
