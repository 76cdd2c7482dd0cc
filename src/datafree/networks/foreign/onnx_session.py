"""Sessions of onnxruntime for a teacher's graph, and the number of images that one takes at once.

Many files are made for one image at once. Most of their graphs take any number all the same, once they no longer
declare it; whether one does is seen by comparing its answers with those about each image alone.

B images, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from datafree.errors import WeightsError
from datafree.networks.foreign.onnx_file import MAX_BYTES, Images
from datafree.text import one_line

Arrays = list[NDArray[Any]]
TOLERANCE = 1e-4  # of the largest value: two ways of computing a graph that differ by more are not the same
_TRIED = 3  # images, in the comparison
_SIDE = 224  # pixels of an image where a file takes several sizes


@dataclass(frozen=True, kw_only=True)
class Session:
    """A graph, ready to be computed: (N, ...) of its own type and layout -> the values asked for, batch first."""

    run: Callable[[NDArray[Any]], Arrays]
    model: Any  # the onnx.ModelProto that is computed
    at_once: int | None  # images that it takes, exactly; None: any number
    freed: bool = False  # whether the file declares a number and any other does as well


def open_model(model: Any, path: Path, names: Sequence[str], images: Images) -> Session:
    """A session of `model`, an onnx.ModelProto out of `path`, that answers `names`. Raises WeightsError."""
    run = _run(model, path, names, images)
    count = images.shape[0]
    if count is None:
        return Session(run=run, model=model, at_once=None)
    sample = _noise(images, count * _TRIED)
    try:
        wanted = _in_parts(run, sample, count)
    except Exception:  # of whatever class; images of this size do not suit: the first real ones will tell
        return Session(run=run, model=model, at_once=count)
    for change in (_free_input, _free_shapes):
        freed = type(model)()
        freed.CopyFrom(model)
        change(freed, count, path)
        try:
            other = _run(freed, path, names, images)
            if all(map(_same, wanted, other(sample))) and all(map(_same, wanted, _in_parts(other, sample, 1))):
                return Session(run=other, model=freed, at_once=None, freed=True)
        except Exception:  # of onnxruntime's classes: the graph does not allow it
            continue
    return Session(run=run, model=model, at_once=count)


def computed(session: Session, images: NDArray[Any]) -> Arrays:
    """The answers about any number of images (B, ...); where a session takes N at once the rest is filled up."""
    if session.at_once is None:
        return session.run(images)
    return _in_parts(session.run, images, session.at_once)


def _in_parts(run: Callable[[NDArray[Any]], Arrays], images: NDArray[Any], count: int) -> Arrays:
    parts = []
    for begin in range(0, len(images), count):
        part = images[begin : begin + count]
        filled = np.concatenate([part, np.repeat(part[-1:], count - len(part), 0)]) if len(part) < count else part
        parts.append([answer[: len(part)] for answer in run(filled)])
    return [np.concatenate(answers) for answers in zip(*parts, strict=True)]


def _run(model: Any, path: Path, names: Sequence[str], images: Images) -> Callable[[NDArray[Any]], Arrays]:
    session = _session(model, path)
    return lambda values: list(session.run(list(names), {images.name: values}))


def _session(model: Any, path: Path) -> Any:
    """On the CPU, with torch's number of threads and no operators but onnxruntime's own."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads would slow torch down
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    settings.log_severity_level = 4  # what goes wrong is raised as well
    if model.ByteSize() > MAX_BYTES:
        raise WeightsError(f"network {path}: its graph has more bytes than an ONNX file may have")
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # of classes that onnxruntime does not export
        raise WeightsError(f"network {path}: onnxruntime does not take it ({one_line(error)})") from error


def _noise(images: Images, count: int) -> NDArray[Any]:
    """Images of noise (N, ...) as the graph takes them."""
    channels, height, width = (side or other for side, other in zip(images.shape[1:], (3, _SIDE, _SIDE), strict=True))
    shape = (count, height, width, channels) if images.channels_last else (count, channels, height, width)
    values = np.random.default_rng(0).random(shape, dtype=np.float32)
    return (values * 255).astype(np.uint8) if images.type == "uint8" else values.astype(images.type)


def _same(wanted: NDArray[Any], found: NDArray[Any]) -> bool:
    if wanted.shape != found.shape:
        return False
    largest = float(np.abs(wanted).max(initial=0)) or 1.0
    return bool(np.abs(wanted.astype(np.float64) - found).max(initial=0) <= TOLERANCE * largest)


def _free_input(model: Any, count: int, path: Path) -> None:
    """Declare any number of images, and forget what was inferred from one."""
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        sides = value.type.tensor_type.shape.dim
        if len(sides) and sides[0].dim_value == count:
            sides[0].dim_param = "datafree_images"


def _free_shapes(model: Any, count: int, path: Path) -> None:
    """The same, and where a constant shape begins with the number of images, the number that is given instead."""
    from onnx import helper, numpy_helper
    from onnx.external_data_helper import load_external_data_for_tensor

    _free_input(model, count, path)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            constants[node.output[0]] = node.attribute[0].t
    held = {tensor.name for tensor in model.graph.initializer}
    images = next(value.name for value in model.graph.input if value.name not in held)
    first = "datafree_first"
    made = [
        helper.make_node("Shape", [images], ["datafree_sides"]),
        helper.make_node("Gather", ["datafree_sides", "datafree_zero"], [first]),
    ]
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.int64), "datafree_zero"))
    for index, node in enumerate(model.graph.node):
        if node.op_type not in ("Reshape", "Expand") or len(node.input) < 2 or node.input[1] not in constants:
            continue
        tensor = constants[node.input[1]]
        if tensor.external_data:
            load_external_data_for_tensor(tensor, str(path.parent))
            del tensor.external_data[:]
            tensor.data_location = type(tensor).DEFAULT
        shape = numpy_helper.to_array(tensor)
        if shape.ndim == 1 and len(shape) and shape[0] == count:
            rest, whole = f"datafree_rest{index}", f"datafree_shape{index}"
            model.graph.initializer.append(numpy_helper.from_array(shape[1:], rest))
            made.append(helper.make_node("Concat", [first, rest], [whole], axis=0))
            node.input[1] = whole
    nodes = [*made, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
