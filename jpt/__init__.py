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
    from jpt.backbones.registry import Backbone, backbone_names, load_backbone
    from jpt.prompts.store import load_prompt, save_prompt
    from jpt.tasks.registry import load_task, task_names
    from jpt.tasks.task import Task
    from jpt.tuning.evaluate import evaluate
    from jpt.tuning.scoring import Score
    from jpt.tuning.tune import TuneResult, tune
    from jpt.types import Prompt, PromptCard

_PLACES = {
    "Backbone": "jpt.backbones.registry",
    "Prompt": "jpt.types",
    "PromptCard": "jpt.types",
    "Score": "jpt.tuning.scoring",
    "Task": "jpt.tasks.task",
    "TuneResult": "jpt.tuning.tune",
    "backbone_names": "jpt.backbones.registry",
    "evaluate": "jpt.tuning.evaluate",
    "load_backbone": "jpt.backbones.registry",
    "load_prompt": "jpt.prompts.store",
    "load_task": "jpt.tasks.registry",
    "save_prompt": "jpt.prompts.store",
    "task_names": "jpt.tasks.registry",
    "tune": "jpt.tuning.tune",
}

__all__ = [
    "Backbone",
    "DivergedError",
    "InputError",
    "Prompt",
    "PromptCard",
    "Score",
    "StoppedError",
    "Task",
    "TuneResult",
    "__version__",
    "backbone_names",
    "evaluate",
    "load_backbone",
    "load_prompt",
    "load_task",
    "save_prompt",
    "task_names",
    "tune",
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
