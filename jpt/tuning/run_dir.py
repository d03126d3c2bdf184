"""The folder of a run: lock, log, results and checkpoints."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import re
import shutil
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np

from jpt.distributed import check_shared, is_first, on_first
from jpt.errors import InputError, shorten
from jpt.io.files import (
    OutFolder,
    is_at,
    make_folder,
    moved_error,
    read_json,
    write_error,
    write_json,
    write_text,
)
from jpt.results.value_checks import MAIN_SCORES, RANGES, check_values

# --- Checkpoints
# A checkpoint holds prompt, optimizer state and best prompt so far, and the identity of its run:
# the config without what may change at a resume. That of another run is refused. It is written in
# the background under a temporary name, and renamed once the checksums of all its files are
# written.

KEPT = 2
SUMS = "checksums.json"
_IDENTITY = "identity"  # in the metadata of a checkpoint
_TEMPORARY = ".tmp"
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")
_READ_BYTES = 1 << 20


class Checkpoints:
    """The latest checkpoints of a run, written with orbax."""

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any] | None = None,  # None accepts the checkpoints of any run
        check_folder: Callable[[], Any] = lambda: None,  # raises if the run's folder has vanished
        home: Path | None = None,  # the folder that vanishes; that of the checkpoints' folder
    ) -> None:
        # orbax logs every file at INFO, CPU placement at WARNING, and a full disk in a thousand
        # lines at ERROR before it raises; that error becomes one line here.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        from orbax.checkpoint import v1 as orbax

        self._orbax = orbax
        self.folder = folder.absolute()
        self.identity = None if identity is None else _plain(identity)
        self._check_folder = check_folder
        self._home = self.folder.parent if home is None else home.absolute()
        self._damaged: set[int] = set()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._join()  # not `wait`: the other processes may not have failed
        except InputError:
            if error is None:
                raise
        finally:
            self._remove_new_folders()

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return on_first(self._latest)

    def save(self, step: int, state: Any) -> None:
        """Start saving a state; return once it is copied off the device."""
        self.wait()
        if not on_first(lambda: self._make_room(step)):
            return
        try:
            response = self._orbax.save_checkpointables_async(
                self._temporary(step), {"state": state}, custom_metadata={_IDENTITY: self.identity}
            )
        except (OSError, ValueError) as error:
            raise self._write_error(step, error) from None
        # Not a daemon thread: the process waits for an unfinished checkpoint.
        self._thread = threading.Thread(target=self._finish, args=(step, response))
        self._thread.start()

    def wait(self) -> None:
        """Wait until the last save is complete on disk."""
        on_first(self._join)
        self._join()

    def load(self, like: Any, cure: str = "remove the folder to start anew") -> Any:
        """Load the newest checkpoint with valid checksums onto this run's devices."""
        return self._load(on_first(lambda: self._find_valid(cure)), like, cure)

    def _find_valid(self, cure: str) -> int:
        """Return the newest undamaged step; report damaged ones, which the next save removes."""
        step, faults = self._choose()
        self._damaged = {number for number, _ in faults}
        notes = [
            f"the checkpoint of step {number} is damaged ({fault})" for number, fault in faults
        ]
        if step is None:
            reason = "; ".join(notes) or "there is none"
            raise InputError(f"{self.folder}: no readable checkpoint ({reason}); {cure}")
        if notes:
            print(f"{'; '.join(notes)}; resuming from step {step}", file=sys.stderr)
        return step

    def remove_leftovers(self) -> None:
        """Remove checkpoints that a killed run left incomplete."""
        if is_first() and self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.is_dir() and not path.name.isdecimal() and "tmp" in path.name:
                    shutil.rmtree(path, ignore_errors=True)

    def _remove_new_folders(self) -> None:
        """Remove what a save in the background left where a vanished folder was."""
        try:
            self._check_folder()
        except InputError:
            files = (path for path in self._home.rglob("*") if path.is_file())
            is_new = all(self.folder in path.parents for path in files)  # others: another run
            if is_first() and is_new:
                shutil.rmtree(self._home, ignore_errors=True)

    def _make_room(self, step: int) -> bool:
        """Prepare the folder for a checkpoint; return False if the step is already saved."""
        self._check_folder()
        if step in self._steps():
            return False
        make_folder(self.folder)
        self.remove_leftovers()
        return True

    def _join(self) -> None:
        """Wait for this process's part of the last save."""
        if self._thread is not None:
            self._thread.join()
        error, self._thread, self._error = self._error, None, None
        if error is not None:
            raise error

    def _latest(self) -> int | None:
        return max(self._steps(), default=None)

    def _choose(self) -> tuple[int | None, list[tuple[int, str]]]:
        """Return the newest valid checkpoint, and the faults of the later ones."""
        faults = []
        for step in sorted(self._steps(), reverse=True):
            fault = _fault(self.folder / str(step))
            if fault is None:
                return step, faults
            faults.append((step, fault))
        return None, faults

    def _steps(self) -> list[int]:
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        return [int(name) for name in names if name.isdecimal() and int(name) not in self._damaged]

    def _temporary(self, step: int) -> Path:
        return self.folder / f"{step}{_TEMPORARY}"

    def _load(self, step: int, like: Any, cure: str) -> Any:
        folder = self.folder / str(step)
        self._check_identity(step, cure)
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like
        )
        try:
            return self._orbax.load_checkpointables(folder, {"state": abstract})["state"]
        except (ValueError, KeyError, OSError) as error:
            reason = str(error).split("\n")[0][:200]  # orbax prints whole type trees
            raise InputError(
                f"{self.folder}: the checkpoint of step {step} does not fit this run "
                f"({reason}); {cure}"
            ) from None

    def _check_identity(self, step: int, cure: str) -> None:
        """Raise InputError if a checkpoint is of another run."""
        if self.identity is None:
            return
        try:
            metadata = self._orbax.checkpointables_metadata(self.folder / str(step)).custom_metadata
            found = differences(dict(metadata[_IDENTITY]), self.identity)
        except (ValueError, KeyError, TypeError, OSError):
            found = ["its version did not record the run"]
        if found:
            raise InputError(
                f"{self.folder}: expected a checkpoint of this run, got one of another run at step "
                f"{step}: {shorten(found, 4)}; {cure}"
            )

    def _finish(self, step: int, response: Any) -> None:
        """Wait for orbax in the background, then finalise the checkpoint."""
        # After a failed write orbax drops those of the other arrays, about which Python warns.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        before = sys.unraisablehook
        sys.unraisablehook = _ignore_closed_loop(before)
        try:
            response.result()
            sys.unraisablehook = before
            if is_first():
                self._finalise(step)
        except (OSError, ValueError) as error:
            self._error = self._write_error(step, error)
        except BaseException as error:  # re-raised by wait() in the main thread
            self._error = error

    def _finalise(self, step: int) -> None:
        """Write checksums, rename the folder, and remove old checkpoints."""
        self._check_folder()
        folder, target = self._temporary(step), self.folder / str(step)
        write_json(folder / SUMS, _checksums(folder))
        for old in self._damaged:
            shutil.rmtree(self.folder / str(old), ignore_errors=True)
        self._damaged.clear()
        os.replace(folder, target)
        for old in sorted(self._steps())[:-KEPT]:
            shutil.rmtree(self.folder / str(old), ignore_errors=True)

    def _write_error(self, step: int, error: Exception) -> Exception:
        """Return a disk error as one line; any other error unchanged."""
        try:
            self._check_folder()
        except InputError as moved:
            return moved
        if isinstance(error, InputError):
            message = error
        elif isinstance(error, OSError) and error.errno is not None:
            message = write_error(self.folder, error)
        elif found := _OS_ERROR.search(str(error)):
            code = int(found[1])
            message = write_error(self.folder, OSError(code, os.strerror(code)))
        elif "RESOURCE_EXHAUSTED" in str(error):
            message = write_error(self.folder, OSError(errno.ENOSPC, ""))
        else:  # its files were removed meanwhile
            reason = str(error).split("\n")[0][:200]
            where = f"{self.folder}: cannot write the checkpoint of step {step}"
            message = InputError(f"{where} ({reason})")
        self.remove_leftovers()  # to free disk space
        return InputError(f"{message}; the state of step {self._latest() or 0} is kept")


