"""Where a data set is made, shard by shard: on a disk (`shards.Shards`) or in a bucket (`object_store.shards`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from datafree.sources.base import Batch
from datafree.tasks.base import Task


class ShardStore(Protocol):
    """One data set, opened for making more of it; `Shards` says what each method does."""

    path: Path  # on this machine; a bucket's mirror
    place: str  # as a user knows it
    if_killed: str  # what is to be said of waiting for other processes
    origin: dict[str, Any]  # what the set depends on besides its recipe, to be written down when it is begun
    carries: bool  # whether the source carries something on from one shard to the next

    @property
    def data(self) -> Path | str: ...

    @property
    def class_names(self) -> list[str] | None: ...

    @property
    def images(self) -> int: ...

    @property
    def count(self) -> int: ...

    def begin(self, class_names: list[str]) -> None: ...

    def begun_with(self) -> dict[str, Any]: ...

    def look(self) -> None: ...

    def claim(self, images: int, each: int = 1) -> int | None: ...

    def leave(self, number: int) -> None: ...

    def alone_at(self, what: str) -> AbstractContextManager[bool]: ...

    def write(self, number: int, task: Task, batch: Batch, state: dict[str, Any] | None = None) -> None: ...

    def state_before(self, number: int) -> Any: ...

    def save_state(self, name: str, state: dict[str, Any], *, keep: bool = False) -> None: ...

    def load_state(self, name: str) -> Any: ...

    def keep(self, write: Callable[[Path], None]) -> None: ...

    def finish(self, task: Task) -> bool: ...

    def damages(self) -> Iterator[tuple[str, str]]: ...

    def close(self) -> None: ...
