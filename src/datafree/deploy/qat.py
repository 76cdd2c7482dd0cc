"""Quantisation-aware training without data: a network learns to answer, rounded to INT8, as it does in float.

The float network is the teacher, its own copy under fake quantisation (`fake_quantize`) the student, images that were
made for calibration what they see (Liu et al., LLM-QAT, arXiv 2305.17888, does so with texts; Choi et al., CVPR
Workshops 2020, arXiv 2005.04136, with images of a generator). The loss is the task's own of distillation. BatchNorm
keeps its running statistics, as in the file. What comes out is a float network whose weights lie on the grid of its
8-bit integers, so that any converter rounds them to themselves.

N images, B of a batch, H x W pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from datafree.deploy.fake_quantize import Places, fake_quantized, find_places, find_ranges, rounded_weight
from datafree.networks.normalized import Normalized
from datafree.ops import augment, modes
from datafree.tasks.base import Task

BATCH = 16  # images at once
LR = 1e-5  # of Adam, decayed to 0 by a cosine
_HELD_OUT = 5  # of so many images one is kept back, to tell whether training helped


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A network that was trained for INT8."""

    network: Normalized  # its weights are on the grid of its 8-bit integers
    steps: int
    before: float  # the loss of the rounded network on images that it did not learn from
    after: float

    @property
    def line(self) -> str:
        """What training came to."""
        return (
            f"trained for INT8 in {self.steps:,} steps: the rounded network's distance to the float one went from "
            f"{self.before:.3g} to {self.after:.3g} on images that it did not learn from"
        )


def train_for_int8(
    network: Normalized,
    task: Task,
    images: Tensor,
    steps: int,
    *,
    lr: float = LR,
    seed: int = 0,
    log: Callable[[int, float], None] = lambda step, loss: None,
) -> Trained:
    """A copy of `network`, trained for `steps` steps on `images` (N, 3, H, W) uint8, four fifths of them.

    The rest tells whether it helped. Raises NetworkError for a network that cannot be.
    """
    modes.seed_everything(seed)
    student = copy.deepcopy(network)
    kept_back = torch.arange(len(images)) % _HELD_OUT == _HELD_OUT - 1
    learnt, held_out = images[~kept_back], images[kept_back]
    with modes.frozen(network):
        student.eval().requires_grad_(True)
        places = find_places(student, _floats(learnt[:2]), exact_ends=task.exact_ends)
        find_ranges(student, [_floats(part) for part in torch.split(images, BATCH)], places)
        before = _loss(network, student, task, held_out, places)
        optimizer = torch.optim.Adam(student.parameters(), lr=lr)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps):
            batch = _floats(learnt[torch.randint(len(learnt), (BATCH,))])
            batch, _ = augment.blend(batch, 0.5)
            with torch.no_grad():
                answers = network(batch)
            loss = task.distill_loss(fake_quantized(student, batch, places), answers)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            rate.step()
            log(step, float(loss.detach()))
        after = _loss(network, student, task, held_out, places)
        for axis, weight in places.layers.values():
            weight.data = rounded_weight(weight.data, axis)
        student.requires_grad_(False)
    return Trained(network=student, steps=steps, before=before, after=after)


@torch.no_grad()
def _loss(teacher: Normalized, student: Normalized, task: Task, images: Tensor, places: Places) -> float:
    total = 0.0
    for part in torch.split(images, BATCH):
        batch = _floats(part)
        total += float(task.distill_loss(fake_quantized(student, batch, places), teacher(batch))) * len(part)
    return total / len(images)


def _floats(images: Tensor) -> Tensor:
    return images.float() / 255
