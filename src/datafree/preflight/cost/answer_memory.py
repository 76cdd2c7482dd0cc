"""Answer memory: bytes that tensors take at the peak of passes without gradients, which autograd keeps nothing of.

Exact but for what kernels take for themselves, also on the CPU.

B images, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from datafree.engine.validation import COMPARED
from datafree.evaluation.scoring import at_once
from datafree.health.signals import CORRUPTED, corrupted, in_a_pass, looked, rows
from datafree.networks.normalized import in_float32
from datafree.ops import modes
from datafree.ops.predictions import all_tensors
from datafree.tasks.base import Task


class _Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, the values that operations make are counted for as long as anybody holds them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak: int = 0
        self._living: dict[int, tuple[StorageWeakRef, int]] = {}  # by address: whether they live, and their bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_address(part) for part in tree_leaves((args, kwargs))} - {None}
        found = func(*args, **(kwargs or {}))
        gone = [key for key, (values, _) in self._living.items() if values.expired()]  # type: ignore[no-untyped-call]
        for key in gone:
            del self._living[key]
        for part in tree_leaves(found):
            if isinstance(part, Tensor) and _address(part) not in given:
                values = part.untyped_storage()
                lives = StorageWeakRef(values)  # type: ignore[no-untyped-call]
                self._living.setdefault(values.data_ptr(), (lives, values.nbytes()))
        self.peak = max(self.peak, sum(size for _, size in self._living.values()))
        return found


def _address(part: Any) -> int | None:
    return part.untyped_storage().data_ptr() if isinstance(part, Tensor) else None


def peak_of(work: Callable[[], object]) -> int:
    """Bytes of the values that `work` makes, all those that are held at once, at the most. Views count once."""
    living = _Living()
    with living:
        work()
    return living.peak


def compared(task: Task, teacher: nn.Module, student: nn.Module, look: Tensor, *, scored: bool) -> int:
    """Bytes that a look at held-out images needs or, if that is more and there are to be any, the scores at the end.

    It grows with the images, some of which are looked at here: `look` (B, 3, H, W).
    """
    kept: list[int] = []

    def seen(theirs: Any, ours: Any) -> Any:
        found = [rows(task.class_probs(outputs)) for outputs in (theirs, ours)]
        if task.dense:  # of each pixel the class and its probability, once by pass and once together
            kept.append(2 * sum(row.named.nbytes + row.confidence.nbytes for row in found))
        else:  # the answers to all images
            kept.append(sum(part.nbytes for outputs in (theirs, ours) for part in all_tensors(outputs)))
        return found

    with in_float32(teacher, student), modes.frozen(teacher, student), torch.no_grad():
        both = peak_of(lambda: looked(task, teacher, student, look, seen))
        spoilt = peak_of(lambda: corrupted(look))
    in_look = max(in_a_pass(task, look[0, 0].numel()) * both, CORRUPTED * spoilt)
    found = COMPARED * (look.nbytes + sum(kept)) + in_look
    if scored:
        found = max(found, at_once(task) * (look.nbytes + both))
    return math.ceil(found / len(look))
