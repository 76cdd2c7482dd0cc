"""Files written whole or not at all, and files that only grow.

A file is written aside as `.NAME.PID.part`, brought to the disk, and renamed. What a killed process has left aside is
no one's: `remove_asides` clears it away for whoever holds the folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

ASIDE = ".*.part"


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader sees the old file or the whole new one, also after a crash.

    Folders above it are made. Raises OSError, and then leaves nothing behind.
    """
    with written_whole(path) as file:
        file.write(content)


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal. Raises OSError."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def write_pieces(path: Path, pieces: Iterable[str]) -> None:
    """Write a text file piece by piece, whole or not at all. Raises OSError."""
    with written_whole(path) as file:
        file.writelines(piece.encode() for piece in pieces)


@contextmanager
def written_whole(path: Path, keep: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write `path` with; it takes that name when the block ends, and is gone if the block raises.

    `keep`: what the file that was there before is called from then on; its folder is that of `path`. Between the two
    renames there is no `path`, but `keep` is whole. Folders above are made. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        aside.replace(path)
    finally:
        with suppress(OSError):  # the first fault is the one to show
            aside.unlink(missing_ok=True)
    sync(path.parent)


def sync(folder: Path) -> None:
    """Have renames in `folder` on the disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def remove_asides(*folders: Path) -> None:
    """Remove what killed processes have left aside in `folders`. Only for who holds them (`lock`). Raises OSError."""
    for folder in folders:
        for aside in folder.glob(ASIDE):
            shutil.rmtree(aside) if aside.is_dir() else aside.unlink(missing_ok=True)


class Growing:
    """A file that only grows, by whole pieces: one that found no room is cut off again, and waits for the next call."""

    def __init__(self, path: Path) -> None:
        """Open `path` at its end. Raises OSError."""
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._size = self._file.tell()
        self._waiting: list[bytes] = []

    def add(self, piece: bytes) -> None:
        """Add a piece. Raises OSError; the piece is kept, and goes first when the next call finds room."""
        self._waiting.append(piece)
        self.flush()

    def flush(self, *, to_disk: bool = False) -> None:
        """Write what waits; `to_disk`: so that it is there after a power cut, too. Raises OSError."""
        while self._waiting:
            left = memoryview(self._waiting[0])
            try:
                while left:
                    left = left[self._file.write(left) or 0 :]
            except OSError:
                with suppress(OSError):
                    self._file.truncate(self._size)
                raise
            self._size += len(self._waiting.pop(0))
        if to_disk:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close it, with a last attempt at what waits. Safe to call twice."""
        if not self._file.closed:
            with suppress(OSError):
                self.flush()
            self._file.close()


def room_for(path: Path, size: int) -> str:
    """How much `path` needs and what its disk has, for messages: "needs 12.3 MB, 0.4 MB are free"."""
    try:
        free = shutil.disk_usage(_existing(path)).free
    except OSError:
        return f"needs {_megabytes(size)}"
    return f"needs {_megabytes(size)}, {_megabytes(free)} are free"


def _existing(path: Path) -> Path:
    return next((folder for folder in path.parents if folder.is_dir()), path)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
