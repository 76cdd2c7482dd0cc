"""ONNX, run by onnxruntime: any number of images at once."""

from __future__ import annotations

from pathlib import Path
from typing import final

from torch import nn

from datafree.deploy.format_facts import FACTS
from datafree.deploy.formats.base import Format, Given
from datafree.deploy.quantize import quantize
from datafree.networks.onnx import OnnxNetwork, write_onnx


@final
class Onnx(Format):
    facts = FACTS["onnx"]

    def write(self, given: Given, file: Path) -> None:
        write_onnx(given.network, file, given.size, given.description, opset=given.opset)

    def write_int8(self, given: Given, file: Path) -> None:
        """From the float file, which has to be there."""
        exact = given.folder / self.files(int8=False)[0]
        quantize(exact, file, given.calibration_images(8), exact_ends=given.task.exact_ends)

    def open(self, file: Path) -> nn.Module:
        return OnnxNetwork(file)
