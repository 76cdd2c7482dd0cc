"""The statistics of a trained network's input, recovered from the BatchNorm behind its first convolution.

A BatchNorm keeps each filter's mean output. A filter sees a channel of mean m as m times the sum of its weights there,
borders aside, so K filters give K equations for C means, solved by least squares. The variances give the spread: nearby
pixels of photographs, and their channels, are nearly equal, so a filter that is mostly flat answers with the spread
times its sum of weights.

K filters, C channels (R, G, B), h x w cells of a filter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Three = tuple[float, float, float]
Order = Literal["rgb", "bgr"]

# Photographs in [0, 1]: ImageNet's means; the deviation of a pixel from them, its image's own brightness included
# (CIFAR-10 0.25, 128 images of COCO 0.27, CamVid 0.29; ImageNet 0.27, as EfficientNet-Lite0 tells in this way).
PHOTO_MEAN: Three = (0.485, 0.456, 0.406)
_PHOTO_SPREAD = 0.265
_REACH = 20.0  # pixels at which the likeness of two pixels has fallen to 1/e; flat filters hardly mind
_LIKENESS = 0.95  # correlation of two channels

# How far what is seen may be from what is expected. Sets of photographs differ less, the usual ranges more.
_SPREAD_OFF = 1.4  # times
_MEAN_OFF = 0.35  # of the spread
UNSURE = 0.1  # standard error of a mean, of the spread: above it the equations do not tell
_TILT = 0.1  # red's mean less blue's, of the spread: below it the order is not told


def per_255(values: Three) -> Three:
    """A mean or a std of pixels from 0 to 255, as of pixels in [0, 1]."""
    return values[0] / 255, values[1] / 255, values[2] / 255


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a network's first convolution was given in training."""

    mean: tuple[float, ...]  # a channel each, in the order the network takes them
    spread: float  # a pixel's standard deviation, all channels
    error: float  # the largest standard error of the means, share of the spread
    residual: float  # of the K equations: root mean square, share of the outputs' standard deviation


def first_input(weight: Tensor, mean: Tensor, var: Tensor, bias: Tensor | None = None) -> Seen | None:
    """What a convolution was given on average, by the statistics of its outputs; None where they do not tell.

    weight (K, C, h, w), bias (K,) or None; mean and var (K,): the running statistics of the BatchNorm behind it.
    """
    filters, mean, var = weight.double().cpu(), mean.double().cpu(), var.double().cpu()
    count, channels = filters.shape[:2]
    if count < channels + 3 or (bool((mean == 0).all()) and bool((var == 1).all())):  # as new
        return None
    if bias is not None:
        mean = mean - bias.double().cpu()
    sums = filters.sum((2, 3))  # (K, C)
    if float(torch.linalg.matrix_rank(sums)) < channels:
        return None

    # mean_k = sum_c m_c sums_kc
    seen = torch.linalg.lstsq(sums, mean[:, None]).solution[:, 0]  # (C,)
    squares = (sums @ seen - mean).square()
    errors = (squares.sum() / (count - channels) * torch.linalg.inv(sums.T @ sums).diagonal()).sqrt()

    # var_k = spread^2 w_k' L w_k, L the likeness of the cells; from the flattest quarter of the filters
    flat = filters.flatten(1)
    unit = ((flat @ _likeness(channels, *filters.shape[2:])) * flat).sum(1)  # (K,)
    alive = (var > 1e-3 * var.median()) & (unit > 1e-3 * unit.median())
    flatness = torch.where(alive, sums.sum(1).square() / flat.square().sum(1).clamp_min(1e-30), 0.0)
    flattest = flatness.topk(max(3, count // 4)).indices
    spread = float((var / unit.clamp_min(1e-30)).sqrt()[flattest].median())
    if not (math.isfinite(spread) and spread > 0):
        return None
    return Seen(
        mean=tuple(seen.tolist()),
        spread=spread,
        error=float(errors.max()) / spread,
        residual=float((squares.mean() / var.mean()).sqrt()),
    )


def _likeness(channels: int, height: int, width: int) -> Tensor:
    """(C h w, C h w): how alike the values under a filter's cells are in photographs, 1 = equal."""
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).double()  # (h w, 2)
    near = torch.exp(-torch.cdist(places, places) / _REACH)
    alike = torch.full((channels, channels), _LIKENESS, dtype=torch.float64).fill_diagonal_(1.0)
    return torch.kron(alike, near)


def told_order(seen: Seen) -> Order | None:
    """Photographs are redder than blue on average, so unequal means tell the order where nothing was taken off."""
    if len(seen.mean) != 3:
        return None
    first, middle, last = seen.mean
    tilt = (first - last) / seen.spread
    if not min(first, last) <= middle <= max(first, last) or abs(tilt) < max(_TILT, 4 * seen.error):
        return None
    return "rgb" if tilt > 0 else "bgr"


def distance(seen: Seen, mean: Three, std: Three) -> float:
    """How far photographs normalised by `mean` and `std` are from what was seen; above 1: they are not that.

    The larger of the spreads' ratio, 1.4 counting as 1, and the means' largest difference, 0.35 of the spread counting
    as 1; in whichever order of the channels is the nearer.
    """
    spread = _PHOTO_SPREAD / (sum(std) / 3)
    expected = [(photo - m) / s for photo, m, s in zip(PHOTO_MEAN, mean, std, strict=True)]
    if len(seen.mean) == 1:
        expected = [sum(expected) / 3]
    if len(seen.mean) != len(expected):
        return math.inf
    off = min(
        max(abs(m - e) for m, e in zip(seen.mean, order, strict=True)) / seen.spread
        for order in (expected, expected[::-1])
    )
    return max(abs(math.log(seen.spread / spread)) / math.log(_SPREAD_OFF), off / _MEAN_OFF)


def implied(seen: Seen, mean: Three, std: Three) -> tuple[float, float]:
    """Mean and spread of the images in [0, 1], all channels, that are what was seen once normalised by these."""
    scale = sum(std) / 3
    return sum(seen.mean) / len(seen.mean) * scale + sum(mean) / 3, seen.spread * scale
