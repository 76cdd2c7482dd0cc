"""Stopping a command early: a time limit (`--max-time`), SIGINT or SIGTERM.

Before a run's first step nothing has been learned that would be lost, so a signal ends planning and building at once.
From then on it is asked for at every step. Work that cannot be gone on with ends at once, whenever it comes (`ending`).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from datafree.config.duration import seconds_of
from datafree.distributed.launch import launched
from datafree.errors import Interrupted, RecipeError
from datafree.text import show


def parse_time(text: str) -> float:
    """Seconds of a time such as 90s, 9m or 1h30m. Raises RecipeError."""
    seconds = seconds_of(text)
    if seconds is None:
        raise RecipeError([f"--max-time {show(text)} is not a time; write it as 90s, 9m or 1h30m"])
    return seconds


CHECKPOINT = "after this step, with a checkpoint saved"  # or with the student's weights: then it is being scored


class _AtOnce(BaseException):
    """Ends what no step is asked about; no `except Exception` on the way takes it for a fault."""


class Stop:
    """Asked at every step whether to stop, and why. The clock starts when it is made.

    `at_once`: a signal before the first question raises `_AtOnce` wherever the command is.
    """

    def __init__(self, max_seconds: float | None, *, at_once: bool = False, kept: str = CHECKPOINT) -> None:
        self._at_once, self._kept = at_once, kept
        self._until = None if max_seconds is None else time.monotonic() + max_seconds
        self._signal: str | None = None
        self._asked = False  # one step at least: however short the time, repeating the command gets there

    def __call__(self) -> str | None:
        self._at_once = False
        if self._signal is not None:
            return self._signal
        over = self._until is not None and time.monotonic() >= self._until and self._asked
        self._asked = True
        return "--max-time reached" if over else None

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """The first signal asks for a clean stop; the second exits at once."""
        if self._signal is not None:
            # Raw writes only: print fails where the signal came in the middle of another print.
            if sys.stderr.isatty():
                os.write(2, b"\x1b[?25h")  # the progress bar has hidden the cursor
            os._exit(128 + number)
        self._signal = signal.Signals(number).name
        if self._at_once:
            raise _AtOnce(self._signal)
        os.write(2, f"\nstopping {self._kept}; interrupt again to exit at once\n".encode())


@contextmanager
def stopping(max_seconds: float | None, *, kept: str = CHECKPOINT) -> Iterator[Stop]:
    """Watch for SIGINT and SIGTERM while a command works; put the handlers back afterwards. Raises Interrupted.

    Several processes stop together, so each waits for its first step. `kept`: what it waits for then, in words.
    """
    stop = Stop(max_seconds, at_once=not launched(), kept=kept)
    with _watched(stop):
        try:
            yield stop
        except _AtOnce as reason:
            again = "run the same command to begin again"
            raise Interrupted(f"stopped before the first step ({reason}); {again}") from None


@contextmanager
def ending(kept: str) -> Iterator[None]:
    """SIGINT and SIGTERM end what is done inside at once, with a line that says what is `kept`. Raises Interrupted."""
    with _watched(Stop(None, at_once=True)):
        try:
            yield
        except _AtOnce as reason:
            raise Interrupted(f"stopped ({reason}): {kept}") from None


@contextmanager
def _watched(stop: Stop) -> Iterator[None]:
    before = {number: signal.signal(number, stop.on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
