# The public names, once: `jpt/__init__.py` loads them lazily from here; type checkers read it.

# Models and tasks
from .backbones.registry import load_backbone as load_backbone
from .backbones.registry import backbone_names as backbone_names
from .backbones.registry import Backbone as Backbone
from .tasks.catalog import load_task as load_task
from .tasks.catalog import task_names as task_names
from .tasks.task import Task as Task
from .data.rows import read_rows as read_rows

# Prompts
from .types import Prompt as Prompt
from .types import PromptCard as PromptCard
from .prompts.store import load_prompt as load_prompt
from .prompts.store import save_prompt as save_prompt
from .prompts.arithmetic import average_prompts as average_prompts
from .recipes.interop import import_peft as import_peft
from .recipes.interop import export_peft as export_peft
from .recipes.interop import import_reference as import_reference
from .recipes.library import pull_prompts as pull_prompts
from .recipes.library import push_prompts as push_prompts

# Tuning and scoring
from .tuning.tune import tune as tune
from .tuning.tune import tune_seeds as tune_seeds
from .tuning.evaluate import evaluate as evaluate
from .recipes.generate import generate as generate
from .tuning.tune import training_batches as training_batches
from .tuning.tune import train_step as train_step
from .tuning.tune import tuning_problem as tuning_problem
from .tuning.trainer import fit as fit
from .tuning.trainer import Problem as Problem

# Transfer between tasks
from .transfer.zero_shot import transfer_matrix as transfer_matrix
from .results.prompt_table import read_transfer as read_transfer
from .results.prompt_table import relative_performance as relative_performance
from .results.prompt_table import summarize_transfer as summarize_transfer
from .transfer.warm_start import warm_start as warm_start
from .recipes.recommend import recommend as recommend
from .transfer.mixture import learn_mixture as learn_mixture
from .transfer.mixture import evaluate_ensemble as evaluate_ensemble

# Transfer between models
from .transfer.projector import train_projector as train_projector
from .transfer.projection import apply_projector as apply_projector
from .transfer.projection import evaluate_projector as evaluate_projector
from .transfer.projector import load_projector as load_projector

# Neurons and indicators
from .neurons.probe import activated_neurons as activated_neurons
from .indicators.indicators import compute_indicators as compute_indicators
from .indicators.correlation import correlate as correlate
from .indicators.source_selection import leave_one_out as leave_one_out
from .indicators.source_selection import judge_indicators as judge_indicators
from .indicators.pairs import summarize_types as summarize_types
from .neurons.selection import choose_neurons as choose_neurons
from .neurons.masking import mask_neurons as mask_neurons
from .neurons.selection import redundancy as redundancy

# Whole studies
from .recipes.quickstart import quickstart as quickstart
from .recipes.sweep import sweep as sweep
from .recipes.sweep_ray import ray_workers as ray_workers
from .recipes.dry_run import dry_run as dry_run
from .report.report import write_report as write_report
from .report.figures import mask_figure as mask_figure
from .report.figures import warm_start_figure as warm_start_figure

# Errors and version
from .errors import DivergedError as DivergedError
from .errors import InputError as InputError
from .errors import StoppedError as StoppedError
from .version import __version__ as __version__
