"""Networks given as Python objects: the names by which files refer to them.

    live/mypkg.nets.Tiny@0f3a9c2b41d5     the class, and a digest of what it holds

Such a name says what something was. It is never imported or built.
"""

from __future__ import annotations

import hashlib
import re

import torch
from torch import Tensor, nn

from datafree.errors import NetworkError
from datafree.text import show

PREFIX = "live/"
_DIGITS = 12  # of the digest: 48 bits tell a user's own networks apart


def live_name(network: nn.Module, *, values: bool) -> str:
    """The name of a network that was given as an object.

    With `values`, as for a teacher, the digest is of its tensors; without, as for a student that training changes, only
    of their names, shapes and types.
    """
    require_values(network)
    kind = type(network)
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            if values:
                plain = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
                digest.update(plain.numpy().tobytes())
    return f"{PREFIX}{kind.__module__}.{kind.__qualname__}@{digest.hexdigest()[:_DIGITS]}"


def require_values(network: nn.Module) -> None:
    """Raise NetworkError if some of a network's tensors have no values: lazy layers, the device "meta"."""
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        what = f"the network {type(network).__name__}: {show(name)} has"
        if nn.parameter.is_lazy(tensor):
            raise NetworkError(f"{what} no shape yet; pass an image through its lazy layers first")
        if tensor.is_meta:
            raise NetworkError(f"{what} no values, being on the device meta; build it on the CPU")


def is_live(name: str) -> bool:
    """Whether a name is that of an object."""
    return name.startswith(PREFIX)


def class_of(name: str) -> tuple[str, str]:
    """Module and class of a live name, ("", "") where they are no plain names (of a class made inside a function)."""
    found = re.fullmatch(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*)\.([^\W\d]\w*)", name.removeprefix(PREFIX).partition("@")[0])
    return (found[1], found[2]) if found else ("", "")


def not_by_name(name: str) -> NetworkError:
    """The error where a live network would have to be built."""
    module, kind = class_of(name)
    code = f"{module}:{kind}" if module and module != "__main__" else "mypkg.nets:make_net"
    return NetworkError(
        f"{name} was given as an object, from Python, and is not built by its name: give the object again there, or "
        f"name what makes it as {code}"
    )
