"""Typical calls of the public API, read by a type checker in `.ci/run` and run by nothing."""

from pathlib import Path

import jpt
from jpt.results.records import LeaveOneOut
from jpt.transfer.zero_shot import TransferResult
from jpt.tuning.tune import TuneResult
from jpt.types import Activations, Score, TransferMatrix


def tune_and_score(folder: Path) -> Score:
    backbone: jpt.Backbone = jpt.load_backbone("builtin/bert-small")
    task: jpt.Task = jpt.load_task("builtin/rotten_tomatoes")
    result: TuneResult = jpt.tune(backbone, task, out=folder, steps=40, eval_every=20)
    prompt: jpt.Prompt = result.prompt
    jpt.save_prompt(folder / "mood.safetensors", prompt)
    card: jpt.PromptCard = jpt.load_prompt(folder / "mood.safetensors").card
    print(card.task, result.describe())
    return jpt.evaluate(prompt, task, backbone=backbone)


def study(folder: Path) -> Path:
    transfer: TransferResult = jpt.transfer_matrix(folder / "prompts", out=folder)
    neurons: Activations = jpt.activated_neurons(folder / "prompts", folder / "neurons.npz")
    found = jpt.compute_indicators(folder / "prompts", neurons, folder)
    correlation = jpt.correlate(found, transfer.matrix, folder)
    print(correlation.excluding_in_task["neuron_overlap"].mean_over_targets)
    chosen: LeaveOneOut = jpt.leave_one_out(found, transfer.matrix, rows=32)
    print(chosen.rankings["neuron_overlap"].hits)
    matrix: TransferMatrix = jpt.read_transfer(folder / "transfer.csv")
    print(jpt.relative_performance(matrix, {"a": "a"}).values.mean())
    return jpt.write_report(folder)


def carry_over(folder: Path) -> None:
    prompts = {"mood": jpt.load_prompt(folder / "mood.safetensors")}
    trained = jpt.train_projector(prompts, "builtin/bert-medium", tasks=["builtin/rotten_tomatoes"])
    print(trained.describe())


def handle(folder: Path) -> None:
    try:
        jpt.load_prompt(folder)
    except jpt.InputError as error:
        print(error)
    print(jpt.__version__, *jpt.task_names(), *jpt.backbone_names())
