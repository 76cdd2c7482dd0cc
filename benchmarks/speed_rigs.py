"""The groups of the speed table: pairs of networks, and their methods, as runs have them.

`small` is the pair of the classification benchmark on a CPU with its own rows. In the others, but for `unet` and
`yolov3-tiny`, networks are of ResNet-18's cost and up; options are those of the methods but for sizes that a CPU can
bear.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from classification_rows import CPU, SIZES, papers_resnet
from datafree.engine.build_networks import prepare
from datafree.networks.generators import Discriminator, Generator, ResizeGenerator
from datafree.networks.load import NetworkSpec
from datafree.ops import modes
from datafree.ops.performance import ALL_ON, Speed
from datafree.recipe.training import Training
from datafree.sources import SOURCES, Dataset, Degan, Folder, Mixed, Noise, Procedural
from datafree.sources.base import Batch
from datafree.sources.diode.stages import Stage
from datafree.synthesis.shards import Shards
from datafree.tasks import TASKS
from datafree.tasks.base import Task
from detection_rows import ANCHORS, FASTESTDET_SIZE, SSDLITE, fastestdet, yolo
from pairs import Row
from speed_passes import Rig

ITERATIONS = 10  # at most, of an update that is timed in small networks
FEW = 2  # in large ones
ENDLESS = 10**6  # steps: none that is timed is the last
READ = ("folder", "noise", "mixed", "dataset", "procedural")  # sources whose images take no backward pass
FROM_A_BANK = ("inversion", "cmi", "fast", "diode")  # the student's step asks nothing of the source's networks
MAKERS = ("cgdd", "dafl", "dfad", "zskt", "cmi", "fast")  # by a generator that resizes
CLASSIFICATION = ("cgdd", "dafl", "dfad", "zskt", "inversion", "cmi", "fast")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A teacher and a student, and the methods that are timed with them."""

    task: str  # of TASKS
    num_classes: int
    image_size: tuple[int, int]
    teacher: NetworkSpec
    student: NetworkSpec
    batch_size: Mapping[str, int]  # by the kind of device: of the student and of an update
    rows: Mapping[str, Row]
    training: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)  # of the task
    iterations: int = FEW  # at most, of an update that is timed


def rows(**options: dict[str, Any]) -> dict[str, Row]:
    """Method -> its row with these options."""
    return {method: Row(method=method, source=source) for method, source in options.items()}


