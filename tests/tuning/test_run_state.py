"""State of another run, values out of range, vanished folders: through the command line."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
SHORT = ("--max-tokens", 16)
STEPS = ("--steps", 6, "--eval-every", 3, "--checkpoint-every", 3, "--batch-size", 4)


class Place:
    """A tiny backbone, two tasks, a prompt for each, and commands on them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.backbone = write_tiny_backbone(root / "bert", "bert")
        self.mood = write_task(root / "mood")
        toml = (self.mood / "task.toml").read_text()
        self.taste = write_task(root / "taste", toml=toml.replace("mood", "taste"))
        self.prompts = self.write_prompts(root / "prompts", self.backbone, 32)
        self.other = self.write_prompts(root / "other", "some/other-model", 12)

    def write_prompts(self, folder: Path, backbone: Path | str, width: int) -> Path:
        folder.mkdir()
        for seed, name in enumerate(("mood", "taste")):
            values = np.random.default_rng(seed).normal(0, 0.5, (3, width)).astype(np.float32)
            card = PromptCard(str(backbone), name, "sentiment", seed=seed)
            jpt.save_prompt(folder / f"{name}.safetensors", Prompt(values, card))
        return folder

    def tune(self, out: Path, *more: object, task: Path | None = None) -> tuple[object, ...]:
        given = ("--backbone", self.backbone, "--task", task or self.mood, "--out", out)
        return ("tune", *given, *STEPS, *SHORT, "--length", 3, *more)

    def mix(self, out: Path, *more: object) -> tuple[object, ...]:
        given = ("--prompts", self.prompts, "--task", self.mood, "--out", out)
        return ("mix", "learn", *given, *STEPS, *SHORT, *more)

    def project(self, out: Path, *more: object) -> tuple[object, ...]:
        given = ("--sources", self.other, "--target-backbone", self.backbone, "--out", out)
        sizes = ("--tasks", f"{self.mood},{self.taste}", "--bottleneck", 5)
        return ("project", "train", *given, *sizes, *STEPS, *SHORT, *more)

    def transfer(self, out: Path, *more: object) -> tuple[object, ...]:
        given = ("--prompts", self.prompts, "--tasks", f"{self.mood},{self.taste}", "--out", out)
        return ("transfer", *given, *SHORT, *more)

    def mask(self, out: Path, *more: object) -> tuple[object, ...]:
        given = ("--prompts", self.prompts, "--tasks", f"{self.mood},{self.taste}", "--out", out)
        return ("mask", *given, *SHORT, "--kinds", "in_task", *more)

    def evaluate(self, out: Path, projector: Path | str) -> tuple[object, ...]:
        given = ("--projector", projector, "--sources", self.other, "--out", out)
        given = (*given, "--methods", "untrained")
        return ("project", "evaluate", *given, "--tasks", self.mood, *SHORT)

    def warm_start(self, out: Path) -> tuple[object, ...]:
        source = self.prompts / "taste.safetensors"
        given = ("--task", self.mood, "--sources", source, "--seeds", "0,1", "--out", out)
        return ("warm-start", *given, *STEPS, *SHORT)

    def sweep(self, out: Path, **fixed: object) -> tuple[object, ...]:
        table = {"backbone": self.backbone, "task": self.mood, "steps": 6, "eval_every": 3}
        table |= {"batch_size": 4, "length": 3, "max_tokens": 16, **fixed}
        lines = [f"{name} = {json.dumps(value, default=str)}" for name, value in table.items()]
        grid = self.root / f"{out.name}.toml"
        seeds = "[grid]\nseed = [0, 1]\n[run]\nslots = 2\n"
        grid.write_text("\n".join(["[fixed]", *lines, seeds]))
        return ("sweep", grid, "--out", out)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


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


def swap(name: str, target: Path, source: Path) -> None:
    """Replace a file or folder by that of another run."""
    if (target / name).is_dir():
        shutil.rmtree(target / name)
        shutil.copytree(source / name, target / name)
    else:
        shutil.copy(source / name, target / name)


def unfinished(run: Run, place: Place, kind: str, out: Path, *more: object) -> Path:
    """Copy a run without its result, which resumes from its last checkpoint."""
    made = place.root / f"{kind}{''.join(map(str, more))}"
    if not made.exists():
        code, _, err = run(*getattr(place, kind)(made, *more))
        assert code == 0, err
        (made / "result.json").unlink()
    return Path(shutil.copytree(made, out))


# --- Checkpoints of another run

