"""Items of a set that are kept back for validation, each of which another takes the place of if it cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from datafree.data.images import UnreadableImage

KeyT = TypeVar("KeyT")
ItemT = TypeVar("ItemT")


def kept_back(count: int, wanted: int) -> int:
    """How many of `count` items are held out: `wanted` at most, and at most a tenth (but one)."""
    return min(wanted, max(1, count // 10)) if count > 1 else 0


@dataclass(kw_only=True)
class HeldOut(Generic[KeyT, ItemT]):
    """What of a draw is kept back, and what is learnt from.

    Where none of those to keep back can be read, the next one of the draw is kept back that can, if another is left to
    learn from. That is decided once, by `settle`: before it nothing is read, since who opens a set may not want it.
    """

    wanted: int  # items to keep back
    read: Callable[[KeyT], ItemT]  # raises UnreadableImage
    fault: Callable[[UnreadableImage], str]  # what is remembered of an item that cannot be read
    limit: int | None = None  # items to learn from at most; None: all
    keys: list[KeyT] = field(default_factory=list, init=False)  # those kept back, passed ones among them
    # Those in whose stead another is kept back, with their faults: part of a source's state. None until settled.
    passed: dict[KeyT, str] | None = field(default=None, init=False)
    skipped: dict[KeyT, str] = field(default_factory=dict, init=False)  # in no state: looking changes nothing

    def split(self, drawn: Sequence[KeyT]) -> list[KeyT]:
        """Keep back the first items of a draw, up to one that can be read; those to learn from."""
        count = kept_back(len(drawn), self.wanted)
        if self.passed:
            count = 1 + next((place for place, key in enumerate(drawn) if key not in self.passed), count - 1)
        self.keys = list(drawn[:count])
        return list(drawn[count:][: self.limit])

    def settle(self, draw: Callable[[], Sequence[KeyT]]) -> list[KeyT] | None:
        """Decide what is kept back; those to learn from now, None where they stay. Mostly one item is read for it."""
        if self.passed is not None:
            return None
        drawn = draw()
        self.passed = self._to_pass_over(drawn)
        return self.split(drawn) if self.passed else None

    def _to_pass_over(self, drawn: Sequence[KeyT]) -> dict[KeyT, str]:
        """The items before the first that can be read, if it is to be kept back in their stead."""
        count = kept_back(len(drawn), self.wanted)
        faults: dict[KeyT, str] = {}
        for place, key in enumerate(drawn if count else []):
            if fault := self._fault_of(key):
                faults[key] = fault
                continue
            others = drawn[place + 1 :][: self.limit]
            return faults if place >= count and not all(map(self._fault_of, others)) else {}
        return {}

    def _fault_of(self, key: KeyT) -> str:
        """Why an item cannot be read; "" if it can."""
        try:
            self.read(key)
        except UnreadableImage as error:
            return self.fault(error)
        return ""

    def first(self, most: int, keys: Sequence[KeyT] | None = None) -> list[ItemT]:
        """The first `most` of those kept back, or of `keys`, that can be read."""
        found: list[ItemT] = []
        for key in self.keys if keys is None else keys:
            if len(found) == most:
                break
            if key in (self.passed or {}):
                continue
            try:
                found.append(self.read(key))
            except UnreadableImage as error:
                self.skipped[key] = self.fault(error)
        return found

    def faults(self) -> dict[KeyT, str]:
        """All that could not be read."""
        return (self.passed or {}) | self.skipped