PAPERS = rows(**{method: {} for method in CLASSIFICATION})
SMALL = Pair(
    task="classification",
    num_classes=10,
    image_size=(CPU.side, CPU.side),
    teacher=replace(CPU.teacher, weights=None),
    student=CPU.student,
    batch_size={},  # the rows' own
    rows={**{method: CPU.rows[method] for method in CLASSIFICATION}, **rows(**{method: {} for method in READ})},
    training=CPU.training,
    options=CPU.task,
    iterations=ITERATIONS,
)
PAIRS = {
    "small": SMALL,
    "resnet34-18": Pair(
        task="classification",
        num_classes=10,
        image_size=(32, 32),
        teacher=papers_resnet("resnet34"),
        student=papers_resnet("resnet18"),
        batch_size={"cpu": 16, "cuda": 256},
        rows={**PAPERS, "dfad": Row(method="dfad", source={"network": "resize", "objective": "l1"})},
    ),
    "unet": Pair(
        task="segmentation",
        num_classes=11,
        image_size=(64, 64),
        teacher=NetworkSpec(network="datafree/unet", args={"width": 24}),
        student=NetworkSpec(network="datafree/unet", args={"width": 12}),
        batch_size={"cpu": 16, "cuda": 16},
        rows=rows(degan={"width": 32}),
    ),
    "deeplabv3": Pair(
        task="segmentation",
        num_classes=11,
        image_size=(128, 128),
        teacher=NetworkSpec(network="smp/deeplabv3", args={"encoder": "resnet50", "output_stride": 8}),
        student=NetworkSpec(network="smp/deeplabv3", args={"encoder": "mobilenet_v2", "output_stride": 16}),
        batch_size={"cpu": 4, "cuda": 16},
        rows=rows(degan={}, inversion={}),
    ),
    "yolov3-tiny": Pair(
        task="detection",
        num_classes=3,
        image_size=(192, 256),
        teacher=yolo(1.0, ANCHORS[256, 320]),
        student=yolo(1.0, ANCHORS[256, 320]),
        batch_size={"cpu": 4, "cuda": 64},
        rows=rows(
            diode={
                "stages": [Stage(iterations=20, jitter=40)],
                "fp_sampling_every": 0,
            },  # each batch has a look at its end
            cgdd={"adversarial_weight": 0.0, "activation_weight": 0.0},
        ),
        options={"distill": "heads"},
    ),
    "yolov3": Pair(  # Darknet-53
        task="detection",
        num_classes=3,
        image_size=(128, 160),
        teacher=NetworkSpec(network="datafree/yolov3", args={"variant": "full"}),
        student=yolo(1.0, ANCHORS[256, 320]),
        batch_size={"cpu": 2, "cuda": 32},
        rows=rows(diode={"stages": [Stage(iterations=6, jitter=16)], "fp_sampling_every": 0}),
        options={"distill": "boxes"},
    ),
    "retinanet": Pair(  # ResNet-50 with a feature pyramid
        task="detection",
        num_classes=3,
        image_size=(128, 160),
        teacher=NetworkSpec(network="torchvision/retinanet_resnet50_fpn"),
        student=SSDLITE,
        batch_size={"cpu": 2, "cuda": 32},
        rows=rows(diode={"stages": [Stage(iterations=6, jitter=16)], "fp_sampling_every": 0}),
        options={"distill": "boxes"},
    ),
    "fastestdet": Pair(
        task="detection",
        num_classes=80,
        image_size=FASTESTDET_SIZE,
        teacher=fastestdet(),
        student=fastestdet(),
        batch_size={"cpu": 8, "cuda": 64},
        rows=rows(diode={"stages": [Stage(iterations=20, jitter=40)], "fp_sampling_every": 0}),
        options={"distill": "heads"},
    ),
}
# For the tests: everything small.
QUICK = {
    "small": replace(
        SMALL,
        teacher=replace(SIZES["smoke"].pairs["example"].teacher, weights=None),
        student=SIZES["smoke"].pairs["example"].student,
        rows={**SIZES["smoke"].pairs["example"].rows, **{method: SMALL.rows[method] for method in READ}},
        training={**SIZES["smoke"].pairs["example"].training, "batch_size": 4},
    ),
    "resnet34-18": replace(
        PAIRS["resnet34-18"],
        image_size=(32, 32),
        teacher=NetworkSpec(network="datafree/resnet", args={"depth": 8, "width": 4}),
        student=NetworkSpec(network="datafree/resnet", args={"depth": 8, "width": 2}),
        batch_size={"cpu": 4, "cuda": 4},
        rows={
            name: replace(row, source={**row.source, "width": 4}) if name in MAKERS else row
            for name, row in PAIRS["resnet34-18"].rows.items()
        },
    ),
    "unet": replace(
        PAIRS["unet"],
        image_size=(32, 32),
        teacher=NetworkSpec(network="datafree/unet", args={"width": 4, "depth": 2}),
        student=NetworkSpec(network="datafree/unet", args={"width": 2, "depth": 2}),
        batch_size={"cpu": 4, "cuda": 4},
        rows=rows(degan={"width": 4}),
    ),
    "yolov3-tiny": replace(
        PAIRS["yolov3-tiny"],
        image_size=(64, 64),
        teacher=yolo(1 / 32, ANCHORS[256, 320]),
        student=yolo(1 / 32, ANCHORS[256, 320]),
        batch_size={"cpu": 4, "cuda": 4},
        rows=rows(
            diode={"stages": [Stage(iterations=2, jitter=4)], "fp_sampling_every": 0},
            cgdd={"adversarial_weight": 0.0, "activation_weight": 0.0, "width": 4},
        ),
    ),
}
for _pair in ("yolov3", "retinanet", "fastestdet"):
    QUICK[_pair] = replace(QUICK["yolov3-tiny"], rows=rows(diode=QUICK["yolov3-tiny"].rows["diode"].source))
