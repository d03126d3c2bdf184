"""State of another run, values out of range, vanished folders: through the command line."""

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jpt
from jpt.recipes import quickstart as quickstart_module
from jpt.recipes import sweep as sweep_module
from jpt.testing import write_tiny_backbone
from jpt.tuning.bound_task import BoundTask
from jpt.types import Prompt, PromptCard
from tests.helpers.running import at_step
from tests.helpers.study import write_study
from tests.helpers.toys import write_task

pytestmark = pytest.mark.plain_programs

Run = Callable[..., tuple[int, str, str]]
Words = tuple[object, ...]
SHORT = ("--max-tokens", 16)
SLOW = pytest.mark.slow
STEPS = (*SHORT, "--steps", 6, "--eval-every", 3, "--checkpoint-every", 3, "--batch-size", 4)


class RunCommands:
    """A tiny backbone, two tasks, a prompt for each, and commands on them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.backbone = write_tiny_backbone(root / "bert", "bert")
        self.mood = write_task(root / "mood")
        toml = (self.mood / "task.toml").read_text()
        self.taste = write_task(root / "taste", toml=toml.replace("mood", "taste"))
        self.prompts = self.write_prompts(root / "prompts", self.backbone, 32)
        self.other = self.write_prompts(root / "other", "some/other-model", 12)
        both = ("--tasks", f"{self.mood},{self.taste}")
        task, bank = ("--task", self.mood), ("--prompts", self.prompts)
        sources = ("--sources", self.other)
        self.words: dict[str, Words] = {
            "tune": ("tune", "--backbone", self.backbone, *task, *STEPS, "--length", 3),
            "mix": ("mix", "learn", *bank, *task, *STEPS),
            "project": (
                *("project", "train", *sources, "--target-backbone", self.backbone, *both),
                *("--bottleneck", 5, *STEPS),
            ),
            "transfer": ("transfer", *bank, *both, *SHORT),
            "mask": ("mask", *bank, *both, *SHORT, "--kinds", "in_task"),
            "warm-start": (
                *("warm-start", *task, "--sources", self.prompts / "taste.safetensors", *STEPS),
                *("--seeds", "0,1"),
            ),
            "evaluate": (
                *("project", "evaluate", "--projector", root / "project", *sources, *SHORT),
                *("--methods", "untrained", "--tasks", self.mood),
            ),
            "quickstart": ("quickstart", "--backbone", self.backbone, *both),
        }
        self.words["seeds"] = (*self.words["tune"], "--seeds", "0,1")
        self.words["sweep"] = ("sweep", self.grid("grid"))

    def write_prompts(self, folder: Path, backbone: Path | str, width: int) -> Path:
        folder.mkdir()
        for seed, name in enumerate(("mood", "taste")):
            values = np.random.default_rng(seed).normal(0, 0.5, (3, width)).astype(np.float32)
            card = PromptCard(str(backbone), name, "sentiment", seed=seed)
            jpt.save_prompt(folder / f"{name}.safetensors", Prompt(values, card))
        return folder

    def grid(self, name: str, **fixed: object) -> Path:
        table = {"backbone": self.backbone, "task": self.mood, "steps": 6, "eval_every": 3}
        table |= {"batch_size": 4, "length": 3, "max_tokens": 16, **fixed}
        lines = [f"{name} = {json.dumps(value, default=str)}" for name, value in table.items()]
        seeds = "[grid]\nseed = [0, 1]\n[run]\nslots = 2\n"
        path = self.root / f"{name}.toml"
        path.write_text("\n".join(["[fixed]", *lines, seeds]))
        return path

    def command(self, kind: str, out: Path, *more: object) -> Words:
        return (*self.words[kind], "--out", out, *more)

    def finished(self, run: Run, kind: str, out: Path, *more: object) -> Path:
        """Copy a finished run, made once."""
        made = self.root / f"{kind}{''.join(map(str, more))}".replace("/", "_")
        if not made.exists():
            code, _, err = run(*self.command(kind, made, *more))
            assert code == 0, err
        return Path(shutil.copytree(made, out))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> RunCommands:
    return RunCommands(tmp_path_factory.mktemp("place"))


@pytest.fixture
def mine(run: Run, place: RunCommands, tmp_path: Path) -> Path:
    return place.finished(run, "tune", tmp_path / "mine")


def assert_refused(found: tuple[int, str, str], *parts: str) -> None:
    code, _, err = found
    line = err.replace("\r", "\n").splitlines()[-1]
    assert code == 2 and line.startswith("jpt: "), err
    for part in parts:
        assert re.search(part, line), (part, line)


def edit(path: Path, change: Callable[[Any], Any], line: int = 0) -> None:
    """Change a line of a file of JSON lines, or a whole JSON file."""
    if path.suffix == ".json":
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
        return
    lines = path.read_text().splitlines()
    lines[line] = json.dumps(change(json.loads(lines[line])))
    path.write_text("".join(f"{each}\n" for each in lines))


def merged(record: Any, change: Any) -> Any:
    """Change some fields of a JSON object, also within its objects."""
    if not (isinstance(record, dict) and isinstance(change, dict) and change):
        return change
    return record | {name: merged(record.get(name), value) for name, value in change.items()}


def swap(name: str, target: Path, source: Path) -> None:
    """Replace a file or folder by that of another run."""
    if (target / name).is_dir():
        shutil.rmtree(target / name)
        shutil.copytree(source / name, target / name)
    else:
        shutil.copy(source / name, target / name)


# --- Files of another run


@pytest.mark.parametrize(
    ("kind", "more", "difference"),
    [
        ("tune", ("--seed", 1), "seed was 1 and is now 0"),
        ("tune", ("--learning-rate", 0.5), "learning_rate was 0.5 and is now 0.0"),
        ("tune", ("--task", "taste"), "task was 'taste' and is now 'mood'"),
        pytest.param("mix", ("--seed", 7), "seed was 7 and is now 0", marks=SLOW),
        pytest.param("project", ("--activation", "tanh"), "activation was 'tanh'", marks=SLOW),
    ],
)
def test_files_of_another_run(
    run: Run, place: RunCommands, tmp_path: Path, kind: str, more: tuple, difference: str
) -> None:
    more = tuple(place.taste if each == "taste" else each for each in more)
    mine = place.finished(run, kind, tmp_path / "mine")
    other = place.finished(run, kind, tmp_path / "other", *more)
    command, own = place.command(kind, mine), tmp_path / "own"
    shutil.copytree(mine, own)
    for file in ("result.json", *(path.name for path in mine.glob("*.safetensors"))):
        swap(file, mine, other)
        named = "config.json" if file == "result.json" else file
        assert_refused(run(*command), f"expected the {named} of its run .*, got another one; rest")
        (mine / file).unlink()
        if file != "result.json":
            assert_refused(run(*command), f"result.json: expected the {file} .*, got none; restore")
        swap(file, mine, own)
    (mine / "result.json").unlink()
    swap("checkpoints", mine, other)
    assert_refused(run(*command), "of this run, got one of another run at step 6: ", difference)


def test_groups_and_runs_of_another_sweep(
    run: Run, place: RunCommands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_module, "remove_group_folder", lambda path: None)
    mine, other, grid = tmp_path / "mine", tmp_path / "other", place.grid("fast", learning_rate=0.5)
    assert run(*place.command("sweep", mine))[0] == run("sweep", grid, "--out", other)[0] == 0
    (group,) = (path.name for path in (mine / "groups").iterdir())
    assert run(*place.command("sweep", mine))[0] == 0, "a finished sweep returns at once"
    table, runs = (mine / "runs.csv").read_text(), mine / "runs/mood"
    shutil.copytree(runs, tmp_path / "runs")
    swap("result.json", runs / "seed-0", runs / "seed-1")
    assert_refused(run(*place.command("sweep", mine)), "seed-0/result.json: expected the config")
    run("sweep", place.grid("taste", task=place.taste), "--out", tmp_path / "taste")
    shutil.rmtree(runs)
    shutil.copytree(tmp_path / "taste/runs/taste", runs)
    message = "holds another run: task was 'taste' and is now 'mood'"
    assert_refused(run(*place.command("sweep", mine)), message)
    assert (mine / "runs.csv").read_text() == table
    shutil.rmtree(runs)
    shutil.copytree(tmp_path / "runs", runs)
    for result in mine.rglob("result.json"):
        result.unlink()
    swap(f"groups/{group}", mine, other)
    message = r"runs.mood/seed-0.learning_rate was 0.5 and .*runs.mood/seed-1.learning_rate"
    assert_refused(run(*place.command("sweep", mine)), "one of another run", message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("checkpoints", "got one of another run at step 6: seed was 1 and is now 0; use a source"),
        ("prompt.safetensors", "expected the prompt.safetensors of its run .*, got another one"),
    ],
)
def test_moments_of_another_run(
    run: Run, place: RunCommands, mine: Path, tmp_path: Path, name: str, message: str
) -> None:
    swap(name, mine, place.finished(run, "tune", tmp_path / "other", "--seed", 1))
    more = ("--sources", mine, "--copy-moments")
    assert_refused(run(*place.command("warm-start", tmp_path / "warm", *more)), message)


def test_log_of_another_run(run: Run, place: RunCommands, mine: Path) -> None:
    log, command = mine / "metrics.jsonl", place.command("tune", mine)
    kept = log.read_text()
    edit(log, lambda line: {**line, "accuracy": line["accuracy"] / 2})
    assert_refused(run(*command), "expected the metrics.jsonl of its run next to it, got another")
    (mine / "result.json").unlink()
    assert_refused(run(*command), r"expected the validation score 0\.\d+ .*, got accuracy 0\.\d+; ")
    log.write_text("".join(line for line in kept.splitlines(True) if "validation" not in line))
    assert_refused(run(*command), "got no such line; the log is of another run or incomplete")


def test_prompt_to_start_from_has_changed(run: Run, place: RunCommands, tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    shutil.copy(place.prompts / "mood.safetensors", start)
    command = place.command("tune", tmp_path / "out", "--init", f"prompt:{start}")
    assert run(*command)[0] == run(*command)[0] == 0
    shutil.copy(place.prompts / "taste.safetensors", start)
    assert_refused(run(*command), "holds another run: init_sha256 was")


def test_folders_of_earlier_versions_are_read(run: Run, place: RunCommands, mine: Path) -> None:
    (mine / "metrics.jsonl").unlink()
    assert run(*place.command("tune", mine))[0] == 0
    for name, field in (("config", "metric"), ("result", "checksums")):
        path = mine / f"{name}.json"
        edit(path, lambda record, gone=field: {k: v for k, v in record.items() if k != gone})
    assert run(*place.command("tune", mine))[0] == 0


# --- Values out of range


def masked(target: dict[str, Any]) -> dict[str, Any]:
    return {"targets": {"mood": target}}


VALUES = [
    ("transfer", "cells.jsonl", {"value": 5.0}, "a number from 0 to 1 for value, got 5.0; remove"),
    ("transfer", "cells.jsonl", {"value": "0.5"}, "from 0 to 1 for value, got '0.5'; remove this"),
    ("transfer", "cells.jsonl", {"value": True}, "from 0 to 1 for value, got True"),
    ("transfer", "cells.jsonl", {"loss": math.nan}, "a number of at least 0 for loss, got nan"),
    ("transfer", "cells.jsonl", {"rows": 42.5}, "a whole number of at least 1 for rows, got 42.5"),
    ("transfer", "cells.jsonl", {"metric": "f2"}, "one of accuracy, .*f1.* for metric, got 'f2'"),
    ("transfer", "cells.jsonl", {"metric": "matthews", "value": -2}, "-1 to 1 for value, got -2"),
    ("transfer", "cells.jsonl", {"target_task": 3}, "a name for target_task, got 3"),
    ("mask", "mask_cells.jsonl", {"value": -0.25}, "from 0 to 1 for value, got -0.25; remove"),
    ("mask", "mask.json", masked({"unmasked": 5.0}), "0 to 1 for targets.mood.unmasked, got 5.0"),
    ("mask", "mask.json", masked({"metric": 3}), "for targets.mood.metric, got 3"),
    ("mask", "mask.json", masked({"masks": {"in_task": {"runs": 3}}}), "in_task.runs, got 3"),
    ("mask", "mask.json", masked({"masks": {"in_task": {"runs": [{"value": -2}]}}}), "got -2"),
    ("tune", "metrics.jsonl", {"accuracy": 5.0}, "a number from 0 to 1 for accuracy, got 5.0"),
    ("tune", "metrics.jsonl", {"loss": math.inf}, "for loss, got inf; restore that line"),
    ("tune", "metrics.jsonl", {"step": -3}, "a whole number of at least 0 for step, got -3"),
    ("tune", "metrics.jsonl", {"split": None}, "a name for split, got None"),
    ("tune", "metrics.jsonl", {"counts": {"good": -1}}, "for counts.good, got -1"),
    ("tune", "metrics.jsonl", {"measures": {"matthews": 2}}, "1 for measures.matthews, got 2"),
    ("tune", "result.json", {"steps": "6"}, "for steps, got '6'; remove this file"),
    ("tune", "result.json", {"test": {"accuracy": 5.0}}, "0 to 1 for test.accuracy, got 5.0"),
    ("tune", "result.json", {"validation": {}, "metric": "f1"}, "validation.f1, got None"),
    ("tune", "result.json", {"validation": 3}, "an object for validation, got 3"),
    ("tune", "result.json", {"metric": 3}, "for metric, got 3"),
    ("report", "mask.json", {"targets": {"mnli": {"unmasked": 8}}}, "mnli.unmasked, got 8"),
    ("report", "transfer.json", {"targets": {"mnli": {"rows": -1}}}, "rows, got -1"),
    ("report", "prompts/imdb/metrics.jsonl", {"accuracy": 6}, "accuracy, got 6"),
    ("report", "prompts/imdb/result.json", {"validation": {"accuracy": 8}}, "accuracy, got 8"),
]


@pytest.mark.parametrize(("kind", "file", "change", "message"), VALUES)
def test_values_out_of_range(
    run: Run, place: RunCommands, tmp_path: Path, kind: str, file: str, change: dict, message: str
) -> None:
    out = tmp_path / "out"
    command = ("report", out) if kind == "report" else place.command(kind, out)
    write_study(out) if kind == "report" else place.finished(run, kind, out)
    for result in ("result.json", "mask.json"):  # finished: other files are not read
        if file.endswith("l"):
            (out / result).unlink(missing_ok=True)
    edit(out / file, lambda record: merged(record, change), 1)
    where = f"{file}, line 2: " if file.endswith("l") else f"{file}: "
    assert_refused(run(*command), f"{where}expected .*{message}")


def test_matrix_out_of_range(run: Run, place: RunCommands, tmp_path: Path) -> None:
    study = write_study(tmp_path / "study")
    matrix = study / "transfer.csv"
    matrix.write_text(matrix.read_text().replace("accuracy,0.8\n", "accuracy,5.0\n", 1))
    for given in (
        ("report", study),
        ("indicators", "--prompts", place.prompts, "--transfer", matrix, "--out", tmp_path / "out"),
        ("recommend", "--prompts", place.prompts, "--task", place.mood, "--known", matrix, *SHORT),
    ):
        assert_refused(run(*given), "transfer.csv, line 2: expected .* for accuracy, got 5.0")


# --- Folders that vanish during a command


def gone(folder: Path, how: str) -> None:
    """Move, delete, replace or empty a folder."""
    if how == "emptied":
        for path in folder.iterdir():  # a save in the background adds files
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        return
    away = folder.rename(folder.with_name("elsewhere"))
    if how == "replaced":
        folder.mkdir()
        shutil.copy(away / "config.json", folder)
    elif how == "deleted":
        shutil.rmtree(away, ignore_errors=True)


@contextmanager
def at_scoring(number: int, action: Callable[[], None]) -> Iterator[None]:
    """Call an action before a number of scorings."""
    real, calls = BoundTask.score, []

    def score(self: BoundTask, *given: Any, **more: Any) -> Any:
        calls.append(self)
        if len(calls) == number:
            action()
        return real(self, *given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BoundTask, "score", score)
        yield


MESSAGE = "expected the folder that this run writes to, got .*re-run"


@pytest.mark.parametrize(
    ("kind", "at", "how"),
    [
        ("tune", partial(at_step, 2), "moved"),
        ("tune", partial(at_step, 6), "deleted"),
        ("tune", partial(at_step, 2), "replaced"),
        ("tune", partial(at_step, 6), "emptied"),
        ("mix", partial(at_step, 4), "moved"),
        ("project", partial(at_step, 4), "deleted"),
        ("seeds", partial(at_scoring, 4), "moved"),
        ("warm-start", partial(at_scoring, 4), "moved"),
        ("sweep", partial(at_scoring, 1), "moved"),
        ("sweep", partial(at_scoring, 2), "deleted"),
        ("transfer", partial(at_scoring, 2), "moved"),
        ("mask", partial(at_scoring, 2), "deleted"),
        ("evaluate", partial(at_scoring, 1), "moved"),
    ],
)
def test_folder_vanishes(
    run: Run, place: RunCommands, tmp_path: Path, kind: str, at: Any, how: str
) -> None:
    out = tmp_path / "out"
    place.finished(run, "project", tmp_path / "projector")  # that is evaluated
    if kind == "evaluate":  # it makes its folder at the end, unless there is one
        out.mkdir()
    with at(lambda: gone(out, how)):
        assert_refused(run(*place.command(kind, out)), f"{out}.*: {MESSAGE}")
    assert not list(out.glob("*.json")) or how == "replaced"
    assert not (out / "result.json").exists()
    if (kind, how) == ("tune", "moved"):
        assert not out.exists()
        (tmp_path / "elsewhere").rename(out)
        assert run(*place.command(kind, out))[0] == 0, "moved back, it resumes"


def test_folder_of_a_quickstart_vanishes(
    run: Run, place: RunCommands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, tuned = tmp_path / "out", []

    def tune(backbone: Any, task: str, folder: Path, **options: Any) -> None:
        tuned.append(folder)
        gone(out, "deleted")

    monkeypatch.setattr(quickstart_module, "tune", tune)
    assert_refused(run(*place.command("quickstart", out)), f"{out}: {MESSAGE}")
    assert len(tuned) == 1 and not out.exists()
