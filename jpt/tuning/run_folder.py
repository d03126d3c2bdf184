"""The folder of one run: its config, its log, its prompts, its result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jpt.errors import InputError
from jpt.files.atomic import make_folder, write_json, write_text

CONFIG, LOG, RESULT = "config.json", "metrics.jsonl", "result.json"
BEST, LAST, CHECKPOINTS = "prompt.safetensors", "last.safetensors", "checkpoints"
PREDICTIONS = "predictions.jsonl"


class RunFolder:
    """A run on disk. Opening it again with the same config goes on where it stopped.

    Args:
        path: the folder; made when it is not there.
        config: what defines the run, as JSON.

    Raises:
        InputError: when the folder holds another run, or files that are no run's.

    Example:
        >>> import tempfile
        >>> folder = RunFolder(Path(tempfile.mkdtemp()) / "run", {"seed": 1})
        >>> folder.result is None
        True
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path = path
        self._refuse_other_run(config)
        if not self.config_path.exists():
            make_folder(path)
            write_json(self.config_path, config)

    @property
    def config_path(self) -> Path:
        """Where the config is."""
        return self.path / CONFIG

    @property
    def result(self) -> dict[str, Any] | None:
        """The result of a finished run, or None."""
        path = self.path / RESULT
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def finish(self, result: dict[str, Any]) -> None:
        """Writes the result, which marks the run as finished.

        Args:
            result: as JSON.
        """
        write_json(self.path / RESULT, result)

    def log(self, line: dict[str, Any]) -> None:
        """Appends one object to the log.

        Args:
            line: with the field ``step``.
        """
        with (self.path / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def history(self) -> list[dict[str, Any]]:
        """Reads the log.

        Returns:
            Its objects; a last line that a kill cut short is left out.
        """
        path = self.path / LOG
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def rewind(self, step: int) -> None:
        """Removes what was logged after a checkpoint.

        Args:
            step: of the checkpoint that the run goes on from; -1 where there is none.
        """
        kept = [line for line in self.history() if line["step"] <= step]
        if (self.path / LOG).exists():
            write_text(self.path / LOG, "".join(json.dumps(line) + "\n" for line in kept))

    def _refuse_other_run(self, config: dict[str, Any]) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise InputError(f"{self.path} is a file; give a folder for the run")
        if not self.config_path.exists():
            if any(self.path.iterdir()):
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


def _differences(stored: Any, wanted: Any, name: str = "") -> list[str]:
    """Lists the fields in which two configs differ; the version of jpt may."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        names = [key for key in {**stored, **wanted} if key != "jpt_version"]
        return [
            difference
            for key in names
            for difference in _differences(
                stored.get(key), wanted.get(key), f"{name}.{key}".lstrip(".")
            )
        ]
    return [] if stored == wanted else [f"{name} was {stored!r} and is now {wanted!r}"]
