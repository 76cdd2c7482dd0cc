"""Artifacts beside the student's weights: a trained generator, calibration images, a record of the teacher."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from datafree.config import paths, schema
from datafree.errors import RunError
from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.exported.program import Program
from datafree.networks.foreign.file_teacher import FileTeacher, count_parameters
from datafree.networks.huggingface.directory import open_directory
from datafree.networks.load import NetworkSpec
from datafree.networks.normalized import bare
from datafree.sources.base import ImageSource
from datafree.storage.atomic import cannot_write, sha256_of, write_whole
from datafree.tasks.base import Task


def save_artefacts(source: ImageSource, folder: Path) -> None:
    """Write the networks that `source` has trained, such as generator.safetensors, into `folder`."""
    for name, network in source.artefacts().items():
        save_weights(network, folder / f"{name}.safetensors")


CALIBRATION = "calibration.safetensors"  # of a run: `images` (N, 3, H, W) uint8, its source's validation images


def save_calibration(images: Tensor, run: Path) -> None:
    """Write images (N, 3, H, W) in [0, 1] into a run's directory, 8 bits a channel, to quantise its student with later.

    Raises RunError if they cannot be written.
    """
    content = safetensors.torch.save({"images": (images.detach().cpu().clamp(0, 1) * 255).round().byte().contiguous()})
    try:
        write_whole(run / CALIBRATION, content)
    except OSError as error:
        raise RunError(cannot_write(run / CALIBRATION, error)) from error


def class_names(spec: NetworkSpec, task: Task) -> list[str] | None:
    """A name for each of the task's classes, where the network's own directory has them."""
    names = open_directory(spec.network).class_names if spec.is_directory else None
    return names if names is not None and len(names) == task.num_classes else None


def without_place(spec: NetworkSpec) -> str:
    """The network's name; of a file or a directory without its place on this machine."""
    name = Path(spec.network).name
    return f"hf/{name}" if spec.is_directory else name if spec.is_program else spec.network


def describe_teacher(spec: NetworkSpec, network: nn.Module) -> dict[str, Any]:
    """What a student's card says of its teacher: plain values.

    `sha256` is that of the weights file; of a teacher without one, that of its tensors as a safetensors file.
    """
    inner = bare(network)
    file = inner.path if isinstance(inner, (Program, FileTeacher)) else spec.weights
    if isinstance(inner, FileTeacher):
        digest, of = inner.digest(), "file" if len(inner.files) == 1 else f"{len(inner.files)} files"
    elif spec.is_program and file is None:  # a pickle that was taken apart
        file = paths.expand(spec.network)
        digest, of = sha256_of(file), "file"
    elif file is not None:
        digest, of = sha256_of(file), "file"
    else:
        tensors = {
            name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, value in inner.state_dict().items()
            if isinstance(value, Tensor)
        }
        digest, of = hashlib.sha256(safetensors.torch.save(tensors)).hexdigest(), "tensors"
    return {
        "network": without_place(spec),
        "args": schema.plain(spec.args),
        "weights": None if file is None else file.name,
        "sha256": digest,
        "sha256_of": of,
        "parameters": count_parameters(inner),
        "licence": spec.licence,
    }
