"""The rows of the CamVid benchmark: sizes, sources and the paper's figures (arXiv 2011.00809), as plain data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cells import Stop
from datafree.networks.load import NetworkSpec
from datafree.recipe.training import Training
from datafree.sources import Degan, Dfad, Folder, ImageSource, Mixed, Noise
from datafree.tasks.segmentation import Segmentation

CLASSES, IGNORED = 11, 11  # CamVid's classes; line 12 of classes.txt is "unlabelled"
PUBLISHED = {  # mIoU %, pixel accuracy %: Table 1 of the paper; DFAD's own table has 11 classes and mIoU only
    "teacher": (56.08, 90.02),
    "student_labels": (49.16, 88.51),
    "kd_true": (49.97, 88.74),
    "kd_proxy": (29.43, 70.52),
    "dcgan": (22.74, 66.91),
    "degan": (23.59, 67.70),
    "degan_weighted": (25.95, 73.11),
    "degan_mixed": (28.48, 76.23),
    "degan_weighted_mixed": (30.52, 75.02),
    "dfad": (53.5, None),
    "noise": (1.8, None),
}
TABLE_2 = [(0, 0), (0, 10), (10, 0), (10, 10), (5, 10)]  # (entropy weight, diversity weight)
PUBLISHED_2 = {
    "plain": [(22.74, 66.91), (21.72, 64.88), (23.59, 67.70), (20.41, 64.27), (23.04, 66.28)],
    "weighted": [(22.74, 66.91), (25.95, 73.11), (23.59, 67.70), (18.11, 59.84), (25.54, 69.37)],
}
RATIOS = [(1, 0), (3, 1), (1, 1), (1, 3), (0, 1)]  # alpha : beta; Figure 6's own ratios are not known


@dataclass(frozen=True, kw_only=True)
class Size:
    """What sizes differ in."""

    side: int  # pixels, square
    teacher: NetworkSpec
    student: NetworkSpec
    teacher_steps: int
    student_steps: int
    batch_size: int
    lr: float
    gan_updates: int
    gan_width: int
    gan_batch: int
    dfad: dict[str, Any]  # the source's options
    dfad_steps: int
    dfad_batch: int
    dfad_lr: float
    schedules: tuple[int, ...] = ()  # other numbers of GAN updates, each for weighted diversity and its mixture


CPU = Size(
    side=64,
    teacher=NetworkSpec(network="datafree/unet", args={"width": 24}),
    student=NetworkSpec(network="datafree/unet", args={"width": 12}),
    teacher_steps=2500,
    student_steps=1500,
    batch_size=16,
    lr=2e-3,
    gan_updates=1000,
    gan_width=32,
    gan_batch=16,
    dfad={"width": 32, "batch_size": 16, "on_collapse": "ignore"},
    dfad_steps=1500,
    dfad_batch=16,
    dfad_lr=0.1,
)
SIZES = {
    "cpu": CPU,
    "long": replace(  # the same networks: the paper's GAN updates and fewer, students of twice its 120 epochs and more
        CPU,
        student_steps=6000,
        gan_updates=9400,  # 150,000 images at 16
        schedules=(1000, 3000),
        dfad_steps=6000,
    ),
    "paper": Size(  # DeGAN's and DFAD's published settings: docs/methods.md
        side=128,
        teacher=NetworkSpec(network="smp/deeplabv3", args={"encoder": "resnet50", "output_stride": 8}),
        student=NetworkSpec(network="smp/deeplabv3", args={"encoder": "mobilenet_v2", "output_stride": 16}),
        teacher_steps=2760,  # 120 epochs of 367 images at 16
        student_steps=2760,
        batch_size=16,
        lr=1e-3,
        gan_updates=9400,  # 150,000 images at 16
        gan_width=64,
        gan_batch=16,
        dfad={"width": 64, "batch_size": 64, "on_collapse": "ignore"},
        dfad_steps=15000,  # 300 epochs of 50
        dfad_batch=64,
        dfad_lr=0.1,
    ),
    "smoke": Size(  # for the tests: every row, nothing learnt
        side=32,
        teacher=NetworkSpec(network="datafree/unet", args={"width": 4}),
        student=NetworkSpec(network="datafree/unet", args={"width": 2}),
        teacher_steps=2,
        student_steps=2,
        batch_size=4,
        lr=1e-3,
        gan_updates=2,
        gan_width=4,
        gan_batch=4,
        dfad={"width": 4, "batch_size": 4, "on_collapse": "ignore"},
        dfad_steps=2,
        dfad_batch=4,
        dfad_lr=0.1,
        schedules=(1,),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row for one seed: where it works and what it may use."""

    size: Size
    seed: int
    data: Path
    folder: Path  # of this seed
    stop: Stop

    def task(self, **options: Any) -> Segmentation:
        side = self.size.side
        return Segmentation(num_classes=CLASSES, image_size=(side, side), ignore_index=IGNORED, **options)

    def photos(self, which: str) -> Folder:
        path = {
            "true": self.data / "camvid" / "train" / "images",
            "proxy": self.data / "road-proxy" / "images",
        }[which]
        return Folder(path=path, crop="random", flip=True)

    def gan(self, entropy: float, diversity: float, kind: str, updates: int | None = None) -> Degan:
        return Degan(
            proxy=self.photos("proxy"),
            entropy_weight=entropy,
            diversity_weight=diversity,
            diversity="weighted" if kind == "weighted" else "plain",
            width=self.size.gan_width,
            batch_size=self.size.gan_batch,
            warmup=self.size.gan_updates if updates is None else updates,
        )

    def trained_gan(self, row: str) -> Degan:
        """The generator that another row has trained."""
        return Degan(
            proxy=self.photos("proxy"),
            width=self.size.gan_width,
            generator=self.folder / row / "generator.safetensors",
        )

    def mixed(self, row: str, ratio: tuple[float, float]) -> Mixed:
        return Mixed(parts=[self.photos("proxy"), self.trained_gan(row)], ratio=ratio)

    def training(self, **changes: Any) -> Training:
        size = self.size
        plain = Training(
            steps=size.student_steps,
            batch_size=size.batch_size,
            lr=size.lr,
            lr_schedule="step",
            seed=self.seed,
            save_every=250,
            picture_every=100_000,
        )
        return replace(plain, **changes)


