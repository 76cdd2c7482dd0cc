"""Folders that a command writes into, known by what they are on the disk and not by their name alone.

A run directory, a data set or an export may be renamed or removed under a running command. Whoever writes below a held
folder asks first whether its name still leads to it, so that no new folder of that name is begun.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from datafree.errors import RunError

_held: list[Held] = []


class Gone(RunError):
    """A folder that was renamed or removed while a command wrote into it."""


class Held:
    """One folder, from now until `release`."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError where there is none."""
        self.folder = folder
        self.place = folder.absolute()
        self._what = _identity(self.place)
        _held.append(self)

    def require(self) -> None:
        """Raise Gone unless the name still leads to the folder."""
        with suppress(OSError):
            if _identity(self.place) == self._what:
                return
        raise Gone(
            f"{self.folder} was renamed or removed while it was written, and no new one was begun; put it back and run "
            "the same command again, or choose another --out"
        )

    def release(self) -> None:
        """Let it go. Safe to call twice."""
        with suppress(ValueError):
            _held.remove(self)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder within the block. Raises Gone where there is none any more."""
    try:
        one = Held(folder)
    except OSError as error:
        raise Gone(f"{folder} was renamed or removed; put it back and run the same command again") from error
    try:
        yield
    finally:
        one.release()


def require_held(path: Path) -> None:
    """Raise Gone if `path` is in, or is, a held folder whose name does not lead to it any more."""
    if _held:
        place = path.absolute()
        for one in _held:
            if place.is_relative_to(one.place):
                one.require()


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, but none that is held and gone. Raises Gone, OSError."""
    require_held(folder)
    folder.mkdir(parents=True, exist_ok=True)


def _identity(place: Path) -> tuple[int, int]:
    found = place.stat()
    return found.st_dev, found.st_ino
