"""How much each of a teacher's channels matters, without data or from made images.

A layer's weight is (O, ...), of which row o makes output channel o. A channel that several layers make, such as one of
a residual stream, has the sum of their scores.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from datafree.networks.normalized import bare
from datafree.networks.pruning.channel_labels import Followed
from datafree.networks.pruning.channels import narrowed
from datafree.ops import modes
from datafree.ops.predictions import Predictions

Importance = Literal["gain", "norm", "taylor"]


def scores(importance: Importance, teacher: nn.Module, followed: Followed, images: Tensor) -> dict[int, float]:
    """The teacher's channels by `importance`; only "taylor" looks at the `images` (B, 3, H, W)."""
    if importance == "taylor":
        return taylor(teacher, followed, images)
    return filter_norms(teacher, followed, gains=importance == "gain")


@torch.no_grad()
def filter_norms(teacher: nn.Module, followed: Followed, gains: bool = True) -> dict[int, float]:
    """Sum over layers of the L2 norm of the channel's filter, times |gain| of the BatchNorm behind it if `gains`.

    The norm alone is Li et al., arXiv 1608.08710 (with L1), the gain Liu et al., arXiv 1708.06519 (network slimming).
    """
    tensors = dict(bare(teacher).named_parameters())

    def rows() -> Iterator[tuple[Tensor, Tensor]]:
        for name in followed.outputs:
            weight = tensors.get(name)
            if weight is None or weight.ndim < 2 or _axis(followed, name) is None:
                continue
            axis = _axis(followed, name) or 0
            norms = weight.float().movedim(axis, 0).flatten(1).norm(dim=1)  # (O,)
            if gains and name in followed.norms:
                norms = norms * tensors[followed.norms[name]].float().abs()
            yield _each(followed, name), norms

    return _summed(rows())


def taylor(teacher: nn.Module, followed: Followed, images: Tensor) -> dict[int, float]:
    """Sum over tensors of (sum over the channel's entries of weight x gradient)^2, of half the sum of squared answers.

    Molchanov et al., arXiv 1906.10771, eq. 8, with a loss that asks for no labels: its gradient tells how the
    answers would change.
    """
    network = bare(teacher)
    tensors = {name: p for name, p in network.named_parameters() if name in followed.outputs}
    with modes.frozen(teacher), torch.enable_grad():
        for parameter in tensors.values():
            parameter.requires_grad_(True)
        loss = sum((0.5 * answer.float().square().sum() for answer in _answers(teacher(images))), torch.zeros(()))
        gradients = torch.autograd.grad(loss / len(images), list(tensors.values()), allow_unused=True)

    def rows() -> Iterator[tuple[Tensor, Tensor]]:
        for (name, parameter), gradient in zip(tensors.items(), gradients, strict=True):
            axis = _axis(followed, name)
            if gradient is not None and axis is not None:
                product = (parameter.detach() * gradient).float().movedim(axis, 0)
                each = product.reshape(len(product), -1).sum(1)  # (O,)
                yield _each(followed, name), each.square()

    return _summed(rows())


def _answers(answer: object) -> Iterator[Tensor]:
    if isinstance(answer, Predictions):
        yield from answer.heads
    elif isinstance(answer, Tensor):
        yield answer


def _axis(followed: Followed, name: str) -> int | None:
    """The one along which the channels of a tensor change; None where there is none or more."""
    small = narrowed(followed.outputs[name])
    axes = [axis for axis, size in enumerate(small.shape) if size > 1]
    return axes[0] if len(axes) == 1 else None


def _each(followed: Followed, name: str) -> Tensor:
    return narrowed(followed.outputs[name]).reshape(-1)


def _summed(rows: Iterator[tuple[Tensor, Tensor]]) -> dict[int, float]:
    total: defaultdict[int, float] = defaultdict(float)
    for variables, values in rows:
        for variable, value in zip(variables.tolist(), values.double().cpu().tolist(), strict=True):
            total[variable] += value if np.isfinite(value) else 0.0
    total.pop(-1, None)
    return dict(total)
