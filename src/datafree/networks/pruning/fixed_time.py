"""The part of a start's time that does not grow with its images, told apart while a start on few of them is timed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class FixedTime:
    """Seconds of `clock` that a start takes however many images there are, and those that were spent on them here."""

    clock: Callable[[], float] | None = None  # None: nobody asks
    seconds: float = 0.0
    spent: float = 0.0
    known: dict[Hashable, float] = field(default_factory=dict)  # seconds of work of a kind that was done before

    @contextmanager
    def counted(self, kind: Hashable = None) -> Iterator[None]:
        """What is done inside is done once. `kind`: of work that takes as long whenever it is done."""
        began = self.clock() if self.clock else 0.0
        yield
        if self.clock:
            taken = self.clock() - began
            self.seconds, self.spent = self.seconds + taken, self.spent + taken
            if kind is not None:
                self.known[kind] = taken

    def is_known(self, kind: Hashable) -> bool:
        """Whether such work was timed before, and need not be done: it is counted again. Never where nobody asks."""
        if kind not in self.known:
            return False
        self.seconds += self.known[kind]
        return True
