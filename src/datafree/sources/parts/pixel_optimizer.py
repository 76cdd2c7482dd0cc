"""Optimisation of pixels by Adam, with a cosine learning rate: what DeepInversion and DIODE have in common.

B images, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from datafree.ops.performance import ALL_ON, Speed
from datafree.ops.predictions import where_answer
from datafree.ops.whole_batch import scale_own_gradients, whole_mean


def optimise(
    start: Tensor,
    loss: Callable[[Tensor, int], Tensor],
    *,
    iterations: int,
    rate: Callable[[int], float],
    betas: tuple[float, float] = (0.9, 0.999),
    speed: Speed = ALL_ON,
    keep: Literal["best", "last"] = "best",
) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] with a low loss, by Adam from `start`, which stays as it is.

    `loss(images, iteration)` answers a scalar; it draws its augmentations, and may change its targets on the way.
    `rate(iteration)` is the step in pixel values. Published code takes its steps on normalised pixels and clips these
    to the range of real ones; here pixels are in [0, 1] and clamped to it after each step, so that a published rate
    times the images' standard deviation (about 0.25) is the rate to give. Zero betas make steps of the gradient's
    sign (DIODE). `keep`: the iterate whose loss was the lowest, or the last one.
    """
    pixels = start.detach().clone().requires_grad_()
    optimizer = speed.adam([pixels], rate(0), betas)
    best = BestSoFar()
    for iteration in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = rate(iteration)
        value = loss(pixels, iteration)
        if keep == "best":
            best.offer(value, pixels)
        optimizer.zero_grad()
        torch.autograd.backward(value)
        scale_own_gradients([pixels])
        optimizer.step()
        with torch.no_grad():
            pixels.clamp_(0, 1)
    if keep == "last":
        return pixels.detach()
    images: Tensor = best.values[0]
    return images


def cosine(iteration: int, iterations: int, lr: float, last: float = 0.0, warmup: int = 0) -> float:
    """The rate of an iteration: up to `lr` in a straight line over `warmup`, then along a cosine to `last`."""
    if iteration < warmup:
        return lr * (iteration + 1) / warmup
    fraction = (iteration - warmup) / max(iterations - warmup, 1)
    return last + (lr - last) * (1 + math.cos(math.pi * fraction)) / 2


@dataclass(kw_only=True)
class BestSoFar:
    """Keeps copies of what belonged to the lowest loss that was offered; of equal ones to the first."""

    values: tuple[Any, ...] = field(default=(), init=False)  # tensors or predictions, without gradients

    def offer(self, loss: Tensor, *made: Any) -> None:
        """A try: its scalar loss, and what it made, of the same shapes each time. A loss that is NaN is no lower."""
        loss, made = whole_mean(loss.detach()), tuple(each.detach() for each in made)
        if not self.values:
            self._least, self.values = loss, made
        lower = loss < self._least  # never at first; but then it is copied, too, before anyone changes it
        self._least = torch.where(lower, loss, self._least)
        self.values = tuple(where_answer(lower, new, old) for new, old in zip(made, self.values, strict=True))
