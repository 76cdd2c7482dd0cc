"""Classification: every method with one teacher and one student, CGDD's ablations and the baselines, over seeds.

    python benchmarks/classification.py --size cpu --jobs 2          # Fashion-MNIST
    python benchmarks/classification.py --size long --jobs 2         # the same, the two best methods for much longer
    python benchmarks/classification.py --size cifar --jobs 2        # CIFAR-10 as JPEG copies, a pretrained teacher
    python benchmarks/classification.py --size paper --max-time 9m   # on a GPU, in pieces: again until it is done

The rows are in classification_rows.py. Every cell (a row with a seed) is a process of its own and leaves a small JSON
file in --work; a cell that is there is not run again. The results go to benchmarks/results/classification-SIZE.json,
the tables to docs/results.md.

Metrics: `top1` on all test images, of the student of the last step; `relative`, that over the teacher's of the same
seed; `agreement` with the teacher on the source's held-out images; `minutes` of wall time, all of the cell (tables show
processor minutes where they were counted); `peak_memory_mb` of its process; `images`: those that the student learnt
from, each time it did, and those that the source's updates put out (updates x the source's batch_size; an image
optimised in many iterations counts once).
"""

from __future__ import annotations

import io
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cells import Cell
from classification_rows import CLASSES, SIZES, Pair
from command import ask, make_parser, run
from datafree.config.paths import expand
from datafree.evaluation.scoring import evaluate
from datafree.networks.normalized import Normalized
from datafree.sources.base import ImageSource
from datafree.tasks.classification import Classification
from pairs import (
    MINUTES,
    SEEDS,
    Results,
    Row,
    Size,
    average,
    chosen_rows,
    is_known,
    markdown,
    missing_path,
    percent,
    rows_of,
    with_whole,
)
from students import Pictures, Work, build_source, images_made, learn_answers, run_row
from supervised import LabelledImages, load_fashion, train_classifier

__all__ = ["Pictures", "chosen_rows", "images_made", "is_known"]  # of pairs and students, reached through here too

FASHION = Path("/usr/share/datasets/fashion-mnist")


# Images.


def load_images(pair: Pair, part: Literal["train", "test"], fashion: Path) -> LabelledImages:
    """The pair's training or test images; "example" has but 20, the same for both. Raises OSError, ValueError."""
    if pair.images == "fashion-mnist":
        return load_fashion(fashion, "train" if part == "train" else "t10k")
    if pair.images == "cifar10":
        return load_tar(expand(f"$DATAFREE_DATA/cifar10/{part}.tar.xz"))
    task = Classification(num_classes=CLASSES, image_size=(pair.side, pair.side))
    shipped = task.open_dataset(expand("builtin:fashion/eval"))
    chosen = [shipped[index] for index in range(0, len(shipped), 50)]
    return LabelledImages(
        images=torch.stack([image for image, _ in chosen]).mul(255).round().byte(),
        labels=torch.stack([label for _, label in chosen]),
        class_names=shipped.class_names,
    )


def load_tar(file: Path) -> LabelledImages:
    """The images PART/CLASS/NAME.jpg of a packed folder, read from it without unpacking; classes in order of names."""
    images: list[Tensor] = []
    names: list[str] = []
    with tarfile.open(file) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.name.endswith(".jpg") else None
            if content is not None:
                with Image.open(io.BytesIO(content.read()), formats=["JPEG"]) as image:
                    images.append(torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0))
                names.append(Path(member.name).parent.name)
    classes = sorted(set(names))
    labels = torch.tensor([classes.index(name) for name in names])
    return LabelledImages(images=torch.stack(images), labels=labels, class_names=classes)


def load_exact(class_names: list[str]) -> LabelledImages:
    """The first 100 test images of CIFAR-10 in their original pixels."""
    with np.load(expand("$DATAFREE_DATA/cifar10/exact_test100.npz"), allow_pickle=False) as stored:
        pixels, labels = torch.from_numpy(stored["images"]), torch.from_numpy(stored["labels"].astype(np.int64))
    return LabelledImages(images=pixels.movedim(-1, 1).contiguous(), labels=labels, class_names=class_names)


# One cell.


def run_cell(work: Work[Pair], fashion: Path) -> dict[str, float]:
    """Train and score a row for a seed; returns its metrics. Raises Interrupted when time is up."""
    pair = work.pair
    test = load_images(pair, "test", fashion)
    if work.row.method == "teacher" and pair.teacher.weights is not None:
        network, metrics = work.teacher(), {"images": 0.0}
    elif work.row.method in ("teacher", "labels"):
        network, metrics = learn_labels(work, fashion)
    else:
        network, metrics = learn_answers(work, make_source(work.row, pair, fashion))
    scores = {"top1": evaluate(network, work.task, test, device=work.device, batch_size=250).values["top1"]}
    if pair.images == "cifar10":
        exact = load_exact(test.class_names)
        scores["top1_exact100"] = evaluate(network, work.task, exact, device=work.device).values["top1"]
    return {**scores, **metrics}


