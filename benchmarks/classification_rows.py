"""The rows of the classification benchmark: networks, methods and their options, as plain data.

Where a figure is a paper's, the method's own file names it; what is set here for the CPU is what a CPU allows.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from datafree.networks.load import NetworkSpec
from datafree.sources import SOURCES
from pairs import Row, Size, without
from supervised import Optimizer

CLASSES = 10  # of Fashion-MNIST and of CIFAR-10


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A teacher, a student, their images, and the rows that are run with them."""

    images: Literal["fashion-mnist", "cifar10", "example"]
    side: int  # pixels, square
    teacher: NetworkSpec  # without weights it is trained here, anew for each seed; weights: may hold $NAME
    student: NetworkSpec
    epochs: int = 0  # of the teacher's training
    batch_size: int = 128  # of training with labels
    lr: float = 0.1  # of training with labels
    optimizer: Optimizer = "sgd"  # of training with labels
    shift: int = 2  # pixels, of training with labels
    training: dict[str, Any]  # of every student
    task: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, Row]


# Fashion-MNIST on a CPU. Every generator is narrow, every batch small; rates follow from that.

PROXY = Row(method="folder", source={"path": "$DATAFREE_DATA/road-proxy/images", "crop": "random", "flip": True})
CGDD = Row(
    method="cgdd",
    source={
        "width": 16,
        "batch_size": 48,
        "lr": 5e-3,
        "target_weight": 0.5,
        "bn_weight": 20.0,
        "bn_momentum": 0.9,
        "balance_weight": 1.0,
        "adversarial_weight": 5.0,
        "replay": 0.75,
        "warmup": 150,
        "update_every": 1,
    },
    training={"label_weight": 0.02, "attention_weight": 100.0},
)
CPU_ROWS = {
    "teacher": Row(method="teacher"),
    "student_labels": Row(method="labels"),
    "kd_real": Row(method="real"),
    "kd_proxy": PROXY,
    "noise": Row(method="noise"),
    "cgdd": CGDD,
    "dafl": Row(method="dafl", source={"width": 16, "latent": 256, "batch_size": 96, "lr": 5e-3, "update_every": 2}),
    "dfad": Row(
        method="dfad",
        source={"network": "resize", "objective": "l1", "width": 16, "batch_size": 96, "update_every": 2},
        task={"distill": "l1"},
    ),
    "zskt": Row(
        method="zskt",
        source={"width": 16, "batch_size": 128, "update_every": 3},
        training={"attention_weight": 2500.0},
        task={"temperature": 1.0},
    ),
    "inversion": Row(
        method="inversion",
        source={"iterations": 100, "batch_size": 128, "lr": 0.05, "warmup": 15, "shift": 2, "bank_size": 4000},
    ),
    "cmi": Row(
        method="cmi",
        source={
            "iterations": 40,
            "lr": 5e-3,
            "width": 16,
            "batch_size": 64,
            "bn_weight": 10.0,
            "warmup": 10,
            "update_every": 60,
            "shift": 2,
            "bank_size": 4000,
        },
    ),
    "fast": Row(
        method="fast",
        source={
            "iterations": 5,
            "generator_lr": 3e-3,
            "width": 16,
            "batch_size": 64,
            "warmup": 30,
            "update_every": 8,
            "shift": 2,
            "bank_size": 20_000,
        },
    ),
    "cgdd_no_target": without(CGDD, target_weight=0.0),
    "cgdd_no_labels": replace(CGDD, training={**CGDD.training, "label_weight": 0.0}),
    "cgdd_no_attention": replace(CGDD, training={**CGDD.training, "attention_weight": 0.0}),
    "cgdd_no_adversarial": without(CGDD, adversarial_weight=0.0),
    "cgdd_no_bn": without(CGDD, bn_weight=0.0),
    "cgdd_no_balance": without(CGDD, balance_weight=0.0),
    "cgdd_no_activation": without(CGDD, activation_weight=0.0),
}
GREY: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "channels": 1}
CPU = Pair(
    images="fashion-mnist",
    side=28,
    teacher=NetworkSpec(
        network="datafree/resnet",
        args={"depth": 14, "width": 16, "stride": 2},
        weights=Path("builtin:fashion/teacher.safetensors"),
        **GREY,
    ),
    student=NetworkSpec(network="datafree/resnet", args={"depth": 8, "width": 12, "stride": 2}, **GREY),
    training={"steps": 1000, "batch_size": 128, "lr": 1e-2, "weight_decay": 0.0, "shift": 2, "mixup": 0.5},
    task={"temperature": 2.0},
    rows=CPU_ROWS,
)