def table_2_row(entropy: int, diversity: int, kind: str) -> str:
    """Which row holds this setting of Table 2."""
    if (entropy, diversity) == (0, 0):
        return "dcgan"
    if diversity == 0:
        return "degan"
    return (
        "degan_weighted"
        if (entropy, diversity, kind) == (0, 10, "weighted")
        else f"table2/{kind}_e{entropy}_d{diversity}"
    )


def ratio_row(gan: str, alpha: int, beta: int) -> str:
    """Which row holds this mixing ratio."""
    if beta == 0:
        return "kd_proxy"
    if alpha == 0:
        return gan
    return "degan_weighted_mixed" if (gan, alpha, beta) == ("degan_weighted", 1, 1) else f"ratio/{gan}_{alpha}_{beta}"


def schedule_row(row: str, updates: int, size: Size) -> str:
    """Which row is `row` with so many GAN updates."""
    return row if updates == size.gan_updates else f"schedule/{row}_{updates}"


SOURCES: dict[str, Callable[[Cell], ImageSource]] = {
    "kd_true": lambda c: c.photos("true"),
    "kd_proxy": lambda c: c.photos("proxy"),
    "dcgan": lambda c: c.gan(0, 0, "plain"),
    "degan": lambda c: c.gan(10, 0, "plain"),
    "degan_weighted": lambda c: c.gan(0, 10, "weighted"),
    "degan_mixed": lambda c: c.mixed("degan", (1, 1)),
    "degan_weighted_mixed": lambda c: c.mixed("degan_weighted", (1, 1)),
    "dfad": lambda c: Dfad(**c.size.dfad),
    "noise": lambda c: Noise(),
}
MAIN = ["teacher", "student_labels", *SOURCES]
GANS = {"degan_mixed": "degan", "degan_weighted_mixed": "degan_weighted"}  # row -> the row that trains its generator
for _e, _d in TABLE_2:
    for _kind in ("plain", "weighted"):
        SOURCES.setdefault(table_2_row(_e, _d, _kind), lambda c, e=_e, d=_d, k=_kind: c.gan(e, d, k))  # type: ignore[misc]
for _gan in ("dcgan", "degan_weighted"):
    for _ratio in RATIOS:
        SOURCES.setdefault(ratio_row(_gan, *_ratio), lambda c, g=_gan, r=_ratio: c.mixed(g, r))  # type: ignore[misc]
        GANS |= {ratio_row(_gan, *_ratio): _gan} if all(_ratio) else {}
EXTRA = [name for name in SOURCES if name not in MAIN]  # one seed only
for _updates in sorted({updates for size in SIZES.values() for updates in size.schedules}):
    _gan, _both = (f"schedule/{name}_{_updates}" for name in ("degan_weighted", "degan_weighted_mixed"))
    SOURCES[_gan] = lambda c, u=_updates: c.gan(0, 10, "weighted", u)  # type: ignore[misc]
    SOURCES[_both] = lambda c, g=_gan: c.mixed(g, (1, 1))  # type: ignore[misc]
    GANS[_both] = _gan


def extra_rows(size: Size) -> list[str]:
    """The rows that are run for one seed only: Table 2, ratios, other schedules."""
    named = ("degan_weighted", "degan_weighted_mixed")
    return [*EXTRA, *(schedule_row(name, updates, size) for updates in size.schedules for name in named)]


def needs(row: str) -> list[str]:
    """The rows of the same seed whose networks a row uses, in the order in which they are trained."""
    if row in ("teacher", "student_labels"):
        return []
    return ["teacher", *([GANS[row]] if row in GANS else [])]


def with_needs(rows: Sequence[str]) -> list[str]:
    """The rows and those that they use, each once and after what it uses."""
    return list(dict.fromkeys(other for row in rows for other in [*needs(row), row]))
