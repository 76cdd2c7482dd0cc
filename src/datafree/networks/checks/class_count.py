"""How many classes a weights file tells apart: by which of a network's tensors grow with their number.

C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from datafree.errors import NetworkError
from datafree.networks.checkpoints.weights import read_shapes
from datafree.networks.load import NetworkSpec, build_network
from datafree.networks.normalized import bare
from datafree.networks.pretrained import PRETRAINED


def classes_of(spec: NetworkSpec, given: Mapping[str, tuple[int, ...]] | None = None) -> int | None:
    """C for which a library's network takes the tensors of its weights file; None where they do not tell.

    The network is built twice, without values: the sides of its tensors that grow with C, and how, are then compared
    with the file's, or with `given` where these shapes are known already. Raises NetworkError, WeightsError.
    """
    if given is None:
        assert spec.weights is not None
        if spec.weights.suffix == ".weights":  # Darknet's: numbers without shapes
            return None
        given = read_shapes(spec.weights)
    few, more = 7, 11
    shapes, grown = shapes_for(spec, few), shapes_for(spec, more)
    found = set()
    for name, shape in shapes.items():
        for side, (a, b) in enumerate(zip(shape, grown[name], strict=True)):
            sides = _named(given, name)
            if a == b or sides is None or len(sides) != len(shape):
                continue
            each = (b - a) // (more - few)
            found.add((sides[side] - (a - few * each)) / each)
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


def _named(given: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, ...] | None:
    """The shape of the tensor called `name`, whatever wraps the one side's or the other's names."""
    if name in given:
        return given[name]
    alike = (key for key in given if key.endswith(f".{name}") or ("." in key and name.endswith(f".{key}")))
    return given.get(next(alike, ""))