# The same for as long as it takes to come near the teacher: the two best methods, a student a third wider, eight times
# the images and more. Generators work less often, so that most of the time is the student's.

LONG = replace(
    CPU,
    student=replace(CPU.student, args={"depth": 8, "width": 16, "stride": 2}),
    training={**CPU.training, "steps": 16_000, "batch_size": 64},
    rows={
        "teacher": CPU_ROWS["teacher"],
        "kd_real": CPU_ROWS["kd_real"],
        "cgdd": replace(without(CGDD, update_every=4), training={**CGDD.training, "steps": 8000}),
        "fast": without(CPU_ROWS["fast"], update_every=24),
    },
)

# CIFAR-10: the public weights of the CIFAR ResNets, files of $DATAFREE_DATA.

COLOUR: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
JPEG = (
    "Top-1 is on JPEG copies (quality 75) of CIFAR-10's 10,000 test images, which cost pretrained teachers about ten "
    "points: **no figure here is CIFAR-10's own**; compare students with their teacher. `exact 100`: the first 100 "
    "test images in their original pixels, on which one image is one point."
)


def public_resnet(depth: int) -> NetworkSpec:
    """A CIFAR ResNet with its public weights."""
    weights = Path(f"$DATAFREE_DATA/cifar10/teachers/resnet{depth}.safetensors")
    return NetworkSpec(network="datafree/resnet", args={"depth": depth}, weights=weights, **COLOUR)


# This teacher's distance to the statistics is 180 at first and 45 after 100 updates (Fashion-MNIST's: 23 and 5). With
# that pair's weights the generator never shows what its labels say: the loss on them stays above 4; with these 0.3.
CIFAR_CGDD = without(CGDD, update_every=4, target_weight=1.0, bn_weight=1.0)
CIFAR = Pair(
    images="cifar10",
    side=32,
    teacher=public_resnet(20),
    student=NetworkSpec(network="datafree/resnet", args={"depth": 20, "width": 8}, **COLOUR),
    training={"steps": 2000, "batch_size": 128, "lr": 2e-3, "weight_decay": 0.0, "shift": 4, "mixup": 0.5},
    rows={
        "teacher": CPU_ROWS["teacher"],
        "kd_real": CPU_ROWS["kd_real"],
        "cgdd": CIFAR_CGDD,
        "fast": without(CPU_ROWS["fast"], width=32, shift=4, target_weight=1.0, bn_weight=3.0),
        "noise": CPU_ROWS["noise"],
    },
)

# CIFAR-10 on a GPU: the published settings (docs/methods.md), the student's schedule that of CMI's comparison. The
# published figures for resnet34-18 are those of Fast-DFKD's comparison; DFAD's is its own paper's.

PAPER_CGDD = Row(  # weights as for CIFAR_CGDD: these teachers are deeper still
    method="cgdd",
    source={"batch_size": 256, "warmup": 2000, "target_weight": 1.0, "bn_weight": 1.0},
    training={"label_weight": 0.02, "attention_weight": 100.0},
)
PAPER_ROWS = {
    "teacher": Row(method="teacher", published=95.70),
    "student_labels": Row(method="labels", published=95.20),
    "kd_real": Row(method="real"),
    "kd_proxy": PROXY,
    "noise": Row(method="noise"),
    "cgdd": PAPER_CGDD,  # its abstract: 99.63 % of a teacher's accuracy that it does not name
    "dafl": Row(
        method="dafl",
        training={"steps": 240_000, "batch_size": 1024, "lr_schedule": "step"},
        task={"temperature": 1.0},
        published=92.22,
    ),
    "dfad": Row(
        method="dfad",
        source={"network": "resize", "objective": "l1", "batch_size": 256, "decay_at": (0.2, 0.4)},
        training={"steps": 125_000, "lr_schedule": "step"},
        task={"distill": "l1"},
        published=93.3,
    ),
    "zskt": Row(
        method="zskt",
        training={
            "steps": 800_000,
            "batch_size": 128,
            "optimizer": "adam",
            "lr": 2e-3,
            "weight_decay": 0.0,
            "attention_weight": 2500.0,
        },
        task={"temperature": 1.0},
        published=93.32,
    ),
    "inversion": Row(method="inversion", published=93.26),
    "cmi": Row(method="cmi", published=94.84),
    "fast": Row(method="fast", training={"steps": 88_000, "lr": 0.2}, published=94.05),
    "cgdd_no_target": without(PAPER_CGDD, target_weight=0.0),
    "cgdd_no_labels": replace(PAPER_CGDD, training={**PAPER_CGDD.training, "label_weight": 0.0}),
    "cgdd_no_attention": replace(PAPER_CGDD, training={**PAPER_CGDD.training, "attention_weight": 0.0}),
    "cgdd_no_adversarial": without(PAPER_CGDD, adversarial_weight=0.0),
    "cgdd_no_bn": without(PAPER_CGDD, bn_weight=0.0),
    "cgdd_no_balance": without(PAPER_CGDD, balance_weight=0.0),
    "cgdd_no_activation": without(PAPER_CGDD, activation_weight=0.0),
}
PAPER_TRAINING: dict[str, Any] = {"steps": 80_000, "batch_size": 256, "optimizer": "sgd", "lr": 0.1, "save_every": 2000}


