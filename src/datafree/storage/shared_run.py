"""The run directory of several processes: the first is at it, the others hear what it read and whether it wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from datafree.distributed import replicas
from datafree.storage.run_directory import Run


def open_run(path: Path, recipe: dict[str, Any]) -> Run | SharedRun:
    """The run directory, opened by this process or, of several, by the first. Raises RunError, on all of them."""
    return Run(path, recipe) if replicas.count() == 1 else SharedRun(path, recipe)


class SharedRun:
    """What a `Run` is to the loop, on each of several processes. All call the same methods at the same steps."""

    def __init__(self, path: Path, recipe: dict[str, Any]) -> None:
        """As `Run`."""
        self.path = path
        self._run: Run | None = None
        self.saved, self.finished, self.warnings = replicas.broadcast_from_rank0(lambda: self._open(recipe))

    def _open(self, recipe: dict[str, Any]) -> tuple[dict[str, Any] | None, bool, list[str]]:
        self._run = Run(self.path, recipe)
        return self._run.saved, self._run.finished, self._run.warnings

    @property
    def _first(self) -> Run:
        assert self._run is not None
        return self._run

    def last_state(self) -> dict[str, Any] | None:
        """As `Run.last_state`."""
        return replicas.broadcast_from_rank0(lambda: self._first.last_state())

    def start(self, index: int, say: Callable[[str], None] = lambda line: None) -> None:
        """As `Run.start`."""
        replicas.broadcast_from_rank0(lambda: self._first.start(index, say))

    def log(self, index: int, step: int, values: dict[str, float]) -> None:
        """As `Run.log`."""
        if self._run is not None:
            self._run.log(index, step, values)

    def save_picture(self, index: int, picture: Tensor) -> None:
        """As `Run.save_picture`."""
        if self._run is not None:
            self._run.save_picture(index, picture)

    def save_state(self, state: dict[str, Any], *, must: bool = False) -> bool:
        """As `Run.save_state`."""
        return replicas.broadcast_from_rank0(lambda: self._first.save_state(state, must=must))

    def save_fault(self, index: int, content: dict[str, Any]) -> Path | None:
        """As `Run.save_fault`."""
        return replicas.broadcast_from_rank0(lambda: self._first.save_fault(index, content))

    def save_json(self, name: str, content: dict[str, Any]) -> None:
        """As `Run.save_json`."""
        if self._run is not None:
            self._run.save_json(name, content)

    def close(self) -> None:
        """As `Run.close`."""
        if self._run is not None:
            self._run.close()
