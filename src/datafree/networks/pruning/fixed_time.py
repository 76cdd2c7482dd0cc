"""The part of a start's time that does not grow as its images do, told apart while a start on few of them is timed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class FixedTime:
    """Seconds of `clock` that the whole start takes for what does not grow as images do; those spent on that here."""

    clock: Callable[[], float] | None = None  # None: nobody asks
    share: float = 1.0  # images of the start that is timed, of the whole one's
    seconds: float = 0.0
    spent: float = 0.0
    known: dict[Hashable, float] = field(default_factory=dict)  # seconds of work of a kind that was done before

    @contextmanager
    def counted(self, kind: Hashable = None, more: float = 1.0) -> Iterator[None]:
        """What is done inside is done once, `more` times as long in the whole start.

        `kind`: of work that takes as long whenever it is done.
        """
        began = self.clock() if self.clock else 0.0
        yield
        if self.clock:
            taken = self.clock() - began
            self.seconds, self.spent = self.seconds + more * taken, self.spent + taken
            if kind is not None:
                self.known[kind] = taken

    def is_known(self, kind: Hashable) -> bool:
        """Whether such work was timed before, and need not be done: it is counted again. Never where nobody asks."""
        if kind not in self.known:
            return False
        self.seconds += self.known[kind]
        return True
