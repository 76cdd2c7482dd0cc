"""The teacher in an ONNX file, by the options that a recipe gives it.

    args: {output: NAME, gradients: false}

`output`: one of several; `gradients`: true or false, or left out: where they are possible.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datafree.errors import NetworkError
from datafree.networks.foreign.file_teacher import FileTeacher
from datafree.networks.foreign.onnx_file import read_onnx
from datafree.networks.foreign.onnx_gradients import with_gradients
from datafree.networks.foreign.onnx_teacher import OnnxTeacher
from datafree.text import show


def open_onnx(path: Path, args: Mapping[str, Any], std: tuple[float, ...]) -> FileTeacher:
    """The teacher in a file; `std`: what images in [0, 1] are divided by.

    Raises as `OnnxTeacher`, and NetworkError for options that do not suit it.
    """
    for key in args.keys() - {"output", "gradients"}:
        raise NetworkError(f"{path} does not take {show(key)} in args; an ONNX file takes output: NAME and gradients")
    output, gradients = args.get("output"), args.get("gradients")
    if output is not None and not isinstance(output, str):
        raise NetworkError(f"output is {show(output)}: give the name of an output of {path}")
    if gradients is not None and not isinstance(gradients, bool):
        raise NetworkError(f"gradients is {show(gradients)}: give true or false, or leave it out")
    file = read_onnx(path)
    if file.images.type == "uint8" and max(std) > 0.1:
        raise NetworkError(
            f"{path} takes whole numbers from 0 to 255, and images are in [0, 1]: set std to [0.00392157, 0.00392157, "
            "0.00392157] (1/255)"
        )
    teacher = OnnxTeacher(file, output)
    return teacher if gradients is False else with_gradients(teacher, gradients)
