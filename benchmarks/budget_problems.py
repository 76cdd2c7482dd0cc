"""The problems of the budget benchmark: a teacher, a student of its family, and what scores them, as plain data.

A teacher without public weights is trained, or exported, once, outside of any budget, and kept in the work folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

import camvid
import detection
from cells import Stop
from classification import FASHION, learn_labels, load_images
from classification_rows import CIFAR, CPU, GREY, public_resnet
from classification_rows import Pair as Networks
from datafree.config.paths import expand
from datafree.data.labelled import LabelledData
from datafree.networks.load import NetworkSpec, build_network
from datafree.networks.onnx import silence
from datafree.tasks.base import Task
from datafree.tasks.classification import Classification
from detection_rows import BCCD, COCO
from pairs import Row
from students import Work
from supervised import LabelledImages

TEACHERS = "teachers"  # folder of the work folder


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A teacher with its weights, a student, and the images that score both."""

    task: Task[Any]
    teacher: NetworkSpec  # without weights it is trained
    student: NetworkSpec
    train: Callable[[Path, Stop], object] | None = None  # leaves teacher/FILE in a folder
    file: str = "teacher.safetensors"  # what it leaves; .onnx: the whole network
    test: Callable[[], LabelledData]
    headline: Literal["top1", "miou", "ap50"]  # the metric that `relative` compares
    real: Callable[[Path], Path] | None = None  # work folder -> folder of true images, none of the test's
    crops: dict[str, Any] = field(default_factory=dict)  # options of that folder
    photos: str | None = None  # folder of photos of a related kind
    training: dict[str, Any] = field(default_factory=dict)  # over what all have

    @property
    def methods(self) -> list[str]:
        """`auto` and what its images could be had from alone."""
        return ["auto", *(["photos"] if self.photos else ["procedural"]), *(["real"] if self.real else [])]

    @property
    def starts(self) -> tuple[str, ...]:
        """Endings of a method's name: the student's first weights are its teacher's, or random."""
        return ("-random",) if self.is_program else ("", "-random")

    @property
    def is_program(self) -> bool:
        """Whether the teacher is a file that only answers, with no weights to start from."""
        return self.file.endswith(".onnx")


def trained(problem: Problem, name: str, work: Path, stop: Stop) -> NetworkSpec:
    """The problem's teacher with the file of its weights, or as that file; made if not there. Raises Interrupted."""
    if problem.train is None:
        return replace(problem.teacher, weights=expand(str(problem.teacher.weights)))
    folder = work / TEACHERS / name
    file = folder / "teacher" / problem.file
    if not file.exists():
        problem.train(folder, stop)
    return replace(problem.teacher, network=str(file)) if problem.is_program else replace(problem.teacher, weights=file)


# Classification: Fashion-MNIST and CIFAR-10.


def classes(images: Networks, teacher: NetworkSpec, student: NetworkSpec, shift: int, **other: Any) -> Problem:
    """A problem of the classification benchmark's images. CIFAR-10: JPEG copies, so no figure is CIFAR-10's own."""
    return Problem(
        task=Classification(num_classes=10, image_size=(images.side, images.side), temperature=4.0),
        teacher=teacher,
        student=student,
        test=lambda: data_of(images.images, "test"),
        headline="top1",
        real=lambda work: real_images(images.images, work),
        training={"shift": shift},
        **other,
    )


@cache
def data_of(images: str, part: Literal["train", "test"]) -> LabelledImages:
    pair = {pair.images: pair for pair in (CPU, CIFAR)}[images]  # type: ignore[index]
    return load_images(pair, part, FASHION)


def real_images(images: str, work: Path) -> Path:
    """A folder of real training images, without their labels; written once."""
    folder = work / "data" / images
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for index, image in enumerate(data_of(images, "train").images):
            pixels = image.movedim(0, -1).squeeze(-1).numpy()
            Image.fromarray(pixels).save(folder / f"{index:05d}.png")
        (folder / "done").touch()
    return folder


def fashion_networks(teacher: NetworkSpec, student: NetworkSpec, **training: Any) -> Networks:
    """Networks of Fashion-MNIST whose teacher is trained with labels; `training`: epochs, lr and others of that."""
    teacher_alone = {"teacher": Row(method="teacher")}
    return Networks(
        images="fashion-mnist", side=28, teacher=teacher, student=student, training={}, rows=teacher_alone, **training
    )


def learner(networks: Networks) -> Callable[[Path, Stop], object]:
    """A function that trains the teacher of `networks` with labels."""
    task = Classification(num_classes=10, image_size=(28, 28))

    def train(folder: Path, stop: Stop) -> None:
        learn_labels(Work(name="teacher", pair=networks, task=task, seed=0, folder=folder, stop=stop), FASHION)

    return train


def own(network: str, **args: Any) -> NetworkSpec:
    """A network of grey images of 10 classes, of code beside this file."""
    return NetworkSpec(network=network, args={"num_classes": 10, "channels": 1, **args}, **GREY)


