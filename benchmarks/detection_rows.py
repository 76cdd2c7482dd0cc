"""The rows of the detection benchmark: networks, methods and their options, as plain data.

DIODE's published settings (docs/methods.md) are its options' defaults; what is set here for the CPU is what a CPU
allows and was found on small detectors. Boxes for generators (`fast`, `cgdd`) and several boxes an image are ours.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from datafree.networks.load import NetworkSpec
from datafree.sources import SOURCES
from datafree.sources.diode.stages import Stage, published_stages
from pairs import Row, Size, without


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A teacher, a student, their labelled images, and the rows that are run with them."""

    test: str  # a COCO file, which may hold $NAME: its images score every row
    train: str | None = (
        None  # another: its images train the teacher and the rows with real images; None: there are none
    )
    limit: int | None = None  # images of each, the first; None: all
    num_classes: int
    image_size: tuple[int, int]  # (height, width), pixels: images are stretched to it
    teacher: NetworkSpec  # without weights it is trained here, anew for each seed; weights: may hold $NAME
    student: NetworkSpec
    labels: dict[str, Any] = field(default_factory=dict)  # of `train_detector` for the teacher
    training: dict[str, Any]  # of every student; with labels its steps, batch_size, lr and weight_decay
    task: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, Row]


def staged(row: Row, **changes: Any) -> Row:
    """The row with other options in each stage of its `diode`."""
    return without(row, stages=[replace(stage, **changes) for stage in row.source["stages"]])


def diode_rows(whole: Row) -> dict[str, Row]:
    """DIODE's three data sets, ablations of the second (one box an image, false-positive sampling) and more boxes."""
    return {
        "onebox": without(whole, fp_sampling_every=0),
        "onebox_fp": whole,
        "onebox_tiles": without(whole, mosaic_share=0.5),
        "no_bn": staged(without(whole, bn_weight=0.0), first_bn_weight=0.0),
        "no_augment": staged(
            without(whole, flip_probability=0.0, brightness=0.0, contrast=0.0, erase_probability=0.0), jitter=0
        ),
        "no_tv": without(whole, tv_l1_weight=0.0),
        "multibox": replace(whole, task={"boxes_per_image": (3, 10), "box_sides": (0.08, 0.35)}),
    }


TEACHER = Row(method="teacher")
NOISE = Row(method="noise")
PROXY = Row(method="folder", source={"path": "$DATAFREE_DATA/road-proxy/images", "crop": "random", "flip": True})

# BCCD: three kinds of blood cells. The teacher is trained in the run, the student has the same form, narrower.

# Sides in pixels, smallest first: three for the finer cells, of 16 pixels, and three for the coarser, of 32.
ANCHORS = {
    # k-means over the 2,804 boxes of the training split, 1 - IoU of the sides as the distance (arXiv 1612.08242),
    # medians as centres, gives [8, 8], [18, 18], [22, 18], [20, 21], [24, 22], [43, 39] here. But a cell of 32 pixels
    # often holds several red cells (21 x 20 pixels), and half of the coarser scale's positives would share cell and
    # anchor with another box. So its anchors are too large for red cells: 1 % share. White cells (41 x 36) fit both.
    (96, 128): [[8, 8], [18, 18], [22, 21], [52, 50], [60, 52], [64, 60]],
    (256, 320): [[20, 20], [45, 47], [54, 49], [50, 57], [60, 60], [108, 105]],  # k-means as above: 3 % share
}
# Of boxes, objectness and classes. Ours: the published (3.54, 64.3, 37.4) are made for 80 classes and learn much worse
# with few.
GAINS = [10, 30, 10]


