"""Networks that a file describes, built within bounds: a few bytes can ask for millions of layers and terabytes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from datafree.errors import NetworkError, WeightsError

MOST_MODULES = 20_000  # within one network; the largest of timm's and transformers' have some 5,000
_SPARE = 10_000_000  # values that a network may have beyond twice those of its file: who lacks a few is told which


@contextlib.contextmanager
def few_modules(what: str) -> Iterator[None]:
    """Within it, NetworkError as soon as more modules are put into others than any network has; `what` describes it."""
    count = 0

    def counted(module: nn.Module, name: str, part: nn.Module | None) -> None:
        nonlocal count
        count += 1
        if count > MOST_MODULES:
            raise NetworkError(f"{what} describes a network of more than {MOST_MODULES:,} modules, which is none")

    handle = register_module_module_registration_hook(counted)
    try:
        yield
    finally:
        handle.remove()


def require_held(network: nn.Module, shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Raise WeightsError for a network, on the device meta, far larger than the tensors that are to fill it.

    `shapes`: of these tensors, by name; `what` names their file and the description of the network.
    """
    wanted = sum(parameter.numel() for parameter in network.parameters())
    held = sum(map(math.prod, shapes.values()))
    if wanted > 2 * held + _SPARE:
        raise WeightsError(f"{what} has {wanted:,} parameters, but only {held:,} values are there: fetch both again")
