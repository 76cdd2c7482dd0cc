"""The run directory of one process or of several: of these rank 0 writes it, the others hear what it read and wrote."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from torch import Tensor

from datafree.distributed import replicas
from datafree.storage.run_directory import Run

P = ParamSpec("P")
ResultT = TypeVar("ResultT")


class RunDirectory(Protocol):
    """What a run reads and writes; `Run` says what each method does."""

    path: Path
    saved: dict[str, Any] | None
    finished: bool
    warnings: list[str]

    def last_state(self) -> dict[str, Any] | None: ...

    def start(self, index: int, say: Callable[[str], None] = ...) -> None: ...

    def log(self, index: int, step: int, values: dict[str, float]) -> None: ...

    def save_picture(self, index: int, picture: Tensor) -> None: ...

    def save_state(self, state: dict[str, Any], *, must: bool = False) -> bool: ...

    def save_fault(self, index: int, content: dict[str, Any]) -> Path | None: ...

    def save_json(self, name: str, content: dict[str, Any]) -> None: ...

    def finish(self, result: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def open_run(path: Path, recipe: dict[str, Any], drafted: str | None = None) -> RunDirectory:
    """The run directory, opened by this process or, of several, by rank 0. Raises RunError, on all of them."""
    return Run(path, recipe, drafted) if replicas.count() == 1 else SharedRun(path, recipe, drafted)


def _awaited(method: Callable[Concatenate[Run, P], ResultT]) -> Callable[Concatenate[SharedRun, P], ResultT]:
    """A method that rank 0 calls while the others wait: all return what it returns, or raise its error."""

    @wraps(method)
    def call(shared: SharedRun, /, *args: P.args, **kwargs: P.kwargs) -> ResultT:
        return replicas.broadcast_from_rank0(lambda: method(shared.run_of_rank0, *args, **kwargs))

    return call


def _unawaited(method: Callable[Concatenate[Run, P], None]) -> Callable[Concatenate[SharedRun, P], None]:
    """A method that rank 0 calls and nobody waits for."""

    @wraps(method)
    def call(shared: SharedRun, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if shared.run is not None:
            method(shared.run, *args, **kwargs)

    return call


class SharedRun:
    """The `RunDirectory` of one of several processes. All call the same methods at the same steps."""

    def __init__(self, path: Path, recipe: dict[str, Any], drafted: str | None = None) -> None:
        """As `Run`."""
        self.path = path
        self.run: Run | None = None  # rank 0's alone
        self.saved, self.finished, self.warnings = replicas.broadcast_from_rank0(lambda: self._open(recipe, drafted))

    def _open(self, recipe: dict[str, Any], drafted: str | None) -> tuple[dict[str, Any] | None, bool, list[str]]:
        self.run = Run(self.path, recipe, drafted)
        return self.run.saved, self.run.finished, self.run.warnings

    @property
    def run_of_rank0(self) -> Run:
        assert self.run is not None
        return self.run

    last_state = _awaited(Run.last_state)
    start = _awaited(Run.start)
    save_state = _awaited(Run.save_state)
    save_fault = _awaited(Run.save_fault)
    log = _unawaited(Run.log)
    save_picture = _unawaited(Run.save_picture)
    save_json = _unawaited(Run.save_json)
    finish = _unawaited(Run.finish)
    close = _unawaited(Run.close)
