"""jpt: soft prompts on frozen language models, moved between tasks and models.

Neurons tell which moves will work. Names here are loaded when they are first used, so that
``import jpt`` costs nothing and loads no jax.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jpt.errors import DivergedError, InputError, StoppedError
from jpt.version import __version__

if TYPE_CHECKING:
    from jpt.analysis.activations import activated_neurons
    from jpt.analysis.choice import LeaveOneOut, leave_one_out
    from jpt.analysis.choice_table import judge_indicators
    from jpt.analysis.correlation import CorrelationResult, correlate
    from jpt.analysis.indicators import Indicators, indicators
    from jpt.analysis.mask_figure import mask_figure
    from jpt.analysis.neuron_choice import NeuronChoice, choose_neurons
    from jpt.analysis.redundancy import Redundancy, redundancy
    from jpt.analysis.report import report
    from jpt.analysis.task_types import summarize_types
    from jpt.analysis.warm_start_figure import warm_start_figure
    from jpt.backbones.registry import Backbone, backbone_names, load_backbone
    from jpt.data.sources import read_rows
    from jpt.files.study_files import read_transfer
    from jpt.prompts.mixture import average_prompts
    from jpt.prompts.store import load_prompt, save_prompt
    from jpt.recipes.dry_run import dry_run
    from jpt.recipes.generate import generate
    from jpt.recipes.import_reference import import_reference
    from jpt.recipes.mask import MaskStudy, mask_neurons
    from jpt.recipes.peft import PeftFile, export_peft, import_peft
    from jpt.recipes.prompt_pull import PulledPrompts, pull_prompts
    from jpt.recipes.prompt_push import PushedPrompts, push_prompts
    from jpt.recipes.prompts import show_prompt
    from jpt.recipes.quickstart import quickstart
    from jpt.recipes.recommend import Recommendation, recommend
    from jpt.recipes.sweep import SweepResult, sweep
    from jpt.recipes.sweep_ray import ray_workers
    from jpt.tasks.registry import load_task, task_names
    from jpt.tasks.task import Task
    from jpt.transfer.mixture import MixtureResult, learn_mixture
    from jpt.transfer.mixture_ensemble import evaluate_ensemble
    from jpt.transfer.projector_apply import apply_projector
    from jpt.transfer.projector_evaluation import ProjectionResult, evaluate_projector
    from jpt.transfer.projector_store import TrainedProjector, load_projector, save_projector
    from jpt.transfer.projector_training import ProjectorResult, train_projector
    from jpt.transfer.relative import relative_performance, summarize_transfer
    from jpt.transfer.warm_start import WarmStartResult, warm_start
    from jpt.transfer.zero_shot import TransferResult, transfer_matrix
    from jpt.tuning.evaluate import evaluate
    from jpt.tuning.feed import training_batches
    from jpt.tuning.own_loop import train_step
    from jpt.tuning.scoring import Score
    from jpt.tuning.seeds import SeedsResult, tune_seeds
    from jpt.tuning.tune import TuneResult, tune
    from jpt.types import Activations, Prompt, PromptCard, TransferMatrix

_PLACES = {
    "Activations": "jpt.types",
    "Backbone": "jpt.backbones.registry",
    "CorrelationResult": "jpt.analysis.correlation",
    "Indicators": "jpt.analysis.indicators",
    "LeaveOneOut": "jpt.analysis.choice",
    "MaskStudy": "jpt.recipes.mask",
    "MixtureResult": "jpt.transfer.mixture",
    "NeuronChoice": "jpt.analysis.neuron_choice",
    "PeftFile": "jpt.recipes.peft",
    "ProjectionResult": "jpt.transfer.projector_evaluation",
    "ProjectorResult": "jpt.transfer.projector_training",
    "Prompt": "jpt.types",
    "PromptCard": "jpt.types",
    "PulledPrompts": "jpt.recipes.prompt_pull",
    "PushedPrompts": "jpt.recipes.prompt_push",
    "Recommendation": "jpt.recipes.recommend",
    "Redundancy": "jpt.analysis.redundancy",
    "Score": "jpt.tuning.scoring",
    "SeedsResult": "jpt.tuning.seeds",
    "SweepResult": "jpt.recipes.sweep",
    "Task": "jpt.tasks.task",
    "TrainedProjector": "jpt.transfer.projector_store",
    "TransferMatrix": "jpt.types",
    "TransferResult": "jpt.transfer.zero_shot",
    "TuneResult": "jpt.tuning.tune",
    "WarmStartResult": "jpt.transfer.warm_start",
    "activated_neurons": "jpt.analysis.activations",
    "average_prompts": "jpt.prompts.mixture",
    "apply_projector": "jpt.transfer.projector_apply",
    "backbone_names": "jpt.backbones.registry",
    "choose_neurons": "jpt.analysis.neuron_choice",
    "correlate": "jpt.analysis.correlation",
    "dry_run": "jpt.recipes.dry_run",
    "evaluate": "jpt.tuning.evaluate",
    "evaluate_ensemble": "jpt.transfer.mixture_ensemble",
    "evaluate_projector": "jpt.transfer.projector_evaluation",
    "export_peft": "jpt.recipes.peft",
    "generate": "jpt.recipes.generate",
    "import_peft": "jpt.recipes.peft",
    "import_reference": "jpt.recipes.import_reference",
    "indicators": "jpt.analysis.indicators",
    "judge_indicators": "jpt.analysis.choice_table",
    "learn_mixture": "jpt.transfer.mixture",
    "leave_one_out": "jpt.analysis.choice",
    "load_backbone": "jpt.backbones.registry",
    "load_projector": "jpt.transfer.projector_store",
    "load_prompt": "jpt.prompts.store",
    "load_task": "jpt.tasks.registry",
    "mask_figure": "jpt.analysis.mask_figure",
    "mask_neurons": "jpt.recipes.mask",
    "pull_prompts": "jpt.recipes.prompt_pull",
    "push_prompts": "jpt.recipes.prompt_push",
    "quickstart": "jpt.recipes.quickstart",
    "ray_workers": "jpt.recipes.sweep_ray",
    "read_rows": "jpt.data.sources",
    "read_transfer": "jpt.files.study_files",
    "recommend": "jpt.recipes.recommend",
    "redundancy": "jpt.analysis.redundancy",
    "relative_performance": "jpt.transfer.relative",
    "report": "jpt.analysis.report",
    "save_projector": "jpt.transfer.projector_store",
    "save_prompt": "jpt.prompts.store",
    "show_prompt": "jpt.recipes.prompts",
    "summarize_transfer": "jpt.transfer.relative",
    "summarize_types": "jpt.analysis.task_types",
    "sweep": "jpt.recipes.sweep",
    "task_names": "jpt.tasks.registry",
    "train_projector": "jpt.transfer.projector_training",
    "train_step": "jpt.tuning.own_loop",
    "training_batches": "jpt.tuning.feed",
    "transfer_matrix": "jpt.transfer.zero_shot",
    "tune": "jpt.tuning.tune",
    "tune_seeds": "jpt.tuning.seeds",
    "warm_start": "jpt.transfer.warm_start",
    "warm_start_figure": "jpt.analysis.warm_start_figure",
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