def learn_labels(work: Work[Pair], fashion: Path) -> tuple[Normalized, dict[str, float]]:
    """The teacher, or a student that learns from the labels of as many images as the other students see."""
    pair, training, is_teacher = work.pair, work.training, work.row.method == "teacher"
    network = work.fresh(pair.teacher if is_teacher else work.student)
    data = load_images(pair, "train", fashion)
    seen = pair.epochs * len(data) if is_teacher else training.steps * training.batch_size
    steps = max(1, seen // pair.batch_size)
    train_classifier(
        network, work.task, data,
        steps=steps, batch_size=pair.batch_size, lr=pair.lr, optimizer=pair.optimizer,
        weight_decay=5e-4 if pair.optimizer == "sgd" else 0.0, seed=work.seed, shift=pair.shift,
        device=work.device, dtype=work.dtype, stop=lambda: work.stop() is not None,
        state_path=work.state_path, save_every=500,
    )  # fmt: skip
    if is_teacher:
        work.keep_teacher(network)
    return network, {"images": float(steps * pair.batch_size)}


def make_source(row: Row, pair: Pair, fashion: Path) -> ImageSource:
    """The row's source. Raises ValueError for a path whose variable is not set."""
    if row.method == "real":
        return Pictures(images=load_images(pair, "train", fashion).images)
    return build_source(row)


def run_one(cell: Cell, size: str, fashion: Path, folder: Path, max_time: float) -> int:
    """Run a cell, its row as PAIR/NAME, in this process and leave its JSON file; the process's exit status."""
    name, row = cell[0].split("/")
    pair = SIZES[size].pairs[name]
    options = {**pair.task, **pair.rows[row].task}
    task = Classification(num_classes=CLASSES, image_size=(pair.side, pair.side), **options)
    return run_row(cell, pair, task, folder, max_time, lambda work: run_cell(work, fashion))


# All of them.


def missing_data(size: Size[Pair], rows: Sequence[str], fashion: Path) -> str | None:
    """What is missing to run `rows`, and how to get it; None if all is there."""
    kinds = {size.pairs[row.split("/")[0]].images for row in rows}
    if "fashion-mnist" in kinds and not (fashion / "train-images-idx3-ubyte.gz").is_file():
        return (
            f"{fashion} holds no Fashion-MNIST; apt-get install dataset-fashion-mnist, or name its folder with --data"
        )
    given = ["$DATAFREE_DATA/cifar10/test.tar.xz"] if "cifar10" in kinds else []
    given += [path for row in rows if (path := rows_of(size)[row].source.get("path"))]
    return missing_path(given)


def finished(rows: Results) -> Results:
    """The cells with the metrics that their processes cannot know: of the whole cell, and relative to the teacher."""
    return with_whole(rows, headline="top1", share="relative")


def table(name: str, size: Size[Pair], rows: Results) -> str:
    """Markdown: the rows of the pair `name`."""
    pair = size.pairs[name]
    columns = [
        percent("top-1 %", "top1", absent="not run"),
        percent("of the teacher's %", "relative"),
        percent("agreement %", "agreement"),
        SEEDS,
        MINUTES,
        average("million images", "images", 2, 1e6),
        average("memory MB", "peak_memory_mb", 0),
    ]
    if pair.images == "cifar10":
        columns.append(percent("exact 100", "top1_exact100"))
    if any(row.published is not None for row in pair.rows.values()):
        columns.append(
            ("published top-1 %", lambda row, cells: "–" if row.published is None else f"{row.published:.1f}")
        )
    return markdown(name, size, rows, columns)


def main() -> int:
    parser = make_parser("classification", __doc__, SIZES)
    parser.add_argument(
        "--data",
        type=Path,
        default=FASHION,
        help=f"Fashion-MNIST's gzip files, default {FASHION} (apt-get install dataset-fashion-mnist); CIFAR-10 and the "
        "proxy photos are looked for in $DATAFREE_DATA",
    )
    asked = ask("classification", parser, SIZES)
    data: Path = asked.own.data
    if asked.one:
        return run_one(asked.one, asked.size_name, data, asked.work, asked.time)
    return run(
        asked,
        script=[__file__, "--data", str(data)],
        missing=lambda rows: missing_data(asked.size, rows, data),
        finished=finished,
        table=table,
    )


if __name__ == "__main__":
    sys.exit(main())
