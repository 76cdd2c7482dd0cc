"""How many classes a weights file tells apart: by which of a network's tensors grow with their number.

C classes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from datafree.errors import NetworkError
from datafree.networks.checkpoints.weights import read_tensors
from datafree.networks.load import NetworkSpec, build_network
from datafree.networks.normalized import bare
from datafree.networks.pretrained import PRETRAINED


def classes_of(spec: NetworkSpec) -> int | None:
    """C for which a library's network takes the tensors of its weights file; None where they do not tell.

    The network is built twice, without values: the sides of its tensors that grow with C, and how, are then compared
    with the file's. Raises NetworkError, WeightsError.
    """
    assert spec.weights is not None
    if spec.weights.suffix == ".weights":  # Darknet's: numbers without shapes
        return None
    tensors = read_tensors(spec.weights)
    few, more = 7, 11
    shapes, grown = shapes_for(spec, few), shapes_for(spec, more)
    found = set()
    for name, shape in shapes.items():
        for side, (a, b) in enumerate(zip(shape, grown[name], strict=True)):
            tensor = _named(tensors, name)
            if a == b or tensor is None or tensor.ndim != len(shape):
                continue
            each = (b - a) // (more - few)
            found.add((tensor.shape[side] - (a - few * each)) / each)
    count = found.pop() if len(found) == 1 else 0.0
    return int(count) if count >= 1 and count == int(count) else None


def shapes_for(spec: NetworkSpec, classes: int) -> dict[str, torch.Size]:
    """The shapes of a library network's tensors by name, built for so many classes. Raises NetworkError."""
    plain = replace(spec, weights=None, args=_untrained(spec))
    try:
        with torch.device("meta"):
            network = build_network(plain, num_classes=classes)
    except NetworkError:  # some need values while they are built; a wrong name is said again
        network = build_network(plain, num_classes=classes)
    return {name: value.shape for name, value in bare(network).state_dict().items()}


def _untrained(spec: NetworkSpec) -> dict[str, Any]:
    return {key: value for key, value in spec.args.items() if key not in (*PRETRAINED, "classes", "num_classes")}


def _named(tensors: dict[str, Tensor], name: str) -> Tensor | None:
    """The tensor called `name`, whatever wraps the one side's or the other's names."""
    if name in tensors:
        return tensors[name]
    alike = (key for key in tensors if key.endswith(f".{name}") or ("." in key and name.endswith(f".{key}")))
    return tensors.get(next(alike, ""))
