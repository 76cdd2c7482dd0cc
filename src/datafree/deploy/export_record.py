"""What an export wrote and what was measured while exporting, as config.json and the model card say it."""

from __future__ import annotations

from dataclasses import dataclass, field

from datafree.deploy.formats.check import Made
from datafree.tasks.base import Scores


@dataclass(frozen=True, kw_only=True)
class Int8:
    """How a student was quantised."""

    file: str = "student.int8.onnx"  # the first that was
    images: int  # it was calibrated on
    origin: str  # of these, in words
    agreement: float | None  # of `file` with the float network on further such images; None: nothing is seen
    compared: int  # of these
    qat_steps: int = 0  # of quantisation-aware training


@dataclass(frozen=True, kw_only=True)
class Export:
    """What was exported and measured while exporting."""

    errors: dict[int, float] = field(default_factory=dict)  # images at once -> relative error of student.onnx
    opset: int | None = None  # of student.onnx
    int8: Int8 | None = None
    scores: dict[str, Scores] = field(default_factory=dict)  # file -> its scores on `scored_on`
    scored_on: str | None = None
    versions: dict[str, str] = field(default_factory=dict)  # of what exported it
    made: list[Made] = field(default_factory=list)  # the files of formats
    missing: list[str] = field(default_factory=list)  # a line for each file that was asked for and could not be written
    compared_on: str = ""  # what the images are that files were compared with torch on
