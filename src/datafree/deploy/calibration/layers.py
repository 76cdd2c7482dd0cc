"""Activations of a network's layers on a set of images: ranges, and their distance from BatchNorm's own statistics.

What a BatchNorm layer keeps of its training data is a mean and a variance for each channel. Images that calibrate well
give its inputs the same; what they give beyond them stretches the scale of INT8, what they lack is clipped.

N images, K channels, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from datafree.networks.batchnorm import batchnorm_layers
from datafree.networks.normalized import bare
from datafree.ops import modes

MEAN_WITHIN = 0.5  # of the kept standard deviation: root mean square over channels of the means' distances
SPREAD_WITHIN = 1.5  # times, more or less: geometric mean over channels of the ratios of standard deviations
SIGMAS = 3.0  # of each channel: the range that statistics which are kept stand for
BATCH = 8  # images in a pass


@dataclass(kw_only=True)
class Activations:
    """What a layer has seen: its range over all values, and sums for each channel."""

    low: float = math.inf
    high: float = -math.inf
    count: int = 0  # values of each channel
    total: Tensor = field(default_factory=lambda: torch.zeros(()))  # (K,) float64
    squares: Tensor = field(default_factory=lambda: torch.zeros(()))  # (K,) float64

    def add(self, x: Tensor) -> None:
        """Values (N, K, ...)."""
        values, rest = x.detach().float(), [0, *range(2, x.ndim)]
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self.count += values.numel() // values.shape[1]
        self.total = self.total + values.sum(rest, dtype=torch.float64).cpu()
        self.squares = self.squares + values.square().sum(rest, dtype=torch.float64).cpu()

    @property
    def mean(self) -> Tensor:
        """(K,)"""
        return self.total / max(self.count, 1)

    @property
    def std(self) -> Tensor:
        """(K,), biased, as BatchNorm normalises by."""
        return (self.squares / max(self.count, 1) - self.mean.square()).clamp(min=0).sqrt()


@torch.no_grad()
def activations(network: nn.Module, images: Tensor, device: torch.device) -> dict[str, Activations]:
    """Of `network` (images in [0, 1] -> outputs) on `images` (N, 3, H, W) uint8: layer -> what it saw, in their order.

    Layers are BatchNorm's, by their inputs; of a network without them those with a kernel, by their outputs. Empty for
    a network whose layers cannot be watched: a program, an ONNX file.
    """
    inner = bare(network)
    norms = batchnorm_layers(inner)
    seen: dict[str, Activations] = {name: Activations() for name in (norms or _kernels(inner))}
    with modes.frozen(network), _watched(inner, norms, seen):
        for part in torch.split(images, BATCH):
            network(part.to(device).float() / 255)
    return {name: found for name, found in seen.items() if found.count}


def _kernels(network: nn.Module) -> dict[str, nn.Module]:
    """Convolutions and linear maps, of whatever class."""
    found = {}
    for name, module in network.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim >= 2 and not isinstance(module, torch.jit.ScriptModule):
            found[name] = module
    return found


@contextmanager
def _watched(network: nn.Module, norms: dict[str, nn.Module], seen: dict[str, Activations]) -> Iterator[None]:
    with ExitStack() as hooks:
        for name, module in network.named_modules():
            if name not in seen:
                continue
            if name in norms:
                handle = module.register_forward_pre_hook(partial(_before, seen[name]))
            else:
                handle = module.register_forward_hook(partial(_after, seen[name]))
            hooks.callback(handle.remove)
        yield


def _before(found: Activations, module: nn.Module, inputs: tuple[Any, ...]) -> None:
    if inputs and isinstance(inputs[0], Tensor):
        found.add(inputs[0])


def _after(found: Activations, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    if isinstance(output, Tensor) and output.ndim > 1:
        found.add(output)


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far what a BatchNorm layer saw is from what it keeps."""

    mean: float  # in kept standard deviations
    spread: float  # times the kept standard deviation

    @property
    def within(self) -> bool:
        return self.mean <= MEAN_WITHIN and 1 / SPREAD_WITHIN <= self.spread <= SPREAD_WITHIN

    @property
    def badness(self) -> float:
        """1 at the limit."""
        return max(self.mean / MEAN_WITHIN, abs(math.log(max(self.spread, 1e-9))) / math.log(SPREAD_WITHIN))


def kept_range(layer: nn.Module) -> tuple[float, float]:
    """The least and largest value of a BatchNorm layer's inputs that its statistics stand for: SIGMAS each way."""
    mean, std = _kept(layer)
    return float((mean - SIGMAS * std).min()), float((mean + SIGMAS * std).max())


def distance(layer: nn.Module, seen: Activations) -> Distance:
    """Of what `layer` saw from its running mean and variance; channels that never varied in training do not count."""
    mean, std = _kept(layer)
    alive = std > 1e-3 * std.max()
    if not bool(alive.any()):
        return Distance(mean=0.0, spread=1.0)
    mean, std = mean[alive], std[alive]
    apart = ((seen.mean[alive] - mean) / std).square().mean().sqrt()
    ratio = (seen.std[alive] / std).clamp(min=1e-6).log().mean().exp()
    return Distance(mean=float(apart), spread=float(ratio))


def _kept(layer: Any) -> tuple[Tensor, Tensor]:
    """(K,) mean and standard deviation, float64."""
    return layer.running_mean.detach().double().cpu(), layer.running_var.detach().double().cpu().clamp(min=0).sqrt()


def table(network: nn.Module, seen: dict[str, dict[str, Activations]]) -> list[dict[str, Any]]:
    """A row for each layer, plain values: of each set of images ("made", "noise", "real") range and distance."""
    norms = batchnorm_layers(bare(network))
    rows = []
    for name in next(iter(seen.values()), {}):
        row: dict[str, Any] = {"layer": name, "kept": list(kept_range(norms[name])) if name in norms else None}
        for images, layers in seen.items():
            if name not in layers:
                continue
            found: dict[str, Any] = {"range": [layers[name].low, layers[name].high]}
            if name in norms:
                apart = distance(norms[name], layers[name])
                found |= {"mean": apart.mean, "spread": apart.spread, "within": apart.within, "badness": apart.badness}
            row[images] = found
        rows.append(row)
    return rows


def shares_within(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Of each set of images: the share of BatchNorm layers within the limits; empty without such layers."""
    found = {}
    for images in ("made", "noise", "real"):
        verdicts = [row[images]["within"] for row in rows if "within" in row.get(images, {})]
        if verdicts:
            found[images] = sum(verdicts) / len(verdicts)
    return found


def worst(rows: list[dict[str, Any]], images: str = "made") -> dict[str, Any] | None:
    """The row of the layer that is farthest from its statistics; None without BatchNorm."""
    known = [row for row in rows if "badness" in row.get(images, {})]
    return max(known, key=lambda row: float(row[images]["badness"]), default=None)
