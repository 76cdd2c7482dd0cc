"""Two answers compared: how far a file's are from its network's, and whether rounding decides the network's own.

B images, C classes, L locations.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from datafree.networks.normalized import Normalized
from datafree.ops import modes
from datafree.ops.predictions import Predictions

WORST = 1e-3  # relative error of a file against torch that is let pass
_QUERIES = 1000  # locations; of more, which are cells of a grid, the order is never free


def tensors_of(answer: Tensor | Predictions) -> tuple[Tensor, ...]:
    """The tensors that a file holds an answer as: those of `answer_of`."""
    return (answer.boxes, answer.scores) if isinstance(answer, Predictions) else (answer,)


def relative_error(wanted: Tensor | Predictions, answer: Tensor | Predictions) -> float:
    """The largest difference of an output over its largest value, of the worst output; infinite for other shapes.

    A detector's locations are a set where they are few: queries chosen by their scores (RT-DETR) change places where
    two are equally sure but for rounding. So where the order differs, each is compared with the one nearest to it.
    """
    pairs = list(zip(tensors_of(wanted), tensors_of(answer), strict=True))
    error = max(_relative(*pair) for pair in pairs)
    if error <= WORST or not math.isfinite(error) or len(pairs) == 1 or pairs[0][0].shape[1] > _QUERIES:
        return error
    scales = [float(tensor.abs().max()) or 1.0 for tensor, _ in pairs]
    theirs, ours = (  # (B, L, 4 + C)
        torch.cat([tensor.float() / scale for tensor, scale in zip(each, scales, strict=True)], -1)
        for each in zip(*pairs, strict=True)
    )
    return max(_as_sets(*rows) for rows in zip(theirs, ours, strict=True))


def _as_sets(wanted: Tensor, answer: Tensor) -> float:
    """The largest distance of a row (L, n) of either from the nearest of the other, in its worst entry."""
    errors = (wanted - answer).abs().amax(-1)
    moved = errors > WORST
    if moved.any():
        apart = torch.cdist(wanted[moved], answer[moved], p=math.inf)
        errors = torch.cat((errors[~moved], apart.amin(0), apart.amin(1)))
    return float(errors.max())


def _relative(wanted: Tensor, answer: Tensor) -> float:
    if wanted.shape != answer.shape:
        return math.inf
    error = float((wanted - answer).abs().max()) / (float(wanted.abs().max()) or 1.0)
    return error if math.isfinite(error) else math.inf


def undecided(network: Normalized, images: Tensor) -> str:
    """What to do where no file can be compared, as `network` itself answers otherwise in float64; else ""."""
    try:
        with torch.no_grad(), modes.frozen(network):
            answer = network(images)
            exact = copy.deepcopy(network).double()(images.double())
        error = relative_error(exact, answer)
    except Exception:  # not every network can be copied, or computed in float64
        return ""
    if error <= WORST:
        return ""
    return (
        f"rounding decides what the network answers (in float64 {error:.1e} away), as where all queries of a detector "
        "are equally sure: train it for longer"
    )
