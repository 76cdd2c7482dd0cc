"""Random sine networks: colours as a random small network of sines computes them from a pixel's place.

Compositional pattern-producing networks (Stanley, Genetic Programming and Evolvable Machines 8, 2007) of one kind of
unit, in place of the shader programs of Shaders-21k (Baradad et al., arXiv 2211.16412), which need a GPU's driver.

B images, H x W pixels, N = H * W, K units a layer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

UNITS = 12  # K
_FREQUENCY = (0.7, 7.0)  # radians from an image's centre to its edge, standard deviation of the first layer's weights
_GAIN = (0.5, 2.5)  # standard deviation of a later unit's input: how much it bends what the layer before drew


def sine_networks(count: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """(B, 3, H, W) in [0, 1]: two layers of sines of x, y and the distance from a centre, then sines as colours."""
    places = _places(count, size, device)  # (B, 3, N)
    values = _layer(places, UNITS, _drawn(_FREQUENCY, count, device)).sin_()
    for outputs in (UNITS, 3):
        gain = _drawn(_GAIN, count, device) * math.sqrt(2 / UNITS)  # a sine's variance is 1/2
        values = _layer(values, outputs, gain).sin_()
    return values.mul_(0.5).add_(0.5).view(count, 3, *size)


def _places(count: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """(B, 3, N): x and y, -1 to 1 along the longer side, and the distance from a point of the image's own."""
    longer = max(size)
    down, right = (((torch.arange(side, device=device) + 0.5) * 2 - side) / longer for side in size)
    x, y = right.repeat(size[0]), down.repeat_interleave(size[1])
    centre = torch.rand(count, 2, 1, device=device) * 2 - 1
    distance = ((x - centre[:, 0]) ** 2 + (y - centre[:, 1]) ** 2).sqrt()
    return torch.stack([x.expand_as(distance), y.expand_as(distance), distance], 1)


def _layer(inputs: Tensor, units: int, gain: Tensor) -> Tensor:
    """(B, units, N) of inputs (B, K, N): weights N(0, gain^2), gain (B, 1, 1), and any phase."""
    count, width = inputs.shape[:2]
    weights = gain * torch.randn(count, units, width, device=inputs.device)
    phases = 2 * math.pi * torch.rand(count, units, 1, device=inputs.device)
    return torch.baddbmm(phases, weights, inputs)


def _drawn(bounds: tuple[float, float], count: int, device: torch.device) -> Tensor:
    """(B, 1, 1) between bounds, logarithms even."""
    low, high = bounds
    return low * (high / low) ** torch.rand(count, 1, 1, device=device)
