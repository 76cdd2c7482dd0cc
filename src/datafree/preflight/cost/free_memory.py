"""Free memory: what the system and its control groups leave a process, or what a GPU has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

_NONE = 2**60  # bytes: a control group's limit from here on is none


def free_memory(device: torch.device, root: Path = Path("/")) -> int | None:
    """Bytes that are free on `device`, the host's for "cpu"; None where the system does not say.

    On the host: /proc/meminfo's MemAvailable or, if that is less, what any control group above this process leaves of
    its limit, file caches not counted as used. `root`: where /proc and /sys are.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    left = [*_system(root / "proc" / "meminfo"), *_groups(root)]
    return min(left) if left else None


def _system(file: Path) -> Iterator[int]:
    for line in _text(file).splitlines():
        if line.startswith("MemAvailable:"):
            yield 1024 * int(line.split()[1])


def _groups(root: Path) -> Iterator[int]:
    """What each control group above this process leaves, of the first and of the second version."""
    for line in _text(root / "proc" / "self" / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        kinds, _, path = rest.partition(":")
        second = number == "0" and not kinds
        if not second and "memory" not in kinds.split(","):
            continue
        top = root / "sys" / "fs" / "cgroup" / ("" if second else "memory")
        limit, used, cached = (
            ("max", "current", "inactive_file")
            if second
            else (
                "limit_in_bytes",
                "usage_in_bytes",
                "total_inactive_file",
            )
        )
        group = top / path.lstrip("/")
        while True:  # a container may see its own group as the topmost, under another path
            limits, uses = _text(group / f"memory.{limit}").strip(), _text(group / f"memory.{used}").strip()
            if limits.isdigit() and uses.isdigit() and int(limits) < _NONE:
                yield max(0, int(limits) - int(uses) + _named(group / "memory.stat", cached))
            if group == top or top not in group.parents:
                break
            group = group.parent


def _named(file: Path, name: str) -> int:
    return next((int(line.split()[1]) for line in _text(file).splitlines() if line.startswith(f"{name} ")), 0)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
