"""INT8 of an exported network: post-training static quantisation, calibrated on synthesised images.

Weights become 8-bit integers with a scale for each output channel, activations 8-bit integers with a scale and zero
point for each tensor, from the least and largest value that the calibration images give it (the scheme of Jacob et
al., CVPR 2018, arXiv 1712.05877, without its training). The file keeps the float network's inputs and outputs and
holds quantise-dequantise pairs (QDQ), which onnxruntime turns into integer kernels.

Four choices were measured (docs/int8.md). Weights are unsigned, with a zero point in the middle: a processor without
VNNI instructions adds products of unsigned and signed bytes in 16 bits, which overflow without a word. Only layers with
weights are quantised, with the activation behind them: sums, joins and other functions are few of the operations, and
each rounds once more. Answers are not rounded: what calibration images do not reach would be cut off. What rounding
adds to a layer's mean is taken from its bias.

B images, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from datafree.config.extras import require
from datafree.deploy.bias_correction import InputMeans, attribute, correct_biases
from datafree.deploy.last_layers import Step, last_steps
from datafree.errors import DataError, NetworkError
from datafree.networks.onnx import silence
from datafree.storage.scratch import Scratch
from datafree.text import one_line

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # what has weights
_WHOLE = 0.01  # steps: what folding a BatchNorm into a rounded weight changes is smaller
_ACTIVATIONS = ("Relu", "Clip")  # what a layer's integer kernel computes on the way, by where its range ends


def quantize(file: Path, out: Path, images: Iterable[Tensor], *, exact_ends: bool = False) -> None:
    """Write `out`, the INT8 form of the ONNX file `file`, calibrated on batches (B, 3, H, W) in [0, 1].

    `exact_ends` leaves the last layers with weights, and all that is computed from them, in float: for detectors, whose
    boxes are in pixels and would be rounded to a 255th of the image. Raises DataError without images, NetworkError for
    a network that cannot be quantised, DatafreeError without the packages.
    """
    require("quantising", "onnx", "onnxruntime")
    with silence(), Scratch() as scratch:
        import onnx
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        prepared = scratch.path / "prepared.onnx"
        try:
            quant_pre_process(str(file), str(prepared), skip_symbolic_shape=True)  # gives up on box arithmetic
            exact = onnx.load(str(prepared))
            for number, node in enumerate(exact.graph.node):  # a file need not name them; here they are told by name
                node.name = f"{number} {node.name}"
            onnx.save(exact, str(prepared))
            means = InputMeans(exact)
            quantization.quantize_static(
                str(prepared),
                str(out),
                _Batches(images, exact.graph.input[0].name, means),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=[*_LAYERS, *_ACTIVATIONS],
                per_channel=True,
                weight_type=quantization.QuantType.QUInt8,
                activation_type=quantization.QuantType.QUInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
                nodes_to_exclude=_ends(exact.graph) if exact_ends else [],
                extra_options={"WeightSymmetric": True, "TensorQuantOverrides": _kept_scales(exact.graph)},
            )
            made = onnx.load(str(out))
            correct_biases(made, exact, means)
            _free_answers(made.graph)
            onnx.save(made, str(out))
        except DataError:
            raise
        except Exception as error:  # of any class, for operators or shapes it does not know
            raise NetworkError(f"{file.name} cannot be quantised ({one_line(error)}); ship the float file") from error


class _Batches:
    """onnxruntime's CalibrationDataReader, which it knows by `get_next` alone."""

    def __init__(self, images: Iterable[Tensor], name: str, means: InputMeans) -> None:
        """`name`: of the network's input; `means` sees each batch, too."""
        self.input, self.means = name, means
        self._left = iter(images)
        self._any = False

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._left, None)
        if batch is None:
            if not self._any:
                raise DataError("there are no images to calibrate with; give a folder of some with --images")
            return None
        self._any = True
        shown = {self.input: batch.detach().to("cpu").float().contiguous().numpy()}
        self.means.see(shown)
        return shown


def _ends(graph: Any) -> list[str]:
    """Names of the nodes that no layer with weights is computed from, or only through others: the last ones."""
    steps = [Step(node.input, node.output, layer=node.op_type in _LAYERS) for node in graph.node]
    return [graph.node[index].name for index in last_steps(steps)]


def _kept_scales(graph: Any) -> dict[str, list[dict[str, Any]]]:
    """onnxruntime's TensorQuantOverrides: weights that were trained for INT8 keep the values that they have.

    Those are whole numbers of 127ths of a channel's largest (`rounded_weight`); onnxruntime, which takes 127.5 steps,
    would round them once more.
    """
    import numpy as np
    from onnx import numpy_helper

    weights = {each.name: each for each in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type not in _LAYERS or node.input[1] not in weights:
            continue
        values = numpy_helper.to_array(weights[node.input[1]])
        axis = 0 if node.op_type == "Conv" or (node.op_type == "Gemm" and attribute(node, "transB")) else 1
        if values.ndim <= axis:
            continue
        others = tuple(index for index in range(values.ndim) if index != axis)
        step = np.abs(values).max(others, keepdims=True) / 127
        steps = values / np.where(step, step, 1)
        if np.abs(steps - np.rint(steps)).max() < _WHOLE:
            found[node.input[1]] = [{"axis": axis, "rmin": -limit, "rmax": limit} for limit in 127.5 * step.ravel()]
    return found


def _free_answers(graph: Any) -> None:
    """Take away the last rounding of each of the graph's outputs, if there is one: the two nodes before it."""
    makers = {name: node for node in graph.node for name in node.output}
    for answer in graph.output:
        expand = makers.get(answer.name)
        rounding = makers.get(expand.input[0]) if expand is not None else None
        if expand is None or rounding is None:
            continue
        if (rounding.op_type, expand.op_type) != ("QuantizeLinear", "DequantizeLinear"):
            continue
        exact = rounding.input[0]
        graph.node.remove(expand)
        if not any(rounding.output[0] in node.input for node in graph.node):
            graph.node.remove(rounding)
        for node in graph.node:
            node.input[:] = [answer.name if name == exact else name for name in node.input]
            node.output[:] = [answer.name if name == exact else name for name in node.output]
