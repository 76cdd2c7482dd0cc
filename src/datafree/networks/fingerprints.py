"""Fingerprints of architectures: digests of the names and shapes of a network's tensors, whatever its classes.

`builtin/architectures.json` holds those of torchvision's and timm's networks; scripts/index_architectures.py writes it.
It only proposes: whoever takes a proposal builds that network, so that an index of another version misleads nobody.

C classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from torch import nn

from datafree.networks.normalized import bare

Shape = tuple[int, ...]

MARK = 9973  # classes of a network that is indexed, a prime: what its shapes have of it depends on C
_DIGITS = 8  # of a digest: 32 bits, as two of them have to agree
_COUNTER = "num_batches_tracked"  # of BatchNorm, absent from old files


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What tells an architecture, whatever its C."""

    names: str  # digest of the names of all tensors
    body: str  # digest of the names and shapes of those that do not depend on C
    head: tuple[str, ...]  # the names of those that do


def fingerprint(network: nn.Module) -> Fingerprint:
    """Of a network that was built for MARK classes, or for one more, as detectors with a background have it."""
    shapes = shapes_of(network)
    head = tuple(sorted(name for name, shape in shapes.items() if any(map(_marked, shape))))
    return Fingerprint(names=names_digest(shapes), body=body_digest(shapes, head), head=head)


def _marked(side: int) -> bool:
    return side > 0 and (side % MARK == 0 or side % (MARK + 1) == 0)


def shapes_of(network: nn.Module) -> dict[str, Shape]:
    """The shapes of a bare network's tensors by name, without BatchNorm's counters."""
    return counted({name: tuple(value.shape) for name, value in bare(network).state_dict().items()})


def counted(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Those that tell an architecture: BatchNorm's counters do not."""
    return {name: shape for name, shape in shapes.items() if not name.endswith(_COUNTER)}


def names_digest(names: Iterable[str]) -> str:
    return _digest(sorted(names))


def body_digest(shapes: Mapping[str, Shape], head: Iterable[str]) -> str:
    left_out = set(head)
    return _digest(f"{name} {list(shape)}" for name, shape in sorted(shapes.items()) if name not in left_out)


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]


@cache
def _index() -> dict[str, Any]:
    file = resources.files("datafree") / "builtin" / "architectures.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def proposed(shapes: Mapping[str, Shape]) -> list[str]:
    """Networks ("library/name") of the index that tensors of these names and shapes fit, torchvision's first."""
    index, wanted = _index(), names_digest(shapes)
    bodies: dict[int, str] = {}
    found = []
    for network, (names, body, head) in index["networks"].items():
        if names != wanted:
            continue
        if head not in bodies:
            bodies[head] = body_digest(shapes, index["heads"][head])
        if bodies[head] == body:
            found.append(network)
    return sorted(found, key=lambda network: (not network.startswith("torchvision/"), len(network), network))
