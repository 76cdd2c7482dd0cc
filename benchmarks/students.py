"""A row of a pair at work: its networks, where its images come from, and the student that learns from them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, final

import torch
from torch import Tensor, nn

from cells import Cell, Stop, measure
from datafree.config import schema
from datafree.config.paths import expand
from datafree.engine.artifacts import save_artefacts
from datafree.engine.build_networks import prepare
from datafree.engine.loop import distill
from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.load import NetworkSpec
from datafree.networks.normalized import Normalized, bare
from datafree.ops import modes
from datafree.recipe.training import Training
from datafree.sources import SOURCES
from datafree.sources.base import Batch, ImageSource, SourceContext
from datafree.storage.run_directory import Run
from datafree.tasks.base import Task
from pairs import PairT, Row
from supervised import as_images


@final
@dataclass(kw_only=True)
class Pictures(ImageSource):
    """Images in memory, without their labels: what the student would learn from if it had the data."""

    images: Tensor  # (N, 1 or 3, H, W) uint8
    hold_out: int = 64  # images kept back, evenly spread, since sets lie class by class; at most a tenth

    def attach(self, context: SourceContext) -> None:
        self._context = context
        held = min(self.hold_out, max(1, len(self.images) // 10))
        chosen = torch.zeros(len(self.images), dtype=torch.bool)
        chosen[torch.linspace(0, len(self.images) - 1, held).round().long()] = True
        self._held, self._pool = self.images[chosen], self.images[~chosen]

    def update(self, student: nn.Module, step: int) -> dict[str, Tensor]:
        return {}

    def sample(self, n: int) -> Batch:
        chosen = torch.randint(len(self._pool), (n,))
        return Batch(images=as_images(self._pool[chosen].to(self._context.device)))

    def validation_images(self, n: int) -> Tensor:
        return as_images(self._held[:n].to(self._context.device))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state


@dataclass(frozen=True, kw_only=True)
class Work(Generic[PairT]):
    """A cell at work: what it trains, where, and with what."""

    name: str  # of the row
    pair: PairT
    task: Task
    seed: int
    folder: Path  # of this seed and pair; the cell's own is folder / name
    stop: Stop

    @property
    def row(self) -> Row:
        return self.pair.rows[self.name]

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

    @property
    def student(self) -> NetworkSpec:
        return self.row.student or self.pair.student

    @property
    def state_path(self) -> Path:
        """Of a training with labels."""
        return self.folder / self.name / "state" / "state.pt"

    def fresh(self, spec: NetworkSpec) -> Normalized:
        """A network before its training: its first weights depend on the seed alone."""
        modes.seed_everything(self.seed)
        return self._network(spec)

    def teacher(self) -> Normalized:
        """The pretrained teacher, or the one that this seed's row "teacher" has trained."""
        weights = self.pair.teacher.weights
        file = self._teacher_file if weights is None else expand(str(weights))
        return self._network(replace(self.pair.teacher, weights=file))

    def keep_teacher(self, network: Normalized) -> None:
        """Write the teacher that this cell has trained, for the other cells of its seed and pair."""
        save_weights(bare(network), self._teacher_file)

    @property
    def _teacher_file(self) -> Path:
        return self.folder / "teacher" / "teacher.safetensors"

    def _network(self, spec: NetworkSpec) -> Normalized:
        return prepare(spec, self.task, self.name, self.device, self.dtype)


def build_source(row: Row) -> ImageSource:
    """The source of a row whose method has a name. Raises ValueError for a path whose variable is not set."""
    given: dict[str, Any] = {key: expand(value) if key == "path" else value for key, value in row.source.items()}
    return SOURCES[row.method](**given)


def learn_answers(work: Work[PairT], source: ImageSource) -> tuple[Normalized, dict[str, float]]:
    """A student that learns the teacher's answers to the source's images; its metrics `images` and `agreement`.

    Raises Interrupted when time is up.
    """
    teacher = work.teacher()
    student = work.fresh(work.student)
    described = {
        "row": work.name,
        "task": schema.plain(work.task),
        "student": schema.plain(work.student),
        "source": schema.plain(work.row.source),
        "training": asdict(work.training),
    }
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


def images_made(source: ImageSource, training: Training) -> int:
    """Images that the student learnt from and images that updates put out, where a source says how many."""
    updates = sum(source.due(step) for step in range(-source.warmup, training.steps))
    each: int = getattr(source, "batch_size", 0)
    return training.steps * training.batch_size + updates * each


def run_row(
    cell: Cell,  # its row as PAIR/NAME
    pair: PairT,
    task: Task,
    folder: Path,
    max_time: float,  # seconds
    run: Callable[[Work[PairT]], dict[str, float]],  # returns metrics; raises Interrupted when time is up
) -> int:
    """Run a cell in this process and leave its JSON file; returns the process's exit status (`cells.measure`)."""
    pair_name, name = cell[0].split("/")
    own = folder / f"seed{cell[1]}" / pair_name
    code = measure(
        cell,
        folder,
        max_time,
        lambda stop: run(Work(name=name, pair=pair, task=task, seed=cell[1], folder=own, stop=stop)),
    )
    if not code:
        shutil.rmtree(own / name / "state", ignore_errors=True)  # banks make it large, and the cell is done
    return code
