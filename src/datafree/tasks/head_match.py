"""Whether equal heads of two detectors are equal answers, so that a student may learn its teacher's heads."""

from __future__ import annotations

from collections.abc import Hashable

from datafree.ops.predictions import Predictions
from datafree.text import show


def head_difference(student: Predictions, teacher: Predictions) -> str:
    """Why equal heads would not be equal answers, and the way out, as an error says it; "" where they would be."""
    if not teacher.whole or [head.shape for head in student.heads] != [head.shape for head in teacher.heads]:
        return (
            f"equal heads that are the whole answer; the teacher's are {_shapes(teacher)}"
            f"{'' if teacher.whole else ' before its second stage'}, the student's {_shapes(student)}: use "
            "task.distill=boxes"
        )
    if not (student.decoding and teacher.decoding):
        return ""
    theirs, ours = dict(teacher.decoding), dict(student.decoding)
    for name in {**theirs, **ours}:
        one, other = theirs.get(name, "nothing"), ours.get(name, "nothing")
        if one != other:
            one, other = _first(one, other)
            return (
                f"heads that mean the same boxes, but they differ in {name}, {show(one)} of the teacher's and "
                f"{show(other)} of the student's: give both the same, or use task.distill=boxes"
            )
    return ""


def _first(one: Hashable, other: Hashable) -> tuple[Hashable, Hashable]:
    """Of two different tuples of as many tuples, the first parts that differ, and so on inwards; else the values."""
    if not (isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other)):
        return one, other
    if not all(isinstance(part, tuple) for part in (*one, *other)):
        return one, other
    return next(_first(left, right) for left, right in zip(one, other, strict=True) if left != right)


def _shapes(outputs: Predictions) -> str:
    return ", ".join(str(tuple(head.shape[1:])) for head in outputs.heads)
