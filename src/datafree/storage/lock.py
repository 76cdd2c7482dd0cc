"""File locks on directories, which the system releases when their owner dies."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from pathlib import Path

from datafree.errors import RunError
from datafree.storage.atomic import NoFile
from datafree.storage.held_folders import Held, make_folder

NAME = ".lock"
_SHOWN = 200  # bytes of the owner's line


class Taken(RunError):
    """Another process (or another run of this one) has the lock."""


class Lock:
    """The right to write into `folder`, from `take` to `release` (or this process's end).

    It is a lock on the file `name`, not the file itself: what a killed process leaves there means nothing. Some
    network file systems know no locks; there nothing is locked and `take` answers False.
    """

    def __init__(self, folder: Path, name: str = NAME) -> None:
        self.folder = folder
        self.name = name
        self._opened: int | None = None
        self._held: Held | None = None  # so that nothing is written to another folder of that name

    @property
    def held(self) -> bool:
        """Whether it was taken."""
        return self._opened is not None

    def take(self, *, shared: bool = False) -> bool:
        """Take it; the folder is made. False where the file system has no locks. Safe to call twice.

        `shared`: others may have it at the same time, if all of them share it; what is held is turned into that.
        Raises Taken, naming the owner; Gone; OSError.
        """
        if self.held and not shared:
            return True
        make_folder(self.folder)
        opened = self._opened if self._opened is not None else _open(self.folder / self.name)
        try:
            fcntl.flock(opened, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(opened, _SHOWN).decode("utf-8", "replace").strip()
            os.close(opened)
            self._opened = None
            raise Taken(
                f"{self.folder} is being written by another process ({owner or 'just begun'}); "
                "wait for its end or stop it, or choose another --out"
            ) from error
        except OSError as error:
            os.close(opened)
            self._opened = None
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                self._hold()
                return False
            raise
        self._opened = opened
        self._hold()
        try:  # for people; on a full disk the lock holds without
            os.ftruncate(opened, 0)
            os.write(opened, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        except OSError:
            pass
        return True

    def release(self) -> None:
        """Give it back. Safe to call twice."""
        if self._held is not None:
            self._held.release()
            self._held = None
        if self._opened is not None:
            os.close(self._opened)
            self._opened = None

    def _hold(self) -> None:
        if self._held is None and self.name == NAME:
            self._held = Held(self.folder)


def _open(place: Path) -> int:
    """A lock's file, made where there is none. Raises NoFile for a link, a device and the like: it is written to."""
    try:
        opened = os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise NoFile(place, "a symbolic link" if place.is_symlink() else "a socket") from error
        raise
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise NoFile(place, "a device or a FIFO")
    return opened
