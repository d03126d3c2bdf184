"""The folder of one run: its config, its log, its prompts, its result, and whose it is just now."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jpt.errors import InputError
from jpt.files.atomic import make_folder, write_error, write_json, write_text
from jpt.processes import check_shared, is_first, on_first

CONFIG, LOG, RESULT = "config.json", "metrics.jsonl", "result.json"
BEST, LAST, CHECKPOINTS = "prompt.safetensors", "last.safetensors", "checkpoints"
PREDICTIONS = "predictions.jsonl"
LOCK = ".lock"

MAY_DIFFER = ("jpt_version", "checkpoint_every", "checkpoint_minutes", "mesh")
"""What a run may go on with differently: other moments to save at, other devices."""

_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)


class RunFolder:
    """A run on disk. Opening it again with the same config goes on where it stopped."""

    # With several processes all open it; the first one reads and writes for all.

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path = path
        on_first(lambda: self._open(config))
        check_shared(self.config_path)

    @property
    def config_path(self) -> Path:
        """Where the config is."""
        return self.path / CONFIG

    @property
    def result(self) -> dict[str, Any] | None:
        """The result of a finished run, or None."""
        path = self.path / RESULT
        return on_first(
            lambda: json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for one run, however that ends; removes what a killed one left."""
        held: list[int] = []
        on_first(lambda: held.extend(self._take()))
        try:
            if is_first():
                self._remove_leftovers()
            yield
        finally:
            for descriptor in held:
                with contextlib.suppress(OSError):
                    (self.path / LOCK).unlink()
                os.close(descriptor)

    def tidy(self) -> None:
        """Removes what a process left that was killed when its run had ended."""
        names = on_first(lambda: [path.name for path in self.path.iterdir()])
        if any(name == LOCK or _is_leftover(name) for name in names):
            with contextlib.suppress(InputError), self.lock():
                pass

    def finish(self, result: dict[str, Any]) -> None:
        """Writes the result, which marks the run as finished."""
        if is_first():
            write_json(self.path / RESULT, result)

    def log(self, line: dict[str, Any]) -> None:
        """Appends one object to the log."""
        if not is_first():
            return
        text = json.dumps(line, allow_nan=False) + "\n"
        try:
            with (self.path / LOG).open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise write_error(self.path / LOG, error) from None

    def history(self) -> list[dict[str, Any]]:
        """Reads the log."""
        return on_first(self._history)

    def rewind(self, step: int) -> None:
        """Removes what was logged after a checkpoint."""
        if is_first() and (self.path / LOG).exists():
            kept = [line for line in self._history() if line["step"] <= step]
            write_text(self.path / LOG, "".join(json.dumps(line) + "\n" for line in kept))

    def _open(self, config: dict[str, Any]) -> None:
        self._refuse_other_run(config)
        if not self.config_path.exists():
            make_folder(self.path)
            write_json(self.config_path, config)

    def _history(self) -> list[dict[str, Any]]:
        path = self.path / LOG
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        found = []
        for number, line in enumerate(lines, 1):
            try:
                found.append(json.loads(line))
            except ValueError:
                if number == len(lines):
                    break
                raise InputError(
                    f"{path} is damaged: line {number} is no JSON; remove that line, or the folder "
                    "to start anew"
                ) from None
        return found

    def _take(self) -> list[int]:
        """Locks the folder until the file is closed; the kernel does that for a killed process."""
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
                    f"another run is at work in {self.path} ({holder or 'unknown process'}); wait "
                    "for it, stop it, or give another folder"
                ) from None
            except OSError as error:
                os.close(descriptor)
                path.unlink(missing_ok=True)
                if error.errno not in _NO_LOCKS:
                    raise write_error(path, error) from None
                print(
                    f"{self.path} lies on a disk without locks: do not start this run twice",
                    file=sys.stderr,
                )
                return []
            if _is_at(descriptor, path):
                break
            os.close(descriptor)  # its holder has just ended and removed it
        with contextlib.suppress(OSError):  # a full disk is no reason not to start
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        return [descriptor]

    def _remove_leftovers(self) -> None:
        for path in self.path.glob(".jpt-*.tmp"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _refuse_other_run(self, config: dict[str, Any]) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise InputError(f"{self.path} is a file; give a folder for the run")
        if not self.config_path.exists():
            names = [path.name for path in self.path.iterdir()]
            if any(name != LOCK and not _is_leftover(name) for name in names):
                raise InputError(
                    f"{self.path} is not empty and holds no run (no {CONFIG}); give a new folder"
                )
            return
        try:
            stored = json.loads(self.config_path.read_text(encoding="utf-8"))
        except ValueError:
            raise InputError(f"{self.config_path} is no JSON; give a new folder") from None
        differences = _differences(stored, json.loads(json.dumps(config)))
        if differences:
            raise InputError(
                f"{self.path} holds another run: {'; '.join(differences)}; give another folder, "
                "or remove this one"
            )


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _is_leftover(name: str) -> bool:
    return name.startswith(".jpt-") and name.endswith(".tmp")


def _differences(stored: Any, wanted: Any, name: str = "") -> list[str]:
    """Lists the fields in which two configs differ, but for those that may."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        names = [key for key in {**stored, **wanted} if name or key not in MAY_DIFFER]
        return [
            difference
            for key in names
            for difference in _differences(
                stored.get(key), wanted.get(key), f"{name}.{key}".lstrip(".")
            )
        ]
    return [] if stored == wanted else [f"{name} was {stored!r} and is now {wanted!r}"]
