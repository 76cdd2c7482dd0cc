"""ONNX files with gradients: the graph as torch modules, kept only where it answers as onnxruntime does.

The modules are onnx2pytorch's (Apache-2.0, an extra). A file that still holds BatchNormalization has its statistics in
them, so that methods built on these serve, too; most exports have folded them into convolutions.

B images, H x W pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from datafree.errors import NetworkError
from datafree.networks.foreign.file_teacher import FileTeacher
from datafree.networks.foreign.onnx_session import TOLERANCE
from datafree.networks.foreign.onnx_teacher import OnnxTeacher
from datafree.ops.predictions import Predictions
from datafree.text import one_line

INSTALL = "pip install 'datafree[onnx-gradients]'"
_SIDES = (224, 64, 32)  # pixels of an image, tried in turn where a file takes several sizes
_COMPARED = 2  # images


class OnnxModules(FileTeacher):
    """The network of an `OnnxTeacher` as modules: the same answers, with gradients to the images.

    Where no gradient and no layer is asked for, onnxruntime computes the answer, which is faster on a CPU.
    Raises NetworkError where the graph cannot be converted, or its answers or gradients are not what they should be.
    """

    def __init__(self, teacher: OnnxTeacher) -> None:
        super().__init__(teacher.path)
        if teacher.images.type == "uint8":
            raise NetworkError("whole numbers have no gradient")
        self.files, self.size, self.notes = teacher.files, teacher.size, [*teacher.notes]
        self.parameter_count = teacher.parameter_count
        self.teacher = teacher
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.network = _converted(teacher)
        except Exception as error:  # of whatever class, for operators that it lacks
            raise NetworkError(f"onnx2pytorch does not convert it ({one_line(error)})") from error
        self._compare()
        self.notes.append("answers and gradients by onnx2pytorch's modules, which answer as onnxruntime does")

    def forward(self, images: Tensor) -> Any:
        """(B, channels, H, W) -> its answer. Raises NetworkError."""
        watched = torch.is_grad_enabled() or is_in_torch_dispatch_mode() or any(map(_has_hooks, self.network.modules()))
        if not watched and images.device.type == "cpu":
            return self.teacher(images)
        return self.teacher.form(self._values(images))

    def _values(self, images: Tensor) -> list[Tensor]:
        """Those that an answer is made of, by the modules. Raises NetworkError."""
        self.teacher.check_size(images)
        try:
            given = self.teacher.laid_out(images)
            count = self.teacher.at_once
            parts = [given] if count is None else _filled(given, count)
            answers = [self._computed(part) for part in parts]
            return [torch.cat(values)[: len(images)].float() for values in zip(*answers, strict=True)]
        except Exception as error:  # whatever modules raise for sizes that do not suit
            raise NetworkError(f"{self.path} cannot be computed ({one_line(error)})") from error

    def _computed(self, images: Tensor) -> list[Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the package's own operators
            answer = self.network(images)
        return list(answer) if isinstance(answer, tuple | list) else [answer]

    def _compare(self) -> None:
        """Raise NetworkError unless the modules answer noise as onnxruntime does, with a gradient."""
        images, wanted = self._sample()
        self.eval()
        with torch.enable_grad():
            found = self._values(images.requires_grad_())
            reached = [part for part in found if part.requires_grad]
            if not reached:
                raise NetworkError("no gradient comes back through the converted graph")
            torch.autograd.backward(torch.stack([part.square().sum() for part in reached]).sum())
        if images.grad is None or not torch.isfinite(images.grad).all():
            raise NetworkError("no finite gradient comes back through the converted graph")
        for parameter in self.parameters():
            parameter.grad = None
        if not _alike(self.teacher.form(wanted), self.teacher.form(found)):
            raise NetworkError("the converted graph answers otherwise than onnxruntime")

    def _sample(self) -> tuple[Tensor, list[Tensor]]:
        """Images of noise that the file takes, and what onnxruntime answers about them."""
        channels, *sides = self.teacher.images.shape[1:]
        generator = torch.Generator().manual_seed(0)
        reason = "it takes no images of the sizes that were tried"
        for side in _SIDES:
            height, width = (wanted or side for wanted in sides)
            images = torch.rand(_COMPARED, channels or 3, height, width, generator=generator)
            try:
                return images, self.teacher.values(images)
            except Exception as error:  # of onnxruntime's classes
                reason = one_line(error)
        raise NetworkError(reason)


def with_gradients(teacher: OnnxTeacher, wanted: bool | None) -> FileTeacher:
    """`teacher` as modules with gradients where that is possible; itself, with a note that says why not, where not.

    `wanted`: True: an error where it is not possible; None: where it is. Raises NetworkError.
    """
    reason = f"gradients need the package onnx2pytorch: {INSTALL}"
    if find_spec("onnx2pytorch") is not None:
        try:
            return OnnxModules(teacher)
        except NetworkError as error:
            reason = str(error)
    if wanted:
        raise NetworkError(f"{teacher.path} has no gradients: {reason}; leave args.gradients out to use its answers")
    teacher.notes.append(f"answers alone, no gradients: {reason}")
    return teacher


def _alike(wanted: Tensor | Predictions, found: Tensor | Predictions) -> bool:
    """Whether two answers differ by no more than TOLERANCE of the largest value; scores are of 1, boxes of a size."""
    if isinstance(wanted, Predictions) and isinstance(found, Predictions):
        return _near(wanted.boxes, found.boxes) and _near(wanted.scores, found.scores, 1.0)
    return isinstance(wanted, Tensor) and isinstance(found, Tensor) and _near(wanted, found)


def _near(wanted: Tensor, found: Tensor, scale: float | None = None) -> bool:
    if wanted.shape != found.shape or not wanted.numel():
        return wanted.shape == found.shape
    largest = float(wanted.abs().max()) or 1.0 if scale is None else scale
    return bool((wanted - found).abs().max() <= TOLERANCE * largest)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _filled(images: Tensor, count: int) -> list[Tensor]:
    """Parts of `count` images each, the last one filled up."""
    missing = -len(images) % count
    return list(torch.split(torch.cat([images, images[-1:].expand(missing, -1, -1, -1)]), count))


# --- the graph, made ready ---


def _converted(teacher: OnnxTeacher) -> nn.Module:
    import onnx2pytorch
    from onnx.external_data_helper import load_external_data_for_model
    from onnx2pytorch.operations.batchnorm import BatchNormWrapper

    model = type(teacher.model)()
    model.CopyFrom(teacher.model)
    load_external_data_for_model(model, str(teacher.path.parent))
    _prepare(model, teacher.names)
    network: nn.Module = onnx2pytorch.ConvertModel(model)
    for module in network.modules():
        if isinstance(module, BatchNormWrapper) and not module.has_lazy:
            module.forward = _normed(module.bnu)
    return network


def _normed(norm: nn.Module) -> Any:
    """The forward pass of onnx2pytorch's wrapper, by a call of the layer within, so that its hooks are called, too."""
    return lambda images, *given: norm(images)


