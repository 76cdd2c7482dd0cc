"""Shares of the kinds of procedural images by what a teacher's answers tell apart in them.

C classes, N images or pixels, H x W pixels of an image.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from datafree.ops import modes
from datafree.sources.base import SourceContext
from datafree.sources.procedural.mixture import MAKERS, Mixture

MOST, _LEAST = 512, 16  # images of each kind that tell its share
_PIXELS = 2**20  # of these together, where images are large
_LEAST_TOLD = 1e-3  # below, the teacher names one class whatever it is shown
_SHARPNESS = 3.0  # power of what is told apart; by it Fashion-MNIST's teachers ask for figures in half of the images


def weighed(mixture: Mixture, context: SourceContext) -> Mixture:
    """The mixture, each share times the cube of what the teacher tells apart in its images; says so.

    As it is where it has one kind, or where the teacher tells nothing apart. Uses none of the run's random numbers.
    """
    if sum(share > 0 for share in mixture.shares) == 1:
        return mixture
    height, width = context.task.image_size
    count = max(_LEAST, min(MOST, _PIXELS // (height * width)))
    before = modes.random_state()  # the makers draw from the global generators
    try:
        modes.seed_everything(context.seed + 1)
        told = [
            _told(replace(mixture, shares=alone(name)), count, context) if share else 0.0
            for name, share in zip(MAKERS, mixture.shares, strict=True)
        ]
    finally:
        modes.set_random_state(before)
    if max(told) < _LEAST_TOLD:
        return mixture
    weights = [share * apart**_SHARPNESS for share, apart in zip(mixture.shares, told, strict=True)]
    shares = tuple(weight / sum(weights) for weight in weights)
    by_share = sorted(zip(shares, MAKERS, strict=True), reverse=True)
    shown = ", ".join(f"{share:.0%} {name}" for share, name in by_share)
    context.say(f"procedural: images by what the teacher tells apart in them: {shown}")
    return replace(mixture, shares=shares)


def alone(name: str) -> tuple[float, ...]:
    """Shares by which one of MAKERS makes all images."""
    return tuple(float(name == other) for other in MAKERS)


@torch.no_grad()
def _told(mixture: Mixture, count: int, context: SourceContext) -> float:
    images = mixture.draw(count, context.task.image_size, context.device)
    parts = torch.split(images, max(context.batch_size, 2))
    return told_apart(context.task.class_probs(context.teacher(part)) for part in parts)


def told_apart(parts: Iterable[Tensor]) -> float:
    """Mean KL(p_i || mean p) of rows (N, C) in parts: the mutual information of a row and the class named in it, >= 0.

    The logarithm of the Inception Score (Salimans et al., arXiv 1606.03498), by the teacher. A part is let go before
    the next one is made: under segmentation rows are pixels.
    """
    count, total, own = 0, cast("Tensor", 0.0), cast("Tensor", 0.0)  # sums begin where the first part lies
    for probs in parts:
        count, total, own = count + len(probs), total + probs.sum(0), own + torch.xlogy(probs, probs).sum()
    mean = total / count
    return max(0.0, float(own / count - torch.xlogy(mean, mean).sum()))
