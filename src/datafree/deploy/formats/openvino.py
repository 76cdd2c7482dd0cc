"""OpenVINO: student.xml and student.bin, any number of images at once.

INT8 is the ONNX file in 8-bit integers, read by OpenVINO: both runtimes then compute the same scales.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from datafree.deploy.format_facts import FACTS
from datafree.deploy.formats.base import Format, Given, Runtime, output_names
from datafree.deploy.formats.onnx import Onnx
from datafree.networks.onnx import traced
from datafree.storage.scratch import Scratch


@final
class OpenVino(Format):
    facts = FACTS["openvino"]

    def write(self, given: Given, file: Path) -> None:
        import openvino

        model = openvino.convert_model(traced(given.network, given.size, batch=True))
        for output, name in zip(model.outputs, output_names(given), strict=True):
            output.get_tensor().set_names({name})
        model.inputs[0].get_tensor().set_names({"images"})
        model.reshape([-1, 3, *given.size])
        openvino.save_model(model, file, compress_to_fp16=False)

    def write_int8(self, given: Given, file: Path) -> None:
        """From the export's ONNX file in 8-bit integers, or from one that is made for it."""
        import openvino

        with Scratch() as scratch:
            onnx = given.folder / Onnx().files(int8=True)[0]
            if not onnx.is_file():
                onnx = scratch.path / onnx.name
                given = replace(given, folder=scratch.path)
                Onnx().write(given, scratch.path / Onnx().files(int8=False)[0])
                Onnx().write_int8(given, onnx)
            openvino.save_model(openvino.convert_model(onnx), file, compress_to_fp16=False)

    def open(self, file: Path) -> nn.Module:
        import openvino

        settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
        # In a thread that ends: compiling gives its thread a stack for signals, and of two networks that are dropped in
        # the order in which they were made, the second hands back the first's, which is gone: the next signal is fatal.
        with ThreadPoolExecutor(1) as aside:
            compiled: Any = aside.submit(openvino.Core().compile_model, file, "CPU", settings).result()

        def compute(images: Tensor) -> list[Tensor]:
            return [torch.from_numpy(array.copy()) for array in compiled(images.numpy()).values()]

        return Runtime(file, compute)
