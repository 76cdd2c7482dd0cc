"""Costs beside updates and steps: comparisons on held-out images, pictures, the record at the end of a run.

A large network is timed on a few images, and its passes are counted: the whole comparison would take minutes.

B images, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datafree.engine import validation
from datafree.health.signals import images_looked_at
from datafree.networks.normalized import in_float32
from datafree.ops import modes
from datafree.preflight.cost.calibration import Calibration
from datafree.preflight.cost.pass_cost import Cost, cost_of
from datafree.report.profile import measure


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What each costs, and the picture that was drawn."""

    look: Cost
    picture: Cost
    record: Cost
    drawn: Tensor | None  # (3, H', W')


def beside(calibrated: Calibration) -> Beside:
    """Each is done once where that takes no longer than the calibration's budget; else counted in passes."""
    task, teacher, student, source = calibrated.task, calibrated.teacher, calibrated.student, calibrated.small
    images = calibrated.validation_images(validation.COMPARED)
    drawn: list[Tensor | None] = []

    def once(act: Callable[[], object], count: int) -> Cost:
        return cost_of(act, calibrated.device, max(1, count), 0.0, least=0, clock=calibrated.clock)

    def draw() -> None:
        drawn.append(validation.picture(task, teacher, student, source, trained=True))

    shown = once(draw, min(len(images), validation.SHOWN))
    each = both_networks(calibrated, images)
    looked = images_looked_at(len(images))
    short = looked * each.seconds <= calibrated.budget
    if short:
        look = once(lambda: validation.signals(task, teacher, student, source), len(images))
    else:
        look = replace(each.times(looked), images=len(images))
    with in_float32(teacher, student):  # as the run ends
        if short:
            record = once(lambda: measure(task, teacher, student, images), len(images))
        else:
            each = both_networks(calibrated, images)
            record = once(lambda: measure(task, teacher, student, images[:0]), 1) + each.times(len(images))
    return Beside(look=look, picture=shown, record=record, drawn=drawn[0])


@torch.no_grad()
def both_networks(calibrated: Calibration, images: Tensor) -> Cost:
    """One image's answers of both networks, timed on as many of `images` (B, 3, H, W) as fit the calibration."""
    if not len(images):
        return Cost()
    few = images[: max(2, calibrated.most)]

    def answer() -> None:
        for network in (calibrated.teacher, calibrated.student):
            network(few)

    with modes.frozen(calibrated.teacher, calibrated.student):
        return cost_of(answer, calibrated.device, len(few), 0.0, least=0, clock=calibrated.clock).times(1 / len(few))