def _prepare(model: Any, outputs: list[str]) -> None:
    """Make plain what onnx2pytorch takes otherwise, and give everything a name of ours.

    Tensors that reach an operator through Identity, as torch's older exporter shares them, or out of Constant, as
    PaddlePaddle's, become initializers. Names become attributes of modules, which a stranger's may not.
    """
    graph = model.graph
    del graph.output[:]
    for name in outputs:
        graph.output.add().name = name
    held = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in held]
    same: dict[str, str] = {}
    nodes = []
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = same.get(name, name)
        kind, made = node.op_type, node.output[0]
        if kind == "Identity" and node.input[0] in held and made not in outputs:
            same[made] = node.input[0]
        elif kind == "Constant" and made not in outputs and node.attribute[0].HasField("t"):
            tensor = graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = made
            held.add(made)
        else:
            nodes.append(type(node).FromString(node.SerializeToString()))
    images = type(inputs[0]).FromString(inputs[0].SerializeToString())
    for field in (graph.node, graph.input, graph.value_info):
        del field[:]
    graph.node.extend(nodes)
    graph.input.append(images)
    _rename(model, {})


def _rename(model: Any, names: dict[str, str]) -> None:
    """Every value, in branches as well, under a number; nodes under none."""

    def ours(name: str) -> str:
        return names.setdefault(name, f"v{len(names)}") if name else ""

    for graph in _all_graphs(model.graph):
        for entry in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
            entry.name = ours(entry.name)
        for node in graph.node:
            node.name = ""
            for field in (node.input, node.output):
                for index, name in enumerate(field):
                    field[index] = ours(name)


def _all_graphs(graph: Any) -> Iterator[Any]:
    """A graph and those within its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from _all_graphs(inner)
