"""Groups trained on a Ray cluster give the same files; lost nodes and drivers lose nothing."""

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from jpt.errors import InputError, StoppedError
from jpt.recipes import sweep_ray
from jpt.recipes.sweep import RunGroup, SweepRun, sweep
from jpt.recipes.sweep_ray import bring_home, count_room, default_needs, parse_needs, train_away
from jpt.tuning.multi_run import SlotSchedule
from tests.helpers.running import raises
from tests.helpers.toys import read_prompts, read_rows, write_fixed, write_sweep_task

ROOT = Path(__file__).resolve().parents[2]
TABLES = ("runs.csv", "settings.csv")


def workers_from(origin: str | Path = "/") -> Any:
    def work(groups: Sequence[RunGroup], runs: Sequence[SweepRun], folder: Path, _: Any) -> None:
        with contextlib.chdir("/"):  # not the driver's folder
            outcomes = [train_away(group, runs, str(origin)) for group in groups]
            assert os.getcwd() == "/"
        for outcome in outcomes:
            assert outcome.error is None
            for name, files in outcome.runs.items():
                bring_home(name, files, folder)

    return work


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    fixed = write_fixed(tmp_path_factory.mktemp("given"))
    return {"fixed": fixed, "grid": {"seed": [0, 1, 2]}, "run": {"slots": 2}}