def _ignore_closed_loop(
    hook: Callable[[sys.UnraisableHookArgs], Any],
) -> Callable[[sys.UnraisableHookArgs], Any]:
    """Ignore writes that end after orbax has given up on the first failed one."""

    def filtered(args: sys.UnraisableHookArgs) -> None:
        if str(args.exc_value) != "Event loop is closed":
            hook(args)

    return filtered


def _checksums(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    return {path.relative_to(folder).as_posix(): _checksum(path) for path in paths}


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _fault(folder: Path) -> str | None:
    """Describe the first missing or changed file, or return None."""
    if not (folder / SUMS).exists():  # written by an older version
        return None
    try:
        expected = json.loads((folder / SUMS).read_text(encoding="utf-8"))
        for name, checksum in expected.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if _checksum(folder / name) != checksum:
                return f"{name} has changed"
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror}"
    except (ValueError, AttributeError):
        return f"{SUMS} has changed"
    return None


# --- Run folder

CONFIG, LOG, RESULT = "config.json", "metrics.jsonl", "result.json"
BEST, LAST, CHECKPOINTS = "prompt.safetensors", "last.safetensors", "checkpoints"
PREDICTIONS = "predictions.jsonl"
LOCK = ".lock"

# What may change when a run is resumed, and what older run folders do not have.
MAY_DIFFER = ("jpt_version", "checkpoint_every", "checkpoint_minutes", "mesh")
ADDED_LATER = ("metric", "init_sha256", "label_ids")
_CHECKSUMS = "checksums"  # in its result
_OF_TRAINING = ("metric", "steps", "best_step", "validation", "elapsed_s")  # likewise

