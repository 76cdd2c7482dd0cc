"""What a source has read of its files: by size and time, and by content where these are others on resuming.

N items, each of one or more files. Sizes and times are looked at once, when the source begins (some microseconds a
file); an item's content is hashed when it is handed out, decoded as it is. So a data set that was copied or touched is
the same, and one replaced by as many other files is not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datafree.data.images import UnreadableImage
from datafree.errors import DataError
from datafree.sources.parts.prefetch import listed

_BYTES = 8  # of a digest: a changed file goes unnoticed once in 2^64
_NONE = bytes(_BYTES)


class SeenFiles:
    """The files of N items, and the content of those that were handed out."""

    def __init__(self, items: Sequence[Sequence[Path]]) -> None:
        self._items = items
        self._stamps = [_stamp(files) for files in items]
        self._contents = [_NONE] * len(items)
        self.changed: dict[int, None] = {}  # items that were others when they were read again; an ordered set

    def note(self, index: int, content: bytes) -> None:
        """An item was handed out, of this content (`content_of`)."""
        if self._contents[index] not in (_NONE, content):
            self.changed[index] = None
        self._contents[index] = content

    def state_dict(self) -> dict[str, Any]:
        """Plain values, 32 characters an item."""
        return {"stamps": b"".join(self._stamps).hex(), "contents": b"".join(self._contents).hex()}

    def load_state_dict(self, state: dict[str, Any], read: Callable[[int], bytes]) -> tuple[list[int], list[int]]:
        """Put back what `state_dict` returned: items of another content now, and those that cannot be told.

        `read` answers an item's content; only those of another size or time are read. What had not been handed out by
        then cannot be told. Of other items than these nothing is known, and nothing is returned.
        """
        stamps, contents = _parts(state.get("stamps")), _parts(state.get("contents"))
        if len(stamps) != len(self._items) or len(contents) != len(self._items):
            return [], []
        self._contents = contents
        differing = [index for index, stamp in enumerate(stamps) if stamp != self._stamps[index]]
        unknown = [index for index in differing if contents[index] == _NONE]
        return [i for i in differing if contents[i] != _NONE and _other(contents[i], i, read)], unknown


def content_of(*arrays: np.ndarray[Any, Any]) -> bytes:
    """A digest of decoded pixels and targets."""
    digest = hashlib.blake2b(digest_size=_BYTES)
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def remark(where: Path, changed: list[str], unknown: list[str], count: int) -> str:
    """A line about items that are not as they were when the run was stopped; "" where all are."""
    parts = []
    if changed:
        names = listed(changed)
        parts.append(f"{len(changed):,} of {count:,} images are others than before the run was stopped: {names}")
    if unknown:
        parts.append(
            f"{len(unknown):,} of {count:,} images have another size or time and had not been read by then, so that "
            f"nobody can tell whether they are the same: {listed(unknown)}"
        )
    if not parts:
        return ""
    return f"{where}: {'; '.join(parts)}; it went on with what is there, and cannot be repeated exactly"


def _other(before: bytes, index: int, read: Callable[[int], bytes]) -> bool:
    try:
        return read(index) != before
    except (UnreadableImage, DataError):
        return True


def _stamp(files: Sequence[Path]) -> bytes:
    """A digest of the files' sizes and times; of one that is not there, of that."""
    digest = hashlib.blake2b(digest_size=_BYTES)
    for file in files:
        try:
            status = file.stat()
            digest.update(f"{status.st_size} {status.st_mtime_ns} ".encode())
        except OSError:
            digest.update(b"none ")
    return digest.digest()


def _parts(text: object) -> list[bytes]:
    whole = bytes.fromhex(text) if isinstance(text, str) else b""
    return [whole[place : place + _BYTES] for place in range(0, len(whole), _BYTES)]
