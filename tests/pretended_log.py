"""What happened on the pretended device: where the host waited for it, and lines that are made to err."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

TESTS = Path(__file__).resolve().parent
SOURCE = str(TESTS.parent / "src")


@dataclass(frozen=True)
class Wait:
    """The host waits for the device: why, and in which line of the package ("ops/boxes.py:12 function")."""

    why: str
    file: str
    line: int
    function: str

    @property
    def place(self) -> str:
        """FILE:FUNCTION, of a function inside another the outer one."""
        return f"{self.file}:{self.function.partition('.<locals>')[0]}"

    def __str__(self) -> str:
        return f"{self.why} at {self.file}:{self.line} in {self.function}"


@dataclass
class Log:
    """What happened on the device."""

    waits: list[Wait] = field(default_factory=list)
    operators: int = 0

    def clear(self) -> None:
        self.waits.clear()


LOG = Log()


def waited(may: Iterable[str] = ()) -> list[str]:
    """Where the host waited since the log was cleared, each line once, but in the functions that may (FILE:NAME)."""
    allowed = tuple(may)
    found = {
        str(wait): None for wait in LOG.waits if f"{wait.file}:{wait.function.split('.<locals>')[0]}" not in allowed
    }
    return list(found)


def caller(why: str = "") -> Wait | None:
    """The innermost line of the package that is running, else of whoever called torch."""
    frame: Any = sys._getframe(1)
    other = None
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(SOURCE):
            break
        if other is None and "/torch/" not in name and not name.startswith((f"{TESTS}/pretended_", "<")):
            other = frame
        frame = frame.f_back
    frame = frame or other
    if frame is None:
        return None
    name = frame.f_code.co_filename.removeprefix(f"{SOURCE}/datafree/")
    return Wait(why, name, frame.f_lineno, frame.f_code.co_qualname)


def note(why: str) -> None:
    """The host waits."""
    if (place := caller(why)) is not None:
        LOG.waits.append(place)


class Faulty:
    """Within it, one line of the package, in `files`, makes its tensors on the host instead; None: no line does.

    `lines` are those that have made any on the device, "sources/noise.py:38".
    """

    current: ClassVar[Faulty | None] = None

    def __init__(self, line: str | None, *files: str) -> None:
        self.line, self.files, self.lines = line, files, set[str]()

    def __enter__(self) -> Faulty:
        Faulty.current = self
        return self

    def __exit__(self, *error: object) -> None:
        Faulty.current = None

    def strikes(self) -> bool:
        """Told that a tensor is being made: whether it is this line's turn. What torch's own modules make is not."""
        frame: Any = sys._getframe(1)
        while frame is not None and _is_between(frame.f_code.co_filename):
            frame = frame.f_back
        name = "" if frame is None else frame.f_code.co_filename.removeprefix(f"{SOURCE}/datafree/")
        if not name.startswith(self.files):
            return False
        here = f"{name}:{frame.f_lineno}"
        self.lines.add(here)
        return here == self.line


def _is_between(file: str) -> bool:
    """Whether a file belongs to the way from a line that calls torch to the device."""
    own = (f"{TESTS}/pretended_", f"{SOURCE}/datafree/ops/upload.py", "<")
    return file.startswith(own) or "/torch/_" in file or "/torch/utils/" in file
