"""The page of a run in progress, rewritten at a negligible cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from datafree.storage.held_folders import Gone, require_held

if TYPE_CHECKING:
    from datafree.engine.progress import Progress

FIRST = 1.0  # seconds after which a run has its first page
PAUSE = 10.0  # seconds between two pages at least
SHARE = 0.01  # of the time at most that pages may take


def is_behind(run: Path) -> bool:
    """Whether a finished run's page is missing or older than its result: whoever wrote that was killed before it."""
    try:
        return (run / "report.html").stat().st_mtime_ns < (run / "result.json").stat().st_mtime_ns
    except OSError:
        return True


@contextmanager
def page_kept(
    run: Path,
    log: Callable[[Progress], None],
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Callable[[Progress], None]]:
    """Within it, what it yields logs as `log` does and now and then writes RUN/report.html; so does its end, whatever
    ended it.

    A page is there to look at: one that cannot be made says so once and never stops a run.
    """
    due, failed = clock() + FIRST, False

    def write() -> None:
        nonlocal due, failed
        from datafree.report.page import write_page

        began = clock()
        try:
            require_held(run)
            write_page(run)
        except Gone:  # whoever writes the run says so
            pass
        except Exception as error:  # whatever it is, hours of training matter more
            if not failed:
                say(f"note: the page of the run was not written: {type(error).__name__}: {error}")
            failed = True
        ended = clock()
        due = ended + max(PAUSE, (ended - began) / SHARE)

    def logged(progress: Progress) -> None:
        log(progress)
        if clock() >= due:
            write()

    try:
        yield logged
    finally:
        if (run / "recipe.yaml").is_file():  # else it never began
            write()