@pytest.fixture(scope="module")
def local(grid: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sweep(grid, tmp_path_factory.mktemp("local") / "out").folder


def test_files_of_nodes_are_those_of_this_process(grid, local, tmp_path):
    away = sweep(grid, tmp_path / "out", workers=workers_from()).folder
    assert len(read_prompts(away)) == 6 and read_prompts(away) == read_prompts(local)
    assert all(read_rows(away / name) == read_rows(local / name) for name in TABLES)
    runs = [{path.name for path in folder.iterdir()} for folder in (away / "runs/first").iterdir()]
    assert runs == [{path.name for path in (local / "runs/first/seed-0").iterdir()}] * 3


def test_relative_paths_count_from_the_driver(grid, local, tmp_path, monkeypatch):
    given = Path(grid["fixed"]["task"]).parent
    near = {**grid["fixed"], "task": "first", "backbone": "bert"}
    monkeypatch.chdir(given)
    sweep({**grid, "fixed": near}, tmp_path / "out", workers=workers_from(given))
    assert read_rows(tmp_path / "out" / "settings.csv")[0]["validation"]


def test_lost_drivers_and_other_data(grid, local, tmp_path, monkeypatch) -> None:
    # After any number of files: a run has a result only if all its files are there.
    home = local / "runs" / "first" / "seed-0"
    files = {path.name: path.read_bytes() for path in home.iterdir()}
    writes = sweep_ray.write_bytes
    for count in range(len(files) - 1):  # the config is there before
        left = iter(range(count))

        def write(path: Path, data: bytes, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise ConnectionError("lost")
            writes(path, data)

        folder = tmp_path / str(count)
        found = folder / "runs" / "first" / "seed-0"
        monkeypatch.setattr(sweep_ray, "write_bytes", write)
        with pytest.raises(ConnectionError):
            bring_home("first/seed-0", files, folder)
        assert not (found / "result.json").exists()
        monkeypatch.setattr(sweep_ray, "write_bytes", writes)
        bring_home("first/seed-0", files, folder)
        assert {path.name: path.read_bytes() for path in found.iterdir()} == files
    config = json.loads(files["config.json"])
    config["data"]["train"]["content"] = "other"
    shutil.copytree(home, tmp_path / "runs/first/seed-0", ignore=lambda *_: {"result.json"})
    files["config.json"] = json.dumps(config).encode()
    raises(bring_home, "first/seed-0", files, tmp_path, match="data.train.content was")


def test_an_error_on_a_node_is_returned(grid: dict[str, Any], tmp_path: Path) -> None:
    outcomes = []

    def work(groups: Sequence[RunGroup], runs: Sequence[SweepRun], *_: Any) -> None:
        blind = [SweepRun(run.name, run.setting, {**run.values, "task": "/gone"}) for run in runs]
        outcomes.extend(train_away(group, blind, os.getcwd()) for group in groups)
        raise InputError("as the driver does")

    with pytest.raises(InputError):
        sweep(grid, tmp_path / "out", workers=work)
    assert [dict(outcome.runs) for outcome in outcomes] == [{}] * len(outcomes)
    assert "run first/seed-0: " in outcomes[0].error and "/gone" in outcomes[0].error
    states = [row["state"] for row in read_rows(tmp_path / "out" / "runs.csv")]
    assert states == ["waiting"] * 3


def test_node_that_shuts_down_is_tried_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    # SIGTERM saves a group in a temporary folder, from which nothing would resume it.
    def stopped(*given: Any) -> None:
        raise StoppedError("stopped and saved", 75)

    monkeypatch.setattr(sweep_ray, "train_group", stopped)
    with pytest.raises(sweep_ray.MultiRunStoppedError):
        train_away(RunGroup(SlotSchedule((("first",),), {"first": 1})), [], "/")


def test_needs_and_addresses() -> None:
    assert default_needs([{"CPU": 8.0}, {"CPU": 4.0}, {"memory": 1.0}], []) == {"CPU": 4.0}
    gpus = [{"CPU": 8.0}, {"CPU": 4.0, "GPU": 8.0}]
    assert default_needs(gpus, []) == {"CPU": 1.0, "GPU": 1.0}
    meshed = SweepRun("run", "run", {"mesh": "data:2,model:2"})
    assert default_needs(gpus, [meshed]) == {"CPU": 1.0, "GPU": 4.0}
    assert default_needs([{"CPU": 8.0, "TPU": 4.0}], []) == {"CPU": 1.0, "TPU": 1.0}
    assert count_room(gpus, {"CPU": 1.0, "GPU": 4.0}) == 2
    assert count_room(gpus, {"CPU": 3.0}) == 3 and count_room(gpus, {"TPU": 1.0}) == 0
    assert parse_needs("GPU:0.5, CPU:2") == {"GPU": 0.5, "CPU": 2.0}
    for wrong in ("GPU", "GPU:many", ":1", "CPU:-1", "GPU:1.5", "GPU:nan", "GPU:inf", ""):
        raises(parse_needs, wrong, match="needs has")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # nobody listens there
        port = held.getsockname()[1]
        with pytest.raises(InputError, match=f"no Ray cluster answers at 127.0.0.1:{port}"):
            sweep_ray.check_address(f"127.0.0.1:{port}")
    for wrong in ("head", "head:port", ":6379"):
        raises(sweep_ray.check_address, wrong, match="expected HOST:PORT")


def test_a_missing_ray_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    raises(sweep_ray.ray_workers, match=r"pip install 'jpt\[cluster\]'")
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--on", "slurm"], "unknown value of --on 'slurm'"),
        (["--address", "localhost:1"], "require --on ray"),
        (["--needs", "GPU:1"], "require --on ray"),
        (["--on", "ray", "--needs", "GPU"], "needs has"),
    ],
)
def test_invalid_options_are_refused(run, tmp_path: Path, options: list[str], message: str) -> None:
    code, _, err = run("sweep", "grid.toml", "--out", tmp_path / "out", *options)
    assert code == 2 and message in err


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.folder = folder
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **os.environ,
            **{"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"},
            **{"RAY_AUTH_TOKEN": secrets.token_hex(32), "JAX_PLATFORMS": "cpu"},
            "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "jax"),
            **{"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2", "PYTHONPATH": str(ROOT)},
        }

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def add(self, **others: int) -> None:
        """Start a node of one CPU and perhaps other resources; the first one is the head."""
        head = ["--head", f"--port={self.port}", f"--temp-dir={self.folder}"]
        head += ["--include-dashboard=false", f"--ray-client-server-port={free_port()}"]
        joined = [f"--address={self.address}"]
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus=1"]
        # One address per node, so that a driver is on the head's.
        ray += [f"--node-ip-address=127.0.0.{len(self.nodes) + 1}"]
        ray += ["--object-store-memory=100000000", f"--resources={json.dumps(others)}"]
        temporary = self.temporary(len(self.nodes))
        temporary.mkdir()
        log = self.folder / f"start-{len(self.nodes)}"
        with log.open("wb") as file:  # no pipe: the node would keep it open
            started = subprocess.Popen(
                [*ray, *(joined if self.nodes else head)],
                env={**self.environment, "TMPDIR": str(temporary)},
                start_new_session=True,
                stdout=file,
                stderr=file,
            )
        self.nodes.append(started)
        assert started.wait(timeout=60) == 0, log.read_text()

    def temporary(self, number: int) -> Path:
        return self.folder / f"tmp-{number}"

    def kill(self, number: int) -> None:
        # Training processes have their own group, but all are of one session.
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(int(process.name)) == self.nodes[number].pid:
                    os.kill(int(process.name), signal.SIGKILL)

    def sweep(self, grid: Path, out: Path, log: Path, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "from jpt.cli.app import main; main()", "sweep", str(grid)]
        command += ["--out", str(out), "--on", "ray", "--address", self.address, *more]
        with log.open("wb") as file:
            return subprocess.Popen(command, env=self.environment, stderr=file, stdout=file)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("ray")
    # Paths of sockets must be short.
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    cluster = Cluster(folder)
    try:
        cluster.add()
        yield cluster
    finally:
        for number in range(len(cluster.nodes)):
            cluster.kill(number)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("long")
    fixed = write_fixed(folder, steps=1500, eval_every=500)
    lines = [f"{name} = {json.dumps(value)}" for name, value in fixed.items()]
    text = "\n".join(["[fixed]", *lines, "[grid]", "seed = [0, 1, 2, 3, 4]", ""])
    grid = folder / "grid.toml"
    grid.write_text(text)
    code = f"from jpt.recipes.sweep import sweep; sweep({str(grid)!r}, {str(folder / 'out')!r})"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    return grid, folder / "out"


