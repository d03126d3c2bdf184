"""Meshes, shardings, placement, and several processes that start and agree."""

import inspect
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import typer
from jax.sharding import PartitionSpec

from jpt import distributed, parallel
from jpt.backbones.encoder import ENCODER_WEIGHTS
from jpt.backbones.registry import FAMILIES
from jpt.cli import app
from jpt.data.batches import evaluation_batches, make_batch
from jpt.data.encode import EncodedAnswers, EncodedSplit
from jpt.distributed import ProcessInfo, Vote, find_process, on_first, quiet_others
from jpt.errors import InputError
from jpt.io import files
from jpt.io.files import atomic_file, make_folder, write_text
from jpt.parallel import local_rows, make_mesh, parameter_shardings, parse_mesh, place, replicated
from jpt.testing import tiny_encoder, tiny_model
from jpt.tuning.losses import NO_TOKEN, Answer, label_scores
from jpt.tuning.step import adamw, init_state
from jpt.types import Batch
from tests.helpers.running import answer_step, raises

pytestmark = pytest.mark.plain_programs


def slow(*values: str) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *[("rows:2", "rows.*data"), ("data", "data"), ("data:0", "'0'"), ("data:x", "'x'")],
        *[("data:2,data:2", "twice"), ("data:4,model:4", "16 devices.*8")],
    ],
)
def test_wrong_meshes_are_refused(text: str, message: str) -> None:
    raises(parse_mesh, text, 8, match=message)


def test_axes_left_out_and_split_weights() -> None:
    assert parse_mesh("model:2", 8) == {"prompt": 1, "data": 1, "model": 2}
    assert parse_mesh(None, 8) == {"prompt": 1, "data": 8, "model": 1}
    assert dict(make_mesh("prompt:2,data:2,model:2").shape) == {"prompt": 2, "data": 2, "model": 2}
    _, params = tiny_encoder()
    mesh = make_mesh("model:4")
    shardings, _ = parameter_shardings(params, ENCODER_WEIGHTS.partition, mesh)
    params = place(params, shardings)
    kernel = params["last_layer"]["feed_forward_in"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(32, 12)}
    assert {s.data.shape for s in params["embeddings"]["word"].addressable_shards} == {(61, 8)}


def test_missing_rules_and_axes_that_do_not_divide() -> None:
    rules, weights = ENCODER_WEIGHTS.partition, {"layers": {"new": {"kernel": jnp.ones((2, 2))}}}
    raises(parameter_shardings, weights, rules, make_mesh(), match="layers/new/kernel")
    table = [("a", PartitionSpec(None, "model"))]
    shardings, notes = parameter_shardings({"a": jnp.ones((4, 6))}, table, make_mesh("model:4"))
    assert shardings["a"].spec == PartitionSpec(None, None)
    assert len(notes) == 1 and "6" in notes[0] and "model" in notes[0]
    raises(parallel.batch_sharding, make_mesh("data:4"), 10, match="10 rows")


def batch_of(rows: int) -> Batch:
    random = np.random.default_rng(0)
    lengths = random.integers(2, 12, rows).astype(np.int32)
    tokens = random.integers(3, 61, (rows, 12)).astype(np.int32)
    labels = random.integers(0, 2, rows).astype(np.int32)
    return Batch(tokens, lengths, labels, np.ones(rows, np.float32))


@cache
def two_steps(family: str, mesh_text: str) -> tuple[np.ndarray, list[float], np.ndarray]:
    module, params = tiny_model(family)
    mesh, optimizer = make_mesh(mesh_text), optax.trace(1.0)
    shardings, _ = parameter_shardings(params, FAMILIES[family].weights.partition, mesh)
    params = place(params, shardings)
    start = np.random.default_rng(3).normal(0, 0.3, (6, 32)).astype(np.float32)
    state = place(init_state(start, optimizer), replicated(mesh))
    # Only T5 and decoders can score words of several pieces.
    pieces = None if family == "bert" else jnp.array([[3, 9], [4, NO_TOKEN]], jnp.int32)
    answer = Answer(jnp.array([3, 4], jnp.int32), pieces)
    step = answer_step(module, optimizer, mesh=mesh)
    batch, losses = parallel.place_batch(batch_of(8), mesh), []
    for _ in range(2):
        state, metrics = step(params, state, batch, answer)
        losses.append(float(metrics.loss))
    scores = jax.jit(partial(label_scores, module))(params, state.params, batch, answer)
    return np.asarray(state.opt_state.trace), losses, np.asarray(scores)