def yolo(width: float, anchors: list[list[int]]) -> NetworkSpec:
    """YOLOv3-tiny, its layers `width` times as wide as published."""
    args = {"variant": "tiny", "width": width, "anchors": anchors, "loss_gains": GAINS}
    return NetworkSpec(network="datafree/yolov3", args=args, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


SSDLITE = NetworkSpec(network="torchvision/ssdlite320_mobilenet_v3_large", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

# Weights: total variation and the first layer's statistics have to hold down the noise that images begin with and that
# Adam's steps add. Where the deep layers drown them, no statistics are met: with tv_l1_weight 10, bn_weight 1 and
# first_bn_weight 1 the distance rises from 71, noise's, to 105 (docs/methods/diode.md).
DIODE = Row(
    method="diode",
    source={
        "stages": [
            Stage(iterations=250, lr=0.05, lr_end=0.0, jitter=8, detection_weight=0.1, first_bn_weight=100.0),
        ],
        "batch_size": 64,
        "warmup": 4,
        "bank_size": 256,
        "tv_l1_weight": 300.0,
        "bn_weight": 0.1,
        "brightness": 0.1,
        "contrast": 0.1,
        "erase_probability": 0.2,
        "fp_sampling_every": 50,
        "fp_sampling_from": 100,
    },
)
FAST = Row(
    method="fast",
    source={
        "iterations": 5,
        "generator_lr": 3e-3,
        "width": 16,
        "batch_size": 32,
        "warmup": 60,
        "update_every": 10,
        "shift": 4,
        "bank_size": 5000,
        "bn_weight": 1.0,
        "target_weight": 0.1,
        "adversarial_weight": 0.0,
    },
    task={"boxes_per_image": (1, 3)},
)
CGDD = Row(
    method="cgdd",
    source={
        "width": 16,
        "batch_size": 32,
        "lr": 5e-3,
        "target_weight": 0.1,
        "bn_weight": 1.0,
        "bn_momentum": 0.9,
        "balance_weight": 1.0,
        "adversarial_weight": 0.0,
        "activation_weight": 0.0,
        "replay": 0.75,
        "bank_size": 5000,
        "warmup": 200,
        "update_every": 2,
    },
    task={"boxes_per_image": (1, 3)},
)
BCCD = Pair(
    test="$DATAFREE_DATA/bccd/annotations/instances_test.json",
    train="$DATAFREE_DATA/bccd/annotations/instances_train.json",
    num_classes=3,
    image_size=(96, 128),
    teacher=yolo(0.25, ANCHORS[96, 128]),
    student=yolo(0.125, ANCHORS[96, 128]),
    labels={"steps": 2500, "batch_size": 16, "lr": 2e-3, "weight_decay": 1e-5},
    training={"steps": 1200, "batch_size": 32, "lr": 3e-3, "weight_decay": 0.0, "shift": 4},
    task={"distill": "heads"},
    rows={
        "teacher": TEACHER,
        "student_labels": Row(method="labels"),
        "kd_real": Row(method="real"),
        "kd_proxy": PROXY,
        "noise": NOISE,
        **diode_rows(DIODE),
        "fast": FAST,
        "cgdd": CGDD,
        "cross": replace(FAST, student=SSDLITE, task={**FAST.task, "distill": "boxes"}, training={"steps": 600}),
    },
)

# COCO: FastestDet with its author's weights, and a student of the same architecture from scratch.

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))  # specs name fastestdet:make


def fastestdet(num_classes: int = 80, **options: Any) -> NetworkSpec:
    """The detector of examples/fastestdet.py."""
    return NetworkSpec(network="fastestdet:make", args={"num_classes": num_classes}, channel_order="bgr", **options)


# Its boxes are shares of the image, learnt at 352 x 352 pixels: at another size all come out too small or too large
# (AP50 at 192 x 192: 1 %). So images of any size are brought to that one (192 x 192: 29 %, 352 x 352: 33 %).
FASTESTDET_SIZE = (352, 352)
COCO = Pair(
    test="$DATAFREE_DATA/coco-val128/instances_val128.json",
    num_classes=80,
    image_size=(192, 192),
    teacher=fastestdet(weights=Path("$DATAFREE_DATA/weights/fastestdet-coco.safetensors"), input_size=FASTESTDET_SIZE),
    student=fastestdet(input_size=FASTESTDET_SIZE),
    training={"steps": 300, "batch_size": 16, "lr": 3e-3, "weight_decay": 0.0, "shift": 8},
    task={"distill": "heads"},
    rows={
        "teacher": TEACHER,
        "kd_proxy": PROXY,
        "noise": NOISE,
        "onebox_fp": staged(without(DIODE, batch_size=32, warmup=2, bank_size=64, fp_sampling_from=50), iterations=100),
        "fast": without(FAST, batch_size=16, warmup=30, bank_size=1000),
    },
)

# A GPU: DIODE's published stages, half of the image's size and then all of it; few of its images.

PAPER_DIODE = Row(
    method="diode",
    source={
        "stages": published_stages(),
        "batch_size": 128,
        "warmup": 16,
        "bank_size": 2048,
        "tv_l1_weight": 75.0,
        "bn_weight": 0.1,
        "brightness": 0.2,
        "contrast": 0.1,
        "erase_probability": 0.5,
        "fp_sampling_every": 100,
        "fp_sampling_from": 800,
    },
)
PAPER_FAST = without(FAST, width=64, batch_size=128, warmup=200, update_every=20, shift=8, bank_size=8000)
PAPER_CGDD = without(CGDD, width=64, batch_size=128, lr=1e-3, warmup=1000, bank_size=8000)
PAPER_TRAINING = {"batch_size": 64, "lr": 1e-3, "weight_decay": 0.0, "shift": 8, "save_every": 2000}

