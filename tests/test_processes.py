"""Several processes: which of them this is, who writes, and what each reads of a batch."""

from __future__ import annotations

import inspect
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import typer

from jpt import parallel
from jpt.cli import app
from jpt.data.batches import evaluation_batches, make_batch
from jpt.data.encode import EncodedAnswers, EncodedSplit
from jpt.errors import InputError
from jpt.io import files
from jpt.io.files import atomic_file, make_folder, write_text
from jpt.parallel import ProcessPlace, Vote, find_process, on_first, quiet_others

COMPUTING = {
    *("quickstart", "tune", "evaluate", "generate", "transfer", "warm-start", "neurons", "mask"),
    *("recommend", "mix learn", "mix ensemble", "project train", "project evaluate"),
}


@pytest.mark.parametrize(
    ("given", "needles"),
    [
        ((None, 2, 0), ("coordinator",)),
        (("node1", 2, 0), ("'node1'", "HOST:PORT")),
        (("node1:http", 2, 0), ("HOST:PORT",)),
        (("node1:70000", 2, 0), ("HOST:PORT",)),
        ((":1234", 2, 0), ("HOST:PORT",)),
        (("node1:1234", None, 0), ("--processes",)),
        (("node1:1234", 2, None), ("--process I",)),
        (("node1:1234", 0, 0), ("processes is 0",)),
        (("node1:1234", 2, 2), ("process is 2", "from 0 to 1")),
        (("node1:1234", 2, -1), ("process is -1",)),
        (("auto", 2, 0), ("auto",)),
    ],
)
def test_a_place_that_cannot_be_is_refused(given: tuple, needles: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as error:
        find_process(*given, environment={})
    for needle in needles:
        assert needle in str(error.value)


def test_a_place_by_hand() -> None:
    assert find_process("node1:1234", 4, 3, {}) == ProcessPlace("node1:1234", 4, 3)
    assert find_process("[::1]:1234", 2, 0, {}) == ProcessPlace("[::1]:1234", 2, 0)
    assert find_process("node1:1234", 1, 0, {}) is None, "one process needs nobody"
    assert find_process("auto", None, None, {}) == ProcessPlace(None, None, None)
    assert find_process("none", None, None, {"SLURM_STEP_NUM_TASKS": "4"}) is None


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        # A job of four tasks whose batch script starts one process without srun.
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1,t2,t3"}, True),
        ({"TPU_PROCESS_ADDRESSES": "t0:8476,t1:8476"}, True),
        ({"SLURM_STEP_NUM_TASKS": "many"}, False),
    ],
)
def test_the_environment_says_whether_there_are_several(
    environment: dict[str, str], several: bool
) -> None:
    assert (find_process(None, None, None, environment) is not None) is several


def test_jax_that_computes_already_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax

    jax.devices()
    monkeypatch.setattr(parallel, "_meet", lambda place, timeout_s: None)
    with pytest.raises(InputError, match="did not find each other at localhost:1"):
        parallel.start_processes("localhost:1", 2, 1)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def test_processes_meet_before_jax_does_and_leave_the_port_free() -> None:
    address = f"localhost:{free_port()}"
    with ThreadPoolExecutor() as pool:
        packed_index = [ProcessPlace(address, 3, number) for number in (1, 2, 0)]
        list(pool.map(lambda place: parallel._meet(place, 20), packed_index))
    port = int(address.partition(":")[2])
    with socket.create_server(("", port)) as server:  # fails where the port is still held
        assert server.getsockname()[1] == port


def test_a_process_that_does_not_come_is_named() -> None:
    port = free_port()
    with pytest.raises(InputError, match=f"2 of 3 processes did not come to port {port}: 1, 2"):
        parallel._meet(ProcessPlace(f"localhost:{port}", 3, 0), 0.2)
    with pytest.raises(InputError, match="did not let process 2 in at localhost"):
        parallel._meet(ProcessPlace(f"localhost:{port}", 3, 2), 0.2)


def test_two_processes_of_one_number_are_refused() -> None:
    port = free_port()
    with ThreadPoolExecutor() as pool:
        twins = [
            pool.submit(parallel._meet, ProcessPlace(f"localhost:{port}", 3, 1), 1.0)
            for _ in range(2)
        ]
        with pytest.raises(InputError, match="a second process 1"):
            parallel._meet(ProcessPlace(f"localhost:{port}", 3, 0), 20)
        assert all(isinstance(twin.exception(), InputError) for twin in twins)


def test_a_port_in_use_is_no_traceback() -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} of the coordinator cannot be opened"):
            parallel._meet(ProcessPlace(f"localhost:{port}", 2, 0), 1)


def test_a_lone_process_asks_nobody() -> None:
    assert on_first(lambda: (1, "a")) == (1, "a"), "not even through JSON"
    vote = Vote()
    assert [vote(number) for number in (0, 15, 0)] == [0, 15, 0]


def test_others_write_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "is_first", lambda: False)
    assert make_folder(tmp_path / "folder") == tmp_path / "folder"
    write_text(tmp_path / "folder" / "a.txt", "a")
    assert list(tmp_path.iterdir()) == []
    with atomic_file(tmp_path / "cache", is_cache=True) as file:
        file.write(b"of this machine")
    assert (tmp_path / "cache").read_bytes() == b"of this machine"


def test_others_print_nothing_but_their_errors(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "is_first", lambda: False)
    with pytest.raises(InputError), quiet_others():
        print("a result")
        raise InputError("a reason")
    print("heard again")
    assert capsys.readouterr().out == "heard again\n"


def command_options(app: typer.Typer, front: str = "") -> dict[str, set[str]]:
    """The options of every command, by the words that call it."""
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


@pytest.mark.parametrize("in_task", [[0, 1, 2], [3, 4, 5], [1, 4], [0, 1, 2, 3, 4, 5]])
def test_a_part_of_a_batch_is_that_part_of_the_whole(own: list[int]) -> None:
    split, part = split_with_answers(17), np.array(own)
    whole = list(evaluation_batches(split, 6, 64, 0))
    parts = list(evaluation_batches(split, 6, 64, 0, part))
    assert len(whole) == len(parts) == 3
    for (rows, batch), (same_rows, own_batch) in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(rows, same_rows)
        assert batch.packed_index is None and own_batch.packed_index is None, (
            "a feed packs, not a batch"
        )
        for given, found in zip(batch[:-1], own_batch[:-1], strict=True):
            np.testing.assert_array_equal(given[part], found)
    first = make_batch(split, np.array([2, 5]), 6, 64, 0, part)
    assert first.weights.tolist() == [float(place < 2) for place in own]
