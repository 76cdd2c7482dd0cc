"""Activation ranges of an ONNX graph: what layers with weights answer, where no modules can be watched.

N images, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from datafree.config.extras import require
from datafree.errors import NetworkError
from datafree.networks.onnx import silence
from datafree.text import one_line

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def graph_ranges(file: Path, batches: Iterable[Tensor]) -> dict[str, tuple[float, float]]:
    """Layer -> the least and largest value that it answers to batches of what the graph takes, in the graph's order.

    Raises NetworkError.
    """
    require("activation ranges of an ONNX file", "onnx", "onnxruntime")
    import onnx
    import onnxruntime

    ranges: dict[str, list[float]] = {}
    try:
        with silence():
            model: Any = onnx.load(str(file))
            layers = [node for node in model.graph.node if node.op_type in _LAYERS]
            watched = {node.output[0]: node.name or node.output[0] for node in layers}
            held = {output.name for output in model.graph.output}
            for tensor in watched:
                if tensor not in held:
                    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(tensor))
            inputs = {tensor.name for tensor in model.graph.initializer}
            name = next(value.name for value in model.graph.input if value.name not in inputs)
            settings = onnxruntime.SessionOptions()
            settings.log_severity_level = 4
            settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.parent))
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
            )
            for batch in batches:
                for tensor, values in zip(watched, session.run(list(watched), {name: batch.numpy()}), strict=True):
                    found = ranges.setdefault(watched[tensor], [math.inf, -math.inf])
                    found[0], found[1] = min(found[0], float(np.min(values))), max(found[1], float(np.max(values)))
    except Exception as error:  # of classes that onnxruntime does not export
        raise NetworkError(f"{file} cannot be computed layer by layer ({one_line(error)})") from error
    return {layer: (low, high) for layer, (low, high) in ranges.items()}
