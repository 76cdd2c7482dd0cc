"""CamVid: the paper's Table 1, Table 2 and mixing-ratio sweep (arXiv 2011.00809), DFAD and noise, over seeds.

    python benchmarks/camvid.py --size cpu --data DIR         # everything; DIR defaults to $DATAFREE_DATA
    python benchmarks/camvid.py --size paper --max-time 9m    # on a GPU, in pieces: run it again until it is done

Every cell (a row with a seed) is a process of its own and leaves a small JSON file in --work; a cell that is there is
not run again. The results go to benchmarks/results/camvid-SIZE.json, the tables to docs/results.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from torch import nn

from cells import Stop, measure, read_cells, run_cells, seconds, spread
from datafree.engine.artifacts import save_artefacts
from datafree.engine.build_networks import prepare
from datafree.engine.loop import distill
from datafree.evaluation.scoring import evaluate
from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.load import NetworkSpec
from datafree.ops import modes
from datafree.recipe.training import Training
from datafree.sources import Degan, Dfad, Folder, ImageSource, Mixed, Noise
from datafree.storage.run_directory import Run
from datafree.tasks.segmentation import Segmentation
from results import write_results, write_table
from supervised import load_folder, train_supervised

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
    """What the two sizes differ in."""

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


SIZES = {
    "cpu": Size(
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

    def gan(self, entropy: float, diversity: float, kind: str) -> Degan:
        return Degan(
            proxy=self.photos("proxy"),
            entropy_weight=entropy,
            diversity_weight=diversity,
            diversity="weighted" if kind == "weighted" else "plain",
            width=self.size.gan_width,
            batch_size=self.size.gan_batch,
            warmup=self.size.gan_updates,
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
for _e, _d in TABLE_2:
    for _kind in ("plain", "weighted"):
        SOURCES.setdefault(table_2_row(_e, _d, _kind), lambda c, e=_e, d=_d, k=_kind: c.gan(e, d, k))  # type: ignore[misc]
for _gan in ("dcgan", "degan_weighted"):
    for _ratio in RATIOS:
        SOURCES.setdefault(ratio_row(_gan, *_ratio), lambda c, g=_gan, r=_ratio: c.mixed(g, r))  # type: ignore[misc]
EXTRA = [name for name in SOURCES if name not in MAIN]  # one seed only


def run_cell(row: str, cell: Cell) -> dict[str, float]:
    """Train and score one row; returns its metrics. Raises Interrupted when time is up."""
    training = cell.training()
    device = modes.choose_device(training.device)
    dtype = modes.choose_precision("auto", device)
    folder = cell.folder / row
    task = cell.task(distill="l1") if row == "dfad" else cell.task()
    modes.seed_everything(cell.seed)
    student: nn.Module
    if row in ("teacher", "student_labels"):
        spec = cell.size.teacher if row == "teacher" else cell.size.student
        student = prepare(spec, task, row, device, dtype)
        wide = (cell.size.side, round(cell.size.side * 170 / 128))  # the whole picture: crops move sideways
        images, masks = load_folder(
            cell.data / "camvid" / "train", image_size=wide, num_classes=CLASSES, ignore_index=IGNORED
        )
        train_supervised(
            student,
            task,
            images,
            masks,
            steps=cell.size.teacher_steps if row == "teacher" else cell.size.student_steps,
            batch_size=cell.size.batch_size,
            lr=cell.size.lr,
            weight_decay=5e-4,
            seed=cell.seed,
            image_size=task.image_size,
            decay="step",
            augment=True,
            device=device,
            dtype=dtype,
            stop=lambda: cell.stop() is not None,
            state_path=folder / "state.pt",
        )
        if row == "teacher":
            save_weights(student.network, folder / "teacher.safetensors")
    else:
        teacher = prepare(
            replace(cell.size.teacher, weights=cell.folder / "teacher" / "teacher.safetensors"),
            task,
            row,
            device,
            dtype,
        )
        modes.seed_everything(cell.seed)
        student = prepare(cell.size.student, task, row, device, dtype)
        if row == "dfad":
            size = cell.size
            training = cell.training(
                optimizer="sgd", lr=size.dfad_lr, steps=size.dfad_steps, batch_size=size.dfad_batch
            )
        source = SOURCES[row](cell)
        run = Run(folder, {"row": row, "training": asdict(training)})
        distill(
            task=task,
            teacher=teacher,
            student=student,
            source=source,
            training=training,
            run=run,
            stop=cell.stop,
        )
        run.close()
        save_artefacts(source, run.path)
    labelled = task.open_dataset(cell.data / "camvid" / "val")
    return evaluate(student, task, labelled, device=device).values


def run_one(row: str, size: str, seed: int, data: Path, work: Path, max_time: float) -> int:
    """Run a cell in this process and leave its JSON file; 75 if time was up before its end."""

    def run(stop: Stop) -> dict[str, float]:
        return run_cell(row, Cell(size=SIZES[size], seed=seed, data=data, folder=work / f"seed{seed}", stop=stop))

    return measure((row, seed), work, max_time, run)


def collect(size: str, work: Path, command: str) -> None:
    """Write the results file and the tables from the cells that are there."""
    rows = read_cells(work, [*MAIN, *EXTRA])
    write_results("camvid", size, rows, command=command)
    write_table("results.md", f"camvid-{size}", tables(rows))


def tables(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: ours beside the published numbers."""

    def ours(row: str, metric: str) -> str:
        return spread([100 * cell["metrics"][metric] for cell in rows.get(row, [])])

    def theirs(value: float | None) -> str:
        return "–" if value is None else f"{value:.1f}"

    lines = [
        "| row | mIoU % | pixel accuracy % | seeds | minutes | paper mIoU | paper accuracy |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in MAIN:
        cells = rows.get(row, [])
        minutes = f"{mean([c['seconds'] for c in cells]) / 60:.1f}" if cells else "–"
        published = PUBLISHED[row]
        lines.append(
            f"| {row} | {ours(row, 'miou')} | {ours(row, 'pixel_accuracy')} | {len(cells)} | {minutes} "
            f"| {theirs(published[0])} | {theirs(published[1])} |"
        )
    lines += ["", "Table 2: weights of the entropy and the diversity loss (mIoU % / pixel accuracy %).", ""]
    lines += [
        "| entropy | diversity | plain (4) | paper | weighted (5) | paper |",
        "|---|---|---|---|---|---|",
    ]
    for index, (e, d) in enumerate(TABLE_2):
        cells_of = []
        for kind in ("plain", "weighted"):
            row = table_2_row(e, d, kind)
            paper = PUBLISHED_2[kind][index]
            cells_of.append(f"{ours(row, 'miou')} / {ours(row, 'pixel_accuracy')} | {paper[0]:.1f} / {paper[1]:.1f}")
        lines.append(f"| {e} | {d} | {cells_of[0]} | {cells_of[1]} |")
    lines += ["", "Mixing ratio alpha : beta of proxy and generated images (mIoU %).", ""]
    lines += [
        "| generator | " + " | ".join(f"{a}:{b}" for a, b in RATIOS) + " |",
        "|---" * (len(RATIOS) + 1) + "|",
    ]
    for gan in ("dcgan", "degan_weighted"):
        lines.append(f"| {gan} | " + " | ".join(ours(ratio_row(gan, a, b), "miou") for a, b in RATIOS) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", type=Path, default=os.environ.get("DATAFREE_DATA"))
    parser.add_argument("--work", type=Path, help="default: work/camvid-SIZE")
    parser.add_argument(
        "--rows",
        nargs="+",
        help="only these; default: all, those of Table 2 and the sweep for the first seed",
    )
    parser.add_argument(
        "--max-time", default="1000h", help="stop cleanly after this long (9m, 90s, 2h); run again to go on"
    )
    parser.add_argument("--collect-only", action="store_true", help="only write results and tables from finished cells")
    parser.add_argument("--one", nargs=2, metavar=("ROW", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        left = seconds(arguments.max_time)
    except ValueError as error:
        parser.error(str(error))
    work = arguments.work or Path("work") / f"camvid-{arguments.size}"
    if arguments.data is None or not (arguments.data / "camvid").is_dir():
        print(
            "error: --data (or DATAFREE_DATA) must name a folder with camvid/ and road-proxy/",
            file=sys.stderr,
        )
        return 2
    if arguments.one:
        return run_one(arguments.one[0], arguments.size, int(arguments.one[1]), arguments.data, work, left)
    command = f"python benchmarks/camvid.py --size {arguments.size} --seeds {' '.join(map(str, arguments.seeds))}"
    cells = [(row, seed) for seed in arguments.seeds for row in (arguments.rows or MAIN)]
    cells += [] if arguments.rows else [(row, arguments.seeds[0]) for row in EXTRA]
    script = [sys.executable, __file__, "--size", arguments.size, "--data", str(arguments.data), "--work", str(work)]
    code = 0 if arguments.collect_only else run_cells(script, cells, work, max_time=left)
    if code:
        return code
    collect(arguments.size, work, command)
    return 0


if __name__ == "__main__":
    sys.exit(main())