FAMILY_NAMES = ("bert", "t5", "gpt2", "llama")
MESHES = ("data:8", "model:4", "model:8", "prompt:8", "data:4,model:2", "data:2,model:4")
MESHES += ("prompt:2,data:4", "prompt:4,model:2")
EVERY_AXIS = "prompt:2,data:2,model:2"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "mesh"),
    [("bert", EVERY_AXIS), *(slow(f, m) for f in FAMILY_NAMES for m in MESHES)]
    + [slow(family, EVERY_AXIS) for family in ("t5", "gpt2", "llama")],
)
def test_every_mesh_gives_the_numbers_of_one_device(family: str, mesh: str) -> None:
    for found, expected in zip(two_steps(family, mesh), two_steps(family, "data:1"), strict=True):
        assert_near(found, expected)


def assert_near(found: object, expected: object) -> None:
    difference = np.abs(np.asarray(found) - np.asarray(expected)).max()
    assert difference <= 1e-5 * np.abs(np.asarray(expected)).max(), difference


def test_a_mesh_that_leaves_a_process_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # All devices here are of the first.
    monkeypatch.setattr("jpt.parallel.process_count", lambda: 2)
    raises(make_mesh, "data:2", match="which belong to 1 of 2 processes")


@pytest.mark.parametrize("mesh", ["data:4", "prompt:2,data:2"])
def test_a_batch_lies_with_its_rows_over_data(mesh: str) -> None:
    devices, batch = make_mesh(mesh), batch_of(8)
    placed = parallel.place_batch(batch, devices)
    for given, found in zip(jax.tree.leaves(batch), jax.tree.leaves(placed), strict=True):
        np.testing.assert_array_equal(parallel.fetch(found), given)
    rows = 8 // devices.shape["data"]
    assert {shard.data.shape for shard in placed.tokens.addressable_shards} == {(rows, 12)}
    assert local_rows(devices, 8) is None, "a lone process builds the whole batch"
    raises(local_rows, devices, 9, match="9 rows")


def test_the_state_stays_whole_so_that_all_steps_are_one_program() -> None:
    module, params = tiny_encoder()
    mesh = make_mesh("data:2,model:4")
    shardings, _ = parameter_shardings(params, ENCODER_WEIGHTS.partition, mesh)
    params = place(params, shardings)
    optimizer = adamw(1e-2)
    state = place(init_state(jnp.ones((6, 32)), optimizer), replicated(mesh))
    step = answer_step(module, optimizer, mesh=mesh)
    answer = Answer(jnp.array([3, 4], jnp.int32))
    batch = place(batch_of(8), parallel.batch_sharding(mesh, 8))
    for _ in range(2):
        given, (state, _) = state, step(params, state, batch, answer)
        assert given.params.is_deleted(), "the state was not donated"
        assert state.params.sharding.is_fully_replicated
    assert step.program._cache_size() == 1


COMPUTING = {
    *("quickstart", "tune", "evaluate", "generate", "transfer", "warm-start", "neurons", "mask"),
    *("recommend", "mix learn", "mix ensemble", "project train", "project evaluate"),
}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        *[
            ((None, 2, 0), "coordinator"),
            (("node1", 2, 0), "'node1'.*HOST:PORT|HOST:PORT.*'node1'"),
        ],
        *[((address, 2, 0), "HOST:PORT") for address in ("node1:http", "node1:70000", ":1234")],
        *[(("node1:1234", None, 0), "--processes"), (("node1:1234", 2, None), "--process I")],
        *[(("node1:1234", 0, 0), "processes is 0"), (("node1:1234", 2, -1), "process is -1")],
        *[(("node1:1234", 2, 2), "from 0 to 1.*process is 2|process is 2.*from 0 to 1")],
        (("auto", 2, 0), "auto"),
    ],
)
def test_invalid_processes_are_refused(given: tuple, message: str) -> None:
    raises(find_process, *given, environment={}, match=message)


def test_processes_given_by_hand() -> None:
    assert find_process("node1:1234", 4, 3, {}) == ProcessInfo("node1:1234", 4, 3)
    assert find_process("[::1]:1234", 2, 0, {}) == ProcessInfo("[::1]:1234", 2, 0)
    assert find_process("node1:1234", 1, 0, {}) is None, "one process needs nobody"
    assert find_process("auto", None, None, {}) == ProcessInfo(None, None, None)
    assert find_process("none", None, None, {"SLURM_STEP_NUM_TASKS": "4"}) is None


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        # A job of four tasks whose batch script starts one process without srun.
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, False),
        *[({"SLURM_STEP_NUM_TASKS": "1"}, False), ({"SLURM_STEP_NUM_TASKS": "4"}, True)],
        *[({"OMPI_COMM_WORLD_SIZE": "2"}, True), ({"TPU_WORKER_HOSTNAMES": "localhost"}, False)],
        ({"TPU_WORKER_HOSTNAMES": "t0,t1,t2,t3"}, True),
        ({"TPU_PROCESS_ADDRESSES": "t0:8476,t1:8476"}, True),
        ({"SLURM_STEP_NUM_TASKS": "many"}, False),
    ],
)
def test_the_environment_says_whether_there_are_several(environment, several) -> None:
    assert (find_process(None, None, None, environment) is not None) is several


