"""The cost of a student's start from its teacher: once a run, and of large images more than many of its steps."""

from __future__ import annotations

import copy

from datafree.engine.student_init import images_of, start_student
from datafree.networks.load import NetworkSpec
from datafree.preflight.cost.calibration import Calibration, CostItem
from datafree.preflight.cost.pass_cost import Cost

_FEW = 16  # one part of its images, on which it is timed first


def start_of(calibrated: Calibration, student: NetworkSpec) -> list[CostItem]:
    """The start, where the recipe's section `student` asks for one."""
    if student.init != "teacher":
        return []
    return [CostItem(what="the student's start", often=1, each=Cost(seconds=seconds_of_start(calibrated)))]


def seconds_of_start(calibrated: Calibration) -> float:
    """From two starts on few images: it grows with them from a fixed part."""
    taken, whole = [], images_of(calibrated.task)
    few = max(4, whole // _FEW)
    for count in (few, 2 * few):
        student, began = copy.deepcopy(calibrated.student), calibrated.clock()
        start_student(calibrated.teacher, student, calibrated.small, calibrated.task, calibrated.timed, count)
        taken.append(calibrated.clock() - began)
    return taken[1] + max(0.0, taken[1] - taken[0]) * (whole / few - 2)
