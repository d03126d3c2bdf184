"""The dry run: memory as on placed arrays, the step of jpt tune, and invalid input."""

import json
import math
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jpt.backbones.registry import find_folder
from jpt.config import TuneOptions
from jpt.parallel import make_mesh, parameter_shardings, place
from jpt.recipes import dry_run as recipe
from jpt.recipes.dry_run import Collective, dry_run, lower_step, read_collectives, step_shapes
from jpt.testing import tiny_bert_config, tiny_config
from jpt.tuning import trainer
from jpt.tuning.tune import tune
from tests.helpers.running import FAST_COMPILE, raises
from tests.helpers.toys import write_task

MESH = "data:2,model:4"
# No two sizes of weights and of what they are multiplied with are equal.
SIZES = {"batch_size": 22, "length": 5, "max_tokens": 7}
DECODER = {"vocab_size": 61, "bos_token_id": 1, "eos_token_id": 2}
T5_SIZES = {"d_model": 32, "d_kv": 6, "d_ff": 48, "num_heads": 4, "num_layers": 3}
T5_KIND = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
GPT2_SIZES = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 40}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {**tiny_bert_config(), "num_hidden_layers": 4},
    "t5": {"model_type": "t5", "vocab_size": 61, **T5_SIZES, **T5_KIND},
    "gpt2": {"model_type": "gpt2", **GPT2_SIZES, **DECODER},
    "llama": {
        **tiny_config("llama"),
        **{"num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 4},
        **{"max_position_embeddings": 40, **DECODER},
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("configs")
    for name, config in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    return folder


@cache
def record_of(path: Path, **options: Any) -> dict[str, Any]:
    return dry_run(path, **{"mesh": MESH, **SIZES, **options})[0]


def shapes_of(path: Path) -> tuple[Any, TuneOptions, recipe.StepShapes]:
    options = TuneOptions(mesh=MESH, **SIZES)
    model = recipe.shape_backbone(path, options)
    options = options.resolve(model.defaults)
    return model, options, step_shapes(model, options, make_mesh(MESH))


LOOP = """
HloModule step

%body.1 (x: (s32[], f32[8])) -> (s32[], f32[8]) {
  %gathered = f32[8]{0} all-gather(%y), replica_groups=[4,2]<=[8], dimensions={0}
  ROOT %x = (s32[], f32[8]) tuple(%i, %gathered)
}

%wrapped (x: f32[]) -> f32[] {
  ROOT %pair = (bf16[3,2]{1,0}, pred[5]) all-reduce(%a, %b), replica_groups=TWO, to_apply=%add
}

ENTRY %main.2 (x: f32[8]) -> f32[8] {
  %z = (s32[], f32[8]) while(%w), condition=%cond.1, body=%body.1, backend_config={TRIPS}
  %c = f32[] call(%z), to_apply=%wrapped, metadata={op_name="jit(step)/all-reduce"}
  %s = f32[2]{0} reduce-scatter(%c), replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
  ROOT %p = f32[] collective-permute(%s), source_target_pairs={{0,0},{1,1},{2,6}}
}
"""
TRIPS = '"known_trip_count":{"n":"24"}'
MESH_AXES = {"prompt": 1, "data": 2, "model": 4}


def test_collectives_are_counted_per_loop_iteration() -> None:
    groups = "mesh['a'=2,'b'=4] {'b'}"
    found = read_collectives(LOOP.replace("TRIPS", TRIPS).replace("TWO", groups), MESH_AXES)
    assert found.open_loops == 0
    assert set(found.found) == {
        Collective("all-gather", ("model",), 24, 24 * 32),
        Collective("all-reduce", ("model",), 1, 3 * 2 * 2 + 5),
        Collective("reduce-scatter", ("data",), 1, 2 * 2 * 4),
        Collective("collective-permute", ("data",), 1, 4),
    }
    found = read_collectives(LOOP, MESH_AXES)
    assert found.open_loops == 1
    assert Collective("all-gather", ("model",), 1, 32) in found.found


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        *[("{{0,1,2,3},{4,5,6,7}}", ("model",)), ("{}", ("data", "model"))],
        *[("[2,4]<=[8]", ("model",)), ("[4,2]<=[2,4]T(1,0)", ("data",))],
        *[("[1,8]<=[8]", ("data", "model")), ("mesh['a'=2,'b'=1,'c'=4] {'a'}", ("data",))],
        ("mesh['a'=2,'b'=4] {'a', 'b'}", ("data", "model")),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", ("model",)),
        *[("mesh['a'=2,'b'=4] {'b':(1)2}", ("?",)), ("unknown_notation", ("?",))],
    ],
)
def test_every_notation_of_groups_is_parsed(groups: str, axes: tuple[str, ...]) -> None:
    found = read_collectives(LOOP.replace("TWO", groups), MESH_AXES).found
    assert [entry.axes for entry in found if entry.kind == "all-reduce"] == [axes]


