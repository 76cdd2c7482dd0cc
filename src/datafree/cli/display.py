"""Progress on the terminal: a bar, sparse lines where output is not a terminal, nothing when quiet.

All of it goes to standard error; standard output is for results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

from datafree.engine.progress import FIRST
from datafree.text import shown

if TYPE_CHECKING:
    from datafree.engine.progress import Progress

QUIET_FOR = 10.0  # seconds between lines, at first; later a twentieth of the time already spent
SOON = 3.0  # seconds in which work other than a run and a data set is done without a word
OTHER_WORK = ("scores", "plan", "inspect", "calibrate", "export", "bench")
FIGURES = 4  # shown; a run's metrics.jsonl holds all that are logged, a data set's records all of their shards


class Display(Protocol):
    """What a run reports to."""

    def log(self, progress: Progress) -> None:
        """Show where the run is."""

    def say(self, line: str) -> None:
        """Show a line that stays."""


@contextmanager
def display(*, quiet: bool = False, verbose: bool = False, stream: TextIO | None = None) -> Iterator[Display]:
    """The display that fits `stream` (standard error unless given): a bar on a terminal, else lines.

    `verbose`: a line for all that is logged, with every figure, on a terminal too.
    """
    stream = sys.stderr if stream is None else stream
    if quiet:
        yield Quiet(stream)
    elif verbose or not stream.isatty():
        yield Lines(stream, verbose=verbose)
    else:
        with Bar(stream) as bar:
            yield bar


class Quiet:
    """Shows warnings alone: a run that has collapsed is told whoever looks."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def log(self, progress: Progress) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """A warning."""
        if line.startswith("warning: "):
            print(shown(line), file=self._stream, flush=True)


class Lines:
    """A line when a tenth more of the run is done, or time has passed, and at the end of each phase.

    The pauses grow with the run, so that an hour is some thirty lines and not 360.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic, *, verbose: bool = False) -> None:
        self._stream, self._clock, self._verbose = stream, clock, verbose
        self._began = clock()
        self._last_time: float | None = None
        self._last_step = 0

    def log(self, progress: Progress) -> None:
        now = self._clock()
        if self._verbose:
            self.say(describe(progress, figures_shown=len(progress.values)))
            return
        if progress.phase in OTHER_WORK and now - self._began < SOON:
            return
        if self._last_time is not None and progress.step not in (0, progress.last):
            pause = max(QUIET_FOR, (now - self._began) / 20)
            tenth = (progress.last - progress.first) / 10
            if now - self._last_time < pause and progress.step - self._last_step < tenth:
                return
        self._last_time, self._last_step = now, progress.step
        self.say(describe(progress))

    def say(self, line: str) -> None:
        print(shown(line), file=self._stream, flush=True)


class Bar:
    """A rich progress bar over the whole run, warm-up and training."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskID, TextColumn
        from rich.progress import Progress as RichProgress

        self._rich = RichProgress(
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.description}", markup=False),
            console=Console(file=stream),
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Bar:
        self._rich.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._rich.stop()

    def log(self, progress: Progress) -> None:
        total, done = progress.last - progress.first, progress.step - progress.first
        if self._task is None or self._rich.finished:  # several runs, one after another, get a bar each
            self._task = self._rich.add_task("", total=total)
        self._rich.update(self._task, completed=done, total=total, description=describe(progress))

    def say(self, line: str) -> None:
        self._rich.console.print(shown(line), markup=False, highlight=False)


def describe(progress: Progress, figures_shown: int = FIGURES) -> str:
    """A line such as "training 400/1000, 12.3 steps/s, 0:49 left, loss 0.123"; "plan 3/7: the student, 0:12 left"."""
    warming = progress.phase == "warm-up"
    done, total = (progress.step - progress.first, -progress.first) if warming else (progress.step, progress.last)
    parts = [f"{progress.phase} {done}/{total}{f': {progress.what}' if progress.what else ''}"]
    if progress.rate > 0:
        unit = "image" if progress.phase in ("images", "scores") else "step"
        if progress.phase == "scores" or progress.phase not in OTHER_WORK:  # the parts of which are not alike
            parts.append(
                f"{progress.rate:.3g} {unit}s/s" if progress.rate >= 1 else f"{1 / progress.rate:.3g} s/{unit}"
            )
        if done < total:
            parts.append(f"{clock_time((total - done) / progress.rate)} left" + (" of the warm-up" if warming else ""))
    if said := figures(progress.values, figures_shown):
        parts.append(said)
    return ", ".join(parts)


def figures(values: Mapping[str, float], most: int = FIGURES) -> str:
    """The few figures that matter: the loss, what tells a collapse or bad images, then the others in their order."""
    names = [name for name in FIRST if name in values] + [name for name in values if name not in FIRST]
    return ", ".join(f"{shown(name)} {values[name]:.3g}" for name in names[:most])


def clock_time(seconds: float) -> str:
    """Seconds as 0:49, 12:05 or 3:00:00; rounded up, since a run with time left is not done."""
    whole = max(0, -int(-seconds // 1))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
