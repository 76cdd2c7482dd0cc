"""Classification: every method with one teacher and one student, CGDD's ablations and the baselines, over seeds.

    python benchmarks/classification.py --size cpu --jobs 2          # Fashion-MNIST
    python benchmarks/classification.py --size cifar --jobs 2        # CIFAR-10 as JPEG copies, a pretrained teacher
    python benchmarks/classification.py --size paper --max-time 9m   # on a GPU, in pieces: again until it is done

The rows are in classification_rows.py. Every cell (a row with a seed) is a process of its own and leaves a small JSON
file in --work; a cell that is there is not run again. The results go to benchmarks/results/classification-SIZE.json,
the tables to docs/results.md.

Metrics: `top1` on all test images, of the student of the last step; `relative`, that over the teacher's of the same
seed; `agreement` with the teacher on the source's held-out images; `minutes` of wall time, all of the cell;
`peak_memory_mb` of its process; `images`: those that the student learnt from, each time it did, and those that the
source's updates put out (updates x the source's batch_size; an image optimised in many iterations counts once).
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any, Literal, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cells import TIME_UP, Cell, Stop, measure, read_cells, run_cells, seconds, spread
from classification_rows import CLASSES, SIZES, Pair, Row, Size
from datafree import modes
from datafree.distill import Training, distill
from datafree.evaluate import evaluate
from datafree.job import prepare, save_artefacts
from datafree.networks.load import NetworkSpec
from datafree.networks.normalized import Normalized
from datafree.networks.weights import save_weights
from datafree.paths import expand
from datafree.runs import Run
from datafree.sources import SOURCES
from datafree.sources.base import Batch, ImageSource, Setting
from datafree.tasks.classification import Classification
from results import write_results, write_table
from supervised import LabelledImages, as_images, load_fashion, train_classifier

FASHION = Path("/usr/share/datasets/fashion-mnist")


# Images.


def load_images(pair: Pair, part: Literal["train", "test"], fashion: Path) -> LabelledImages:
    """The pair's training or test images; "example" has but 20, the same for both. Raises OSError, ValueError."""
    if pair.images == "fashion-mnist":
        return load_fashion(fashion, "train" if part == "train" else "t10k")
    if pair.images == "cifar10":
        return load_tar(expand(f"$DATAFREE_DATA/cifar10/{part}.tar.xz"))
    task = Classification(num_classes=CLASSES, image_size=(pair.side, pair.side))
    shipped = task.open_labelled(expand("builtin:fashion/eval"))
    pairs = [shipped[index] for index in range(0, len(shipped), 50)]
    return LabelledImages(
        images=torch.stack([image for image, _ in pairs]).mul(255).round().byte(),
        labels=torch.stack([label for _, label in pairs]),
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


@final
@dataclass(kw_only=True)
class Pictures(ImageSource):
    """Images in memory, without their labels: what the student would learn from if it had the data."""

    images: Tensor  # (N, 1 or 3, H, W) uint8
    hold_out: int = 64  # images kept back, and at most a tenth

    def attach(self, setting: Setting) -> None:
        self._setting = setting
        held = min(self.hold_out, max(1, len(self.images) // 10))
        self._held, self._pool = self.images[:held], self.images[held:]

    def update(self, student: nn.Module, step: int) -> dict[str, Tensor]:
        return {}

    def sample(self, n: int) -> Batch:
        chosen = torch.randint(len(self._pool), (n,))
        return Batch(images=as_images(self._pool[chosen].to(self._setting.device)))

    def held_out(self, n: int) -> Tensor:
        return as_images(self._held[:n].to(self._setting.device))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state


# One cell.


@dataclass(frozen=True, kw_only=True)
class Work:
    """A cell at work: what it trains, where, and with what."""

    name: str  # of the row
    pair: Pair
    seed: int
    folder: Path  # of this seed and pair; the cell's own is folder / name
    fashion: Path
    stop: Stop

    @property
    def row(self) -> Row:
        return self.pair.rows[self.name]

    @cached_property
    def task(self) -> Classification:
        side = self.pair.side
        return Classification(num_classes=CLASSES, image_size=(side, side), **{**self.pair.task, **self.row.task})

    @cached_property
    def training(self) -> Training:
        ours = {"save_every": 500, "picture_every": 1_000_000}
        return Training(**{**ours, **self.pair.training, **self.row.training, "seed": self.seed})

    @cached_property
    def device(self) -> torch.device:
        return modes.choose_device(self.training.device)

    @property
    def dtype(self) -> torch.dtype:
        return modes.choose_precision(self.training.precision, self.device)

    def network(self, spec: NetworkSpec) -> Normalized:
        return prepare(spec, self.task, self.name, self.device, self.dtype)

    def teacher(self) -> Normalized:
        """The pretrained teacher, or the one that this seed's row "teacher" has trained."""
        weights = self.pair.teacher.weights
        file = self.folder / "teacher" / "teacher.safetensors" if weights is None else expand(str(weights))
        return self.network(replace(self.pair.teacher, weights=file))


def run_cell(work: Work) -> dict[str, float]:
    """Train and score a row for a seed; returns its metrics. Raises Interrupted when time is up."""
    test = load_images(work.pair, "test", work.fashion)
    if work.row.method == "teacher" and work.pair.teacher.weights is not None:
        network, metrics = work.teacher(), {"images": 0.0}
    elif work.row.method in ("teacher", "labels"):
        network, metrics = learn_labels(work)
    else:
        network, metrics = learn_answers(work)
    scores = {"top1": evaluate(network, work.task, test, device=work.device, batch_size=250).values["top1"]}
    if work.pair.images == "cifar10":
        exact = load_exact(test.class_names)
        scores["top1_exact100"] = evaluate(network, work.task, exact, device=work.device).values["top1"]
    return {**scores, **metrics}


def learn_labels(work: Work) -> tuple[Normalized, dict[str, float]]:
    """The teacher, or a student that learns from the labels of as many images as the other students see."""
    pair, training, is_teacher = work.pair, work.training, work.row.method == "teacher"
    modes.seed_everything(work.seed)  # here, so that the first weights depend on the seed alone
    network = work.network(pair.teacher if is_teacher else pair.student)
    data = load_images(pair, "train", work.fashion)
    seen = pair.epochs * len(data) if is_teacher else training.steps * training.batch_size
    steps = max(1, seen // pair.batch_size)
    train_classifier(
        network, work.task, data,
        steps=steps, batch_size=pair.batch_size, lr=pair.lr, weight_decay=5e-4, seed=work.seed, shift=pair.shift,
        device=work.device, dtype=work.dtype, stop=lambda: work.stop() is not None,
        state_path=work.folder / work.name / "state" / "state.pt", save_every=500,
    )  # fmt: skip
    if is_teacher:
        save_weights(network.network, work.folder / work.name / "teacher.safetensors")
    return network, {"images": float(steps * pair.batch_size)}


def learn_answers(work: Work) -> tuple[Normalized, dict[str, float]]:
    """A student that learns the teacher's answers to the images of the row's source."""
    teacher = work.teacher()
    modes.seed_everything(work.seed)
    student = work.network(work.pair.student)
    source = make_source(work.row, work.pair, work.fashion)
    described = {"row": work.name, "source": work.row.source, "training": asdict(work.training)}
    run = Run(work.folder / work.name, described)
    try:
        chosen = distill(
            task=work.task,
            teacher=teacher,
            student=student,
            source=source,
            training=work.training,
            run=run,
            stop=work.stop,
            say=lambda line: print(f"{work.name} seed {work.seed}: {line}", flush=True),
        )
    finally:
        run.close()
    save_artefacts(source, run.path)
    metrics = {"images": float(images_made(source, work.training))}
    return student, metrics if chosen.agreement is None else {**metrics, "agreement": chosen.agreement}


def make_source(row: Row, pair: Pair, fashion: Path) -> ImageSource:
    """The row's source, its paths expanded. Raises ValueError for a variable that is not set."""
    if row.method == "real":
        return Pictures(images=load_images(pair, "train", fashion).images)
    options: dict[str, Any] = {key: expand(value) if key == "path" else value for key, value in row.source.items()}
    return SOURCES[row.method](**options)


def images_made(source: ImageSource, training: Training) -> int:
    """Images that the student learnt from and images that updates put out, where a source says how many."""
    updates = sum(source.due(step) for step in range(-source.warmup, training.steps))
    each: int = getattr(source, "batch_size", 0)
    return training.steps * training.batch_size + updates * each


def run_one(cell: Cell, size: str, fashion: Path, folder: Path, max_time: float) -> int:
    """Run a cell, its row as PAIR/NAME, in this process and leave its JSON file; the process's exit status."""
    pair, name = cell[0].split("/")
    own = folder / f"seed{cell[1]}" / pair

    def run(stop: Stop) -> dict[str, float]:
        return run_cell(
            Work(name=name, pair=SIZES[size].pairs[pair], seed=cell[1], folder=own, fashion=fashion, stop=stop)
        )

    code = measure(cell, folder, max_time, run)
    if not code:
        shutil.rmtree(own / name / "state", ignore_errors=True)  # banks make it large, and the cell is done
    return code


# All of them.


def rows_of(size: Size) -> dict[str, Row]:
    """PAIR/NAME -> row."""
    return {f"{name}/{row}": pair.rows[row] for name, pair in size.pairs.items() for row in pair.rows}


def is_known(row: Row) -> bool:
    """Whether this version has the row's method."""
    return row.method in SOURCES or row.method in ("teacher", "labels", "real")


def chosen_rows(size: Size, asked: Sequence[str]) -> list[str]:
    """The rows that are asked for (NAME or PAIR/NAME; all if none is) and their teachers, in order.

    Raises ValueError for one that is not there.
    """
    rows = rows_of(size)
    wrong = [name for name in asked if not any(name in (row, row.split("/")[1]) for row in rows)]
    if wrong:
        raise ValueError(f"there is no row {wrong[0]!r}; known: {', '.join(rows)}")
    found = {row for row in rows if not asked or row in asked or row.split("/")[1] in asked}
    return [row for row in rows if row in found | {teacher_of(row) for row in found}]


def teacher_of(row: str) -> str:
    """The row that scores, and where needed trains, the teacher of a row's pair."""
    return f"{row.split('/')[0]}/teacher"


def missing_data(size: Size, rows: Sequence[str], fashion: Path) -> str | None:
    """What is missing to run `rows`, and how to get it; None if all is there."""
    kinds = {size.pairs[row.split("/")[0]].images for row in rows}
    if "fashion-mnist" in kinds and not (fashion / "train-images-idx3-ubyte.gz").is_file():
        return (
            f"{fashion} holds no Fashion-MNIST; apt-get install dataset-fashion-mnist, or name its folder with --data"
        )
    given = ["$DATAFREE_DATA/cifar10/test.tar.xz"] if "cifar10" in kinds else []
    given += [path for row in rows if (path := rows_of(size)[row].source.get("path"))]
    try:
        absent = [path for path in given if not expand(path).exists()]
    except ValueError as error:
        return str(error)
    return f"{absent[0]} does not exist" if absent else None


def finished(rows: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """The cells with the metrics that their processes cannot know: of the whole cell, and relative to the teacher."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, cells in rows.items():
        teachers = {cell["seed"]: cell["metrics"]["top1"] for cell in rows.get(teacher_of(name), [])}
        found[name] = []
        for cell in cells:
            metrics = dict(cell["metrics"])
            if all(other["seed"] in teachers for other in cells):
                metrics["relative"] = metrics["top1"] / teachers[cell["seed"]]
            metrics["minutes"] = cell["seconds"] / 60
            metrics["peak_memory_mb"] = cell["peak_memory_mib"] * 2**20 / 1e6
            found[name].append({**cell, "metrics": metrics})
    return found


def table(name: str, size: Size, rows: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: the rows of the pair `name`."""
    pair = size.pairs[name]
    published = any(row.published is not None for row in pair.rows.values())
    heads = ["row", "top-1 %", "of the teacher's %", "agreement %", "seeds", "minutes", "million images", "memory MB"]
    heads += ["exact 100"] * (pair.images == "cifar10") + ["published top-1 %"] * published
    lines = [f"{name}:", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row_name, row in pair.rows.items():
        cells = rows.get(f"{name}/{row_name}", [])
        values = {key: [cell["metrics"][key] for cell in cells] for key in (cells[0]["metrics"] if cells else {})}
        percent = {key: spread([100 * value for value in of_seeds]) for key, of_seeds in values.items()}
        average = {key: mean(of_seeds) for key, of_seeds in values.items()}
        entries = [percent.get("top1", "not run"), percent.get("relative", "–"), percent.get("agreement", "–")]
        entries += [str(len(cells)), f"{average['minutes']:.1f}" if cells else "–"]
        entries += [f"{average['images'] / 1e6:.2f}" if cells else "–"]
        entries += [f"{average['peak_memory_mb']:.0f}" if cells else "–"]
        entries += [percent.get("top1_exact100", "–")] * (pair.images == "cifar10")
        entries += ["–" if row.published is None else f"{row.published:.1f}"] * published
        lines.append(f"| {row_name} | {' | '.join(entries)} |")
    return "\n".join([*lines, "", size.note, ""])


def collect(name: str, work: Path, command: str) -> None:
    """Write the results file and the tables from the cells that are there; the smoke size's are only shown."""
    size = SIZES[name]
    rows = finished(read_cells(work, list(rows_of(size))))
    text = "\n".join(table(pair, size, rows) for pair in size.pairs)
    if name == "smoke":
        print(text)
        return
    write_results("classification", name, rows, command=command)
    section = f"## {size.heading}\n\n`python benchmarks/classification.py --size {name}`."
    write_table("results.md", f"classification-{name}", text, section=section)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=[], help="only these (cgdd, or fashion-mnist/cgdd); default: all")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time; with more than one, a thread for each")
    parser.add_argument(
        "--data",
        type=Path,
        default=FASHION,
        help=f"Fashion-MNIST's gzip files, default {FASHION} (apt-get install dataset-fashion-mnist); CIFAR-10 and the "
        "proxy photos are looked for in $DATAFREE_DATA",
    )
    parser.add_argument("--work", type=Path, help="default: work/classification-SIZE")
    parser.add_argument(
        "--max-time", default="1000h", help="stop cleanly after this long (9m, 90s, 2h); run again to go on"
    )
    parser.add_argument("--collect-only", action="store_true", help="only write results and tables from finished cells")
    parser.add_argument("--one", nargs=2, metavar=("ROW", "SEED"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    size = SIZES[given.size]
    try:
        left = seconds(given.max_time)
        rows = chosen_rows(size, given.rows)
    except ValueError as error:
        parser.error(str(error))
    if given.jobs < 1:
        parser.error(f"--jobs {given.jobs}: give at least 1")
    work = given.work or Path("work") / f"classification-{given.size}"
    if given.one:
        return run_one((given.one[0], int(given.one[1])), given.size, given.data, work, left)

    known = rows_of(size)
    if unknown := [row for row in rows if not is_known(known[row])]:
        print(f"left out, there is no such method: {', '.join(unknown)}", flush=True)
    rows = [row for row in rows if row not in unknown]
    code = 0
    if not given.collect_only:
        if fault := missing_data(size, rows, given.data):
            print(f"error: {fault}", file=sys.stderr)
            return 2
        code = run_cells(
            [sys.executable, __file__, "--size", given.size, "--data", str(given.data), "--work", str(work)],
            [(row, seed) for seed in given.seeds for row in rows],
            work,
            max_time=left,
            jobs=given.jobs,
            needs=lambda cell: (
                [] if known[cell[0]].method in ("teacher", "labels") else [(teacher_of(cell[0]), cell[1])]
            ),
            keep_going=True,
        )
        if code == TIME_UP:
            return code
    command = f"python benchmarks/classification.py --size {given.size} --seeds {' '.join(map(str, given.seeds))}"
    collect(given.size, work, command)
    return code


if __name__ == "__main__":
    sys.exit(main())
