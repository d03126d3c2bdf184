"""Write weights and losses of a torch projector in ten steps of each objective.

Run ``python -m tests.transfer.make_projector_fixtures`` (extra ``parity``). The projector is plain
torch: two linear maps, LeakyReLU or Tanh, LayerNorm; the frozen target is the small BERT
``bert_tied`` of ``tests/backbones/fixtures``, with the layout of its script. Both are run in
float64. Weights and inputs come from numpy's frozen ``RandomState``.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn

from tests.backbones import make_encoder_fixtures as encoders

FILE = Path(__file__).parent / "fixtures" / "projector.safetensors"
STEPS, TASKS, ROWS, LONGEST = 10, 3, 8, 9
SOURCE_ROWS, SOURCE_WIDTH, BOTTLENECK, TARGET_ROWS = 5, 12, 16, 4
TARGET, MASK_ID, VOCABULARY, WIDTH = "bert_tied", 4, 53, 30
LABELS = ((11, 7, 30), (5, 41, 22), (50, 13, 9))
ACTIVATIONS = {"leaky_relu": nn.LeakyReLU(0.01), "tanh": nn.Tanh()}


class TorchProjector(nn.Module):
    def __init__(self, activation: str) -> None:
        super().__init__()
        self.down = nn.Linear(SOURCE_ROWS * SOURCE_WIDTH, BOTTLENECK)
        self.up = nn.Linear(BOTTLENECK, TARGET_ROWS * WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-5)
        self.activation = ACTIVATIONS[activation]

    def forward(self, prompts: torch.Tensor) -> torch.Tensor:
        hidden = self.activation(self.down(prompts.flatten(-2)))
        rows = self.up(hidden).unflatten(-1, (TARGET_ROWS, WIDTH))
        return self.norm(rows)


def sample_inputs() -> dict[str, np.ndarray]:
    """Sample weights, prompts of both models, rows, and the batches of each step."""
    random = np.random.RandomState(7)

    def normal(scale: float, *shape: int) -> np.ndarray:
        return (scale * random.standard_normal(shape)).astype(np.float32)

    words = np.setdiff1d(np.arange(VOCABULARY), [0, MASK_ID])
    lengths = random.randint(1, LONGEST + 1, size=(STEPS, ROWS)).astype(np.int32)
    is_text = np.arange(LONGEST) < lengths[..., None]
    tokens = random.choice(words, is_text.shape)
    return {
        "down.weight": normal(0.2, BOTTLENECK, SOURCE_ROWS * SOURCE_WIDTH),
        "down.bias": normal(0.1, BOTTLENECK),
        "up.weight": normal(0.3, TARGET_ROWS * WIDTH, BOTTLENECK),
        "up.bias": normal(0.1, TARGET_ROWS * WIDTH),
        "norm.weight": 1 + normal(0.2, WIDTH),
        "norm.bias": normal(0.2, WIDTH),
        "sources": normal(1.0, TASKS, SOURCE_ROWS, SOURCE_WIDTH),
        "targets": normal(1.0, TASKS, TARGET_ROWS, WIDTH),
        "drawn": random.randint(TASKS, size=(STEPS, 16)).astype(np.int32),
        "tasks": random.randint(TASKS, size=STEPS).astype(np.int32),
        "tokens": np.where(is_text, tokens, 0).astype(np.int32),
        "lengths": lengths,
        "labels": random.randint(3, size=(STEPS, ROWS)).astype(np.int32),
        "label_ids": np.array(LABELS, np.int32),
    }


def build(inputs: dict[str, np.ndarray], activation: str) -> TorchProjector:
    projector = TorchProjector(activation)
    names = projector.state_dict()
    projector.load_state_dict({name: torch.from_numpy(inputs[name]) for name in names})
    return projector.double()


def distance_losses(inputs: dict[str, np.ndarray], activation: str) -> list[float]:
    """Train ten steps on the distance to the in-task prompts, with Adam 1e-4."""
    projector = build(inputs, activation)
    optimizer = torch.optim.Adam(projector.parameters(), lr=1e-4)
    sources, targets = (torch.from_numpy(inputs[name]).double() for name in ("sources", "targets"))
    losses = []
    for tasks in inputs["drawn"]:
        picked = torch.from_numpy(tasks).long()
        loss = nn.functional.mse_loss(projector(sources[picked]), targets[picked])
        losses.append(_step(optimizer, loss))
    return losses


def task_losses(
    inputs: dict[str, np.ndarray], activation: str
) -> tuple[list[float], torch.Tensor, list[str]]:
    """Train ten steps through the frozen target, with AdamW 5e-3, eps 1e-6 and no decay."""
    case = encoders.CASES[TARGET]
    model = encoders.build_model(TARGET, case).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    projector = build(inputs, activation)
    options = {"lr": 5e-3, "eps": 1e-6, "weight_decay": 0.0}
    optimizer = torch.optim.AdamW(projector.parameters(), **options)
    sources = torch.from_numpy(inputs["sources"]).double()
    losses = []
    for step, task in enumerate(inputs["tasks"]):
        rows = {name: inputs[name][step] for name in ("tokens", "lengths")}
        reader = encoders.TorchReader(model, {**rows, "mask_id": np.array([MASK_ID])})
        _, scores = reader.read(projector(sources[task]))
        picked = scores[:, torch.from_numpy(inputs["label_ids"][task]).long()]
        labels = torch.from_numpy(inputs["labels"][step]).long()
        losses.append(_step(optimizer, nn.functional.cross_entropy(picked, labels)))
    changed = [name for name, value in model.state_dict().items() if not before[name].equal(value)]
    return losses, projector(sources).detach(), changed


def _step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> float:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def ask_torch(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    answers = {}
    for activation in ACTIVATIONS:
        sources = torch.from_numpy(inputs["sources"]).double()
        first = build(inputs, activation)(sources).detach()
        losses, projected, changed = task_losses(inputs, activation)
        if changed:
            raise SystemExit(f"the frozen target changed: {changed}")
        answers |= {
            f"{activation}/first": first.numpy().astype(np.float32),
            f"{activation}/distance": np.array(distance_losses(inputs, activation)),
            f"{activation}/task": np.array(losses),
            f"{activation}/projected": projected.numpy().astype(np.float32),
        }
    return answers


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FILE)
    inputs = sample_inputs()
    save_file({**inputs, **ask_torch(inputs)}, parser.parse_args().out)