OTHERS = [
    ("seed", "tune", ("--seed", 1), "seed 1 .here 0."),
    ("learning rate", "tune", ("--learning-rate", 0.5), "learning_rate 0.5 .here 0.0"),
    ("mixture of one per token", "mix", ("--per-row",), "per_row True .here False."),
    ("seed of a mixture", "mix", ("--seed", 7), "seed 7 .here 0."),
    ("seed of a projector", "project", ("--seed", 1), "seed 1 .here 0."),
    ("activation", "project", ("--activation", "tanh"), "activation 'tanh' .here 'leaky_relu'."),
]


@pytest.mark.parametrize(("name", "kind", "more", "difference"), OTHERS)
def test_checkpoint_of_another_run(
    run: Run, place: Place, tmp_path: Path, name: str, kind: str, more: tuple, difference: str
) -> None:
    command = getattr(place, kind)
    mine = unfinished(run, place, kind, tmp_path / "mine")
    other = unfinished(run, place, kind, tmp_path / "other", *more)
    kept = shutil.copytree(mine / "checkpoints", tmp_path / "kept")
    swap("checkpoints", mine, other)
    assert_refused(run(*command(mine)), "of this run, got one of another run at step 6", difference)
    shutil.rmtree(mine / "checkpoints")
    shutil.copytree(kept, mine / "checkpoints")
    assert run(*command(mine))[0] == 0, "its own checkpoint is read"


def test_checkpoint_of_another_task_of_the_same_shapes(
    run: Run, place: Place, tmp_path: Path
) -> None:
    mine = unfinished(run, place, "tune", tmp_path / "mine")
    run(*place.tune(tmp_path / "other", task=place.taste))
    swap("checkpoints", mine, tmp_path / "other")
    assert_refused(run(*place.tune(mine)), "task 'taste' .here 'mood'.")


