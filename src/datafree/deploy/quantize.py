"""INT8 of an exported student: post-training static quantisation, calibrated on synthesised images.

Weights become 8-bit integers with a scale for each output channel, activations 8-bit integers with a scale and zero
point for each tensor, from the least and largest value that the calibration images give it (the scheme of Jacob et
al., CVPR 2018, arXiv 1712.05877, without its training). The file keeps the float network's inputs and outputs and
holds quantise-dequantise pairs (QDQ), which onnxruntime, TensorRT and others turn into integer kernels.

B images, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from datafree.errors import DataError, NetworkError
from datafree.networks.onnx import require, silence
from datafree.storage.scratch import Scratch
from datafree.text import one_line

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # what has weights


def quantize(file: Path, out: Path, images: Iterable[Tensor], *, exact_ends: bool = False) -> None:
    """Write `out`, the INT8 form of the ONNX file `file`, calibrated on batches (B, 3, H, W) in [0, 1].

    `exact_ends` leaves the last layers with weights, and all that is computed from them, in float: for detectors, whose
    boxes are in pixels and would be rounded to a 255th of the image. Raises DataError without images, NetworkError for
    a network that cannot be quantised, DatafreeError without the packages.
    """
    require("quantising", "onnx", "onnxruntime")
    batches = _Batches(images)
    with silence(), Scratch() as scratch:
        import onnx
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        prepared = scratch.path / "prepared.onnx"
        try:
            quant_pre_process(str(file), str(prepared), skip_symbolic_shape=True)  # gives up on box arithmetic
            batches.input = onnx.load(str(prepared)).graph.input[0].name
            quantization.quantize_static(
                str(prepared),
                str(out),
                batches,
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                weight_type=quantization.QuantType.QInt8,
                activation_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
                nodes_to_exclude=_ends(onnx.load(str(prepared)).graph) if exact_ends else [],
            )
        except DataError:
            raise
        except Exception as error:  # of any class, for operators or shapes it does not know
            raise NetworkError(f"{file} cannot be quantised ({one_line(error)}); ship the float file") from error


class _Batches:
    """onnxruntime's CalibrationDataReader, which it knows by `get_next` alone."""

    def __init__(self, images: Iterable[Tensor]) -> None:
        self.input = ""
        self._left = iter(images)
        self._any = False

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._left, None)
        if batch is None:
            if not self._any:
                raise DataError("there are no images to calibrate with; give a folder of some with --images")
            return None
        self._any = True
        return {self.input: batch.detach().to("cpu").float().contiguous().numpy()}


def _ends(graph: Any) -> list[str]:
    """Names of the nodes that no layer with weights is computed from, or only through others: the last ones."""
    feeds: set[str] = set()  # tensors that a layer with weights is computed from
    ends = []
    for node in reversed(graph.node):  # in an order in which each can be computed
        last = feeds.isdisjoint(node.output)
        if last:
            ends.append(node.name)
        if not last or node.op_type in _LAYERS:
            feeds.update(node.input)
    return ends
