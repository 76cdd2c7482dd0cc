"""Temporary folders of a command; those that killed commands have left are cleared away by the next."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Self

from datafree.storage.atomic import is_left, open_locked

PREFIX = ".datafree-scratch-"  # and nothing that anyone would name a folder of his own


class Scratch:
    """A new temporary folder, this user's alone, until `close` or the end of a `with` block."""

    def __init__(self) -> None:
        """Raises OSError."""
        _clear()
        self._opened: int | None = None
        while self._opened is None:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
            self._opened = open_locked(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove it. Safe to call twice."""
        if self._opened is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._opened)
            self._opened = None


def _clear() -> None:
    """Remove what this user's killed commands have left."""
    with suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            with suppress(OSError):
                if not entry.name.startswith(PREFIX) or not entry.is_dir(follow_symlinks=False):
                    continue
                if entry.stat(follow_symlinks=False).st_uid == os.getuid() and is_left(Path(entry.path), unknown=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