QUICK["deeplabv3"] = replace(QUICK["unet"], rows=rows(degan={"width": 4}, inversion={}))


def make_rig(pair: Pair, method: str, photos: Path, device: torch.device, speed: Speed = ALL_ON) -> Rig:
    """The networks, untrained, and the source of a row; `photos` are a user's images, where it needs some.

    The seed is the same for every call, and so are the networks.
    """
    modes.seed_everything(0)
    row = pair.rows[method]
    task = TASKS[pair.task](num_classes=pair.num_classes, image_size=pair.image_size, **{**pair.options, **row.task})
    learning = Training(**{**pair.training, **row.training, "speed": speed})
    batch = pair.batch_size.get(device.type)
    if batch is not None:
        learning = replace(learning, batch_size=batch)
    dtype = modes.choose_precision(learning.precision, device)
    source, share = make_source(pair, row, task, photos, learning, batch)
    networks: dict[str, nn.Module] = {
        "teacher": prepare(pair.teacher, task, "teacher", device, dtype, speed=learning.speed),
        "student": prepare(pair.student, task, "student", device, dtype, speed=learning.speed),
    }
    size = pair.image_size
    if method in MAKERS:
        conditions = task.num_classes if method == "cgdd" else 0
        networks["generator"] = ResizeGenerator(size, source.latent, source.width, conditions)
    elif method == "degan":
        networks["generator"] = Generator(size, source.latent, source.width)
        networks["discriminator"] = Discriminator(size, source.width)
    for network in networks.values():
        learning.speed.laid_out(network.to(device))
    return Rig(
        method=method,
        task=task,
        source=source,
        training=replace(learning, steps=ENDLESS),
        networks=networks,
        device=device,
        dtype=dtype,
        share=share,
    )


def make_source(
    pair: Pair, row: Row, task: Task, photos: Path, training: Training, batch: int | None
) -> tuple[Any, float]:
    """The source of a row, cut short, and the share of its iterations that is left. Its one update comes first."""
    if row.method in READ:
        return _reader(row.method, task, photos), 1.0
    changes: dict[str, Any] = {} if batch is None else {"batch_size": batch}
    if row.method == "degan":
        return Degan(proxy=Folder(path=photos), **{**row.source, **changes, "warmup": 0, "update_every": ENDLESS}), 1.0
    source: Any = SOURCES[row.method](**{**row.source, **changes})
    share = 1.0
    if batch and hasattr(source, "bank_size"):  # memory is taken at once
        changes["bank_size"] = min(source.bank_images(), 16 * batch)
    if hasattr(source, "iterations"):
        share = min(source.iterations, pair.iterations) / source.iterations
        changes["iterations"] = round(share * source.iterations)
    if row.method == "cmi" and batch:  # as many for each image of a batch as published
        changes |= {"negatives": 16 * batch, "memory": 160 * batch}
    elif row.method == "cmi":  # it remembers as many images as it does at the end of the row's run
        updates = sum(source.due(step) for step in range(-source.warmup, training.steps))
        changes["memory"] = min(source.memory, updates * source.batch_size)
    return dataclasses.replace(source, **changes, warmup=0, update_every=ENDLESS), share


def _reader(method: str, task: Task, photos: Path) -> Any:
    if method == "dataset":
        made = photos.parent / "made"
        if not made.exists():
            shards = Shards(made, {})
            shards.begin([f"class {label}" for label in range(task.num_classes)])
            targets = task.sample_targets(256, torch.device("cpu"))
            shards.write(0, task, Batch(images=torch.rand(256, 3, *task.image_size), targets=targets))
            shards.finish(task)
        return Dataset(path=made)
    if method == "mixed":
        return Mixed(parts=[Folder(path=photos), Noise()])
    if method == "procedural":
        return Procedural(batch_size=64, bank_size=256, warmup=0, update_every=ENDLESS)
    return Folder(path=photos, cache_mib=0) if method == "folder" else Noise()  # each image read anew
