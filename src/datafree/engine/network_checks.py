"""What two networks need so that one can learn from the other: tensors of their own, gradients for the source."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datafree.errors import NetworkError
from datafree.networks.foreign.file_teacher import AnswersOnly
from datafree.networks.normalized import bare
from datafree.ops import modes
from datafree.ops.predictions import raw_tensors
from datafree.sources.base import ImageSource
from datafree.tasks.base import Task, synthetic_batch
from datafree.text import first_line, show


def require_apart(teacher: nn.Module, student: nn.Module) -> None:
    """Raise NetworkError if training the student would change the teacher: they share tensors, or are one object."""
    theirs = _stored(teacher)
    for place, name in _stored(student).items():
        if place in theirs:
            raise NetworkError(
                f"teacher and student share tensors (the teacher's {show(theirs[place])}, the student's {show(name)}): "
                "what the student learns would change the teacher; give copy.deepcopy(network) as one of them"
            )


def _stored(network: nn.Module) -> dict[int, str]:
    """Where a network's tensors lie, and what they are called."""
    found = {}
    for name, value in bare(network).state_dict().items():
        if isinstance(value, Tensor) and value.layout == torch.strided and value.numel():
            found[value.untyped_storage().data_ptr()] = name
    return found


def require_gradients(source: ImageSource, teacher: nn.Module, task: Task, device: torch.device, name: str) -> None:
    """Raise NetworkError if `source` learns through the teacher and no gradient comes back to the teacher's images.

    Such a source, or one that it holds, would run to its end and know nothing of the teacher. From a detector the
    gradient has to come back by its own loss. `name` is the teacher's, for the message.
    """
    if not any(each.needs_gradients and (each.warmup or each.update_every) for each in source.all_sources()):
        return
    look = synthetic_batch(task.image_size, device).requires_grad_()
    why = "the source learns by it; those that do without are procedural, folder, dataset and noise"
    if isinstance(bare(teacher), AnswersOnly):
        raise NetworkError(f"the teacher {name} only answers, no gradient comes back through it, and {why}")
    with torch.enable_grad(), modes.frozen(teacher):
        try:
            outputs = teacher(look)
            if any(part.requires_grad for part in raw_tensors(outputs)):
                task.probe_teacher(outputs, look, f"teacher {name}", why)
        except NetworkError:
            raise
        except Exception as error:  # whatever a network of anyone's raises, such as one that writes into its input
            raise NetworkError(
                f"a gradient cannot go through the teacher {name}: {first_line(error)}; {why}"
            ) from error
        if look.grad is None:
            raise NetworkError(
                f"no gradient comes back through the teacher {name} to its images (a detach() or no_grad() in its "
                f"code?), and {why}"
            )
