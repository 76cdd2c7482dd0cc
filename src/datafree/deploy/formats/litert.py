"""LiteRT (TensorFlow Lite): one image at a time, channels first as in torch.

INT8 is the float file quantised by ai-edge-quantizer: weights a scale for each output channel, activations one for
each tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from datafree.deploy.format_facts import FACTS
from datafree.deploy.formats.base import Format, Given, Runtime
from datafree.deploy.last_layers import Step, last_steps
from datafree.networks.onnx import Answers, noise
from datafree.ops import modes

SIGNATURE = "serving_default"  # what litert-torch calls the one that it writes
_LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL")  # what has weights


@final
class LiteRt(Format):
    facts = FACTS["litert"]

    def write(self, given: Given, file: Path) -> None:
        import litert_torch
        from litert_torch.fx_infra import decomp

        decomp.add_pre_convert_decomp(torch.ops.aten.one_hot.default, _one_hot)
        answers = Answers(given.network)
        with torch.no_grad(), modes.frozen(answers):
            litert_torch.convert(answers, (noise(1, given.size),)).export(str(file))

    def write_int8(self, given: Given, file: Path) -> None:
        """From the float file, which has to be there."""
        from ai_edge_litert.interpreter import Interpreter
        from ai_edge_quantizer import quantizer, recipe

        exact = given.folder / self.files(int8=False)[0]
        made = quantizer.Quantizer(str(exact), recipe.static_wi8_ai8())
        for end in ("INPUT", "OUTPUT"):  # float as in the other formats
            made.update_quantization_recipe(regex=".*", operation_name=end, algorithm_key="no_quantize")
        if given.task.exact_ends:
            names = "|".join(map(re.escape, _ends(exact)))
            made.update_quantization_recipe(regex=f"^(?:{names})", operation_name="*", algorithm_key="no_quantize")
        (name,) = Interpreter(str(exact)).get_signature_list()[SIGNATURE]["inputs"]
        batches = [{name: images.numpy()} for images in given.calibration_images()]  # it is gone through twice
        found = made.calibrate({SIGNATURE: batches}, num_threads=torch.get_num_threads())
        made.quantize(found).export_model(file)

    def open(self, file: Path) -> nn.Module:
        from ai_edge_litert.interpreter import Interpreter

        interpreter: Any = Interpreter(str(file), num_threads=torch.get_num_threads())
        run = interpreter.get_signature_runner(SIGNATURE)
        (name,) = run.get_input_details()

        def compute(images: Tensor) -> list[Tensor]:
            answer = run(**{name: images.numpy()})
            return [torch.from_numpy(answer[output].copy()) for output in sorted(answer)]

        return Runtime(file, compute, at_once=1)


def _one_hot(classes: Tensor, num_classes: int) -> Tensor:
    """torch's, without its assertions, for which LiteRT has no operator: classes (...) -> (..., num_classes)."""
    return (classes.unsqueeze(-1) == torch.arange(num_classes, device=classes.device)).long()


def _ends(file: Path) -> Iterator[str]:
    """Names of the operators that no layer with weights is computed from, or only through others: the last ones."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils

    model = tfl_flatbuffer_utils.read_model(str(file))
    kinds = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    graph = model.subgraphs[0]
    steps = [
        Step(
            [*operator.inputs],
            [*operator.outputs],
            layer=kinds[model.operatorCodes[operator.opcodeIndex].builtinCode] in _LAYERS,
        )
        for operator in graph.operators
    ]
    for index in last_steps(steps):
        yield tfl_flatbuffer_utils.get_op_scope(graph.operators[index], graph.tensors)
