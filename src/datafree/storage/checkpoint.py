"""Checkpoint files: tensors and plain values, sealed by a checksum, the one before kept.

The file is what `torch.save` writes, a zip archive, with `sha256:` and the hexadecimal SHA-256 of everything before it
as the archive's comment; so `torch.load` and other zip readers take it as it is. A file that was written before there
were seals (state version 1) has no comment, and is read without.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from datafree.storage.atomic import written_whole

_LABEL = b"sha256:"
_SEAL = len(_LABEL) + 64  # bytes of the comment
_LENGTH = 2  # bytes of its length, the last of an archive without one
_BLOCK = 2**20  # bytes read at once


class Damaged(Exception):
    """A file of state that cannot be read; the text says why in a few words."""


def write(file: Path, content: dict[str, Any], keep: Path | None = None) -> None:
    """Write `content` (tensors and plain values only) to `file`, whole or not at all; to `keep` goes the one before.

    Raises OSError, with the `size` in bytes that it was to have.
    """
    sealing = None
    try:
        with written_whole(file, keep) as opened:
            sealing = _Sealing(opened)
            torch.save(content, cast(BinaryIO, sealing))
            sealing.finish()
    except OSError as error:
        raise NoRoom(error, 0 if sealing is None else size_of(content)) from error
    except RuntimeError as error:  # torch's writer wraps what the file raised
        if sealing is not None and sealing.fault is not None:
            raise NoRoom(sealing.fault, size_of(content)) from error
        raise


class NoRoom(OSError):
    """A file of state that could not be written: the system's reason, and `size`, about how many bytes it needs."""

    def __init__(self, reason: OSError, size: int) -> None:
        super().__init__(reason.errno, reason.strerror or str(reason))
        self.size = size


def read(file: Path) -> dict[str, Any]:
    """What `write` wrote. Runs no code of the file. Raises Damaged, FileNotFoundError."""
    try:
        sealed = _check_seal(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (Damaged, FileNotFoundError):
        raise
    except Exception as error:  # a damaged archive raises anything from EOFError to RuntimeError
        raise Damaged(type(error).__name__) from error
    if not isinstance(content, dict):
        raise Damaged("it holds no state")
    if not sealed and content.get("version") != 1:
        raise Damaged("its checksum is missing")
    return content


def size_of(content: object) -> int:
    """About how many bytes `content` takes on disk."""
    if isinstance(content, torch.Tensor):
        return content.numel() * content.element_size() + 256
    if isinstance(content, dict):
        return sum(map(size_of, content.values())) + 1024
    if isinstance(content, (list, tuple)):
        return sum(map(size_of, content))
    return len(content) if isinstance(content, (str, bytes)) else 8


def _check_seal(file: Path) -> bool:
    """Whether the file has a seal at all. Raises Damaged if it is broken, OSError."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        opened.seek(max(0, size - _SEAL))
        comment = opened.read()
        if not comment.startswith(_LABEL):
            return False
        opened.seek(0)
        digest, left = hashlib.sha256(), size - _SEAL
        while block := opened.read(min(_BLOCK, left)):
            digest.update(block)
            left -= len(block)
    if digest.hexdigest().encode() != comment[len(_LABEL) :]:
        raise Damaged("its checksum does not match")
    return True


class _Sealing:
    """A file for `torch.save` that hashes what goes through, and ends it with the seal."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._held = b""  # the latest bytes: the archive's last ones are the length of its comment
        self.fault: OSError | None = None

    def write(self, data: bytes) -> int:
        view = memoryview(data).cast("B")
        if len(view) < _LENGTH:  # never a copy of a large one
            view = memoryview(self._held + bytes(view))
        else:
            self._put(self._held)
        self._put(view[:-_LENGTH])
        self._held = bytes(view[-_LENGTH:])
        return len(data)

    def flush(self) -> None:
        """Nothing: the file is flushed once, when it is whole."""

    def finish(self) -> None:
        """Write the seal."""
        assert self._held == bytes(_LENGTH), "an archive that has a comment already"
        self._put(_SEAL.to_bytes(_LENGTH, "little"))
        self._put_raw(_LABEL + self._digest.hexdigest().encode())

    def _put(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        self._put_raw(data)

    def _put_raw(self, data: bytes | memoryview) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            self.fault = error
            raise
