"""Claims on shards: several processes make one data set without talking; locks free what the dead held.

A claim is a lock on a file (see `lock`), so that processes on any machines that share the file system and its locks can
work together, come and go.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

from datafree.storage.held_folders import Gone, require_held
from datafree.storage.lock import Lock, Taken

FOLDER = ".claims"
PAUSE = 0.2  # seconds between two looks for what other processes have done
_LONGEST = 3.0  # seconds, where nothing new comes
_TRIES = 100  # looks for the end of another process's tidying


def longer(pause: float) -> float:
    """The pause after one in which nothing new came."""
    return min(2 * pause, _LONGEST)


class Claims:
    """This process's place among those at the data set at `path`, and what it is at."""

    def __init__(self, path: Path) -> None:
        self._place = Lock(path)
        self._folder = path / FOLDER
        self._held: dict[str, Lock] = {}

    def enter(self) -> bool:
        """Take a place: whether no other process is here; then none comes in before `let_in`.

        Another that is alone, to bring the set in order, is waited for. False for one that has a place. Raises Taken
        when that takes too long; OSError.
        """
        if self._place.held:
            return False
        for _ in range(_TRIES):
            with contextlib.suppress(Taken):
                self._place.take()
                return True
            with contextlib.suppress(Taken):
                self._place.take(shared=True)
                return False
            time.sleep(PAUSE)
        self._place.take(shared=True)
        return False

    def let_in(self) -> None:
        """Let others in. Raises OSError."""
        self._place.take(shared=True)

    def take(self, what: str) -> bool:
        """Claim `what`; False if another process has it. Raises OSError."""
        lock = Lock(self._folder, what)
        try:
            lock.take()
        except Taken:
            return False
        self._held[what] = lock
        return True

    def drop(self, what: str) -> None:
        """Give it back, done or not. Safe to call twice."""
        if what in self._held:
            self._held.pop(what).release()

    def close(self) -> None:
        """Give everything back, the place among the others too."""
        for what in list(self._held):
            self.drop(what)
        if not self._place.held:
            return
        try:
            require_held(self._folder)
        except Gone:
            self._place.release()
            return
        self._place.release()
        with contextlib.suppress(Taken, OSError):  # the last to go clears up: nobody comes in meanwhile
            self._place.take()
            shutil.rmtree(self._folder, ignore_errors=True)
        self._place.release()