def wait_for(found: Callable[[], Any], driver: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 120
    while not found():
        assert time.monotonic() < until and driver.poll() is None
        time.sleep(0.1)


def results(out: Path) -> list[Path]:
    return sorted(out.rglob("result.json"))


def assert_equal_sweeps(out: Path, local: Path) -> None:
    assert len(results(out)) == 5 and read_prompts(out) == read_prompts(local)
    assert all(read_rows(out / name) == read_rows(local / name) for name in TABLES)
    assert sorted(path.name for path in out.iterdir()) == ["runs", *TABLES, "sweep.json"]


@pytest.mark.long
@pytest.mark.alone
def test_lost_driver(cluster: Cluster, long: tuple[Path, Path], tmp_path: Path) -> None:
    grid, local = long
    out, log = tmp_path / "out", tmp_path / "log"
    driver = cluster.sweep(grid, out, log)
    wait_for(lambda: results(out), driver)
    driver.kill()
    driver.wait()
    before = {path: path.stat().st_mtime_ns for path in results(out)}
    assert 1 <= len(before) < 5
    assert cluster.sweep(grid, out, log).wait(timeout=120) == 0, log.read_text()
    assert f"{len(before)} of 5 runs done" in log.read_text()
    assert before.items() <= {path: path.stat().st_mtime_ns for path in results(out)}.items()
    assert_equal_sweeps(out, local)


@pytest.mark.long
@pytest.mark.alone
def test_lost_node(cluster: Cluster, long: tuple[Path, Path], tmp_path: Path) -> None:
    grid, local = long
    out, log = tmp_path / "out", tmp_path / "log"
    cluster.add()
    driver = cluster.sweep(grid, out, log)
    trained = cluster.temporary(1)
    wait_for(lambda: any(path.stat().st_size for path in trained.rglob("metrics.jsonl")), driver)
    cluster.kill(1)
    assert len(results(out)) < 5
    assert driver.wait(timeout=180) == 0, log.read_text()
    text = log.read_text()
    assert "running: 2, waiting: 3; nodes: 2" in text
    assert "state-dump" not in text
    # The node's files show that a run was cut off; Ray does not always report it in time.
    left = [path.parent for path in trained.rglob("metrics.jsonl")]
    assert left and not any((path / "result.json").exists() for path in left)
    assert_equal_sweeps(out, local)


@pytest.mark.slow
@pytest.mark.alone
def test_group_that_cannot_be_trained(cluster: Cluster, tmp_path: Path) -> None:
    # Data of one task is gone when a node with the needed resource joins; the other is trained.
    fixed = write_fixed(tmp_path / "given")
    gone = write_sweep_task(tmp_path / "given" / "second")
    tasks = [str(gone), fixed.pop("task")]
    lines = [f"{name} = {json.dumps(value)}" for name, value in fixed.items()]
    grid, out, log = tmp_path / "grid.toml", tmp_path / "out", tmp_path / "log"
    grid.write_text("\n".join(["[fixed]", *lines, "[grid]", f"task = {json.dumps(tasks)}", ""]))
    driver = cluster.sweep(grid, out, log, "--needs", "slot:1")
    wait_for(lambda: b"no node has slot:1" in log.read_bytes(), driver)
    shutil.rmtree(gone)
    cluster.add(slot=1)
    assert driver.wait(timeout=180) == 2, log.read_text()
    assert [row["state"] for row in read_rows(out / "runs.csv")] == ["waiting", "done"]
    last = log.read_text().splitlines()[-1]
    assert last.startswith("jpt: 1 of 2 groups of runs failed: runs second: ") and str(gone) in last


@pytest.mark.slow
@pytest.mark.alone
def test_driver_stopped(cluster: Cluster, long: tuple[Path, Path], tmp_path: Path) -> None:
    driver = cluster.sweep(long[0], tmp_path / "out", tmp_path / "log")
    # At least one: a killed node may still be counted.
    wait_for(lambda: re.search(rb"running: [1-9]", (tmp_path / "log").read_bytes()), driver)
    driver.terminate()
    assert driver.wait(timeout=60) == 75, (tmp_path / "log").read_text()
    assert "re-run to resume" in (tmp_path / "log").read_text()
