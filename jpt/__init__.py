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
    from jpt.analysis.correlation import correlate
    from jpt.analysis.indicators import indicators
    from jpt.analysis.report import report
    from jpt.backbones.registry import Backbone, backbone_names, load_backbone
    from jpt.prompts.store import load_prompt, save_prompt
    from jpt.recipes.dry_run import dry_run
    from jpt.recipes.generate import generate
    from jpt.recipes.import_reference import import_reference
    from jpt.recipes.quickstart import quickstart
    from jpt.tasks.registry import load_task, task_names
    from jpt.tasks.task import Task
    from jpt.transfer.zero_shot import TransferResult, transfer_matrix
    from jpt.tuning.evaluate import evaluate
    from jpt.tuning.feed import training_batches
    from jpt.tuning.scoring import Score
    from jpt.tuning.seeds import SeedsResult, tune_seeds
    from jpt.tuning.tune import TuneResult, tune
    from jpt.types import Activations, Prompt, PromptCard, TransferMatrix

_PLACES = {
    "Activations": "jpt.types",
    "Backbone": "jpt.backbones.registry",
    "Prompt": "jpt.types",
    "PromptCard": "jpt.types",
    "Score": "jpt.tuning.scoring",
    "SeedsResult": "jpt.tuning.seeds",
    "Task": "jpt.tasks.task",
    "TransferMatrix": "jpt.types",
    "TransferResult": "jpt.transfer.zero_shot",
    "TuneResult": "jpt.tuning.tune",
    "activated_neurons": "jpt.analysis.activations",
    "backbone_names": "jpt.backbones.registry",
    "correlate": "jpt.analysis.correlation",
    "dry_run": "jpt.recipes.dry_run",
    "evaluate": "jpt.tuning.evaluate",
    "generate": "jpt.recipes.generate",
    "import_reference": "jpt.recipes.import_reference",
    "indicators": "jpt.analysis.indicators",
    "load_backbone": "jpt.backbones.registry",
    "load_prompt": "jpt.prompts.store",
    "load_task": "jpt.tasks.registry",
    "quickstart": "jpt.recipes.quickstart",
    "report": "jpt.analysis.report",
    "save_prompt": "jpt.prompts.store",
    "task_names": "jpt.tasks.registry",
    "training_batches": "jpt.tuning.feed",
    "transfer_matrix": "jpt.transfer.zero_shot",
    "tune": "jpt.tuning.tune",
    "tune_seeds": "jpt.tuning.seeds",
}

__all__ = [
    "Activations",
    "Backbone",
    "DivergedError",
    "InputError",
    "Prompt",
    "PromptCard",
    "Score",
    "SeedsResult",
    "StoppedError",
    "Task",
    "TransferMatrix",
    "TransferResult",
    "TuneResult",
    "__version__",
    "activated_neurons",
    "backbone_names",
    "correlate",
    "dry_run",
    "evaluate",
    "generate",
    "import_reference",
    "indicators",
    "load_backbone",
    "load_prompt",
    "load_task",
    "quickstart",
    "report",
    "save_prompt",
    "task_names",
    "training_batches",
    "transfer_matrix",
    "tune",
    "tune_seeds",
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
