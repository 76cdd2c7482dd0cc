"""Rehearsal of a student's first step, before any work: forward, loss, backward and the optimiser, then all put back.

What a network of anyone's cannot do is found here, not in a run that has begun. Images are synthetic, of the task's
size: two, or one where a batch is one, as a BatchNorm over a single value needs more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from datafree.engine import out_of_memory
from datafree.engine.out_of_memory import OutOfMemory
from datafree.errors import DatafreeError, NetworkError
from datafree.networks import features
from datafree.ops import modes
from datafree.recipe.training import Training, TrainingOptions
from datafree.tasks.base import Task, synthetic_batch
from datafree.text import first_line, show, size

_PLAIN = (Tensor, bool, int, float, str, bytes, list, tuple, dict, type(None))


def rehearse(task: Task, teacher: nn.Module, student: nn.Module, training: TrainingOptions, name: str) -> None:
    """Raise NetworkError if the student called `name` cannot learn a step from the teacher, or not be saved.

    Also where the layers whose attention it is to learn are not there, or it begins with numbers that are not finite.
    Such numbers in a step are for the run to deal with, and so is memory that does not suffice.
    """
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise NetworkError(
            f"the student {name} has no parameter that is trained: requires_grad is False for all of them; "
            "set it with network.requires_grad_(True)"
        )
    for key, value in student.state_dict().items():
        if not isinstance(value, _PLAIN):
            raise NetworkError(f"the student {name} cannot be saved: {show(key)} of its state is {show(value)}")
    for key, value in (*student.named_parameters(), *student.named_buffers()):
        if value.is_floating_point() and value.layout == torch.strided and not torch.isfinite(value).all():
            raise NetworkError(
                f"the student {name} begins with numbers that are not finite, in {show(key)}: a run neither goes on "
                "from such nor saves them; give it other weights, or a mask of -1e9 for one of minus infinity"
            )
    require_room(task, training, next(student.parameters()).device)
    if training.attention_weight or training.attention_layers:  # what was named is looked for in any case
        look = synthetic_batch(task.image_size, next(student.parameters()).device)
        features.chosen_pairs(teacher, student, look, training.attention_layers)
    several = not isinstance(training, Training) or training.batch_size > 1
    images = synthetic_batch(task.image_size, next(student.parameters()).device)[: 2 if several else 1]
    try:
        with out_of_memory.noticed("the rehearsal of a step"), as_it_was(student), torch.enable_grad():
            _step(task, teacher, student, training, images)
    except OutOfMemory:
        return
    except DatafreeError as error:
        raise NetworkError(f"the student {name} cannot learn: {error}") from error
    except Exception as error:  # whatever a network of anyone's raises
        way = "" if several else "; raise training.batch_size, now 1, if that is why"
        raise NetworkError(f"the student {name} cannot learn: {first_line(error)}{way}") from error


@torch.no_grad()
def least_images(task: Task, student: nn.Module) -> int:
    """How many images the student has to see at once in order to learn: one, or two where a BatchNorm needs them."""
    image = synthetic_batch(task.image_size, next(student.parameters()).device)[:1]
    try:
        with out_of_memory.noticed("a look at one image"), modes.looked_through(student, "train"):
            student(image)
    except OutOfMemory:
        return 1
    except Exception:  # whatever a network of anyone's raises
        return 2
    return 1


def require_room(task: Task, training: TrainingOptions, device: torch.device) -> None:
    """Raise NetworkError if the images of one batch alone are more than all the memory there is."""
    if not isinstance(training, Training):
        return
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
    else:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    height, width = task.image_size
    needed = training.batch_size * 3 * height * width * torch.float32.itemsize
    if needed > there:
        raise NetworkError(
            f"training.batch_size is {training.batch_size:,}: that many images of {height} x {width} pixels take "
            f"{size(needed)}, and {device.type} has {size(there)}; lower it, or give auto"
        )


def _step(task: Task, teacher: nn.Module, student: nn.Module, training: TrainingOptions, images: Tensor) -> None:
    with torch.no_grad(), modes.frozen(teacher):
        answers = teacher(images)
    student.train()
    optimizer = training.make_optimizer(student)
    outputs = student(images)
    loss = task.distill_loss(outputs, answers)
    if training.label_weight:
        targets = task.sample_targets(len(images), images.device, torch.Generator().manual_seed(0))
        loss = loss + training.label_weight * task.target_loss(outputs, targets)
    if not loss.requires_grad:
        raise NetworkError(
            "no gradient comes back from its answers to its parameters (a detach() or no_grad() in its code?)"
        )
    torch.autograd.backward(loss)
    optimizer.step()


@contextmanager
def as_it_was(network: nn.Module) -> Iterator[None]:
    """Put a network's values, modes and gradients back afterwards, and all random states, to the last bit."""
    random, training = modes.random_state(), [module.training for module in network.modules()]
    buffers = [(module, dict(module._buffers)) for module in network.modules()]
    tensors = [*network.parameters(), *network.buffers()]
    kept = [(tensor, tensor.detach().clone()) for tensor in tensors]
    grads = [(parameter, parameter.grad) for parameter in network.parameters()]
    for parameter, _ in grads:
        parameter.grad = None
    try:
        yield
    finally:
        for module, before in buffers:
            module._buffers.clear()
            module._buffers.update(before)
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)
        for parameter, grad in grads:
            parameter.grad = grad
        for module, was in zip(network.modules(), training, strict=True):
            module.training = was
        modes.set_random_state(random)
