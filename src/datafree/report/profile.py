"""Profile of both networks at the end of a run: size and speed on this machine, agreement by class.

B images, C classes, H x W pixels.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from datafree.health.signals import looked
from datafree.networks.foreign.file_teacher import count_bytes, count_parameters, is_opaque
from datafree.networks.normalized import device_of
from datafree.ops import modes
from datafree.storage.environment import hardware
from datafree.tasks.base import Task, same_by_class, synthetic_batch

TIMED = 0.15  # seconds that the passes which are timed may take together, one at least


@torch.no_grad()
def measure(task: Task, teacher: nn.Module, student: nn.Module, images: Tensor) -> dict[str, Any]:
    """Plain values for measured.json: cost of both networks, their agreement by class on `images` (B, 3, H, W).

    `images` may be none (B = 0): then there is no agreement.
    """
    found: dict[str, Any] = {
        "networks": {"teacher": cost(teacher, task), "student": cost(student, task)},
        "hardware": hardware(),
    }
    if len(images):
        with modes.frozen(teacher, student):
            found["class_agreement"] = _class_agreement(task, teacher, student, images)
    return found


def _class_agreement(task: Task, teacher: nn.Module, student: nn.Module, images: Tensor) -> list[float | None]:
    def named(theirs: Any, ours: Any) -> tuple[Tensor, Tensor]:
        return task.class_probs(ours).argmax(1), task.class_probs(theirs).argmax(1)

    if task.dense:  # the maps of all images at once might not fit into the memory
        parts = [pair for pair, _ in looked(task, teacher, student, images, named)]
        ours, theirs = (torch.cat(rows) for rows in zip(*parts, strict=True))
        return same_by_class(ours, theirs, task.num_classes)
    ((found, _),) = looked(task, teacher, student, images, lambda theirs, ours: task.class_agreement(ours, theirs))
    return found


@torch.no_grad()
def cost(network: nn.Module, task: Task) -> dict[str, float]:
    """A network's parameters, bytes of its weights, and for one image: multiply-adds and seconds.

    Multiply-adds are those of convolutions and matrix products, as torch counts them, and not there for a network that
    nobody can look into; seconds are the fastest of a few passes with the process's threads, preparation of the image
    included.
    """
    device = device_of(network)
    image = synthetic_batch(task.image_size, device)[:1]
    with modes.frozen(network):
        with FlopCounterMode(display=False) as counter:
            network(image)
        taken: list[float] = []
        while not taken or sum(taken) < TIMED:
            began = time.perf_counter()
            network(image)
            modes.wait_for(device)
            taken.append(time.perf_counter() - began)
    return {
        "parameters": count_parameters(network),
        "bytes": count_bytes(network),
        **({} if is_opaque(network) else {"multiply_adds": counter.get_total_flops() // 2}),
        "seconds": min(taken),
    }
