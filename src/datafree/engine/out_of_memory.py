"""Out-of-memory errors: which part of a step raised one, and the largest batch size that fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from datafree.sources.base import ImageSource

_TEXTS = (  # of errors that have no class of their own
    *("out of memory", "can't allocate memory", "not enough memory"),
    *("cublas_status_alloc_failed", "cudnn_status_alloc_failed"),
    "unable to find an engine",  # cuDNN's, where none of its ways to convolve finds the memory it works in
)


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


def update_batches(source: ImageSource) -> list[int]:
    """Images of an update of the source and of each that it holds, as far as they say so."""
    return [size.images for each in source.all_sources() if (size := each.update_size()) is not None]


def fitting(source: ImageSource, student: nn.Module, step: int) -> int | None:
    """The most images, halved from the source's own, at which its update does not run out; None if none do.

    It is found by trying: the source, and every random state, are not what they were afterwards.
    """

    def try_update() -> bool:
        try:
            with noticed("the source's update"):
                source.update(student, step)
        except OutOfMemory:
            return False
        return True

    return _halved(source, try_update)


def _halved(source: ImageSource, works: Callable[[], bool]) -> int | None:
    largest = max(update_batches(source), default=0)
    while largest > 1:
        largest //= 2
        for each in source.all_sources():
            if (size := each.update_size()) is not None:
                each.resize_updates(replace(size, images=max(1, min(size.images, largest))))
        if works():
            return largest
    return None
