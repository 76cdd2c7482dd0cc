"""A student where nobody has named one: of the teacher's family, or a common one; started from it where it can be.

C classes, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from datafree.engine.build_networks import prepare
from datafree.engine.student_init import check_start, why_not
from datafree.errors import NetworkError
from datafree.networks.families import AUTO, choose_student, member, wish
from datafree.networks.foreign.file_teacher import count_parameters
from datafree.networks.load import NetworkSpec
from datafree.networks.normalized import Normalized, bare, device_of
from datafree.recipe.recipe import TASK
from datafree.tasks.base import Task

_REASON = 120  # characters of why a student cannot start from its teacher, at most
_OF_CLASSES = ("classification", "multilabel")  # tasks that the same networks serve
SMALL = 96  # pixels of an image's longer side, up to which networks for small images suit


@dataclass(frozen=True, kw_only=True)
class FirstStudent:
    """The student's section, and why it is that."""

    spec: NetworkSpec
    parameters: int
    why: str
    start: str  # with what weights, and why
    wanted: float | None = None  # how many times fewer parameters than the teacher's were; None: it was named


def first_student(
    named: str | None, compress: str | None, teacher: NetworkSpec, network: Normalized, task: Task
) -> FirstStudent:
    """The student called `named`; without a name a smaller one: the teacher's `spec` and `network` say of which family.

    Raises NetworkError for a name, or a wish, that is none.
    """
    images = replace(
        NetworkSpec(network=AUTO, args={} if compress is None else {"compress": compress}),
        mean=teacher.mean,
        std=teacher.std,
        channels=teacher.channels,
        channel_order=teacher.channel_order,
    )
    if named not in (None, AUTO):
        assert named is not None
        spec, why = replace(images, network=named, args={}), "--student"
    else:
        try:
            spec, why = choose_student(images, teacher, task, None)[0], "of the teacher's family"
        except NetworkError:
            spec, why = _common(images, network, task)
        return replace(_started(spec, why, network, task), wanted=wish(images)[0])
    return _started(spec, why, network, task)


def _common(images: NetworkSpec, network: Normalized, task: Task) -> tuple[NetworkSpec, str]:
    """The common network of the task whose parameters come nearest to the wanted share of the teacher's."""
    wanted, by = wish(images)
    held = sum(value.numel() for value in bare(network).state_dict().values() if value.is_floating_point())
    whole = max(held, count_parameters(network))  # of an ONNX file none are held here
    found = [one for spec in _commons(images, task) if (one := member(spec, task, "parameters")) is not None]
    if by != "parameters" or not found:
        raise NetworkError("nothing is known of this teacher's family: name a student with --student NAME")
    best = min(found, key=lambda one: abs(math.log(one.parameters * wanted / max(1, whole))))
    return best.spec, "a common one, as no smaller member of the teacher's family is known"


def _commons(images: NetworkSpec, task: Task) -> Iterator[NetworkSpec]:
    kind, longer = TASK.name_of(type(task)), max(task.image_size)
    if kind in _OF_CLASSES and longer <= SMALL:
        for depth, width in ((8, 4), (8, 8), (8, 16), (14, 16), (20, 16), (20, 32), (20, 64)):
            yield replace(images, network="datafree/resnet", args={"depth": depth, "width": width})
    elif kind in _OF_CLASSES:
        for width in (16, 32, 48, 64):
            yield replace(images, network="datafree/imagenet_resnet", args={"depth": 18, "width": width})
    elif kind == "segmentation":
        for width, depth in ((2, 2), (4, 2), (4, 3), (8, 3), (8, 4), (12, 4), (16, 4), (24, 4), (32, 4), (48, 4)):
            yield replace(images, network="datafree/unet", args={"width": width, "depth": depth})
    elif kind == "detection":
        for share in (0.125, 0.25, 0.5, 1.0):
            yield replace(images, network="datafree/yolov3", args={"width": share})


def _started(spec: NetworkSpec, why: str, network: Normalized, task: Task) -> FirstStudent:
    """The same, with `init: teacher` if its layers correspond to the teacher's."""
    student = prepare(spec, task, "student", device_of(network), torch.float32)
    count = sum(parameter.numel() for parameter in bare(student).parameters())
    try:
        check_start(replace(spec, init="teacher"), network, student, task)
    except NetworkError as error:
        reason = why_not(error)
        reason = reason if 0 < len(reason) <= _REASON else "their layers do not correspond"
        start = f"from random weights ({reason})"
        return FirstStudent(spec=replace(spec, init="random"), parameters=count, why=why, start=start)
    start = "from the teacher's weights, cut and refitted"
    return FirstStudent(spec=replace(spec, init="teacher"), parameters=count, why=why, start=start)
