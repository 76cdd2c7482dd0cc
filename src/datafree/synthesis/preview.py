"""The preview of a made data set: a picture of its first shard, the means of its metrics.

B images, H x W pixels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from datafree.data.images import to_image
from datafree.data.visualize import grid
from datafree.engine.progress import FIRST
from datafree.errors import RunError
from datafree.sources.base import Batch
from datafree.storage import checkpoint
from datafree.storage.atomic import room_for, write_whole
from datafree.storage.held_folders import require_held
from datafree.storage.made_set import Record
from datafree.tasks.base import Task

PREVIEW = "shards/preview.png"
SHOWN = 16  # images in it


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """One line for a full disk, lost permissions and the like."""
    require_held(path)
    try:
        yield
    except OSError as error:
        require_held(path)
        need = f" ({room_for(path / 'data', error.size)})" if isinstance(error, checkpoint.NoRoom) else ""
        raise RunError(
            f"cannot write into {path}: {error.strerror or error}{need}; its complete shards are intact: fix that and "
            "run the same command to resume"
        ) from error


def write_preview(path: Path, task: Task, batch: Batch) -> None:
    """Write some images of a batch, evenly chosen, and below each its target; nothing where the task draws no targets.

    Raises RunError.
    """
    assert batch.targets is not None
    chosen = torch.linspace(0, len(batch.images) - 1, min(SHOWN, len(batch.images))).round().long()
    images, targets = batch.images[chosen.to(batch.images.device)], batch.targets[chosen.to(batch.targets.device)]
    drawn = task.draw_targets(images, targets)
    if drawn is None:
        return
    content = io.BytesIO()
    to_image(grid([images, drawn])).save(content, "PNG", optimize=True)
    with writing(path):
        write_whole(path / PREVIEW, content.getvalue())


def means(records: Iterable[Record]) -> str | None:
    """The means of the figures that shards were made with, in words; None where none has any."""
    sums: dict[str, list[float]] = {}  # name -> sum, how many
    count = shards = 0
    for record in records:
        figures = _figures(record)
        count, shards = count + bool(figures), shards + 1
        for name, value in figures.items():
            had = sums.setdefault(name, [0.0, 0])
            had[0], had[1] = had[0] + value, had[1] + 1
    if not sums:
        return None
    names = [*(name for name in FIRST if name in sums), *(name for name in sums if name not in FIRST)]
    shown = ", ".join(f"{name} {sums[name][0] / sums[name][1]:.3g}" for name in names)
    return f"means over {count:,} of {shards:,} shards: {shown}"


def _figures(record: Record) -> dict[str, float]:
    """A record's figures; without what is none, since older records have none and others may be damaged."""
    found = record.get("figures")
    if not isinstance(found, dict):
        return {}
    numbers = {name: value for name, value in found.items() if isinstance(value, float) and math.isfinite(value)}
    return {name: value for name, value in numbers.items() if name.isidentifier()}
