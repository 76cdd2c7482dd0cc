"""Teachers in ONNX files, computed by onnxruntime.

    teacher: {network: classifier.onnx, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}
    teacher: {network: segmenter.onnx, args: {output: logits}}      # one of several outputs

B images, C classes, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from datafree.errors import NetworkError
from datafree.networks.foreign.file_teacher import AnswersOnly
from datafree.networks.foreign.onnx_answers import choose
from datafree.networks.foreign.onnx_file import OnnxFile
from datafree.networks.foreign.onnx_session import computed, open_model
from datafree.ops.predictions import Predictions
from datafree.text import counted


class OnnxTeacher(AnswersOnly):
    """The network in an ONNX file: images (B, channels, H, W) -> logits, or a detector's `Predictions`.

    Computed on the CPU whatever the device, with torch's number of threads. Raises WeightsError for a file that cannot
    be used, NetworkError for one whose outputs are not told apart, DatafreeError without onnxruntime.
    """

    def __init__(self, file: OnnxFile, output: str | None = None) -> None:
        super().__init__(file.path)
        self.images = file.images
        asked = choose(file, output)
        self.names, self.form = asked.names, asked.form
        self._session = open_model(file.model, file.path, asked.names, file.images)
        self.model, self.at_once = self._session.model, self._session.at_once
        self.files, self.parameter_count, self.notes = file.files, file.parameter_count, asked.notes
        height, width = file.images.shape[2:]
        self.size = None if height is None or width is None else (height, width)
        if self._session.freed:
            declared = file.images.shape[0]
            assert declared is not None
            self.notes.append(f"made for {counted(declared, 'image')} at once; computed for any number, as compared")
        elif (count := self._session.at_once) is not None:
            self.notes.append(f"made for {counted(count, 'image')} at once: a batch is computed in parts")
        if file.images.channels_last:
            self.notes.append("takes (B, H, W, channels): images are handed on so, and maps of classes turned back")

    def answer(self, images: Tensor) -> Tensor | Predictions:
        """Raises as `check_size`."""
        return self.form(self.values(images))

    def values(self, images: Tensor) -> list[Tensor]:
        """The values of the graph that an answer is made of. Raises as `check_size`."""
        self.check_size(images)
        arrays = computed(self._session, self.laid_out(images.cpu()).contiguous().numpy())
        answers = [torch.from_numpy(array).to(images.device) for array in arrays]
        return [answer.float() if answer.is_floating_point() else answer for answer in answers]

    def check_size(self, images: Tensor) -> None:
        """Raise NetworkError for images of another size or another number of channels than the file's."""
        wanted = self.images.shape[1:]
        if any(side not in (None, given) for side, given in zip(wanted, images.shape[1:], strict=True)):
            shown = " x ".join("any" if side is None else str(side) for side in wanted)
            raise NetworkError(
                f"{self.path} takes images of {shown} (channels, height, width), not "
                f"{' x '.join(map(str, images.shape[1:]))}; set {_way(wanted, images)}"
            )

    def laid_out(self, images: Tensor) -> Tensor:
        """(B, channels, H, W) in the layout and type that the file takes."""
        if self.images.channels_last:
            images = images.permute(0, 2, 3, 1)
        if self.images.type == "uint8":
            images = images.round().clamp(0, 255)
        return images.to(getattr(torch, self.images.type))


def _way(wanted: tuple[int | None, ...], images: Tensor) -> str:
    """The option that makes images fit."""
    channels, height, width = wanted
    if channels not in (None, images.shape[1]):
        return f"channels: {channels}"
    return f"task.image_size or teacher.input_size to [{height or images.shape[2]}, {width or images.shape[3]}]"
