"""What calibration images are worth: layers against their statistics, INT8 against the float network.

Beside the images made stand noise and, where given, real images. N images, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datafree.deploy.calibration import layers
from datafree.deploy.calibration.graph_ranges import graph_ranges
from datafree.deploy.calibration.int8 import FloatGraph, agreements, calibrated, float_graph
from datafree.deploy.calibration.real_images import Real
from datafree.evaluation.scoring import evaluate
from datafree.networks.load import NetworkSpec
from datafree.networks.normalized import Normalized
from datafree.storage.scratch import Scratch
from datafree.tasks.base import Task

# Of the images: INT8 that agrees less with the float network is warned of. Made images lie nearer to the borders
# between classes: a ResNet-20 in INT8 agreed on 100 % of 200 real images, and on 91 % of made ones.
AGREES = {"real": 0.95, "made": 0.85}
INT8 = "teacher.int8.onnx"


@dataclass(frozen=True, kw_only=True)
class Sets:
    """Images (N, 3, H, W) uint8."""

    made: Tensor
    held_out: Tensor  # made, but nothing is calibrated with them
    noise: Tensor
    real: Tensor | None  # that calibrate beside them

    def named(self) -> dict[str, Tensor]:
        """Those that calibrate."""
        found = {"made": self.made, "noise": self.noise}
        return found if self.real is None else {**found, "real": self.real}


@dataclass(kw_only=True)
class Measured:
    """Figures, plain values."""

    rows: list[dict[str, Any]]  # of layers
    within: dict[str, float]  # images -> the share of BatchNorm layers
    agreement: dict[str, dict[str, float | None]] = field(default_factory=dict)  # compared on -> calibrated with
    compared: dict[str, int] = field(default_factory=dict)  # images of these
    scores: dict[str, dict[str, float]] = field(default_factory=dict)  # on labelled images: network -> figure
    bytes: dict[str, int] = field(default_factory=dict)  # of the float and the INT8 file
    errors: dict[int, float] = field(default_factory=dict)  # of the float file against torch
    notes: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """For calibration.json and the page."""
        limits = {
            "mean": layers.MEAN_WITHIN,
            "spread": layers.SPREAD_WITHIN,
            "sigmas": layers.SIGMAS,
            "agreement": AGREES,  # on real images, on made ones
        }
        int8 = {
            "file": INT8,
            "bytes": self.bytes,
            "agreement": self.agreement,
            "compared": self.compared,
            "scores": self.scores,
            "onnx_error": {str(count): error for count, error in self.errors.items()},
        }
        return {
            "limits": limits,
            "layers": self.rows,
            "layers_within": self.within,
            "int8": int8 if self.bytes else None,
        }


def measure(
    network: Normalized,
    spec: NetworkSpec,
    task: Task,
    sets: Sets,
    real: Real | None,
    stage: Path | None,
    names: list[str],
    say: Callable[[str], None],
) -> Measured:
    """All figures; the INT8 file of the images made is written into the folder `stage`, None: no INT8.

    Raises NetworkError for a network that cannot be exported or quantised.
    """
    device = network.mean.device
    seen = {name: layers.activations(network, images, device) for name, images in sets.named().items()}
    rows = layers.table(network, seen)
    measured = Measured(rows=rows, within=layers.shares_within(rows))
    if stage is None:
        return measured
    with Scratch() as held:
        folder = held.path
        graph, measured.errors = float_graph(network, spec, task, stage, folder, names)
        if not rows:
            measured.rows = _of_graph(graph, sets)
        say("quantising to INT8, with these images" + ", with noise" + (" and with real ones" if real else ""))
        files = {name: stage / INT8 if name == "made" else folder / f"{name}.onnx" for name in sets.named()}
        int8 = {name: calibrated(graph, images, files[name]) for name, images in sets.named().items()}
        measured.bytes = {"float": graph.file.stat().st_size, "int8": files["made"].stat().st_size}
        _compare(measured, network, int8, task, "made", sets.held_out)
        if real is not None:
            _compare(measured, network, int8, task, "real", real.compared)
            if real.labelled is not None:
                for name, one in {"float": network, **int8}.items():
                    where = device if one is network else torch.device("cpu")  # a file's mean and std are there
                    measured.scores[name] = evaluate(one, task, real.labelled, device=where).values
    return measured


def _compare(
    measured: Measured, network: Normalized, int8: dict[str, nn.Module], task: Task, on: str, images: Tensor
) -> None:
    measured.agreement[on] = agreements(network, int8, task, images)
    measured.compared[on] = len(images)


def _of_graph(graph: FloatGraph, sets: Sets) -> list[dict[str, Any]]:
    """Rows of a graph's layers with weights: what they answer to each set of images."""
    seen = {name: graph_ranges(graph.file, graph.batches(images)) for name, images in sets.named().items()}
    return [
        {"layer": layer, "kept": None, **{name: {"range": list(found[layer])} for name, found in seen.items()}}
        for layer in seen["made"]
    ]