def small_stem(name: str, num_classes: int) -> nn.Module:
    """timm's ResNet `name` with the stem of the papers' CIFAR networks: 3 x 3, at full size, no pooling after it."""
    import timm

    network: Any = timm.create_model(name, num_classes=num_classes)
    network.conv1 = nn.Conv2d(3, network.conv1.out_channels, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    assert isinstance(network, nn.Module)
    return network


def papers_resnet(name: str) -> NetworkSpec:
    """torchvision's ResNet `name` (timm's code) with the papers' stem."""
    return NetworkSpec(network="classification_rows:small_stem", args={"name": name, "num_classes": CLASSES}, **COLOUR)


SIZES = {
    "cpu": Size(
        heading="Classification: Fashion-MNIST, small networks on a CPU",
        note="Top-1 is on Fashion-MNIST's 10,000 test images.",
        pairs={"fashion-mnist": CPU},
    ),
    "long": Size(
        heading="Classification: Fashion-MNIST, long runs on a CPU",
        note="Top-1 is on Fashion-MNIST's 10,000 test images. 16,000 steps of 64 images (`cgdd`: 8,000).",
        pairs={"fashion-mnist": LONG},
    ),
    "cifar": Size(
        heading="Classification: CIFAR-10 as JPEG copies, small networks on a CPU",
        note=JPEG,
        pairs={"cifar10": CIFAR},
    ),
    "paper": Size(
        heading="Classification: CIFAR-10 as JPEG copies, published networks",
        note=f"{JPEG} Published figures are for the original pixels and a teacher of their own.",
        pairs={
            "cifar10-resnet56-20": Pair(
                images="cifar10",
                side=32,
                teacher=public_resnet(56),
                student=NetworkSpec(network="datafree/resnet", args={"depth": 20}, **COLOUR),
                training=PAPER_TRAINING,
                task={"temperature": 20.0},
                rows={name: replace(row, published=None) for name, row in PAPER_ROWS.items()},
            ),
            "cifar10-resnet34-18": Pair(
                images="cifar10",
                side=32,
                teacher=papers_resnet("resnet34"),
                student=papers_resnet("resnet18"),
                epochs=200,
                shift=4,
                training=PAPER_TRAINING,
                task={"temperature": 20.0},
                rows=PAPER_ROWS,
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
    "memory": 16,
    "negatives": 4,
    "warmup": 1,
    "update_every": 1,
    "iterations": 2,
}


def shrunk(row: Row) -> Row:
    """The row with whatever costs time made small, as far as its method has it and uses it."""
    kind = SOURCES.get(row.method)
    here = {option.name: row.source.get(option.name, option.default) for option in fields(kind)} if kind else {}
    small = {name: value for name, value in SMALL.items() if here.get(name)}
    training = {**row.training, "steps": 2, "batch_size": 4}
    source = {**row.source, **small, **({"path": "builtin:garments/proxy"} if "path" in here else {})}
    return replace(row, source=source, training=training)


SIZES["smoke"] = Size(
    heading="Classification: smoke",
    note="",
    pairs={
        "example": replace(
            CPU,
            images="example",
            teacher=replace(CPU.teacher, args={"depth": 8, "width": 4}, weights=None),
            student=replace(CPU.student, args={"depth": 8, "width": 2}),
            epochs=1,
            batch_size=10,
            rows={name: shrunk(row) for name, row in CPU_ROWS.items()},
        ),
        "example-stem": replace(
            SIZES["paper"].pairs["cifar10-resnet34-18"],
            images="example",
            side=28,
            teacher=papers_resnet("resnet18"),
            student=papers_resnet("resnet18"),
            epochs=1,
            batch_size=20,
            rows={"teacher": PAPER_ROWS["teacher"], "cgdd": shrunk(PAPER_CGDD)},
        ),
    },
)
