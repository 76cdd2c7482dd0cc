"""A data loader that prefetches and resumes exactly: each item once an epoch, in an order drawn anew for each epoch."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from datafree.data.images import UnreadableImage
from datafree.errors import DataError

_READERS = 2  # threads that read ahead; Pillow's decoders let other threads run
_NAMED = 5  # items that a line names

KeyT = TypeVar("KeyT", bound=Hashable)
ItemT = TypeVar("ItemT")


class Place(NamedTuple):
    """Where an item stands in the sequence."""

    epoch: int
    position: int  # in the epoch


class _Ahead(NamedTuple, Generic[KeyT, ItemT]):
    """An item being read before it is asked for."""

    place: Place
    key: KeyT
    item: Future[ItemT]


@dataclass(kw_only=True)
class Reader(Generic[KeyT, ItemT]):
    """Reads the sequence of `keys`, the next items while the caller works with these.

    The order is a pure function of the seed and the epoch: no random state is touched. What cannot be read is skipped
    for good, and known by `skipped`. `next` and `skipped` are all that a sequence needs to be gone on with; items read
    ahead are not part of it.
    """

    keys: list[KeyT]
    seed: int
    read: Callable[[KeyT, Place], ItemT]  # runs in a reader's thread; raises UnreadableImage
    fault: Callable[[UnreadableImage], str]  # what is remembered of an item that cannot be read
    none_left: Callable[[KeyT, str], str]  # the line when nothing can be read: the first key, and its fault
    turn: tuple[int, int] = (0, 1)  # (r, P): of the sequence every P-th item, from the r-th on; others read the rest
    skipped: dict[KeyT, str] = field(default_factory=dict, init=False)
    next: Place = field(default=Place(0, 0), init=False)  # of the first item not handed out

    def __post_init__(self) -> None:
        self._ahead: deque[_Ahead[KeyT, ItemT]] = deque()
        self._ahead_next = Place(0, 0)  # of the first item not being read
        self._order: tuple[int, list[KeyT]] = (-1, [])  # of one epoch
        self._readable = len(self.keys)  # keys not known to be unreadable
        self._threads = ThreadPoolExecutor(_READERS, thread_name_prefix="datafree-reader")

    def take(self, n: int) -> list[ItemT]:
        """The next n items of the sequence. Raises DataError when none can be read."""
        found: list[ItemT] = []
        while len(found) < n:
            self._read_ahead(n - len(found))
            ahead = self._ahead.popleft()
            if ahead.key not in self.skipped:
                try:
                    found.append(ahead.item.result())
                except UnreadableImage as error:
                    self.skipped[ahead.key] = self.fault(error)
                    self._readable -= 1
            self.next = Place(ahead.place.epoch, ahead.place.position + 1)
        self._read_ahead(n)
        return found

    def resume_at(self, keys: list[KeyT], place: Place, skipped: dict[KeyT, str]) -> None:
        """Go on at `place` of the sequence of `keys`, of which some were skipped."""
        while self._ahead:
            self._ahead.pop().item.cancel()
        self.keys, self.next, self.skipped = keys, place, dict(skipped)
        self._ahead_next, self._order = place, (-1, [])
        self._readable = sum(key not in self.skipped for key in keys)

    def _read_ahead(self, n: int) -> None:
        """Have n items on their way, besides those known to be unreadable."""
        if not self._readable:
            raise DataError(self.none_left(*next(iter(self.skipped.items()))))
        while len(self._ahead) < n:
            place = self._ahead_next
            if place.position >= len(self.keys):
                place = Place(place.epoch + 1, 0)
            key = self._order_of(place.epoch)[place.position]
            rank, parts = self.turn
            if key not in self.skipped and (place.epoch * len(self.keys) + place.position) % parts == rank:
                self._ahead.append(_Ahead(place, key, self._threads.submit(self.read, key, place)))
            self._ahead_next = Place(place.epoch, place.position + 1)

    def _order_of(self, epoch: int) -> list[KeyT]:
        if self._order[0] != epoch:
            order = list(self.keys)
            random.Random(f"{self.seed} {epoch}").shuffle(order)
            self._order = (epoch, order)  # reading ahead asks for epochs one after the other
        return self._order[1]


def listed(items: list[str]) -> str:
    """The first few of them, and how many more there are."""
    more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return f"{', '.join(items[:_NAMED])}{more}"