def test_jax_that_computes_already_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    jax.devices()
    monkeypatch.setattr(distributed, "_meet", lambda place, timeout_s: None)
    match = "could not connect to the other processes at localhost:1"
    raises(distributed.start_processes, "localhost:1", 2, 1, match=match)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def test_processes_meet_before_jax_does_and_leave_the_port_free() -> None:
    address = f"localhost:{free_port()}"
    with ThreadPoolExecutor() as pool:
        places = [ProcessInfo(address, 3, number) for number in (1, 2, 0)]
        list(pool.map(lambda place: distributed._meet(place, 20), places))
    port = int(address.partition(":")[2])
    with socket.create_server(("", port)) as server:  # fails where the port is still held
        assert server.getsockname()[1] == port


def meet(port: int, number: int, limit_s: float) -> None:
    distributed._meet(ProcessInfo(f"localhost:{port}", 3, number), limit_s)


def test_missing_processes_and_a_port_in_use() -> None:
    port = free_port()
    raises(meet, port, 0, 0.2, match=f"2 of 3 processes did not connect to port {port}: 1, 2")
    raises(meet, port, 2, 0.2, match="process 2 got no answer from process 0 at localhost")
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        raises(meet, port, 0, 1, match=f"cannot open port {port} of the coordinator")


def test_two_processes_of_one_number_are_refused() -> None:
    port = free_port()
    with ThreadPoolExecutor() as pool:
        twins = [pool.submit(meet, port, 1, 1.0) for _ in range(2)]
        raises(meet, port, 0, 20, match="a second process 1")
        assert all(isinstance(twin.exception(), InputError) for twin in twins)


def test_a_lone_process_asks_nobody() -> None:
    assert on_first(lambda: (1, "a")) == (1, "a"), "not even through JSON"
    vote = Vote()
    assert [vote(number) for number in (0, 15, 0)] == [0, 15, 0]


def test_others_write_no_files_and_print_only_errors(capsys, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(distributed, "is_first", lambda: False)
    with pytest.raises(InputError), quiet_others():
        print("a result")
        raise InputError("a reason")
    print("heard again")
    assert capsys.readouterr().out == "heard again\n"
    monkeypatch.setattr(files, "is_first", lambda: False)
    assert make_folder(tmp_path / "folder") == tmp_path / "folder"
    write_text(tmp_path / "folder" / "a.txt", "a")
    assert list(tmp_path.iterdir()) == []
    with atomic_file(tmp_path / "cache", is_cache=True) as file:
        file.write(b"of this machine")
    assert (tmp_path / "cache").read_bytes() == b"of this machine"


def command_options(app: typer.Typer, front: str = "") -> dict[str, set[str]]:
    found = {}
    for command in app.registered_commands:
        name = command.name or command.callback.__name__.replace("_", "-")
        found[front + name] = set(inspect.signature(command.callback).parameters)
    for group in app.registered_groups:
        found |= command_options(group.typer_instance, f"{front}{group.name} ")
    return found


def test_every_command_that_computes_has_a_mesh_and_may_be_run_by_several() -> None:
    options = command_options(app.app)
    assert COMPUTING <= set(options)
    for name in COMPUTING:
        assert {"mesh", "coordinator", "processes", "process"} <= options[name], name


def split_with_answers(rows: int) -> EncodedSplit:
    random = np.random.default_rng(0)

    def draw(longest: int) -> tuple[np.ndarray, np.ndarray]:
        lengths = random.integers(1, longest, rows)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return random.integers(3, 61, offsets[-1]).astype(np.int32), offsets

    labels = random.integers(0, 2, rows).astype(np.int32)
    texts = ((("a",),) * rows, tuple((1,) for _ in range(rows)))
    answers = EncodedAnswers(*draw(5), 5, 0, *texts)
    return EncodedSplit(*draw(40), labels, 0, answers=answers)


@pytest.mark.parametrize("own", [[0, 1, 2], [3, 4, 5], [1, 4], [0, 1, 2, 3, 4, 5]])
def test_a_part_of_a_batch_is_that_part_of_the_whole(own: list[int]) -> None:
    split, part = split_with_answers(17), np.array(own)
    whole = list(evaluation_batches(split, 6, 64, 0))
    parts = list(evaluation_batches(split, 6, 64, 0, part))
    assert len(whole) == len(parts) == 3
    for (rows, batch), (same_rows, own_batch) in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(rows, same_rows)
        assert batch.packed_index is None and own_batch.packed_index is None
        for given, found in zip(batch[:-1], own_batch[:-1], strict=True):
            np.testing.assert_array_equal(given[part], found)
    first = make_batch(split, np.array([2, 5]), 6, 64, 0, part)
    assert first.weights.tolist() == [float(place < 2) for place in own]