PLAIN = fashion_networks(own("plain_network:plain"), own("plain_network:plain", width=8), epochs=4, lr=0.03)
GROUP_NORMED = fashion_networks(
    own("group_normed:resnet", depth=14, width=16, stride=2),
    own("group_normed:resnet", depth=8, width=12, stride=2),
    epochs=4,
    lr=0.05,
)


def vit(**args: Any) -> NetworkSpec:
    """A small ViT of timm's for grey images of 28 x 28 pixels in patches of 7 x 7."""
    shape = {"img_size": 28, "patch_size": 7, **args}
    return NetworkSpec(network="timm/vit_tiny_patch16_224", args=shape, **GREY)


VIT = fashion_networks(
    vit(embed_dim=96, depth=4, num_heads=3),
    vit(embed_dim=64, depth=2, num_heads=2),
    epochs=4,
    lr=1e-3,
    optimizer="adam",
)


ANSWERS_ALONE = NetworkSpec(network="teacher.onnx", args={"gradients": False}, **GREY)


def export_fashion(folder: Path, stop: Stop) -> None:
    """Write the teacher of Fashion-MNIST as an ONNX file of grey images, its BatchNorm folded into convolutions."""
    import onnx

    network = build_network(replace(CPU.teacher, weights=expand(str(CPU.teacher.weights))), num_classes=10).eval()
    file = folder / "teacher" / "teacher.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    grey = torch.rand(2, 1, CPU.side, CPU.side)
    with silence():
        made = torch.onnx.export(network, (grey,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert made is not None
    made.save(str(file))
    kinds = {node.op_type for node in onnx.load(str(file)).graph.node}
    assert "Conv" in kinds and "BatchNormalization" not in kinds, f"BatchNorm is not folded: {sorted(kinds)}"


# Segmentation: CamVid, the U-Nets of its own benchmark.

STREETS = camvid.SIZES["cpu"]


def train_streets(folder: Path, stop: Stop) -> None:
    camvid.run_cell(
        "teacher", camvid.Cell(size=STREETS, seed=0, data=expand("$DATAFREE_DATA"), folder=folder, stop=stop)
    )


def street_task() -> Task[Any]:
    return camvid.Cell(size=STREETS, seed=0, data=Path(), folder=Path(), stop=lambda: None).task()


CAMVID = Problem(
    task=street_task(),
    teacher=STREETS.teacher,
    student=STREETS.student,
    train=train_streets,
    test=lambda: street_task().open_dataset(expand("$DATAFREE_DATA/camvid/val")),
    headline="miou",
    real=lambda work: expand("$DATAFREE_DATA/camvid/train/images"),
    crops={"crop": "random", "flip": True},
    training={"shift": 4},
)

# Detection: the networks of its own benchmark, the students narrower than their teachers.

CELLS_TASK = detection.make_task(BCCD, BCCD.rows["teacher"])


def train_cells(folder: Path, stop: Stop) -> None:
    work = Work(name="teacher", pair=BCCD, task=CELLS_TASK, seed=0, folder=folder, stop=stop)
    detection.learn_labels(work, CELLS_TASK)


COCO_TASK = detection.make_task(COCO, COCO.rows["teacher"])


def of_fastestdet(width: float) -> Problem:
    """COCO's own detector as teacher, its student `width` times as wide."""
    return Problem(
        task=COCO_TASK,
        teacher=COCO.teacher,
        student=replace(COCO.student, args={**COCO.student.args, "width": width}),
        test=lambda: detection.load_boxes(COCO.test, COCO_TASK, None),
        headline="ap50",
        training={"shift": 8, "batch_size": 16, "lr": 2.5e-3},
    )


PROBLEMS = {
    "fashion": classes(CPU, CPU.teacher, CPU.student, 2),
    "fashion-nobn": classes(PLAIN, PLAIN.teacher, PLAIN.student, 2, train=learner(PLAIN)),
    "fashion-groupnorm": classes(
        GROUP_NORMED, GROUP_NORMED.teacher, GROUP_NORMED.student, 2, train=learner(GROUP_NORMED)
    ),
    "fashion-vit": classes(VIT, VIT.teacher, VIT.student, 2, train=learner(VIT)),
    "fashion-onnx": classes(CPU, ANSWERS_ALONE, CPU.student, 2, train=export_fashion, file="teacher.onnx"),
    "cifar10": classes(CIFAR, CIFAR.teacher, CIFAR.student, 4),
    "cifar10-deep": classes(CIFAR, public_resnet(56), replace(CIFAR.student, args={"depth": 20}), 4),
    "camvid": CAMVID,
    "camvid-photos": replace(CAMVID, photos="$DATAFREE_DATA/road-proxy/images", real=None),
    "bccd": Problem(
        task=CELLS_TASK,
        teacher=BCCD.teacher,
        student=BCCD.student,
        train=train_cells,
        test=lambda: detection.load_boxes(BCCD.test, CELLS_TASK, None),
        headline="ap50",
        real=lambda work: expand("$DATAFREE_DATA/bccd/images/train"),
        training={"shift": 4},
    ),
    "coco": of_fastestdet(0.5),
    "coco-wide": of_fastestdet(0.75),
}
