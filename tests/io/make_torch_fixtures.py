"""Makes the torch files that the tests read; the one place here that imports torch.

Run from the project's root: ``python tests/io/make_torch_fixtures.py``. The values come from a
fixed seed; ``expected.safetensors`` holds what each tensor must read as.
"""

from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "fixtures"


def tensors_of_all_kinds() -> OrderedDict:
    """Types, strides, offsets, shared storages, a scalar, empty and one-long axes."""
    generator = torch.Generator().manual_seed(7)
    base = torch.randn(6, 5, generator=generator)
    state = OrderedDict()
    state["plain"] = torch.randn(3, 4, generator=generator)
    state["tied"] = state["plain"]
    state["transposed"] = base.t()
    state["slice"] = base[2:4]
    state["column"] = base[:, 3]
    state["steps"] = base[::2, 1::2]
    state["repeated"] = torch.tensor([5.0]).expand(2, 3)
    state["permuted"] = torch.randn(2, 3, 4, generator=generator).permute(2, 0, 1)
    state["scalar"] = torch.tensor(2.5)
    state["empty"] = torch.zeros(0, 4)
    state["one_long"] = torch.arange(4.0).expand(1, -1)
    state["float16"] = torch.randn(5, generator=generator).half()
    state["bfloat16"] = torch.randn(2, 2, generator=generator).bfloat16()
    state["float64"] = torch.randn(3, generator=generator).double()
    state["int64"] = torch.tensor([-(2**60), 2**60])
    state["int32"] = torch.tensor([-7, 7], dtype=torch.int32)
    state["int16"] = torch.tensor([-300, 300], dtype=torch.int16)
    state["int8"] = torch.tensor([-7, 7], dtype=torch.int8)
    state["uint8"] = torch.tensor([0, 255], dtype=torch.uint8)
    state["bool"] = torch.tensor([True, False, True])
    state["parameter"] = torch.nn.Parameter(torch.randn(2, 3, generator=generator))
    state._metadata = OrderedDict({"": {"version": 1}})
    return state


def save_both(name: str, value: object, **options: object) -> None:
    for form, zipped in (("zip", True), ("stream", False)):
        path = FOLDER / f"{name}_{form}.bin"
        torch.save(value, path, _use_new_zipfile_serialization=zipped, **options)


def main() -> None:
    torch.manual_seed(7)
    FOLDER.mkdir(exist_ok=True)
    state = tensors_of_all_kinds()
    save_both("state", state)
    save_both("protocol4", {"a": state["plain"], "b": state["bfloat16"]}, pickle_protocol=4)
    save_both("parameter", torch.nn.Parameter(state["plain"]))
    save_both("tensor", state["transposed"])
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    checkpoint = {
        "model": layer.state_dict(),
        "optimizer": optimizer.state_dict(),
        "shape": torch.Size([2, 3]),
        "device": torch.device("cuda", 1),
        "dtype": torch.float32,
        "trained_epoch": 3,
        "scores": [0.5, None, True],
    }
    save_both("checkpoint", checkpoint)
    save_both("nested", {"encoder": {"layer": [state["plain"], state["int32"]]}, "epoch": 2})
    expected = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    expected["layer.weight"] = layer.weight.detach().clone()
    expected["layer.bias"] = layer.bias.detach().clone()
    expected["optimizer.exp_avg"] = optimizer.state[layer.weight]["exp_avg"].clone()
    save_file(expected, FOLDER / "expected.safetensors")


if __name__ == "__main__":
    main()
