"""An object store for tests, in a folder that several processes see: fsspec's `folder://`. It can be made to fail.

Objects are put whole, as real stores do it; there are no locks, no renames, no appending.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
from fsspec.spec import AbstractFileSystem


def no_fault(path: str) -> None:
    return None


class FolderStore(AbstractFileSystem):  # type: ignore[misc]
    protocol = "folder"
    before_put: Callable[[str], None] = staticmethod(no_fault)  # called with each path; may raise, or kill

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        folder = Path(f"/{path.lstrip('/')}")
        found = []
        for file in sorted(folder.iterdir()):  # FileNotFoundError as of a store
            if not file.name.endswith(".aside"):
                kind, size = ("directory", 0) if file.is_dir() else ("file", file.stat().st_size)
                found.append({"name": str(file), "type": kind, "size": size, "changed": file.stat().st_mtime_ns})
        return found

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        type(self).before_put(path)
        file = Path(f"/{path.lstrip('/')}")
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f"{uuid.uuid4().hex}.aside")
        aside.write_bytes(value)
        if mode == "create":
            try:
                os.link(aside, file)
            finally:
                aside.unlink()
        else:
            aside.replace(file)

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes())

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        return Path(f"/{path.lstrip('/')}").read_bytes()[start:end]

    def get_file(self, rpath: str, lpath: str, **kwargs: Any) -> None:
        Path(lpath).write_bytes(self.cat_file(rpath))

    def rm_file(self, path: str) -> None:
        Path(f"/{path.lstrip('/')}").unlink()


fsspec.register_implementation("folder", FolderStore, clobber=True)
