"""What a run's numbers depend on besides its recipe: the teacher's values, the machine, threads and versions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from datafree.distributed import replicas
from datafree.errors import RunError
from datafree.networks.normalized import bare
from datafree.storage.environment import environment, hardware
from datafree.text import show

TEACHER = "teacher"


def origin_of(teacher: nn.Module) -> dict[str, Any]:
    """Plain values: `teacher` (a digest of its tensors), and what else decides about a run's bits."""
    machine = hardware()
    versions = environment()["versions"]
    return {
        TEACHER: values_of(bare(teacher)),
        "processor": machine["processor"],
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": machine["threads"],
        "accelerator": machine["accelerator"],
        "processes": replicas.count(),
        **{name: versions[name] for name in ("datafree", "python", "torch", "torchvision", "numpy", "pillow")},
    }


def values_of(network: nn.Module) -> str:
    """The SHA-256 of a network's tensors and their names."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
            digest.update(value.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def compare(before: Mapping[str, Any], now: Mapping[str, Any], what: str) -> str:
    """A line about what is another than it was, "" where nothing is. `what` was begun: "the run", "the data set".

    Raises RunError for another teacher: half of the one and half of the other would be learnt from.
    """
    known = {key: value for key, value in before.items() if key in now}
    if known.get(TEACHER, now[TEACHER]) != now[TEACHER]:
        raise RunError(
            f"the teacher's weights are not those that {what} was begun with (SHA-256 of their values "
            f"{now[TEACHER][:12]}..., {str(known[TEACHER])[:12]}... then); put them back, or choose another --out"
        )
    changed = [f"{key} {show(now[key])}, {show(value)} before" for key, value in known.items() if value != now[key]]
    if not changed:
        return ""
    how = "; ".join(changed)[:400]
    return f"{what} goes on under other conditions ({how}): its bits may differ from those of an unbroken one"
