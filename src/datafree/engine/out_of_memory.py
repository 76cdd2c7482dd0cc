"""Out-of-memory errors: which part of a step raised one, and the largest batch size that fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from datafree.sources.base import ImageSource

_TEXTS = ("out of memory", "can't allocate memory", "not enough memory")  # of errors that have no class of their own


class OutOfMemory(Exception):
    """Memory ran out; the text says where."""


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, the host's or an accelerator's."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _TEXTS)


@contextmanager
def noticed(where: str) -> Iterator[None]:
    """Within it, memory that runs out becomes OutOfMemory, with nothing held that the failed work had made."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        error.__traceback__ = None  # its frames hold tensors
        problem = OutOfMemory(where)
    else:
        return
    release()
    raise problem


def release() -> None:
    """Give back to the accelerator what is kept for the next allocation, so that one of another size finds room."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def sized(source: ImageSource) -> list[Any]:
    """The source, or its parts, that have a `batch_size` of their own."""
    if hasattr(source, "batch_size"):
        return [source]
    return [part for part in getattr(source, "parts", []) if hasattr(part, "batch_size")]


def fitting(source: ImageSource, student: nn.Module, step: int) -> int | None:
    """The largest `batch_size`, halved from the source's own, at which its update does not run out; None if none does.

    It is found by trying: the source, and every random state, are not what they were afterwards.
    """
    parts = sized(source)

    def try_update() -> bool:
        try:
            with noticed("the source's update"):
                source.update(student, step)
        except OutOfMemory:
            return False
        return True

    return _halved(parts, try_update)


def _halved(parts: list[Any], works: Callable[[], bool]) -> int | None:
    largest = max((part.batch_size for part in parts), default=0)
    while largest > 1:
        largest //= 2
        for part in parts:
            part.batch_size = max(1, min(part.batch_size, largest))
        if works():
            return largest
    return None
