"""INT8 of a network by calibration images, and how often it answers as the float network does.

N images, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datafree.config import paths, schema
from datafree.deploy.quantize import quantize
from datafree.errors import DatafreeError, NetworkError
from datafree.networks.foreign.onnx_file import SUFFIX, read_onnx
from datafree.networks.foreign.onnx_teacher import OnnxTeacher
from datafree.networks.load import NetworkSpec, build_network
from datafree.networks.normalized import Normalized
from datafree.networks.onnx import OnnxNetwork, check_onnx, write_onnx
from datafree.ops import modes
from datafree.ops.predictions import map_answer
from datafree.recipe.recipe import FAMILIES
from datafree.tasks.base import Task
from datafree.text import one_line

BATCH = 8  # images at once
WITHOUT = "--no-int8 writes the images alone"


@dataclass(frozen=True, kw_only=True)
class FloatGraph:
    """The float network as an ONNX file: one that datafree has written, or the user's own."""

    file: Path
    spec: NetworkSpec
    network: Normalized
    task: Task
    own: OnnxTeacher | None  # of the user's own file: how it takes images

    def batches(self, images: Tensor) -> Iterator[Tensor]:
        """`images` (N, 3, H, W) uint8 in batches as the graph takes them; of a file for n at once whole ones."""
        at_once = None if self.own is None else self.own.images.shape[0]
        for part in torch.split(images, at_once or BATCH):
            if at_once is None or len(part) == at_once:
                yield self._fed(part.float() / 255)

    def _fed(self, images: Tensor) -> Tensor:
        if self.own is None:
            return images
        place = self.network.mean.device
        return self.own.laid_out(self.network.prepared(images.to(place)).cpu()).contiguous()

    def answering(self, file: Path) -> nn.Module:
        """Another file of the same inputs and outputs as a network: images in [0, 1] -> answers of the task."""
        if self.own is None:
            return OnnxNetwork(file)
        named = replace(self.spec, network=str(file), args={**self.spec.args, "gradients": False})
        wrapped = named.wrap(build_network(named, num_classes=self.task.num_classes))
        wrapped.one_output = self.network.one_output
        return wrapped


def float_graph(
    network: Normalized, spec: NetworkSpec, task: Task, folder: Path, scratch: Path, names: list[str]
) -> tuple[FloatGraph, dict[int, float]]:
    """The network's ONNX file, and its relative errors against torch: `folder`/teacher.onnx, unless it is one itself.

    Raises NetworkError for a network that cannot be exported, for a file of other numbers than float32.
    """
    if spec.network.endswith(SUFFIX):
        file = paths.expand(spec.network)
        read = read_onnx(file)
        own = OnnxTeacher(read, spec.args.get("output"))
        if own.images.type != "float32":
            raise NetworkError(f"{file} takes images of {own.images.type}, and INT8 is made of float32: {WITHOUT}")
        whole = file if len(read.files) == 1 else _whole(file, scratch)
        return FloatGraph(file=whole, spec=spec, network=network, task=task, own=own), {}
    file = folder / "teacher.onnx"
    place = network.mean.device
    described = {"task": schema.plain(task, FAMILIES), "class_names": names}
    try:
        network.to("cpu")
        write_onnx(network, file, task.image_size, described)
        errors = check_onnx(network, file, task.image_size)
    except NetworkError as error:
        raise NetworkError(f"{str(error).removesuffix('; leave ONNX out')}: {WITHOUT}") from error
    finally:
        network.to(place)
    return FloatGraph(file=file, spec=spec, network=network, task=task, own=None), errors


def _whole(file: Path, scratch: Path) -> Path:
    """The file with the tensors that lie beside it in it: the quantiser takes no others. Raises NetworkError."""
    import onnx

    try:
        onnx.save(onnx.load(str(file)), str(scratch / "whole.onnx"))
    except ValueError as error:  # protobuf's own limit of 2 GiB
        raise NetworkError(f"{file} is too large for one ONNX file ({one_line(error)}): {WITHOUT}") from error
    return scratch / "whole.onnx"


def calibrated(graph: FloatGraph, images: Tensor, out: Path) -> nn.Module:
    """The graph in INT8, calibrated with `images` (N, 3, H, W) uint8 and written as `out`. Raises NetworkError."""
    try:
        quantize(graph.file, out, graph.batches(images), exact_ends=graph.task.exact_ends)
        return graph.answering(out)
    except DatafreeError as error:
        raise NetworkError(f"{str(error).removesuffix('; ship the float file')}: {WITHOUT}") from error


@torch.no_grad()
def agreements(
    network: Normalized, others: dict[str, nn.Module], task: Task, images: Tensor
) -> dict[str, float | None]:
    """Of each of `others` with `network` on `images` (N, 3, H, W) uint8: the mean over images of `Task.agreement`.

    None where neither finds anything in any image.
    """
    found: dict[str, list[float]] = {name: [] for name in others}
    place = network.mean.device
    with modes.frozen(network):
        for part in torch.split(images, BATCH):
            values = part.float() / 255
            wanted = map_answer(network(values.to(place)), Tensor.cpu)  # where the others answer
            for name, other in others.items():
                answers: Any = other(values)
                shares = [task.agreement(answers[i : i + 1], wanted[i : i + 1]) for i in range(len(part))]
                found[name] += [share for share in shares if share is not None]
    return {name: sum(shares) / len(shares) if shares else None for name, shares in found.items()}
