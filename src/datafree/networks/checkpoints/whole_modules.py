"""Whole modules in `torch.save` files, taken apart without being run: their tensors by name, and what they describe.

`torch.save(network)` writes a program that makes the network out of its own code. Here every class in it becomes a
stand-in that holds what the file gives it; the tensors are found where torch keeps a module's: `_parameters`,
`_buffers` and `_modules`. Nothing is imported, and no function is called.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from datafree.errors import DatafreeError, WeightsError
from datafree.networks.checkpoints.stored_tensors import StoredTensor
from datafree.networks.checkpoints.torch_files import read_torch_file
from datafree.networks.checkpoints.unpickler import Object, kind_of
from datafree.text import one_line, show

_KEYS = ("ema", "model", "module", "network", "net", "state_dict")  # where checkpoints keep a module
_DEEPEST = 100  # modules within modules
_MOST = 100_000  # tensors


@dataclass(frozen=True, kw_only=True)
class WholeModule:
    """A network as its file describes it."""

    kind: str  # its class's full name: "ultralytics.nn.tasks.DetectionModel"
    key: str  # where in a checkpoint it was; "" for the file itself
    tensors: dict[str, Tensor]  # as its state_dict would have them
    eps: dict[str, float]  # of its layers that have one (normalisation), by name
    attributes: dict[str, Any]  # its own, made of plain values, StoredTensor and Other


def read_module(path: Path) -> WholeModule | None:
    """The module in a file of `torch.save`; None where it holds none. Runs nothing. Raises WeightsError."""
    found: list[tuple[str, Object]] = []

    def choose(content: Any) -> dict[str, StoredTensor]:
        module = _module_in(content)
        if module is None:
            return {}
        found.append(module)
        return dict(_named(module[1]))

    try:
        if not path.is_file():
            raise WeightsError(f"network {path}: {'not a file' if path.exists() else 'no such file'}")
        tensors = read_torch_file(path, choose, objects=True)
    except DatafreeError:
        raise
    except (OSError, MemoryError) as error:
        raise WeightsError(f"network {path}: cannot be read ({one_line(error)})") from error
    except Exception as error:  # the parsers raise anything from KeyError to RuntimeError for damaged files
        raise WeightsError(
            f"network {path}: damaged, or not a file of torch.save ({one_line(error)}): fetch it again"
        ) from error
    if not found:
        return None
    ((key, module),) = found
    if not tensors:
        raise WeightsError(f"network {path}: its {show(module.kind)} holds no tensors")
    return WholeModule(kind=module.kind, key=key, tensors=tensors, eps=_eps(module), attributes=_attributes(module))


def is_module(value: object) -> bool:
    """Whether a stand-in is of a module: it has what torch gives each."""
    return isinstance(value, Object) and {"_parameters", "_modules"} <= value.state.keys()


def _module_in(content: Any) -> tuple[str, Object] | None:
    """The module that a file is, or that its checkpoint holds: a moving average before what it averages."""
    if isinstance(content, Object) and is_module(content):
        return "", content
    if not isinstance(content, dict):
        return None
    for key in (*_KEYS, *content):
        held = content.get(key) if isinstance(key, str) else None
        if isinstance(held, Object) and is_module(held):
            return str(key), held
    return None


def _named(module: Object) -> Iterator[tuple[str, StoredTensor]]:
    """Names and tensors, as `state_dict` has them: without buffers that are not kept; shared ones under each name."""
    for prefix, here in _within(module):
        passing = here.state.get("_non_persistent_buffers_set")
        names = passing.items if isinstance(passing, Object) else []
        for group in ("_parameters", "_buffers"):
            for name, tensor in _entries(here, group):
                if isinstance(tensor, StoredTensor) and not (group == "_buffers" and name in names):
                    yield prefix + name, tensor
                elif tensor is not None and not isinstance(tensor, StoredTensor):
                    raise ValueError(f"{(prefix + name)[:80]!r} is a {kind_of(tensor)}, no plain tensor")


def _within(module: Object) -> Iterator[tuple[str, Object]]:
    """A module and those within it, each with what its tensors' names begin with, in the order of the definition."""
    left: list[tuple[str, Object, int]] = [("", module, 0)]
    count = 0
    while left:
        prefix, here, deep = left.pop()
        if deep > _DEEPEST:
            raise ValueError("modules too deep within modules")
        yield prefix, here
        inner = [
            (f"{prefix}{name}.", child, deep + 1) for name, child in _entries(here, "_modules") if is_module(child)
        ]
        left += inner[::-1]
        count += 1
        if count > _MOST:
            raise ValueError(f"more than {_MOST:,} modules")


def _eps(module: Object) -> dict[str, float]:
    given = ((prefix.removesuffix("."), here.state.get("eps")) for prefix, here in _within(module))
    return {name: eps for name, eps in given if isinstance(eps, float) and 0 <= eps <= 1}


def _entries(module: Object, group: str) -> list[tuple[str, Any]]:
    held = module.state.get(group)
    if isinstance(held, Object):  # an OrderedDict of old files, by a class of its own
        held = held.state
    return [(name, value) for name, value in held.items() if isinstance(name, str)] if isinstance(held, dict) else []


def _attributes(module: Object) -> dict[str, Any]:
    return {name: value for name, value in module.state.items() if isinstance(name, str) and not name.startswith("_")}