SIZES = {
    "cpu": Size(
        heading="Detection: small networks on a CPU",
        note=(
            "BCCD: YOLOv3-tiny, a quarter as wide as published, trained in the run, and half of that as its student "
            "(`cross`: SSDLite); images of 128 x 96 pixels, AP on the 72 of the test split. COCO: FastestDet, its "
            "student the same from scratch; images of 192 x 192 pixels, enlarged to its own 352, AP on the first 128 "
            "of val2017. Cut against the paper: DIODE makes 256 images (COCO: 64) in one stage of 250 (100) iterations "
            "instead of 120,064 in two of 2,500 and 1,500; students learn for 1,200 steps of 32 images (`cross`: 600; "
            "COCO: 300 of 16)."
        ),
        pairs={"bccd": BCCD, "coco": COCO},
    ),
    "paper": Size(
        heading="Detection: published stages on a GPU",
        note=(
            "BCCD: YOLOv3-tiny, trained in the run, and half as wide as its student (`cross`: SSDLite); images of "
            "320 x 256 pixels, AP on the 72 of the test split. COCO: FastestDet at 352 x 352 pixels, AP on the first "
            "128 of val2017. DIODE has its published two stages and weights, for detectors that are not its own, and "
            "makes 2,048 images (COCO: 4,096) instead of 120,064."
        ),
        pairs={
            "bccd": replace(
                BCCD,
                image_size=(256, 320),
                teacher=yolo(1.0, ANCHORS[256, 320]),
                student=yolo(0.5, ANCHORS[256, 320]),
                labels={"steps": 6000, "batch_size": 32, "lr": 1e-3, "weight_decay": 1e-5},
                training={**PAPER_TRAINING, "steps": 12_000},
                rows={
                    **BCCD.rows,
                    **diode_rows(PAPER_DIODE),
                    "fast": PAPER_FAST,
                    "cgdd": PAPER_CGDD,
                    "cross": replace(PAPER_FAST, student=SSDLITE, task={**FAST.task, "distill": "boxes"}),
                },
            ),
            "coco": replace(
                COCO,
                image_size=FASTESTDET_SIZE,
                training={**PAPER_TRAINING, "steps": 40_000},
                rows={**COCO.rows, "onebox_fp": without(PAPER_DIODE, warmup=32, bank_size=4096), "fast": PAPER_FAST},
            ),
        },
    ),
}

# For the tests: every row, nothing learnt.

SMALL = {
    "width": 4,
    "latent": 6,
    "batch_size": 4,
    "bank_size": 16,
    "warmup": 1,
    "update_every": 1,
    "iterations": 2,
    "stages": [Stage(iterations=2, jitter=4, first_bn_weight=1.0)],
    "fp_sampling_every": 1,
    "fp_sampling_from": 1,
}


def shrunk(row: Row) -> Row:
    """The row with whatever costs time made small, as far as its method has it and uses it."""
    kind = SOURCES.get(row.method)
    here = {option.name: row.source.get(option.name, option.default) for option in fields(kind)} if kind else {}
    small = {name: value for name, value in SMALL.items() if here.get(name)}
    source = {**row.source, **small, **({"path": "builtin:garments/proxy"} if "path" in here else {})}
    return replace(row, source=source, training={**row.training, "steps": 2, "batch_size": 4})


EXAMPLE = replace(
    BCCD,
    test="builtin:garments/eval/annotations.json",
    train="builtin:garments/eval/annotations.json",
    limit=6,
    num_classes=5,
    image_size=(64, 64),
    teacher=yolo(0.03, [[10, 20], [14, 36], [24, 30], [30, 30], [36, 36], [40, 24]]),
    student=yolo(0.01, [[10, 20], [14, 36], [24, 30], [30, 30], [36, 36], [40, 24]]),
    labels={"steps": 2, "batch_size": 4, "lr": 1e-3, "weight_decay": 0.0},
    rows={name: shrunk(row) for name, row in BCCD.rows.items()},
)
SIZES["smoke"] = Size(
    heading="Detection: smoke",
    note="",
    pairs={
        "example": EXAMPLE,
        "example-fastestdet": replace(
            EXAMPLE,
            teacher=fastestdet(5),
            student=fastestdet(5),
            rows={name: shrunk(row) for name, row in COCO.rows.items()},
        ),
    },
)
