"""Bias correction: what rounded weights add to the mean of a layer's outputs is taken from its bias.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, arXiv 1906.04721,
section 4.2: with weights W rounded to W', a layer's outputs are off by (W' - W) x, whose mean is (W' - W) E[x]. E[x] is
measured on the images that calibrate. All places of a kernel count alike, as in the paper: at borders, where a kernel
reads padding, a little too much is taken.

B images, K channels of a layer's inputs, O of its outputs, G groups.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float32]
_LAYERS = ("Conv", "Gemm")  # what can have a bias, but for transposed convolutions, whose places count unequally


class InputMeans:
    """E[x] of the layers with weights, over all batches that it has seen."""

    def __init__(self, model: Any) -> None:
        """`model`: an onnx ModelProto in float."""
        import onnx
        import onnxruntime

        watching = copy.deepcopy(model)
        graph = watching.graph
        tensors = {node.input[0]: node.op_type for node in graph.node if node.op_type in _LAYERS}
        del graph.output[:]
        for index, (tensor, kind) in enumerate(tensors.items()):
            pooled = f"mean of input {index}"
            pool = ("GlobalAveragePool", [tensor]) if kind == "Conv" else ("Flatten", [tensor])
            graph.node.append(onnx.helper.make_node(*pool, [pooled]))
            graph.output.append(onnx.helper.make_tensor_value_info(pooled, onnx.TensorProto.FLOAT, None))
        self._tensors = list(tensors)
        self._session = onnxruntime.InferenceSession(watching.SerializeToString(), providers=["CPUExecutionProvider"])
        self._sums: dict[str, Any] = {}  # of arrays
        self._counts: dict[str, int] = {}  # rows: a linear layer may see several of each image, as of its patches

    def see(self, batch: Mapping[str, Array]) -> None:
        """Count a batch, by the name of the network's input."""
        answers = self._session.run(None, batch) if self._tensors else []
        for tensor, answer in zip(self._tensors, answers, strict=True):
            self._sums[tensor] = self._sums.get(tensor, 0.0) + answer.reshape(len(answer), -1).sum(0)
            self._counts[tensor] = self._counts.get(tensor, 0) + len(answer)

    def of(self, tensor: str) -> Array:
        """(K,) of a layer's input, by the tensor's name."""
        mean: Array = self._sums[tensor] / self._counts[tensor]
        return mean


def correct_biases(rounded: Any, exact: Any, means: InputMeans) -> None:
    """Change the biases of `rounded`, a ModelProto of quantise-dequantise pairs made of the float one `exact`."""
    from onnx import numpy_helper

    before = {each.name: each for each in exact.graph.initializer}
    held = {each.name: each for each in rounded.graph.initializer}
    was = {node.name: node for node in exact.graph.node}
    for node, (weights, bias) in _rounded_layers(rounded.graph, held):
        layer = was[node.name]
        shift = _mean_error(
            weights.astype(np.float32) - numpy_helper.to_array(before[layer.input[1]]),
            means.of(layer.input[0]),
            transposed=node.op_type == "Gemm" and not attribute(node, "transB"),
        )
        name, scale = bias
        steps = numpy_helper.to_array(held[name]) - np.rint(shift / scale)
        limits = np.iinfo(np.int32)
        kept = np.clip(steps, limits.min, limits.max).astype(np.int32)
        held[name].CopyFrom(numpy_helper.from_array(kept, name))


def _mean_error(change: Array, mean: Array, *, transposed: bool) -> Array:
    """(O,) (W' - W) E[x], from W' - W (O, K / G, ...) and E[x] (K,)."""
    per_input = change.T if transposed else change.reshape(*change.shape[:2], -1).sum(2)
    groups = len(mean) // per_input.shape[1]
    rows = per_input.reshape(groups, -1, per_input.shape[1])
    found: Array = np.einsum("gok,gk->go", rows, mean.reshape(groups, -1)).reshape(-1)
    return found


def _rounded_layers(graph: Any, held: Mapping[str, Any]) -> Iterator[tuple[Any, tuple[Array, tuple[str, Array]]]]:
    """Layers whose weights and bias are rounded: the node, its weights as they are used, its bias with its scale."""
    from onnx import numpy_helper

    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type not in _LAYERS or len(node.input) < 3:
            continue
        pairs = [makers[name] for name in node.input[1:3] if name in makers]
        if len(pairs) < 2 or any(pair.op_type != "DequantizeLinear" or pair.input[0] not in held for pair in pairs):
            continue
        kernel, bias = pairs
        weights, scale, zero = (numpy_helper.to_array(held[name]).astype(np.float32) for name in kernel.input)
        view = [-1 if place == attribute(kernel, "axis") else 1 for place in range(weights.ndim)]
        used = (weights - zero.reshape(view)) * scale.reshape(view)
        yield node, (used, (bias.input[0], numpy_helper.to_array(held[bias.input[1]])))


def attribute(node: Any, name: str) -> int:
    """A whole number among a node's attributes; 0 where it is not said."""
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)
