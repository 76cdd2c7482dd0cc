"""Boundary pairs: an image just before and just after the teacher's answer changes from one class to another.

Frank and Davis, "What Makes a Good Dataset for Knowledge Distillation?", CVPR 2025, arXiv 2411.12817: a targeted basic
iterative method (BIM, Kurakin et al., arXiv 1607.02533) walks from an image of class a to the teacher's border with b.

B images, C classes, H x W pixels, P pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datafree.sources.procedural.balance import class_shares, keys_of
from datafree.tasks.base import Task, synthetic_batch

_STEP = 1 / 255  # of the first iteration
_GROWTH = 1.2  # of the step from one iteration to the next, so that far borders are reached, too
_HALVINGS = 4  # of the last step, which may be long


def boundary_pairs(task: Task, teacher: nn.Module, images: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Pairs (2 P, 3, H, W), those before first, and the classes (2 P,) that the teacher names; P <= B.

    Each image (B, 3, H, W) takes up to `steps` steps of the gradient's sign towards a target drawn by the task. Those
    that do not arrive are left out.
    """
    targets = task.sample_targets(len(images), images.device)
    wanted = keys_of(task.class_maps(targets).float().mean((2, 3)))
    now, named = images, _named(task, teacher, images)
    pairs: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    left = named != wanted
    step = _STEP
    for _ in range(steps):
        now, named, targets, wanted = now[left], named[left], targets[left], wanted[left]
        if not len(now):
            break
        before = now
        now = _nearer(task, teacher, before, targets, step)
        was, named = named, _named(task, teacher, now)
        arrived = named == wanted
        pairs.append((before[arrived], now[arrived], was[arrived], named[arrived]))
        left, step = ~arrived, step * _GROWTH
    if not pairs:
        return images[:0], named[:0]
    befores, afters, froms, tos = (torch.cat(part) for part in zip(*pairs, strict=True))
    if len(befores):
        befores, afters, froms = _closer(task, teacher, befores, afters, froms, tos)
    return torch.cat([befores, afters]), torch.cat([froms, tos])


def _closer(
    task: Task, teacher: nn.Module, before: Tensor, after: Tensor, named: Tensor, wanted: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Images before and after the border (P, 3, H, W), and the classes (P,) before it: what is between, halved."""
    for _ in range(_HALVINGS):
        middle = (before + after) / 2
        seen = _named(task, teacher, middle)
        beyond = (seen == wanted)[:, None, None, None]
        after, before = torch.where(beyond, middle, after), torch.where(beyond, before, middle)
        named = torch.where(seen == wanted, named, seen)
    return before, after, named


def gives_gradients(task: Task, teacher: nn.Module, device: torch.device) -> bool:
    """Whether the loss of the teacher's answers has a gradient with respect to images. Draws no random number."""
    targets = task.sample_targets(2, device, torch.Generator().manual_seed(0))
    look = synthetic_batch(task.image_size, device).requires_grad_()
    try:
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(task.target_loss(teacher(look), targets), look, allow_unused=True)
    except Exception:  # whatever a network of anyone's raises
        return False
    return gradient is not None


def _nearer(task: Task, teacher: nn.Module, images: Tensor, targets: Tensor, step: float) -> Tensor:
    """Images a step of the gradient's sign nearer to their targets, in [0, 1]."""
    with torch.enable_grad():
        moving = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(task.target_loss(teacher(moving), targets), moving)
    return (images - step * gradient.sign()).clamp(0, 1)


@torch.no_grad()
def _named(task: Task, teacher: nn.Module, images: Tensor) -> Tensor:
    """(B,) the class that the teacher names."""
    return keys_of(class_shares(task, teacher(images)))
