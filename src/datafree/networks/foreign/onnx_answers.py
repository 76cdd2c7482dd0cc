"""What a teacher's ONNX file answers: which of its outputs, as logits, or as a detector's boxes and scores.

B images, C classes, L locations, H x W pixels.
"""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datafree.errors import NetworkError
from datafree.networks.foreign.onnx_file import OnnxFile, Output
from datafree.networks.onnx import DESCRIPTION
from datafree.ops.boxes import Labelled
from datafree.ops.predictions import Heads, Predictions
from datafree.text import show

_SMALLEST = 1e-7  # scores are kept this far from 0 and 1 where logits are made of them
_LONGEST = 2**16  # letters of a list of names, which takes hundreds of times as many bytes to read
_SHOWN = 5  # of a list

Form = Callable[[list[Tensor]], Tensor | Predictions]  # what is made of the values of a graph


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is computed, and what is made of it."""

    names: list[str]  # values of the graph
    form: Form
    notes: list[str]


def choose(file: OnnxFile, output: str | None) -> Asked:
    """What to ask of a file; `output`: the name the user gives. A model's last layer may be taken out of it.

    Raises NetworkError where it has several outputs and none is named.
    """
    names = [each.name for each in file.outputs]
    notes, classes = [], class_names(file.metadata)
    if classes:
        shown = [name[:30] if name.isprintable() else ascii(name[:30]) for name in classes[:_SHOWN]]
        more = ", ..." if len(classes) > _SHOWN else ""
        notes.append(f"the file names {len(classes)} classes: {', '.join(shown)}{more}")
    if output is None and names == ["boxes", "scores"]:  # of `datafree export`
        return Asked(names=names, form=_boxes_and_scores, notes=notes)
    chosen = _chosen(file, output)
    logits = _logits(file.images.channels_last)
    if (kind := _without_last(file, chosen)) is not None:
        notes.append(f"its last {kind} is left out: what comes before are the logits")
        return Asked(names=[chosen.name], form=logits, notes=notes)
    return Asked(names=[chosen.name], form=_detections(file, len(classes), logits) if classes else logits, notes=notes)


def _chosen(file: OnnxFile, output: str | None) -> Output:
    known = {each.name: each for each in file.outputs}
    if output is None and len(known) == 1:
        return file.outputs[0]
    if output in known:
        return known[output]
    listed = ", ".join(f"{each.name[:40]}{_shown(each.shape)}" for each in file.outputs[: 2 * _SHOWN])
    what = f"has no output {show(output)}" if output is not None else f"answers {len(known)} values"
    raise NetworkError(f"{file.path} {what}; choose one with args: {{output: NAME}} of {listed}")


def _shown(shape: tuple[int | None, ...] | None) -> str:
    if shape is None:
        return ""
    return f" ({', '.join('?' if side is None else str(side) for side in shape[: 2 * _SHOWN])})"


def class_names(metadata: dict[str, str]) -> list[str]:
    """The classes that a file names: as `datafree export`, Ultralytics' `names`, or a line each (`character`)."""
    if len(names := metadata.get("names", "")) <= _LONGEST and names:  # {0: 'person', 1: ...}, written by Python
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of unknown escapes in a text
                found = ast.literal_eval(names)  # plain values alone
            if isinstance(found, dict | list):
                return [str(name) for name in (found.values() if isinstance(found, dict) else found)]
        except (ValueError, TypeError, ArithmeticError, SyntaxError, MemoryError, RecursionError):
            pass  # no list, or one with lists as keys or numbers of thousands of digits
    try:
        described = json.loads(metadata.get(DESCRIPTION, "{}"))
        listed = described.get("class_names")
    except (ValueError, AttributeError, RecursionError):
        return []
    return [str(name) for name in listed] if isinstance(listed, list) else []


# --- logits ---


# What may stand behind the last layer and keeps each number by itself; these let a softmax's axis be followed, too.
_LIKE_BEFORE = ("Identity", "Cast", "Transpose", "QuantizeLinear", "DequantizeLinear")
_MOVED = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_FLOATS = (1, 10, 11, 16)  # of TensorProto: what numbers are cast to and stay numbers