_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)


class RunFolder:
    """A run on disk; opened again with the same config, it resumes."""

    # With several processes all open it; the first one reads and writes for all.

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path = path
        self._held: OutFolder | None = None
        # Of the config on disk, which may be older than this version's.
        self.identity = identity_of(on_first(lambda: self._open(config)))
        check_shared(self.config_path)

    @property
    def config_path(self) -> Path:
        """Path of the config file."""
        return self.path / CONFIG

    @property
    def result(self) -> dict[str, Any] | None:
        """Result of a finished run, or None."""
        return on_first(lambda: read_result(self.path))

    def check(self) -> None:
        """Raise InputError if the folder was moved, deleted or emptied since it was locked."""
        if self._held is not None:
            self._held.check()
            if is_first() and not self.config_path.exists():
                raise moved_error(self.path, f"one without {CONFIG}")

    def file(self, name: str) -> Path:
        """Return the path of a file to write, after `check`."""
        self.check()
        return self.path / name

    def checkpoints(self) -> Checkpoints:
        """Return the checkpoints of this run."""
        return Checkpoints(self.path / CHECKPOINTS, self.identity, self.check)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder for one run, and remove the leftovers of a killed one."""
        held: list[int] = []
        on_first(lambda: held.extend(self._take()))
        self._held = OutFolder(self.path)
        try:
            if is_first():
                self._remove_leftovers()
            yield
        finally:
            self._held = None
            for descriptor in held:
                if is_at(descriptor, self.path / LOCK):
                    (self.path / LOCK).unlink()
                os.close(descriptor)

    def tidy(self) -> None:
        """Remove the leftovers of a process killed after its run had finished."""
        names = on_first(lambda: [path.name for path in self.path.iterdir()])
        if any(name == LOCK or _is_leftover(name) for name in names):
            with contextlib.suppress(InputError), self.lock():
                pass

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Write the result, which marks the run as finished; return it with all checksums."""
        self.check()
        record = {**result, _CHECKSUMS: on_first(lambda: _run_checksums(self.path))}
        if is_first():
            write_json(self.file(RESULT), record)
        return record

    def log(self, line: dict[str, Any]) -> None:
        """Append an object to the log."""
        if not is_first():
            return
        text = json.dumps(line, allow_nan=False) + "\n"
        self.check()
        try:
            with (self.path / LOG).open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise write_error(self.path / LOG, error) from None

    def history(self) -> list[dict[str, Any]]:
        """Return the lines of the log."""
        return on_first(self._history)

    def rewind(self, step: int) -> None:
        """Remove log lines after a step."""
        if is_first() and (self.path / LOG).exists():
            kept = [line for line in self._history() if line["step"] <= step]
            write_text(self.file(LOG), "".join(json.dumps(line) + "\n" for line in kept))

    def check_best(self, score: float, step: int) -> None:
        """Raise InputError if the log lacks the best score of a checkpoint."""
        if score > -math.inf:
            on_first(lambda: self._check_logged(score, step))

    def _check_logged(self, score: float, step: int) -> None:
        at_step = (each for each in self._history() if each["step"] == step)
        line = next((each for each in at_step if each["split"] == "validation"), {})
        numbers = {name: value for name, value in line.items() if isinstance(value, float)}
        logged = {n: v for n, v in numbers.items() if n in MAIN_SCORES or n not in RANGES}
        # In float32, as in a checkpoint; by magnitude: a projector's best score is minus its error.
        if np.float32(abs(score)) not in [np.float32(abs(each)) for each in logged.values()]:
            found = ", ".join(f"{name} {value:.6g}" for name, value in logged.items())
            raise InputError(
                f"{self.path / LOG}: expected the validation score {abs(score):.6g} at step {step},"
                f" as in the checkpoint, got {found or 'no such line'}; the log is of another run"
                " or incomplete: restore it, or remove the folder to start anew"
            )

    def _open(self, config: dict[str, Any]) -> dict[str, Any]:
        stored = self._read_config(config)
        if stored is None:
            make_folder(self.path)
            write_json(self.config_path, config)
        return config if stored is None else stored

    def _history(self) -> list[dict[str, Any]]:
        path = self.path / LOG
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        found = []
        for number, line in enumerate(lines, 1):
            try:
                read = json.loads(line)
            except ValueError:
                if number == len(lines):
                    break
                raise InputError(
                    f"{path} is damaged: line {number} is not JSON; remove that line, or the "
                    "folder to start anew"
                ) from None
            cure = "restore that line, or remove the folder to start anew"
            check_values(f"{path}, line {number}", read, cure, ("step", "split"))
            found.append(read)
        return found

    def _take(self) -> list[int]:
        """Lock the folder until the file is closed, as the kernel does for a killed process."""
        path = self.path / LOCK
        while True:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise write_error(path, error) from None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
                os.close(descriptor)
                raise InputError(
                    f"{self.path}: in use by another run ({holder or 'unknown process'}); wait for "
                    "it, stop it, or use another folder"
                ) from None
            except OSError as error:
                os.close(descriptor)
                path.unlink(missing_ok=True)
                if error.errno not in _NO_LOCKS:
                    raise write_error(path, error) from None
                print(
                    f"{self.path}: file system without locks; do not start this run twice",
                    file=sys.stderr,
                )
                return []
            if is_at(descriptor, path):
                break
            os.close(descriptor)  # its holder has just finished and removed the file
        with contextlib.suppress(OSError):  # a full disk must not prevent the start
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        return [descriptor]

    def _remove_leftovers(self) -> None:
        for path in self.path.glob(".jpt-*.tmp"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _read_config(self, config: dict[str, Any]) -> dict[str, Any] | None:
        """Return the config on disk, or None; raise InputError if it is of another run."""
        if not self.path.exists():
            return None
        if not self.path.is_dir():
            raise InputError(f"{self.path}: expected a run folder, got a file")
        if not self.config_path.exists():
            names = [path.name for path in self.path.iterdir()]
            if any(name != LOCK and not _is_leftover(name) for name in names):
                raise InputError(
                    f"{self.path} is not empty and holds no run (no {CONFIG}); use a new folder"
                )
            return None
        stored = read_config(self.path)
        if found := differences(identity_of(stored), _plain(identity_of(config))):
            raise InputError(
                f"{self.path} holds another run: {shorten(found, 6)}; use another folder, or"
                " remove this one"
            )
        return stored


def read_config(folder: Path) -> dict[str, Any]:
    """Return the config of a run."""
    stored = read_json(folder / CONFIG)
    if not isinstance(stored, dict):
        raise InputError(f"{folder / CONFIG}: expected an object, got {stored!r}; use a new folder")
    return stored


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return the result of a finished run, or None; raise InputError if a file is not its own."""
    path, cure = folder / RESULT, "remove this file to compute it again"
    if not path.exists():
        return None
    record = read_json(path)
    trained = "fingerprint" in read_config(folder)
    check_values(path, record, cure, _OF_TRAINING if trained else ())
    found = _run_checksums(folder)
    for name, checksum in dict(record.get(_CHECKSUMS, {})).items():  # none in older files
        if found.get(name) != checksum and (name in found or name != LOG):  # a log may be removed
            raise InputError(
                f"{path}: expected the {name} of its run next to it, got "
                f"{'another one' if name in found else 'none'}; restore it, or {cure}"
            )
    return record


def _run_checksums(folder: Path) -> dict[str, str]:
    """Return checksums of the files of a run; of its config without what may differ."""
    identity = json.dumps(identity_of(read_config(folder)), sort_keys=True)
    files = [folder / LOG, *sorted(folder.glob("*.safetensors"))]
    return {
        CONFIG: hashlib.sha256(identity.encode()).hexdigest(),
        **{path.name: _checksum(path) for path in files if path.exists()},
    }


def identity_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a config that identifies its run."""
    return {name: value for name, value in config.items() if name not in MAY_DIFFER}


def _is_leftover(name: str) -> bool:
    return name.startswith(".jpt-") and name.endswith(".tmp")


def _plain(value: Any) -> Any:
    """Return a config as JSON returns it."""
    return json.loads(json.dumps(value))


def differences(stored: Any, wanted: Any, at: str = "") -> list[str]:
    """List the differences of two configs, except in what older ones do not have."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        names = [key for key in {**stored, **wanted} if key in stored or key not in ADDED_LATER]
        return [
            difference
            for key in names
            for difference in differences(
                stored.get(key), wanted.get(key), f"{at}.{key}".lstrip(".")
            )
        ]
    return [] if stored == wanted else [f"{at} was {stored!r} and is now {wanted!r}"]
