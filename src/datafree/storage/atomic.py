"""Files written whole or not at all, and files that only grow: the one door to every ordinary file.

The door looks first: what is there must be an ordinary file or nothing, and a folder that is held (`held_folders`) must
still have its name. Then a file is written aside as `.NAME.PID.NUMBER.part`, brought to the disk, and renamed. It is
locked meanwhile, so that one without a lock is what a killed process has left: the next to write NAME clears it away,
and so does `remove_asides` for whoever holds the folder.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import itertools
import os
import shutil
import stat
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from datafree.storage.held_folders import make_folder, require_held
from datafree.text import one_line

ASIDE = ".*.part"
_STEM = 200  # bytes of a name that its file aside keeps: the system takes 255 in all

_WAYS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make that place writable"),
}
_KINDS = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class NoFile(OSError):
    """What is no ordinary file, and is not replaced by one; `strerror` says what it is."""

    def __init__(self, path: Path, kind: str) -> None:
        super().__init__(errno.EINVAL, f"{path.name} is {kind}, and no ordinary file", str(path))


def cannot_write(place: Path, error: OSError, other: str = "") -> str:
    """The line for what could not be written at `place`: why, and what would help; `other`: "choose another --out"."""
    return f"cannot write {place}: {error.strerror or one_line(error)}; {to_write(error, other)}"


def to_write(error: OSError, other: str = "") -> str:
    """What helps where a file could not be written, or what else does."""
    ways = [way for way in (_WAYS.get(error.errno or 0, ""), other) if way]
    return ", or ".join(ways) or "mend that"


def require_ordinary(path: Path) -> None:
    """Raise NoFile if anything but an ordinary file lies at `path`; OSError if that cannot be seen."""
    with suppress(FileNotFoundError):
        mode = os.lstat(path).st_mode
        for is_kind, kind in _KINDS:
            if is_kind(mode):
                raise NoFile(path, kind)


def require_ordinary_in(*folders: Path, suffixes: Container[str]) -> None:
    """`require_ordinary` of all that lies in `folders` and has one of the suffixes. Raises NoFile, OSError."""
    for folder in folders:
        if folder.is_dir():
            for entry in folder.iterdir():
                if entry.suffix in suffixes:
                    require_ordinary(entry)


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader sees the old file or the whole new one, also after a crash.

    Folders above it are made. Raises OSError, Gone, and then leaves nothing behind.
    """
    with written_whole(path) as file:
        file.write(content)


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal. Raises OSError."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def write_pieces(path: Path, pieces: Iterable[str]) -> None:
    """Write a text file piece by piece, whole or not at all. Raises OSError, Gone."""
    with written_whole(path) as file:
        file.writelines(piece.encode() for piece in pieces)


@contextmanager
def written_whole(path: Path, keep: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write `path` with; it takes that name when the block ends, and is gone if the block raises.

    `keep`: what the file that was there before is called from then on; its folder is that of `path`. Between the two
    renames there is no `path`, but `keep` is whole. Folders above are made. A new file has the permissions that the
    umask gives, one that replaces another has those of the other. Raises OSError, Gone.
    """
    require_held(path)
    for place in (path, keep):
        if place is not None:
            require_ordinary(place)
    make_folder(path.parent)
    _remove_left(path)
    aside, opened = _open_aside(path)
    try:
        with os.fdopen(opened, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            with suppress(FileNotFoundError):
                os.fchmod(file.fileno(), stat.S_IMODE(os.lstat(path).st_mode) & 0o777)
            require_held(path)
            if keep is not None and path.exists():
                path.replace(keep)
            aside.replace(path)  # the lock ends afterwards
    finally:
        with suppress(OSError):  # the first fault is the one to show
            aside.unlink(missing_ok=True)
    sync(path.parent)


def _open_aside(path: Path) -> tuple[Path, int]:
    """A new file beside `path`, opened and locked, where the file system has locks."""
    for number in itertools.count():
        aside = path.with_name(f".{_stem(path)}.{os.getpid()}.{number}.part")
        try:
            opened = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:  # of another thread, or of a process of the same number on another machine
            continue
        if lock_for_life(aside, opened):
            return aside, opened
        os.close(opened)
    raise AssertionError


def lock_for_life(aside: Path, opened: int) -> bool:
    """Lock what was just made aside, as long as `opened` is open; False if another process took it for a leftover."""
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    try:
        return os.path.samestat(os.lstat(aside), os.fstat(opened))
    except FileNotFoundError:
        return False


def open_locked(aside: Path) -> int | None:
    """Open and lock a folder that was just made aside; None if another process took it for a leftover before that."""
    try:
        opened = os.open(aside, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    if lock_for_life(aside, opened):
        return opened
    os.close(opened)
    return None


def is_left(aside: Path, *, unknown: bool) -> bool:
    """Whether the process that made `aside` is gone; `unknown`: the answer where the file system has no locks."""
    try:
        opened = os.open(aside, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return unknown
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return unknown
    finally:
        os.close(opened)


def left_beside(path: Path) -> list[Path]:
    """What killed processes have left aside of `path`."""
    pattern = f".{glob.escape(_stem(path))}.*.part"
    with suppress(OSError):
        return [aside for aside in path.parent.glob(pattern) if is_left(aside, unknown=False)]
    return []


def _remove_left(path: Path) -> None:
    for aside in left_beside(path):
        with suppress(OSError):  # a folder of that name is another writer's
            aside.unlink(missing_ok=True)


def _stem(path: Path) -> str:
    """A name for what is aside of `path`: of long ones the beginning."""
    return os.fsdecode(os.fsencode(path.name)[:_STEM])


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
            if is_left(aside, unknown=True):
                remove(aside)


def remove(aside: Path) -> None:
    """Remove a file, a link or a whole folder. Raises OSError."""
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside)
    else:
        aside.unlink(missing_ok=True)


class Growing:
    """A file that only grows, by whole pieces: one that found no room is cut off again, and waits for the next call."""

    def __init__(self, path: Path) -> None:
        """Open `path` at its end. Raises OSError."""
        require_ordinary(path)
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._size = self._file.tell()
        self._waiting: list[bytes] = []

    def add(self, piece: bytes) -> None:
        """Add a piece. Raises OSError; the piece is kept, and goes first when the next call finds room. Raises Gone."""
        require_held(self.path)
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