def test_checkpoint_of_another_group_of_a_sweep(
    run: Run, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    with monkeypatch.context() as patch:
        patch.setattr(sweep_module, "remove_group_folder", lambda path: None)
        assert run(*place.sweep(mine))[0] == run(*place.sweep(other, learning_rate=0.5))[0] == 0
    for result in mine.rglob("result.json"):
        result.unlink()
    (group,) = (path.name for path in (mine / "groups").iterdir())
    own = shutil.copytree(mine / "groups" / group, tmp_path / "own")
    swap(f"groups/{group}", mine, other)
    difference = r"runs.mood/seed-0.learning_rate 0.5 .here 0.0.*runs.mood/seed-1.learning_rate"
    assert_refused(run(*place.sweep(mine)), "one of another run", difference)
    shutil.rmtree(mine / "groups" / group)
    shutil.copytree(own, mine / "groups" / group)
    swapped = (mine / "runs" / "mood" / name for name in ("seed-0", "seed-1"))
    swap("metrics.jsonl", *swapped)
    assert run(*place.sweep(mine))[0] in (0, 2)  # equal scores are possible


def test_moments_of_another_run(run: Run, place: Place, tmp_path: Path) -> None:
    for seed in (0, 1):
        run(*place.tune(tmp_path / f"s{seed}", "--seed", seed))
    command = ("warm-start", "--task", place.mood, "--sources", tmp_path / "s0", "--copy-moments")
    command = (*command, "--seeds", 0, *STEPS, *SHORT, "--out", tmp_path / "warm")
    swap("checkpoints", tmp_path / "s0", tmp_path / "s1")
    assert_refused(run(*command), "got one of another run at step 6: seed 1 .here 0.")


# --- Other files of another run


@pytest.fixture(scope="module")
def seeds(place: Place) -> tuple[Path, Path]:
    """Two finished runs that differ in the seed."""
    folders = place.root / "seed-0", place.root / "seed-1"
    options = {"steps": 6, "eval_every": 3, "checkpoint_every": 3, "batch_size": 4}
    for seed, out in enumerate(folders):
        more = {"length": 3, "max_tokens": 16, "seed": seed, **options}
        jpt.tune(str(place.backbone), place.mood, out, **more)
    return folders


@pytest.fixture
def mine(seeds: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(seeds[0], tmp_path / "mine"))


SWAPPED = [
    ("result.json", "result.json: expected the result of the run in .*config.json"),
    ("prompt.safetensors", "prompt.safetensors: expected seed 0, as this run has, got 1"),
    ("last.safetensors", "last.safetensors: expected seed 0, as this run has, got 1"),
]


@pytest.mark.parametrize(("name", "message"), SWAPPED)
def test_file_of_another_seed(
    run: Run, place: Place, seeds, mine: Path, name: str, message: str
) -> None:
    assert run(*place.tune(mine))[0] == 0
    swap(name, mine, seeds[1])
    assert_refused(run(*place.tune(mine)), message, "to compute it again")


@pytest.mark.parametrize("is_finished", [True, False])
def test_log_of_another_run(run: Run, place: Place, seeds, mine: Path, is_finished: bool) -> None:
    if not is_finished:
        (mine / "result.json").unlink()
    edit(mine / "metrics.jsonl", lambda line: {**line, "accuracy": line["accuracy"] / 2}, 0)
    edit(mine / "metrics.jsonl", lambda line: {**line, "accuracy": line["accuracy"] / 2}, -1)
    assert_refused(run(*place.tune(mine)), r"metrics.jsonl: expected the validation score 0\.\d+")
    lines = (mine / "metrics.jsonl").read_text().splitlines()
    lines = [line for line in lines if '"validation"' not in line]
    (mine / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    assert_refused(run(*place.tune(mine)), "got no such line; the log is of another run or incom")


def test_run_of_another_task_in_a_finished_sweep(run: Run, place: Place, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(*place.sweep(out))[0] == 0
    assert run(*place.sweep(out))[0] == 0, "a finished sweep returns at once"
    table = (out / "runs.csv").read_text()
    swap("result.json", out / "runs/mood/seed-0", out / "runs/mood/seed-1")
    assert_refused(run(*place.sweep(out)), "seed-0/result.json: expected the result of the run in")
    run(*place.sweep(tmp_path / "taste", task=place.taste))
    shutil.rmtree(out / "runs/mood")
    shutil.copytree(tmp_path / "taste/runs/taste", out / "runs/mood")
    assert_refused(run(*place.sweep(out)), "holds another run: task was 'taste' and is now 'mood'")
    assert (out / "runs.csv").read_text() == table


def test_prompt_to_start_from_has_changed(run: Run, place: Place, tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    shutil.copy(place.prompts / "mood.safetensors", start)
    command = place.tune(tmp_path / "out", "--init", f"prompt:{start}")
    assert run(*command)[0] == run(*command)[0] == 0
    shutil.copy(place.prompts / "taste.safetensors", start)
    assert_refused(run(*command), "holds another run: init_sha256 was")


def test_folders_of_earlier_versions_are_read(run: Run, place: Place, mine: Path) -> None:
    edit(mine / "config.json", lambda config: {k: v for k, v in config.items() if k != "metric"})
    edit(mine / "result.json", lambda record: {k: v for k, v in record.items() if k != "identity"})
    assert run(*place.tune(mine))[0] == 0


# --- Values out of range

CELLS = [
    ({"value": 5.0}, "expected a number from 0 to 1 for accuracy, got 5.0"),
    ({"value": "0.5"}, "expected a number from 0 to 1 for accuracy, got '0.5'"),
    ({"value": -0.25}, "accuracy, got -0.25"),
    ({"value": True}, "accuracy, got True"),
    ({"loss": -0.5}, "expected a number of at least 0 for loss, got -0.5"),
    ({"loss": float("nan")}, "of at least 0 for loss, got nan"),
    ({"rows": 0}, "expected a whole number of at least 1 for rows, got 0"),
    ({"rows": 42.5}, "whole number of at least 1 for rows, got 42.5"),
    ({"majority": 1.5}, "from 0 to 1 for majority, got 1.5"),
    ({"elapsed_s": -1}, "for elapsed_s, got -1"),
    ({"metric": "speed"}, "expected one of accuracy, .*matthews.* for metric, got 'speed'"),
    ({"metric": "matthews", "value": -1.5}, "expected a number from -1 to 1 for matthews"),
    ({"target_task": 3}, "expected a name for target_task, got 3"),
    ({"standard_error": -0.1}, "of at least 0 for standard_error"),
]


@pytest.fixture(scope="module")
def scored(place: Place) -> Path:
    out = place.root / "scored"
    tasks = [place.mood, place.taste]
    jpt.transfer_matrix(place.prompts, tasks, out, max_tokens=16)
    options = {"kinds": ["in_task"], "max_tokens": 16}
    jpt.mask_neurons(place.prompts, tasks, out, **options)
    return out


@pytest.mark.parametrize(("change", "message"), CELLS)
@pytest.mark.parametrize("file", ["cells.jsonl", "mask_cells.jsonl"])
def test_cells_out_of_range(
    run: Run, place: Place, scored: Path, tmp_path: Path, file: str, change: dict, message: str
) -> None:
    shutil.copy(scored / file, tmp_path / file)
    edit(tmp_path / file, lambda cell: {**cell, **change}, 2)
    command = place.transfer if file == "cells.jsonl" else place.mask
    assert_refused(run(*command(tmp_path)), f"/{file}, line 3: ", message, "remove this line, or")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda target: target.update(unmasked=5.0), "0 to 1 for targets.mood.unmasked, got 5.0"),
        (lambda target: target.update(rows=-3), "for targets.mood.rows, got -3"),
        (
            lambda target: target["masks"]["in_task"]["runs"][0].update(value=-2),
            "from 0 to 1 for targets.mood.masks.in_task.runs.value, got -2",
        ),
    ],
)
def test_mask_record_out_of_range(
    run: Run, place: Place, scored: Path, tmp_path: Path, change, message: str
) -> None:
    out = Path(shutil.copytree(scored, tmp_path / "out"))
    assert run(*place.mask(out))[0] == 0

    def changed(record: dict) -> dict:
        change(record["targets"]["mood"])
        return record

    edit(out / "mask.json", changed)
    assert_refused(run(*place.mask(out)), "mask.json: expected ", message)


LOG_LINES = [
    ({"accuracy": 5.0}, "from 0 to 1 for accuracy, got 5.0"),
    ({"loss": float("inf")}, "for loss, got inf"),
    ({"rows": 0}, "for rows, got 0"),
    ({"step": -3}, "whole number of at least 0 for step, got -3"),
    ({"split": None}, "for split, got None"),
    ({"counts": {"good": -1}}, "for counts.good, got -1"),
    ({"measures": {"matthews": 2}}, "from -1 to 1 for measures.matthews, got 2"),
]


@pytest.mark.parametrize(("change", "message"), LOG_LINES)
@pytest.mark.parametrize("is_finished", [True, False])
def test_log_out_of_range(
    run: Run, place: Place, mine: Path, change: dict, message: str, is_finished: bool
) -> None:
    if not is_finished:
        (mine / "result.json").unlink()
    edit(mine / "metrics.jsonl", lambda line: {**line, **change}, 1)
    assert_refused(run(*place.tune(mine)), "metrics.jsonl, line 2: expected ", message)


RESULTS = [
    ({"best_step": -1}, "for best_step, got -1"),
    ({"steps": "6"}, "for steps, got '6'"),
    ({"test": {"accuracy": 5.0}}, "from 0 to 1 for test.accuracy, got 5.0"),
    ({"validation": {"loss": 0.5}}, "a number for validation.accuracy, got None"),
    ({"validation": 3}, "an object for validation, got 3"),
    ({"metric": 3}, "a name for metric, got 3"),
]


@pytest.mark.parametrize(("change", "message"), RESULTS)
def test_result_out_of_range(
    run: Run, place: Place, mine: Path, change: dict, message: str
) -> None:
    edit(mine / "result.json", lambda record: {**record, **change})
    assert_refused(run(*place.tune(mine)), "result.json: expected ", message, "remove this file")


def test_result_without_scores(run: Run, place: Place, mine: Path) -> None:
    (mine / "result.json").write_text("{}")
    assert_refused(run(*place.tune(mine)), "result.json: expected a value for metric, got None")


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("transfer.csv", "accuracy,0.8\n", "accuracy,5.0\n", "csv, line 2: .* accuracy, got 5.0"),
        ("mask.json", '"unmasked": 0.8', '"unmasked": 8.0', "targets.mnli.unmasked, got 8.0"),
        ("transfer.json", '"rows": 1821', '"rows": -1', "rows, got -1"),
        ("prompts/imdb/metrics.jsonl", '"accuracy": 0.6', '"accuracy": 6', "line 2: .*, got 6"),
        ("prompts/imdb/result.json", '"accuracy": 0.81', '"accuracy": 8', "accuracy, got 8"),
    ],
)
def test_report_on_values_out_of_range(
    run: Run, tmp_path: Path, file: str, old: str, new: str, message: str
) -> None:
    path = write_study(tmp_path / "study") / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    assert_refused(run("report", tmp_path / "study"), message)


