"""What several tests of data sets share: small recipes, stops, all that a set holds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.darknet.yolov3 import yolov3
from datafree.networks.resnet import resnet
from datafree.networks.unet import unet
from datafree.recipe.recipe import Recipe
from recipes import load, write_once

SIZE = {"classification": [32, 32], "segmentation": [32, 48], "detection": [32, 64]}


ARGS: dict[str, dict[str, Any]] = {
    "classification": {"depth": 8, "width": 4},
    "segmentation": {"width": 2, "depth": 2},
    "detection": {"num_classes": 3, "variant": "tiny", "width": 1 / 32},
}


NETWORKS = {
    "classification": "datafree/resnet",
    "segmentation": "datafree/unet",
    "detection": "datafree.networks.darknet.yolov3:yolov3",
}


INVERSION = {"method": "inversion", "iterations": 2, "batch_size": 5, "warmup": 1}


DIODE = {"method": "diode", "stages": [{"iterations": 2}], "batch_size": 3, "warmup": 1, "fp_sampling_every": 0}


CGDD = {"method": "cgdd", "batch_size": 4, "width": 2, "latent": 4, "warmup": 5}


CMI = {"method": "cmi", "iterations": 2, "batch_size": 4, "width": 2, "latent": 4, "warmup": 1}


def make_teacher(kind: str, file: Path) -> Path:
    """Weights whose BatchNorm has seen something; always the same."""

    def write(file: Path) -> None:
        if kind == "detection":
            detector = yolov3(**ARGS[kind])
            network, look = detector.network, detector
        else:
            network = look = resnet(3, **ARGS[kind]) if kind == "classification" else unet(3, **ARGS[kind])
        for _ in range(3):
            look(torch.rand(4, 3, *SIZE[kind]))
        save_weights(network, file)

    return write_once(f"set {kind}", file, write)


def recipe_for(folder: Path, source: dict[str, Any], kind: str = "segmentation", **sections: Any) -> Recipe:
    network = {"network": NETWORKS[kind], "args": ARGS[kind]}
    training = {"steps": 4, "batch_size": 3, "device": "cpu", "precision": "fp32", "save_every": 2, "log_every": 1}
    recipe = {
        "task": {"kind": kind, "num_classes": 3, "image_size": SIZE[kind], **sections.pop("task", {})},
        "teacher": {**network, "weights": str(make_teacher(kind, folder / f"{kind}.safetensors"))},
        "student": network,
        "source": source,
        "training": {**training, **sections.pop("training", {})},
        **sections,
    }
    return load(folder, recipe)


def content(file: Path) -> bytes:
    """A file's bytes; of a saved state its values, since equal ones may be pickled differently."""

    def values(state: Any) -> str:
        if isinstance(state, dict):
            return str({key: values(value) for key, value in state.items()})
        if isinstance(state, (list, tuple)):
            return str([values(value) for value in state])
        return f"{state.dtype} {state.tolist()}" if isinstance(state, Tensor) else repr(state)

    return values(torch.load(file, weights_only=True)).encode() if file.suffix == ".pt" else file.read_bytes()


def everything(out: Path) -> dict[str, str]:
    """Each file that a data set consists of, but for when, on what and in which pieces it was made."""
    apart = ("environment.json", "previous-trained.pt", ".lock")
    files = [file for file in sorted(out.rglob("*")) if file.is_file() and file.name not in apart]
    return {str(file.relative_to(out)): hashlib.sha256(content(file)).hexdigest() for file in files}


def stop_after(calls: int) -> Callable[[], str | None]:
    left: Iterator[str | None] = iter([None] * calls)
    return lambda: next(left, "enough")
