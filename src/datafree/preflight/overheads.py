"""Overheads of a run or data set beside updates and steps: checkpoints, validation, pictures, scores, shards.

Each is done once with what a `Calibration` holds. Files are written into a folder of the system's temporary ones, which
is removed: only so is known how large they become.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datafree.data.images import to_image
from datafree.data.labelled import LabelledData
from datafree.engine import validation
from datafree.engine.artifacts import save_artefacts, save_calibration
from datafree.engine.progress import SAVED_WITHIN
from datafree.evaluation.scoring import evaluate
from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.normalized import bare
from datafree.ops import modes
from datafree.preflight.cost.beside import beside
from datafree.preflight.cost.calibration import Calibration, CostItem
from datafree.preflight.cost.pass_cost import Cost, cost_of
from datafree.recipe.recipe import Recipe, dump
from datafree.sources.base import Batch
from datafree.storage import checkpoint
from datafree.storage.made_set import read_record
from datafree.storage.scratch import Scratch
from datafree.synthesis.shards import Shards
from datafree.synthesis.synthesize import class_names
from datafree.synthesis.worker import shard_images

PAGE = 1.0  # seconds and
PAGE_BYTES = 500_000  # bytes of a page of a run, about
LINE = 2_000  # bytes of a logged step in both logs, about
_WRITTEN = 32  # images of the shard that is written
_SOON = 0.3  # seconds; what takes longer is written once


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What is done beside, and what lies on the disk in the end (bytes by what it is)."""

    work: list[CostItem]
    disk: dict[str, int]


def _often(steps: range, every: int) -> int:
    """How many of consecutive `steps` are multiples of `every`, or the last."""
    return len(_multiples(steps, every)) + (steps[-1] % every != 0)


