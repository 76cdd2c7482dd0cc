"""Object detection without data: DIODE, its ablations, two generators and the baselines, over seeds.

    python benchmarks/detection.py --size cpu --jobs 2          # blood cells, and COCO with a pretrained teacher
    python benchmarks/detection.py --size paper --max-time 8m   # on a GPU, in pieces: again until it is done

The data sets bccd, coco-val128, road-proxy and weights are looked for in $DATAFREE_DATA. The rows are in
detection_rows.py. Every cell (a row with a seed) is a process of its own and leaves a small JSON file in --work; a cell
that is there is not run again. The results go to benchmarks/results/detection-SIZE.json, the tables to docs/results.md.
When time is up, a cell stops before its next step; a batch of DIODE's images is one.

Metrics: `ap50` and `ap` (COCO's) on all test images, of the student of the last step; `relative_ap50`, that over the
teacher's of the same seed; `agreement` (F1 of the student's detections against the teacher's) on the source's held-out
images; `minutes` of wall time, all of the cell (tables show processor minutes where they were counted);
`peak_memory_mb` of its process; `images`: those that the student learnt from, each time it did, and those that the
source's updates put out (updates x the source's batch_size).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from cells import Cell
from command import ask, make_parser, run
from datafree.config.paths import expand
from datafree.evaluation.scoring import evaluate
from datafree.networks.normalized import Normalized
from datafree.sources.base import ImageSource
from datafree.tasks.detection import Detection
from detection_rows import SIZES, Pair
from pairs import MINUTES, SEEDS, Results, Row, Size, average, markdown, missing_path, percent, rows_of, with_whole
from students import Pictures, Work, build_source, learn_answers, run_row
from supervised import LabelledImages, train_detector

# One cell.


def make_task(pair: Pair, row: Row) -> Detection:
    """The pair's task as the row has it."""
    return Detection(num_classes=pair.num_classes, image_size=pair.image_size, **{**pair.task, **row.task})


def load_boxes(file: str, task: Detection, limit: int | None) -> LabelledImages:
    """The first `limit` images of a COCO file, or all, in memory; their labels are targets (N, M, 5).

    Raises DataError, ValueError.
    """
    folder = task.open_dataset(expand(file))
    found = [folder[index] for index in range(min(len(folder), limit or len(folder)))]
    return LabelledImages(
        images=torch.stack([image for image, _ in found]).mul(255).round().byte(),
        labels=torch.stack([targets for _, targets in found]),
        class_names=folder.class_names,
    )


def run_cell(work: Work[Pair], task: Detection) -> dict[str, float]:
    """Train and score a row for a seed; returns its metrics. Raises Interrupted when time is up."""
    pair = work.pair
    test = load_boxes(pair.test, task, pair.limit)
    if work.row.method == "teacher" and pair.teacher.weights is not None:
        network, metrics = work.teacher(), {"images": 0.0}
    elif work.row.method in ("teacher", "labels"):
        network, metrics = learn_labels(work, task)
    else:
        network, metrics = learn_answers(work, make_source(work.row, pair, task))
    scores = evaluate(network, task, test, device=work.device).values
    return {"ap50": scores["ap50"], "ap": scores["ap"], **metrics}


def learn_labels(work: Work[Pair], task: Detection) -> tuple[Normalized, dict[str, float]]:
    """The teacher, or a student that learns from labels in the steps and batches of the other students."""
    pair, is_teacher = work.pair, work.row.method == "teacher"
    network = work.fresh(pair.teacher if is_teacher else work.student)
    data = train_images(pair, task)
    settings = dict(pair.labels)
    if not is_teacher:
        settings |= {name: getattr(work.training, name) for name in ("steps", "batch_size", "lr", "weight_decay")}
    train_detector(
        network, task, data.images, data.labels, **settings,
        seed=work.seed, device=work.device, dtype=work.dtype, stop=lambda: work.stop() is not None,
        state_path=work.state_path, save_every=500,
    )  # fmt: skip
    if is_teacher:
        work.keep_teacher(network)
    return network, {"images": float(settings["steps"] * settings["batch_size"])}


def train_images(pair: Pair, task: Detection) -> LabelledImages:
    assert pair.train is not None, "a pair whose rows learn from real images names them"
    return load_boxes(pair.train, task, pair.limit)


def make_source(row: Row, pair: Pair, task: Detection) -> ImageSource:
    """The row's source. Raises ValueError for a path whose variable is not set."""
    if row.method == "real":
        return Pictures(images=train_images(pair, task).images)
    return build_source(row)


def run_one(cell: Cell, size: str, folder: Path, max_time: float) -> int:
    """Run a cell, its row as PAIR/NAME, in this process and leave its JSON file; the process's exit status."""
    name, row = cell[0].split("/")
    pair = SIZES[size].pairs[name]
    task = make_task(pair, pair.rows[row])
    return run_row(cell, pair, task, folder, max_time, lambda work: run_cell(work, task))


# All of them.


def missing_data(size: Size[Pair], rows: Sequence[str]) -> str | None:
    """What is missing to run `rows`; None if all is there."""
    given = []
    for pair in {row.split("/")[0]: size.pairs[row.split("/")[0]] for row in rows}.values():
        weights = pair.teacher.weights
        given += [pair.test, *([pair.train] if pair.train else []), *([str(weights)] if weights else [])]
    given += [path for row in rows if (path := rows_of(size)[row].source.get("path"))]
    return missing_path(given)


def finished(rows: Results) -> Results:
    """The cells with the metrics that their processes cannot know: of the whole cell, and relative to the teacher."""
    return with_whole(rows, headline="ap50", share="relative_ap50")


def table(name: str, size: Size[Pair], rows: Results) -> str:
    """Markdown: the rows of the pair `name`."""
    columns = [
        percent("AP50 %", "ap50", absent="not run"),
        percent("AP %", "ap"),
        percent("of the teacher's AP50 %", "relative_ap50"),
        percent("agreement %", "agreement"),
        SEEDS,
        MINUTES,
        average("thousand images", "images", 1, 1e3),
        average("memory MB", "peak_memory_mb", 0),
    ]
    return markdown(name, size, rows, columns)


def main() -> int:
    parser = make_parser("detection", __doc__, SIZES)
    asked = ask("detection", parser, SIZES)
    if asked.one:
        return run_one(asked.one, asked.size_name, asked.work, asked.time)
    return run(
        asked,
        script=[__file__],
        missing=lambda rows: missing_data(asked.size, rows),
        finished=finished,
        table=table,
    )


if __name__ == "__main__":
    sys.exit(main())
