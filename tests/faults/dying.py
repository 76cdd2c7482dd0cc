"""A process that dies at the n-th call by which it writes: opening, half a write, syncing, renaming, removing."""

from __future__ import annotations

import io
import math
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

_DEATH = 77  # exit status


def die_at(number: int, work: Callable[[], object], *, writes: float = math.inf) -> bool:
    """Do `work` in a forked process that dies at its call `number`, 0 = the first; whether it died before the end.

    Of the many writes into one file, `writes` are counted at most.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of threads
        child = os.fork()
    if not child:
        status = 1
        try:
            _count_down(number, writes)
            work()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, _DEATH), f"the work failed by itself ({code})"
    return code == _DEATH


def _count_down(number: int, most: float) -> None:
    left = [number]

    def called(name: str = "") -> bool:
        left[0] -= 1
        return left[0] < 0

    def audit(event: str, args: tuple[Any, ...]) -> None:
        writes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "shutil.rmtree")
        if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR):
            writes = True
        if writes and called(event):
            os._exit(_DEATH)

    class Torn(io.FileIO):
        written = 0

        def write(self, data: Any) -> int:
            self.written += 1
            if self.written <= most and called("write"):
                super().write(bytes(data)[: len(data) // 2])
                os._exit(_DEATH)
            return super().write(data)

    opens, syncs = io.open, os.fsync

    def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        return Torn(file, mode.replace("b", "")) if mode in ("wb", "ab") else opens(file, mode, *args, **kwargs)

    def synced(descriptor: int) -> None:
        if called("fsync"):
            os._exit(_DEATH)
        syncs(descriptor)

    io.open, os.fsync = opened, synced  # type: ignore[assignment]
    sys.addaudithook(audit)