def _without_last(file: OnnxFile, output: Output) -> str | None:
    """Take the softmax over classes, or the sigmoid, that makes `output` out of the model; say which of the two it was.

    Exact: no logarithm of a probability that was rounded to 0. Behind it may stand what hands each number on, as casts,
    quantisation and channels last have it; quantised steps are of probabilities, so they go with it.
    """
    makers = {made: node for node in file.model.graph.node for made in node.output}
    rank = len(output.shape) if output.shape is not None else 2
    axis: int | None = rank - 1 if file.images.channels_last else 1  # of the classes; None: no longer known
    name: str = output.name
    passed: list[Any] = []
    for _ in range(len(makers)):  # a damaged graph may go round
        node = makers.get(name)
        if node is None or node.domain not in ("", "ai.onnx") or not node.input:
            return None
        given = {each.name: each for each in node.attribute}
        if node.op_type in ("Softmax", "Sigmoid"):
            if node.op_type == "Softmax" and (axis is None or _axis(file, given) % rank != axis):
                return None
            kind = str(node.op_type)
            for each in (node, *(step for step in passed if step.op_type.endswith("Linear"))):
                each.op_type = "Identity"
                del each.input[1:], each.attribute[:]
            return kind
        if node.op_type == "Cast" and ("to" not in given or given["to"].i not in _FLOATS):
            return None
        if node.op_type == "Transpose":
            order = list(given["perm"].ints) if "perm" in given else list(range(rank))[::-1]
            axis = order[axis] if axis is not None and axis < len(order) == rank else None
        elif node.op_type in _MOVED:
            axis = None
        elif node.op_type not in _LIKE_BEFORE:
            return None
        passed.append(node)
        name = node.input[0]
    return None


def _axis(file: OnnxFile, given: dict[str, Any]) -> int:
    """The axis of a softmax with these attributes."""
    opset = max((each.version for each in file.model.opset_import if each.domain in ("", "ai.onnx")), default=1)
    return int(given["axis"].i) if "axis" in given else -1 if opset >= 13 else 1


def _logits(channels_last: bool) -> Form:
    def form(values: list[Tensor]) -> Tensor | Predictions:
        (logits,) = values
        if channels_last and logits.ndim == 4:
            logits = logits.permute(0, 3, 1, 2)
        return logits.flatten(1) if logits.ndim == 4 and logits.shape[2:] == (1, 1) else logits

    return form


# --- detectors ---


def _detections(file: OnnxFile, classes: int, logits: Form) -> Form:
    """What a YOLO's file answers as `Predictions`, whatever else has the file's number of classes as `logits`.

    (B, 4 + C, L) since YOLOv8: x, y of the centre, width, height in pixels, and the classes' scores; (B, L, 5 + C) of
    YOLOv5: the same with a score for that there is anything.
    """

    def form(values: list[Tensor]) -> Tensor | Predictions:
        (rows,) = values
        if rows.ndim == 3 and rows.shape[1] == 4 + classes:
            return _yolo(rows.transpose(1, 2), scored=False)
        # Of one class a row after non-maximum suppression has as many numbers as YOLOv5's; its last is the class, 0.
        suppressed = rows.ndim == 3 and rows.shape[2] == 6 and (classes != 1 or bool((rows[..., 5] == 0).all()))
        if rows.ndim == 3 and rows.shape[2] == 5 + classes and not suppressed:
            return _yolo(rows, scored=True)
        if suppressed:
            raise NetworkError(
                f"{file.path} answers detections after non-maximum suppression {tuple(rows.shape)}; those before are "
                "needed: export it again without (yolo export ... nms=False end2end=False)"
            )
        return logits(values)

    return form


def _yolo(rows: Tensor, *, scored: bool) -> Predictions:
    """rows (B, L, 4 + C or 5 + C)."""
    centres, sides = rows[..., :2], rows[..., 2:4]
    classes = rows[..., 5:] if scored else rows[..., 4:]
    scores = classes * rows[..., 4:5] if scored else classes
    return _predictions(torch.cat([centres - sides / 2, centres + sides / 2], -1), scores, classes)


def _boxes_and_scores(values: list[Tensor]) -> Predictions:
    boxes, scores = values
    return _predictions(boxes, scores, scores)


def _predictions(boxes: Tensor, scores: Tensor, classes: Tensor) -> Predictions:
    """boxes (B, L, 4), corners in pixels; scores and classes (B, L, C), probabilities. No raw heads are known."""
    return Predictions(
        class_logits=classes.clamp(_SMALLEST, 1 - _SMALLEST).logit(),
        scores=scores.clamp(0, 1),
        boxes=boxes,
        centres=(boxes[..., :2] + boxes[..., 2:]) / 2,
        heads=(),
        loss=_no_loss,
    )


def _no_loss(heads: Heads, targets: list[Labelled]) -> Tensor:
    raise NetworkError("an ONNX file has no training loss; take a source that needs no gradients, such as procedural")
