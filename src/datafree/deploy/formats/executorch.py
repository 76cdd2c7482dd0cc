"""ExecuTorch: one image at a time, by its XNNPACK kernels where these take the operator.

INT8 is torchao's PT2E quantisation with ExecuTorch's quantiser for XNNPACK: weights a scale for each output channel,
activations one for each tensor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from datafree.deploy.format_facts import FACTS
from datafree.deploy.formats.base import Format, Given, Runtime
from datafree.deploy.last_layers import Step, last_steps
from datafree.networks.onnx import traced

_LAYERS = ("conv", "linear", "matmul", "addmm")  # in the names of torch's operators that have weights


@final
class ExecuTorch(Format):
    facts = FACTS["executorch"]

    def write(self, given: Given, file: Path) -> None:
        _save(traced(given.network, given.size, batch=False), file)

    def write_int8(self, given: Given, file: Path) -> None:
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        program = traced(given.network, given.size, batch=False)
        quantizer: Any = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
        if given.task.exact_ends:
            quantizer.set_filter_function(lambda node: node.name not in _ends(node.graph))
        prepared: Any = prepare_pt2e(_without_assertions(program.module()), quantizer)
        with torch.no_grad():
            for images in given.calibration_images():
                prepared(images)
            example = next(given.calibration_images())
            _save(torch.export.export(convert_pt2e(prepared), (example,)), file)

    def open(self, file: Path) -> nn.Module:
        from executorch.extension.pybindings import portable_lib

        portable_lib._unsafe_reset_threadpool(torch.get_num_threads())
        module: Any = portable_lib._load_for_executorch(str(file))

        def compute(images: Tensor) -> list[Tensor]:
            return list(module.forward((images,)))  # copies

        return Runtime(file, compute, at_once=1)


def _without_assertions(module: Any) -> Any:
    """A traced network without its checks of types: the quantiser makes floats of numbers added to integers."""
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)
    module.recompile()
    return module


def _save(program: torch.export.ExportedProgram, file: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    lowered: Any = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    with file.open("wb") as out:
        lowered.to_executorch().write_to_file(out)


def _ends(graph: torch.fx.Graph) -> set[str]:
    """Names of the nodes that no layer with weights is computed from, or only through others: the last ones."""
    nodes = list(graph.nodes)
    steps = [
        Step(node.all_input_nodes, [node], layer=any(layer in str(node.target) for layer in _LAYERS)) for node in nodes
    ]
    return {nodes[index].name for index in last_steps(steps)}
