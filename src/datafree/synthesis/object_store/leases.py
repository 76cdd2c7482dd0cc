"""Leases on shards in a bucket: several processes make one data set without talking, each renewing its lease.

A lease is an object, `.claims/NAME`, which its owner writes anew every `RENEWED` seconds. One that another process has
seen unchanged for `EXPIRES` seconds by its own clock is a dead process's, and may be taken over; no two clocks are
compared. A process that was merely slow may have lost its lease: it asks (`holds`) before what it made counts.
"""

from __future__ import annotations

import threading
import time
import uuid
from contextlib import suppress

from datafree.errors import RunError
from datafree.synthesis.claims import FOLDER
from datafree.synthesis.object_store.bucket import Bucket

RENEWED = 30.0  # seconds between two renewals
EXPIRES = 120.0  # seconds without one after which a lease is free


class Leases:
    """What this process is at, of the set in a bucket. All calls raise RunError where the bucket cannot be reached."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._owner = uuid.uuid4().hex.encode()
        self._held: dict[str, int] = {}  # how often each was renewed
        self._seen: dict[str, tuple[str, float]] = {}  # those of all: what the object is, since when it is that
        self._changing = threading.Lock()  # of what is held
        self._ended = threading.Event()
        self._renewing: threading.Thread | None = None
        self._now = time.monotonic

    def look(self) -> None:
        """Take note of all leases that there are now."""
        now = self._now()
        there = self._bucket.names(FOLDER)
        before = self._seen
        self._seen = {
            name: before[name] if name in before and before[name][0] == stamp else (stamp, now)
            for name, stamp in there.items()
        }

    def take(self, what: str) -> bool:
        """Lease `what`; False if another process had it at the last `look`, or has got it since."""
        if what in self._seen:
            if self._now() - self._seen[what][1] < EXPIRES:
                return False
            self._bucket.remove(_object(what))
        if not self._bucket.create(_object(what), self._content(0)):
            self.look()
            return False
        with self._changing:
            self._held[what] = 0
        if self._renewing is None:
            self._renewing = threading.Thread(target=self._renew, name="leases", daemon=True)
            self._renewing.start()
        return True

    def holds(self, what: str) -> bool:
        """Whether this process still has it, by what the bucket says now."""
        content = self._bucket.read(_object(what))
        return content is not None and content.startswith(self._owner)

    def drop(self, what: str) -> None:
        """Give it back, done or not. Safe to call twice; where the bucket cannot be reached it expires."""
        with self._changing, suppress(RunError):
            if self._held.pop(what, None) is not None and self.holds(what):
                self._bucket.remove(_object(what))

    def close(self) -> None:
        """Give everything back."""
        self._ended.set()
        for what in list(self._held):
            self.drop(what)
        if self._renewing is not None:
            self._renewing.join()

    def _renew(self) -> None:
        while not self._ended.wait(RENEWED):
            with self._changing:
                for what in self._held:
                    with suppress(RunError):  # perhaps the next time
                        if self.holds(what):
                            self._held[what] += 1
                            self._bucket.write(_object(what), self._content(self._held[what]))

    def _content(self, renewed: int) -> bytes:
        return self._owner + f" {renewed}\n".encode()


def _object(what: str) -> str:
    return f"{FOLDER}/{what}"
