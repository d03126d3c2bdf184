"""Write torch's neurons behind several prompts, for both probes, into the fixture folders.

Run ``python -m tests.backbones.make_probe_fixtures`` (extra ``parity``). Models and batches are
those of the scripts ``make_*_fixtures.py``; forward hooks read their neurons in float64. Each
folder of ``fixtures/`` gets ``probes.safetensors`` with ``prompts`` [3, P, D], the stored one
first, ``text_neurons`` [3, L, B, F] of the batch at the answer position, and ``start_neurons``
[3, L, F] behind which the batch's first token stands alone. Of a T5, ``encoder_text_neurons`` and
``encoder_start_neurons`` are the encoder's at the first token of text.
"""

import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from tests.backbones import make_decoder_fixtures as decoders
from tests.backbones import make_encoder_fixtures as encoders
from tests.backbones import make_t5_fixtures as t5s

FIXTURES = Path(__file__).parent / "fixtures"
OTHER_PROMPTS = 2
Arrays = dict[str, np.ndarray]
Neurons = dict[str, torch.Tensor]


def read_encoder(reader: encoders.TorchReader, prompt: torch.Tensor) -> Neurons:
    """Return the neurons at the mask [L, B, F]."""
    reader.read(prompt)
    return {"": torch.stack(reader.neurons)[:, :, 0]}


def read_decoder(reader: decoders.TorchReader, prompt: torch.Tensor) -> Neurons:
    """Return the neurons at the last text token [L, B, F]."""
    reader.read(prompt)
    text = torch.stack(reader.neurons)[:, :, len(prompt) :]
    return {"": torch.stack([reader.at_answer(layer) for layer in text])}


def read_t5(reader: t5s.TorchReader, prompt: torch.Tensor) -> Neurons:
    """Return those of the decoder's first step, and of the encoder at the first text token."""
    reader.read(prompt)
    neurons = {stack: torch.stack(found) for stack, found in reader.neurons.items()}
    return {"": neurons["decoder"][:, :, 0], "encoder_": neurons["encoder"][:, :, len(prompt)]}


def draw_prompts(name: str, prompt: np.ndarray) -> np.ndarray:
    """Return the stored prompt and random ones of its size [3, P, D]."""
    random = np.random.RandomState(zlib.crc32(f"{name}/probe".encode()))
    drawn = prompt.std() * random.standard_normal((OTHER_PROMPTS, *prompt.shape))
    return np.concatenate([prompt[None], drawn.astype(np.float32)])


def first_token(inputs: Arrays) -> Arrays:
    alone = {"tokens": inputs["tokens"][:1, :1], "lengths": np.ones(1, np.int32)}
    if "decoder_tokens" in inputs:
        alone["decoder_tokens"] = inputs["decoder_tokens"][:1]
    return inputs | alone


@torch.no_grad()
def write_probes(folder: Path) -> None:
    for module, read in ((encoders, read_encoder), (decoders, read_decoder), (t5s, read_t5)):
        for name, case in module.CASES.items():
            model = module.build_model(name, case)
            of_model = (model,) if module is decoders else ()
            inputs = module.draw_inputs(name, case, *of_model)
            prompts, model = draw_prompts(name, inputs["prompt"]), model.double()
            arrays: Arrays = {"prompts": prompts}
            for probe, given in (("text", inputs), ("start", first_token(inputs))):
                reader = module.TorchReader(model, given)
                found = [read(reader, torch.from_numpy(rows).double()) for rows in prompts]
                for stack in found[0]:
                    neurons = torch.stack([each[stack] for each in found]).float().numpy()
                    neurons = neurons[:, :, 0] if probe == "start" else neurons
                    arrays[f"{stack}{probe}_neurons"] = np.ascontiguousarray(neurons)
            (folder / name).mkdir(parents=True, exist_ok=True)
            save_file(arrays, folder / name / "probes.safetensors")


if __name__ == "__main__":
    write_probes(FIXTURES)