def _multiples(steps: range, every: int) -> range:
    return range(-(-steps.start // every) * every, steps.stop, every)


def of_run(calibrated: Calibration, labelled: LabelledData | None, seconds: float) -> Surroundings:
    """Of a run whose updates and steps take `seconds`: its saves, looks, pictures, pages, scores and files."""
    training, source, student = calibrated.training, calibrated.small, calibrated.student
    steps = range(1 - calibrated.source.warmup, training.steps + 1)
    compared = _often(steps[calibrated.source.warmup :], training.save_every)
    saved = 1 + max(_often(steps, training.save_every), int(seconds / SAVED_WITHIN))
    shown = [*_multiples(steps, training.picture_every)]
    shown += [] if steps[-1] in shown[-1:] else [steps[-1]]
    logged = _often(steps, training.log_every)

    images = calibrated.validation_images(validation.COMPARED)
    drawn = max(1, len(source.validation_images(validation.SHOWN)))  # a small source has held out more, or fewer
    more = calibrated.set_aside(shown, validation.SHOWN) / drawn
    timed, content = beside(calibrated), io.BytesIO()
    work = [
        CostItem(what="looks at held-out images", often=compared, each=timed.look),
        CostItem(what="pictures", often=len(shown), each=timed.picture),
        CostItem(what="the networks' record", often=1, each=timed.record),
    ]
    if timed.drawn is not None:
        to_image(timed.drawn).save(content, "PNG", optimize=True)
    with Scratch() as scratch:
        folder = scratch.path
        state = {
            "student": student.state_dict(),
            "optimizer": calibrated.optimizer.state_dict(),
            "source": source.state_dict(),
            "best": dict(student.state_dict()) if training.select == "agreement" else {},
            "average": dict(student.state_dict()) if training.ema else {},
            "random": modes.random_state(),
        }
        each, size = _written(folder / "state.pt", state, calibrated.clock)
        full = size - checkpoint.size_of(source.state_dict()) + calibrated.state_bytes(range(steps[0] - 1, steps[-1]))
        work.append(CostItem(what="saves", often=saved, each=Cost(seconds=each * full / size)))
        began = calibrated.clock()
        save_weights(bare(student), folder / "kept" / "student.safetensors")
        save_artefacts(source, folder / "kept")
        if len(images):
            save_calibration(images, folder / "kept")
        work.append(CostItem(what="weights", often=1, each=Cost(seconds=calibrated.clock() - began)))
        kept = _size(folder / "kept")
    work.append(
        CostItem(what="pages", often=1 + int(min(seconds / 10, 0.01 * seconds / PAGE)), each=Cost(seconds=PAGE))
    )
    if labelled is not None and len(labelled):
        work.append(_scores(calibrated, labelled))
    disk = {
        "states, three while one is written": 3 * full,
        "weights, images to calibrate with": kept,
        "pictures": round(more * len(content.getvalue())),
        "page": PAGE_BYTES + round(more * len(content.getvalue())),
        "logs": logged * LINE,
    }
    return Surroundings(work=work, disk={what: size for what, size in disk.items() if size})


@dataclass(frozen=True, kw_only=True)
class ShardCost:
    """One shard: making it, writing it, what it comes to on the disk."""

    each: Cost
    images: int
    files: int
    bytes: int
    entries: int  # bytes of what a file about all images says of these
    carries: bool  # whether the next one goes on from it
    state: int  # bytes of what it goes on from


def of_shard(calibrated: Calibration, recipe: Recipe, finished: list[Batch]) -> ShardCost:
    """A shard of the recipe's data set; `finished` is what the calibration keeps batches in."""
    source, small, task = calibrated.source, calibrated.small, calibrated.task
    before, batch = _bytes(small.state_dict()), calibrated.training.batch_size
    if source.finishes:
        each = calibrated.update(small, source, -1)
        finished.clear()
        small.update(calibrated.student, -1)
        update = small.update_size()
        parts, whole = list(finished), 1.0 if update is None else each.images / update.images
        images = round(sum(len(part.images) for part in parts) * whole)
    else:
        parts = [small.sample(calibrated.timed)]
        images = shard_images(source, batch)
        each = cost_of(
            lambda: small.sample(calibrated.timed),
            calibrated.device,
            calibrated.timed,
            calibrated.budget,
            clock=calibrated.clock,
        ).of_images(images)
    after = _bytes(small.state_dict())
    carries = not (source.warmup and not source.finishes) and after != before
    shown = torch.cat([part.images for part in parts])[:_WRITTEN].float().clamp(0, 1).mul(255).round() / 255
    targets = [part.targets for part in parts if part.targets is not None]
    if len(targets) < len(parts):
        with torch.no_grad():
            answered = cost_of(
                lambda: task.pseudo_targets(calibrated.teacher(shown)),
                calibrated.device,
                len(shown),
                0.0,
                clock=calibrated.clock,
            )
            each = each + answered.of_images(images)
            targets = [task.pseudo_targets(calibrated.teacher(shown))]
    with Scratch() as scratch:
        with closing(Shards(scratch.path / "set", dump(recipe))) as shards:
            shards.begin(class_names(recipe))
            began = calibrated.clock()
            shards.write(0, task, Batch(images=shown, targets=torch.cat(targets)[: len(shown)]))
            written = Cost(seconds=calibrated.clock() - began, images=len(shown)).of_images(images)
        files = [file for file in shards.data.rglob("*") if file.is_file() and file.parent != shards.data]
        file = shards.path / "shards" / "00000.json"
        record, listed = file.stat().st_size, bool(read_record(file)["entries"])
        size, more = sum(file.stat().st_size for file in files), images / len(shown)
        return ShardCost(
            each=each + written,
            images=images,
            files=round(len(files) * more) + 1,
            bytes=round((size + record) * more),
            entries=round(record * more) if listed else 0,
            carries=carries,
            state=len(after),
        )


def _scores(calibrated: Calibration, labelled: LabelledData) -> CostItem:
    """Both networks on all labelled images, from a few of them."""
    few = _Few(labelled, min(len(labelled), 64))

    def score() -> None:
        for network in (calibrated.teacher, calibrated.student):
            evaluate(network, calibrated.task, few, device=calibrated.device)

    each = cost_of(score, calibrated.device, 32, 0.0, least=0, clock=calibrated.clock).times(len(labelled) / len(few))
    return CostItem(what="scores", often=1, each=each)


class _Few:
    """The first of labelled images."""

    def __init__(self, labelled: LabelledData, count: int) -> None:
        self._labelled, self._count = labelled, count
        self.class_names, self.skipped = labelled.class_names, list[str]()

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """As the whole's."""
        left = self._count
        for images, targets in self._labelled.batches(min(batch_size, left)):
            if left <= 0:
                return
            yield images[:left], targets[:left]
            left -= len(images)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._labelled[index]


def _written(file: Path, state: dict[str, Any], clock: Callable[[], float]) -> tuple[float, int]:
    """Seconds and bytes of a state that is written, the second time where that takes no time."""
    seconds = math.inf
    for _ in range(2):
        began = clock()
        checkpoint.write(file, state)
        seconds = min(seconds, clock() - began)
        if seconds > _SOON:
            break
    return seconds, file.stat().st_size


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _bytes(state: dict[str, Any]) -> bytes:
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()
