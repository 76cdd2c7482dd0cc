"""Folders written whole or not at all: filled aside, then put in the place of the old one by one system call."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from datafree.storage.atomic import left_beside, open_locked, remove, sync
from datafree.storage.held_folders import held, make_folder, require_held

_OLD = "old"  # in the name of an older folder that waits for the new one, where the two cannot be exchanged
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EXDEV)  # of file systems that know no exchange


@contextmanager
def made_whole(out: Path, last_look: Callable[[], object] = lambda: None) -> Iterator[Path]:
    """A new folder beside `out` to fill; it takes that name when the block ends, and is gone if the block raises.

    What killed processes have left of `out` is brought in order first. `last_look` is called just before an older
    folder is replaced, and may raise. Permissions are those of the older folder, or what the umask gives. Raises
    OSError, Gone.
    """
    make_folder(out.parent)
    with held(out.parent):
        _bring_in_order(out)
        stage, opened = _open_stage(out)
        try:
            yield stage
            _sync(stage)
            last_look()
            require_held(out)
            _put(stage, out)
        except Exception:
            require_held(out)  # a stage that is gone makes faults of any kind
            raise
        finally:
            with suppress(OSError):  # the first fault is the one to show
                remove(stage)
            os.close(opened)


def _bring_in_order(out: Path) -> None:
    old = _named(out, _OLD)
    if old.exists() and not os.path.lexists(out):  # killed between the two renames
        old.rename(out)
    for aside in left_beside(out):
        with suppress(OSError):
            remove(aside)


def _open_stage(out: Path) -> tuple[Path, int]:
    """A new folder, locked while it is filled, where the file system has locks."""
    for number in itertools.count():
        stage = _named(out, f"{os.getpid()}.{number}")
        try:
            stage.mkdir()
        except FileExistsError:
            continue
        if (opened := open_locked(stage)) is not None:
            return stage, opened
    raise AssertionError


def _named(out: Path, what: str) -> Path:
    return out.with_name(f".{os.fsdecode(os.fsencode(out.name)[:200])}.{what}.part")


def _sync(folder: Path) -> None:
    """Have the files of a folder on the disk before it has its name."""
    for file in folder.iterdir():
        opened = os.open(file, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
    sync(folder)


def _put(stage: Path, out: Path) -> None:
    """Move `stage` to `out`; an older folder is then where `stage` was."""
    if not out.exists():
        stage.rename(out)
    else:
        stage.chmod(stat.S_IMODE(out.stat().st_mode))
        if not exchanged(stage, out):
            old = _named(out, _OLD)
            out.rename(old)
            try:
                stage.rename(out)
            except OSError:
                old.rename(out)
                raise
            remove(old)
    sync(out.parent)


def exchanged(one: Path, other: Path) -> bool:
    """Exchange the names of two folders in one call; False where the system or the file system cannot.

    Raises OSError.
    """
    library = ctypes.CDLL(None, use_errno=True)
    try:
        if sys.platform == "darwin":
            failed = library.renamex_np(os.fsencode(one), os.fsencode(other), _EXCHANGE)
        else:
            at = -100  # AT_FDCWD
            failed = library.renameat2(at, os.fsencode(one), at, os.fsencode(other), _EXCHANGE)
    except AttributeError:  # an older C library
        return False
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT:
        return False
    raise OSError(code, os.strerror(code), str(other))
