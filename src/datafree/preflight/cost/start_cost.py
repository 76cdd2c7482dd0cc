"""The cost of a student's start from its teacher: once a run, and of large images more than many of its steps."""

from __future__ import annotations

import copy

from datafree.engine.student_init import images_of, start_student
from datafree.errors import NetworkError
from datafree.networks.load import NetworkSpec
from datafree.networks.pruning.fixed_time import FixedTime
from datafree.preflight.cost.calibration import Calibration, CostItem
from datafree.preflight.cost.pass_cost import Cost

_PART = 10  # one part of its images, on which it is timed
_LEAST = 8  # images of these: of fewer none is held out


def start_of(calibrated: Calibration, student: NetworkSpec) -> list[CostItem]:
    """The start, where the recipe's section `student` asks for one."""
    if student.init != "teacher":
        return []
    try:
        seconds = seconds_of_start(calibrated)
    except NetworkError as error:
        raise NetworkError(f"student.init=teacher cannot start {student.network}: {error}") from error
    return [CostItem(what="the student's start", often=1, each=Cost(seconds=seconds))]


def seconds_of_start(calibrated: Calibration) -> float:
    """From one start on few images: it grows as they do, but for what is told apart, most of it in large networks."""
    whole = images_of(calibrated.task)
    count = max(_LEAST, whole // _PART)
    fixed = FixedTime(clock=calibrated.clock, share=count / whole)
    student, began = copy.deepcopy(calibrated.student), calibrated.clock()
    start_student(calibrated.teacher, student, calibrated.small, calibrated.task, calibrated.timed, count, fixed)
    grows = max(0.0, calibrated.clock() - began - fixed.spent)
    return fixed.seconds + grows * whole / count
