"""Core ML: an ML package as a zip archive. It is converted anywhere, and computed on macOS alone."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from datafree.deploy.format_facts import FACTS
from datafree.deploy.formats.base import Format, Given, Runtime, output_names
from datafree.networks.onnx import Answers, noise
from datafree.ops import modes
from datafree.storage.scratch import Scratch


@final
class CoreMl(Format):
    facts = FACTS["coreml"]

    def write(self, given: Given, file: Path) -> None:
        import coremltools

        answers, example = Answers(given.network), noise(1, given.size)
        with torch.no_grad(), modes.frozen(answers):
            trace: Any = torch.jit.trace  # which has no types
            traced = trace(answers, example)
        model = coremltools.convert(
            traced,
            convert_to="mlprogram",
            inputs=[coremltools.TensorType(name="images", shape=example.shape)],
            outputs=[coremltools.TensorType(name=name) for name in output_names(given)],
            compute_precision=coremltools.precision.FLOAT32,
            minimum_deployment_target=coremltools.target.iOS16,
        )
        with Scratch() as scratch:
            package = scratch.path / "student.mlpackage"
            model.save(str(package))
            with zipfile.ZipFile(file, "w") as archive:
                for part in sorted(package.rglob("*")):
                    if part.is_file():
                        archive.write(part, Path(package.name) / part.relative_to(package))

    def open(self, file: Path) -> nn.Module:
        import coremltools

        with Scratch() as scratch:
            with zipfile.ZipFile(file) as archive:
                archive.extractall(scratch.path)
            model = coremltools.models.MLModel(str(scratch.path / "student.mlpackage"))  # it compiles a copy

        def compute(images: Tensor) -> list[Tensor]:
            answer = model.predict({"images": images.numpy()})
            return [torch.from_numpy(answer[name]) for name in ("logits", "boxes", "scores") if name in answer]

        return Runtime(file, compute, at_once=1)
