"""jpt: soft prompts on frozen language models, moved between tasks and models.

Neurons tell which moves will work. Names here are loaded when they are first used, so that
``import jpt`` costs nothing and loads no jax."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jpt.errors import DivergedError, InputError, StoppedError
from jpt.version import __version__

if TYPE_CHECKING:
    from jpt.backbones.registry import Backbone, backbone_names, load_backbone
    from jpt.data.rows import read_rows
    from jpt.indicators.correlation import CorrelationResult, correlate
    from jpt.indicators.indicators import Indicators, indicators
    from jpt.indicators.pairs import summarize_types
    from jpt.indicators.source_selection import judge_indicators, leave_one_out
    from jpt.neurons.masking import MaskStudy, mask_neurons
    from jpt.neurons.probe import activated_neurons
    from jpt.neurons.selection import NeuronChoice, choose_neurons, redundancy
    from jpt.prompts.arithmetic import average_prompts
    from jpt.prompts.store import load_prompt, save_prompt
    from jpt.recipes.dry_run import dry_run
    from jpt.recipes.generate import generate
    from jpt.recipes.interop import PeftFile, export_peft, import_peft, import_reference
    from jpt.recipes.library import (
        PulledPrompts,
        PushedPrompts,
        pull_prompts,
        push_prompts,
        show_prompt,
    )
    from jpt.recipes.quickstart import quickstart
    from jpt.recipes.recommend import Recommendation, recommend
    from jpt.recipes.sweep import SweepResult, sweep
    from jpt.recipes.sweep_ray import ray_workers
    from jpt.report.figures import mask_figure, warm_start_figure
    from jpt.report.report import report
    from jpt.results.prompt_table import read_transfer, relative_performance, summarize_transfer
    from jpt.results.records import LeaveOneOut, Redundancy
    from jpt.tasks.catalog import load_task, task_names
    from jpt.tasks.task import Task
    from jpt.transfer.mixture import MixtureResult, evaluate_ensemble, learn_mixture
    from jpt.transfer.projection import ProjectionResult, apply_projector, evaluate_projector
    from jpt.transfer.projector import (
        ProjectorResult,
        TrainedProjector,
        load_projector,
        save_projector,
        train_projector,
    )
    from jpt.transfer.warm_start import WarmStartResult, warm_start
    from jpt.transfer.zero_shot import TransferResult, transfer_matrix
    from jpt.tuning.evaluate import evaluate
    from jpt.tuning.tune import (
        SeedsResult,
        TuneResult,
        train_step,
        training_batches,
        tune,
        tune_seeds,
    )
    from jpt.types import Activations, Prompt, PromptCard, Score, TransferMatrix


_PLACES = {
    "Activations": "jpt.types",
    "Backbone": "jpt.backbones.registry",
    "CorrelationResult": "jpt.indicators.correlation",
    "Indicators": "jpt.indicators.indicators",
    "LeaveOneOut": "jpt.indicators.source_selection",
    "MaskStudy": "jpt.neurons.masking",
    "MixtureResult": "jpt.transfer.mixture",
    "NeuronChoice": "jpt.neurons.selection",
    "PeftFile": "jpt.recipes.interop",
    "ProjectionResult": "jpt.transfer.projection",
    "ProjectorResult": "jpt.transfer.projector",
    "Prompt": "jpt.types",
    "PromptCard": "jpt.types",
    "PulledPrompts": "jpt.recipes.library",
    "PushedPrompts": "jpt.recipes.library",
    "Recommendation": "jpt.recipes.recommend",
    "Redundancy": "jpt.neurons.selection",
    "Score": "jpt.tuning.bound_task",
    "SeedsResult": "jpt.tuning.tune",
    "SweepResult": "jpt.recipes.sweep",
    "Task": "jpt.tasks.task",
    "TrainedProjector": "jpt.transfer.projector",
    "TransferMatrix": "jpt.types",
    "TransferResult": "jpt.transfer.zero_shot",
    "TuneResult": "jpt.tuning.tune",
    "WarmStartResult": "jpt.transfer.warm_start",
    "activated_neurons": "jpt.neurons.probe",
    "average_prompts": "jpt.prompts.arithmetic",
    "apply_projector": "jpt.transfer.projection",
    "backbone_names": "jpt.backbones.registry",
    "choose_neurons": "jpt.neurons.selection",
    "correlate": "jpt.indicators.correlation",
    "dry_run": "jpt.recipes.dry_run",
    "evaluate": "jpt.tuning.evaluate",
    "evaluate_ensemble": "jpt.transfer.mixture",
    "evaluate_projector": "jpt.transfer.projection",
    "export_peft": "jpt.recipes.interop",
    "generate": "jpt.recipes.generate",
    "import_peft": "jpt.recipes.interop",
    "import_reference": "jpt.recipes.interop",
    "indicators": "jpt.indicators.indicators",
    "judge_indicators": "jpt.indicators.source_selection",
    "learn_mixture": "jpt.transfer.mixture",
    "leave_one_out": "jpt.indicators.source_selection",
    "load_backbone": "jpt.backbones.registry",
    "load_projector": "jpt.transfer.projector",
    "load_prompt": "jpt.prompts.store",
    "load_task": "jpt.tasks.catalog",
    "mask_figure": "jpt.report.figures",
    "mask_neurons": "jpt.neurons.masking",
    "pull_prompts": "jpt.recipes.library",
    "push_prompts": "jpt.recipes.library",
    "quickstart": "jpt.recipes.quickstart",
    "ray_workers": "jpt.recipes.sweep_ray",
    "read_rows": "jpt.data.rows",
    "read_transfer": "jpt.results.prompt_table",
    "recommend": "jpt.recipes.recommend",
    "redundancy": "jpt.neurons.selection",
    "relative_performance": "jpt.results.prompt_table",
    "report": "jpt.report.report",
    "save_projector": "jpt.transfer.projector",
    "save_prompt": "jpt.prompts.store",
    "show_prompt": "jpt.recipes.library",
    "summarize_transfer": "jpt.results.prompt_table",
    "summarize_types": "jpt.indicators.pairs",
    "sweep": "jpt.recipes.sweep",
    "task_names": "jpt.tasks.catalog",
    "train_projector": "jpt.transfer.projector",
    "train_step": "jpt.tuning.tune",
    "training_batches": "jpt.tuning.tune",
    "transfer_matrix": "jpt.transfer.zero_shot",
    "tune": "jpt.tuning.tune",
    "tune_seeds": "jpt.tuning.tune",
    "warm_start": "jpt.transfer.warm_start",
    "warm_start_figure": "jpt.report.figures",
}

__all__ = [
    "Activations",
    "Backbone",
    "CorrelationResult",
    "DivergedError",
    "Indicators",
    "InputError",
    "LeaveOneOut",
    "MaskStudy",
    "MixtureResult",
    "NeuronChoice",
    "PeftFile",
    "ProjectionResult",
    "ProjectorResult",
    "Prompt",
    "PromptCard",
    "PulledPrompts",
    "PushedPrompts",
    "Recommendation",
    "Redundancy",
    "Score",
    "SeedsResult",
    "StoppedError",
    "SweepResult",
    "Task",
    "TrainedProjector",
    "TransferMatrix",
    "TransferResult",
    "TuneResult",
    "WarmStartResult",
    "__version__",
    "activated_neurons",
    "average_prompts",
    "apply_projector",
    "backbone_names",
    "choose_neurons",
    "correlate",
    "dry_run",
    "evaluate",
    "evaluate_ensemble",
    "evaluate_projector",
    "export_peft",
    "generate",
    "import_peft",
    "import_reference",
    "indicators",
    "judge_indicators",
    "learn_mixture",
    "leave_one_out",
    "load_backbone",
    "load_projector",
    "load_prompt",
    "load_task",
    "mask_figure",
    "mask_neurons",
    "pull_prompts",
    "push_prompts",
    "quickstart",
    "ray_workers",
    "read_rows",
    "read_transfer",
    "recommend",
    "redundancy",
    "relative_performance",
    "report",
    "save_projector",
    "save_prompt",
    "show_prompt",
    "summarize_transfer",
    "summarize_types",
    "sweep",
    "task_names",
    "train_projector",
    "train_step",
    "training_batches",
    "transfer_matrix",
    "tune",
    "tune_seeds",
    "warm_start",
    "warm_start_figure",
]


def __getattr__(name: str) -> Any:
    """Loads a public name from the file that defines it."""
    if name not in _PLACES:
        raise AttributeError(f"module 'jpt' has no attribute '{name}'")
    value = getattr(import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Lists the public names."""
    return __all__