@pytest.mark.parametrize("name", ["bert", "t5", "gpt2", "llama"])
def test_weights_per_device_are_those_of_placed_arrays(folder: Path, name: str) -> None:
    model, _, _ = shapes_of(folder / f"{name}.json")
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), model.params)
    shardings, _ = parameter_shardings(zeros, model.family.weights.partition, make_mesh(MESH))
    first = jax.devices()[0]
    placed = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(place(zeros, shardings))
        for shard in leaf.addressable_shards
        if shard.device == first
    )
    record = record_of(folder / f"{name}.json")
    assert record["bytes_per_device"]["weights"] == placed
    assert record["backbone"]["weights"] == sum(leaf.size for leaf in jax.tree.leaves(zeros))
    # All but norms and biases of second matrices is sharded.
    whole = record["backbone"]["weights_bytes"]
    assert whole <= 4 * placed < 1.4 * whole


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_are_never_communicated(folder: Path, name: str) -> None:
    model, options, shapes = shapes_of(folder / f"{name}.json")
    program = lower_step(model, options, shapes).compile(FAST_COMPILE).as_text()
    kinds = "all-gather|all-reduce|all-to-all|collective-permute"
    lines = re.findall(rf"= ([^%]*) (?:{kinds})\(", program)
    found = [each for line in lines for each in re.findall(r"\[([\d,]+)\]", line)]
    sent = [set(map(int, sizes.split(","))) for sizes in found]
    assert len(sent) > 10, "the pattern no longer finds what is sent"
    # Batch rows per device, prompt tokens, mask and prompt tokens: no weight has such an axis.
    rows = {11, 5, 6}
    assert not any(set(leaf.shape) & rows for leaf in jax.tree.leaves(model.params))
    assert all(sizes & rows for sizes in sent)


def test_parts_add_up_to_the_compiler_s_numbers(folder: Path) -> None:
    model, options, shapes = shapes_of(folder / "bert.json")
    planned = lower_step(model, options, shapes).compile(FAST_COMPILE).memory_analysis()
    parts = record_of(folder / "bert.json")["bytes_per_device"]
    arguments = parts["weights"] + parts["prompt_state"] + parts["batch"]
    assert arguments == planned.argument_size_in_bytes
    assert parts["activations"] == planned.temp_size_in_bytes
    assert parts["total"] == sum(size for name, size in parts.items() if name != "total")
    parts = record_of(folder / "bert.json")["bytes_per_device"]
    # tokens, lengths, labels, weights of 22 rows over 2; ids of two label words
    assert parts["batch"] == 11 * (7 + 3) * 4 + 2 * 4
    # prompt and two moments; two counters and the rate
    assert parts["prompt_state"] == 3 * 5 * 32 * 4 + 3 * 4


@pytest.mark.slow
def test_bfloat16_and_rematerialisation_save_memory(folder: Path) -> None:
    single, half = (record_of(folder / "t5.json", dtype=d) for d in ("float32", "bfloat16"))
    single, half = single["bytes_per_device"], half["bytes_per_device"]
    assert half["weights"] * 2 == single["weights"]
    assert half["activations"] < single["activations"]
    parts = (record_of(folder / "bert.json", remat=r) for r in ("full", "dots", "none"))
    full, dots, none = (part["bytes_per_device"]["activations"] for part in parts)
    assert full < dots < none


class _CapturedError(Exception):
    pass


@pytest.mark.parametrize(("dtype", "remat"), [("float32", "dots"), ("bfloat16", "full")])
def test_the_step_is_the_one_that_tune_runs(tmp_path, monkeypatch, dtype, remat):
    original, captured = trainer.bind_step, {}

    def capture(*settings: Any) -> Any:
        def step(*arguments: Any) -> None:
            captured["text"] = original(*settings).lower(*arguments).as_text()
            captured["module"] = settings[0].module
            raise _CapturedError

        return step

    given = {"batch_size": 4, "length": 3, "max_tokens": 32, "learning_rate": 1e-3}
    given |= {"mesh": "data:2,model:2", "dtype": dtype, "remat": remat}
    task = write_task(tmp_path / "mood")
    with monkeypatch.context() as patch, pytest.raises(_CapturedError):
        patch.setattr(trainer, "bind_step", capture)
        tune("builtin/bert-small", task, **given)
    options = TuneOptions(**given)
    model = recipe.shape_backbone(find_folder("builtin/bert-small") / "config.json", options)
    # A config does not name the mask token, which changes no size.
    object.__setattr__(model, "module", model.module.clone(mask_id=captured["module"].mask_id))
    assert model.module == captured["module"]
    options = options.resolve(model.defaults)
    shapes = step_shapes(model, options, make_mesh(options.mesh))
    assert lower_step(model, options, shapes).as_text() == captured["text"]


@pytest.fixture
def check(run):
    return lambda *arguments: run("check", *arguments)


