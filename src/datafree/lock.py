"""One process at a time in a directory: a lock that the system takes back when its owner dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from pathlib import Path

from datafree.errors import RunError

NAME = ".lock"
_SHOWN = 200  # bytes of the owner's line


class Lock:
    """The right to write into `folder`, from `take` to `release` (or this process's end).

    It is a lock on the file `.lock`, not the file itself: what a killed process leaves there means nothing. Some
    network file systems know no locks; there nothing is locked and `take` answers False.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._opened: int | None = None

    @property
    def held(self) -> bool:
        """Whether it was taken."""
        return self._opened is not None

    def take(self) -> bool:
        """Take it; the folder is made. False where the file system has no locks. Safe to call twice.

        Raises RunError, naming the owner, when another process (or another run of this one) has it; OSError.
        """
        if self.held:
            return True
        self.folder.mkdir(parents=True, exist_ok=True)
        opened = os.open(self.folder / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(opened, _SHOWN).decode("utf-8", "replace").strip()
            os.close(opened)
            raise RunError(
                f"{self.folder} is being written by another process ({owner or 'just begun'}); "
                "wait for its end or stop it, or choose another --out"
            ) from error
        except OSError as error:
            os.close(opened)
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                return False
            raise
        self._opened = opened
        try:  # for people; on a full disk the lock holds without
            os.ftruncate(opened, 0)
            os.write(opened, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        except OSError:
            pass
        return True

    def release(self) -> None:
        """Give it back. Safe to call twice."""
        if self._opened is not None:
            os.close(self._opened)
            self._opened = None
