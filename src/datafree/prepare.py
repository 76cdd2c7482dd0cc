"""The networks of a run: built or taken as they are given, brought to the device, and asked two images.

B images, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from datafree import modes
from datafree.errors import DatafreeError, NetworkError
from datafree.networks.detectors import Predictions
from datafree.networks.live import is_live
from datafree.networks.load import NetworkSpec, adapted, build_network
from datafree.networks.normalized import Normalized, bare
from datafree.networks.preprocessing import known
from datafree.networks.pretrained import asks_for_all_weights, asks_for_weights
from datafree.networks.program import Program
from datafree.networks.siblings import AUTO, choose_student
from datafree.recipe import Recipe
from datafree.sources.base import ImageSource
from datafree.speed import ALL_ON, Speed
from datafree.tasks.base import Task, synthetic_batch


@dataclass(frozen=True, kw_only=True)
class Given:
    """Networks that were given as objects, in place of those that a recipe's names would build."""

    teacher: nn.Module | None = None
    student: nn.Module | None = None  # is trained itself


NOTHING_GIVEN = Given()


def require_weights(spec: NetworkSpec, task: Task) -> None:
    """Raise NetworkError if a teacher would come without weights, or with some of them only.

    Own code, programs and objects are taken at their word.
    """
    if spec.weights is not None or spec.is_own_code or spec.is_program or is_live(spec.network):
        return
    way = "give teacher.weights=FILE (.safetensors, or a tensors-only .pt)"
    library = spec.network.partition("/")[0]
    if not asks_for_weights(spec.args):
        raise NetworkError(f"the teacher {spec.network} has no weights, so it has nothing to teach; {way}")
    if not asks_for_all_weights(library, spec.args):
        raise NetworkError(f"the teacher {spec.network} has weights for a part of it only, the rest is random; {way}")
    metadata = known(spec)
    if metadata is not None and metadata.classes not in (None, task.num_classes):
        raise NetworkError(
            f"{library}'s weights for {spec.network} tell {metadata.classes} classes apart, but the task has "
            f"{task.num_classes}, so its last layer would be random; set task.num_classes={metadata.classes}, or {way}"
        )


def with_student(recipe: Recipe, teacher: nn.Module | None = None) -> tuple[Recipe, list[str]]:
    """The recipe with the student that "auto" stands for, and what is to be said of the choice; else as it is.

    `teacher`: where it was given as an object. Raises NetworkError.
    """
    if recipe.student.network != AUTO:
        return recipe, []
    spec, line = choose_student(recipe.student, recipe.teacher, recipe.task, teacher)
    return replace(recipe, student=spec), [line]


def prepare(
    spec: NetworkSpec,
    task: Task,
    what: str,
    device: torch.device,
    dtype: torch.dtype,
    given: nn.Module | None = None,
    speed: Speed = ALL_ON,
    say: Callable[[str], None] = lambda line: None,
) -> Normalized:
    """The network of a recipe's section `what`, "teacher" or "student", after a look whether it answers as is needed.

    `given`: the network itself, where it was given as an object; it is moved to `device`. `say` is told of answers that
    may not be what they look like. Raises NetworkError if it cannot take the task's image size or answers in another
    form.
    """
    built = build_network(spec, num_classes=task.num_classes) if given is None else adapted(given)
    if what == "student" and isinstance(bare(built), Program):
        raise NetworkError(f"the student {spec.network} is a program, which can teach but not learn; name a network")
    network = spec.wrap(built, dtype)
    speed.laid_out(network.to(device))
    try:
        look = synthetic_batch(task.image_size, device)
        with torch.no_grad(), modes.frozen(network):
            outputs = network(look)
        if what == "student":  # some networks answer otherwise while they train
            with torch.no_grad(), modes.looked_through(network, "train"):
                network(look)
    except DatafreeError as error:
        raise NetworkError(f"{what} {spec.network}: {error}") from error
    except Exception as error:  # whatever a network of anyone's raises
        height, width = task.image_size
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
        raise NetworkError(
            f"the {what} {spec.network} cannot take images of {height} x {width} pixels: {reason}"
        ) from error
    task.check(outputs, f"{what} {spec.network}")
    answered = len(outputs.scores if isinstance(outputs, Predictions) else outputs)
    if answered != len(look):
        raise NetworkError(f"the {what} {spec.network} answers {answered} images, but was asked {len(look)}")
    if isinstance(outputs, Tensor) and outputs.min() >= 0 and outputs.max() <= 1 and outputs.min() < outputs.max():
        say(
            f"note: what the {what} {spec.network} answers to a first image lies all between 0 and 1; if its last "
            "layer is a sigmoid, take it off: logits are needed"
        )
    return network


def require_gradients(source: ImageSource, teacher: nn.Module, task: Task, name: str) -> None:
    """Raise NetworkError if `source` learns through the teacher and no gradient comes back to the teacher's images.

    Such a source would run to its end and know nothing of the teacher. `name` is the teacher's, for the message.
    """
    if not source.needs_gradients or not (source.warmup or source.update_every):
        return
    look = synthetic_batch(task.image_size, next(teacher.parameters()).device).requires_grad_()
    with torch.enable_grad(), modes.frozen(teacher):
        outputs = teacher(look)
    answers = outputs.heads if isinstance(outputs, Predictions) else [outputs]
    if not any(answer.requires_grad for answer in answers):
        raise NetworkError(
            f"no gradient comes back through the teacher {name} to its images (a detach() or no_grad() in its code?), "
            "and the source learns by it; those that do without are folder, dataset and noise"
        )