@pytest.mark.parametrize("command", ["indicators", "recommend"])
def test_known_scores_out_of_range(
    run: Run, place: Place, scored: Path, tmp_path: Path, command: str
) -> None:
    matrix = tmp_path / "transfer.csv"
    lines = (scored / "transfer.csv").read_text().splitlines()
    lines[3] = f"{lines[3].rsplit(',', 1)[0]},5.0"
    matrix.write_text("".join(f"{line}\n" for line in lines))
    given: tuple[object, ...] = ("--transfer", matrix, "--out", tmp_path / "out")
    if command == "recommend":
        given = ("--task", place.mood, "--known", matrix, *SHORT)
    found = run(command, "--prompts", place.prompts, *given)
    assert_refused(found, "transfer.csv, line 4: expected .* for accuracy, got 5.0")


# --- Folders that vanish during a command


def gone(folder: Path, how: str) -> None:
    """Move, delete, replace or empty a folder."""
    if how == "moved":
        folder.rename(folder.with_name("elsewhere"))
    elif how == "replaced":
        folder.rename(folder.with_name("elsewhere"))
        folder.mkdir()
        shutil.copy(folder.with_name("elsewhere") / "config.json", folder)
    elif how == "emptied":
        for path in folder.iterdir():  # a save in the background adds files
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
    else:
        trash = folder.rename(folder.with_name("trash"))  # a save in the background adds files
        shutil.rmtree(trash, ignore_errors=True)


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


