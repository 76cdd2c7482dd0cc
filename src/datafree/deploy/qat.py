"""Quantisation-aware training without data: a network learns to answer, rounded to INT8, as it does in float.

The float network is the teacher, its own copy under fake quantisation (`fake_quantize`) the student, images that were
made for calibration what they see (as Choi et al., CVPR Workshops 2020, arXiv 2005.04136, do it with a generator's).
The loss is the task's own of distillation. BatchNorm keeps its running statistics, as in the file. What comes out is a
float network whose weights lie on the grid of its 8-bit integers, so that converters round them to themselves.

N images, B of a batch, H x W pixels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from datafree.deploy.fake_quantize import Places, fake_quantized, find_places, find_ranges, rounded_weight
from datafree.errors import NetworkError
from datafree.networks.normalized import Normalized
from datafree.ops import augment, modes
from datafree.tasks.base import Task

BATCH, BATCH_PIXELS = 16, 2**21  # images of a step at most, and their pixels, with which memory grows
LR = 1e-5  # of Adam, decayed to 0 by a cosine; with ten times as much two of two networks lost what they had gained
MIXUP = 0.5  # of the images of a step: there are few of them
_HELD_OUT = 5  # of so many images one is kept back, to tell whether training helped


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A network that was trained for INT8."""

    network: Normalized  # its weights are on the grid of its 8-bit integers
    steps: int
    before: float  # the task's distillation loss of the rounded network, on images that it did not learn from
    after: float

    @property
    def helped(self) -> bool:
        return self.after < self.before

    @property
    def line(self) -> str:
        """What training came to."""
        found = (
            f"{self.steps:,} steps of training for INT8: on images kept back the rounded network's loss against the "
            f"float one went from {self.before:.3g} to {self.after:.3g}"
        )
        return found if self.helped else f"{found}; INT8 is made of the weights as they were"


def train_for_int8(
    network: Normalized,
    task: Task,
    images: Tensor,
    steps: int,
    *,
    lr: float = LR,
    seed: int = 0,
    log: Callable[[int], None] = lambda step: None,
) -> Trained:
    """A copy of `network`, trained for `steps` steps on four fifths of `images` (N, 3, H, W) uint8, N >= 2.

    The rest, and of very few images the same, tells whether it helped. `log` is told of each step. Raises NetworkError
    for a network that cannot be followed (`fake_quantize`), or whose loss is no finite number.
    """
    student = copy.deepcopy(network)
    kept_back = torch.arange(len(images)) % _HELD_OUT == _HELD_OUT - 1
    learnt, held_out = images[~kept_back], images[kept_back] if kept_back.any() else images
    height, width = images.shape[-2:]
    at_once = max(2, min(BATCH, BATCH_PIXELS // (height * width)))
    random = modes.random_state()
    try:
        modes.seed_everything(seed)
        with modes.frozen(network):
            student.eval().requires_grad_(True)
            places = find_places(student, _floats(learnt[:2]), exact_ends=task.exact_ends)
            find_ranges(student, map(_floats, torch.split(images, at_once)), places)
            before = _loss(network, student, task, torch.split(held_out, at_once), places)
            optimizer = torch.optim.Adam(student.parameters(), lr=lr)
            rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
            for step in range(steps):
                batch, _ = augment.blend(_floats(learnt[torch.randint(len(learnt), (at_once,))]), MIXUP)
                with torch.no_grad():
                    answers = network(batch)
                loss = task.distill_loss(fake_quantized(student, batch, places), answers)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                rate.step()
                log(step + 1)
            after = _loss(network, student, task, torch.split(held_out, at_once), places)
    finally:
        modes.set_random_state(random)
    if not math.isfinite(after):
        raise NetworkError("training for INT8 came to a loss that is no finite number: leave --qat-steps out")
    with torch.no_grad():
        for axis, weight in places.layers.values():
            weight.copy_(rounded_weight(weight, axis))
    return Trained(network=student.requires_grad_(False), steps=steps, before=before, after=after)


@torch.no_grad()
def _loss(teacher: Normalized, student: Normalized, task: Task, parts: tuple[Tensor, ...], places: Places) -> float:
    """Mean over images of the distillation loss of the rounded student."""
    total = 0.0
    for part in parts:
        batch = _floats(part)
        total += float(task.distill_loss(fake_quantized(student, batch, places), teacher(batch))) * len(part)
    return total / sum(map(len, parts))


def _floats(images: Tensor) -> Tensor:
    return images.float() / 255