SMALL = ("--mesh", MESH, "--batch-size", "22", "--length", "5", "--max-tokens", "7")


def test_the_command_reports_an_estimate(check, folder: Path) -> None:
    path = str(folder / "t5.json")
    code, out, err = check("--backbone", path, *SMALL, "--device-memory", "8", "--json")
    assert code == 0, err
    record, expected = json.loads(out), record_of(folder / "t5.json")
    assert record["bytes_per_device"] == expected["bytes_per_device"]
    assert record["mesh"] == MESH_AXES and record["devices"] == 8
    assert record["ok"] and record["fits"] and record["device_memory_gb"] == 8
    assert {"data"} in [set(entry["axes"]) for entry in record["collectives"]]
    for needle in ("estimate", "fits a device of 8 GB", "all-reduce", "over model", "compiled in"):
        assert needle in err
    code, out, err = check("--backbone", str(folder / "t5.json"), *SMALL, "--device-memory", "1e-5")
    assert code == 1 and err == ""
    assert "! does NOT fit a device of 1e-05 GB" in out and "--remat full" in out


@pytest.mark.parametrize(
    ("file", "arguments", "needles"),
    [
        ("none.json", (), ("none.json", "no such file")),
        ("broken.json", (), ("broken.json", "not JSON")),
        ("list.json", (), ("list.json", "list", "JSON object")),
        ("strange.json", (), ("strange.json", "model_type 'bird'", "roberta")),
        ("field.json", (), ("field.json", "hidden_size")),
        ("huge.json", (), ("huge.json", "sizes")),
        ("bert.json", ("--batch-size", "5"), ("5 rows", "mesh axis 'data' (2)")),
        ("bert.json", ("--length", "41"), ("at most 40 prompt tokens", "got 41")),
        ("gpt2.json", ("--length", "34"), ("34 + text 7 = 41", "40 positions")),
        ("bert.json", ("--mesh", "rows:2"), ("mesh axis 'rows'",)),
        ("bert.json", ("--mesh", "data:9000"), ("9,000 devices", "4,096")),
        ("bert.json", ("--mesh", "data:16"), ("16 virtual CPU devices", "jax_num_cpu_devices")),
        ("bert.json", ("--device-memory", "-1"), ("device_memory is -1",)),
        ("bert.json", ("--remat", "some"), ("remat is 'some'", "dots")),
        ("bert.json", ("--dtype", "float16"), ("float16", "bfloat16")),
        ("bert.json", ("--task", "sst2"), ("--task", "dry run")),
    ],
)
def test_invalid_input_is_one_line_and_exit_code_2(check, folder, file, arguments, needles):
    (folder / "broken.json").write_text('{"model_type": "bert"')
    (folder / "list.json").write_text("[1, 2]")
    (folder / "strange.json").write_text('{"model_type": "bird"}')
    (folder / "field.json").write_text('{"model_type": "bert", "vocab_size": 61}')
    (folder / "huge.json").write_text(json.dumps({**tiny_bert_config(), "vocab_size": 10**15}))
    code, out, err = check("--backbone", str(folder / file), *SMALL, *arguments)
    assert code == 2 and out == "", (code, out, err)
    assert err.startswith("jpt: ") and err.count("\n") == 1, err
    for needle in needles:
        assert needle in err


def test_options_of_a_dry_run_are_refused_without_a_config(check) -> None:
    code, _, err = check("--backbone", "builtin/bert-small", "--mesh", MESH, "--remat", "full")
    assert code == 2 and "--mesh and --remat" in err and "config.json" in err


@pytest.mark.slow
def test_virtual_devices_come_before_the_start_of_jax(folder: Path) -> None:
    recipe.use_virtual_devices("data:64")
    assert len(jax.devices()) == 8
    raises(dry_run, "none.json", mesh="data:64", match="64 virtual CPU devices")
    sizes = (*SMALL, "--mesh", "data:11,model:2")
    # On an accelerator, too: the command selects CPU devices.
    environment = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    command = [sys.executable, "-m", "jpt.cli", "check", "--backbone", str(folder / "bert.json")]
    command += [*sizes, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["devices"] == 22


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_eleven_billion_weights_fit_sixty_four_devices(reference_folder: Path, dtype: str) -> None:
    path = reference_folder / "configs" / "t5-11b.json"
    command = [sys.executable, "-m", "jpt.cli", "check", "--backbone", str(path), "--json"]
    command += ["--mesh", "data:8,model:8", "--dtype", dtype]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["backbone"]["weights"] == 11_307_321_344 and record["devices"] == 64
    parts, whole = record["bytes_per_device"], record["backbone"]["weights_bytes"]
    assert math.isclose(parts["weights"] * 8, whole, rel_tol=1e-3)
    assert parts["activations"] < 1e9 and record["fits"]
    assert record["loops_counted_once"] == 0