@pytest.mark.parametrize("how", ["moved", "deleted", "replaced", "emptied"])
@pytest.mark.parametrize("step", [2, 6])
def test_run_folder_vanishes(run: Run, place: Place, tmp_path: Path, how: str, step: int) -> None:
    out = tmp_path / "run"
    with at_step(step, lambda: gone(out, how)):
        assert_refused(run(*place.tune(out)), f"{out}: {MESSAGE}")
    assert not out.exists() or how in ("replaced", "emptied")
    assert not (out / "result.json").exists()
    if how == "moved":
        (tmp_path / "elsewhere").rename(out)
        assert run(*place.tune(out))[0] == 0, "moved back, it resumes"


@pytest.mark.parametrize("kind", ["mix", "project"])
@pytest.mark.parametrize("how", ["moved", "deleted"])
def test_other_run_folders_vanish(
    run: Run, place: Place, tmp_path: Path, kind: str, how: str
) -> None:
    out = tmp_path / "run"
    with at_step(4, lambda: gone(out, how)):
        assert_refused(run(*getattr(place, kind)(out)), f"{out}: {MESSAGE}")
    assert not (out / "result.json").exists()


def test_folder_of_several_runs_vanishes(run: Run, place: Place, tmp_path: Path) -> None:
    for number, command in enumerate((place.warm_start, place.tune)):
        out = tmp_path / str(number)
        more = () if number == 0 else ("--seeds", "0,1")
        with at_scoring(4, lambda out=out: gone(out, "moved")):
            assert_refused(run(*command(out), *more), MESSAGE)
        assert not list(out.glob("*.json"))
        (tmp_path / "elsewhere").rename(tmp_path / f"moved-{number}")


@pytest.mark.parametrize("how", ["moved", "deleted"])
@pytest.mark.parametrize("kind", ["transfer", "mask"])
def test_folder_of_scores_vanishes(
    run: Run, place: Place, tmp_path: Path, kind: str, how: str
) -> None:
    out = tmp_path / "out"
    with at_scoring(2, lambda: gone(out, how)):
        assert_refused(run(*getattr(place, kind)(out)), f"{out}: {MESSAGE}")
    assert not out.exists()


def test_folder_of_a_projection_vanishes(run: Run, place: Place, tmp_path: Path) -> None:
    out, projector = tmp_path / "out", tmp_path / "projector"
    assert run(*place.project(projector))[0] == 0
    out.mkdir()
    with at_scoring(1, lambda: gone(out, "moved")):
        assert_refused(run(*place.evaluate(out, projector)), f"{out}: {MESSAGE}")
    assert not out.exists()
    assert run(*place.evaluate(out, projector))[0] == 0


@pytest.mark.parametrize("at", [3, 5])
def test_folder_of_a_sweep_vanishes(
    run: Run, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    out, calls = tmp_path / "out", []
    real = sweep_module.SweepProgress.stepped

    def stepped(self: Any, *given: Any) -> None:
        calls.append(given)
        if len(calls) == at:
            gone(out, "moved")
        real(self, *given)

    monkeypatch.setattr(sweep_module.SweepProgress, "stepped", stepped)
    assert_refused(run(*place.sweep(out)), MESSAGE)
    assert not out.exists()


def test_folder_of_a_quickstart_vanishes(
    run: Run, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, tuned = tmp_path / "out", []

    def tune(backbone: Any, task: str, folder: Path, **options: Any) -> None:
        tuned.append(folder)
        gone(out, "deleted")

    monkeypatch.setattr(quickstart_module, "tune", tune)
    given = ("--backbone", place.backbone, "--tasks", f"{place.mood},{place.taste}")
    assert_refused(run("quickstart", "--out", out, *given), f"{out}: {MESSAGE}")
    assert len(tuned) == 1 and not out.exists()
