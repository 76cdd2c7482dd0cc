"""What a process makes and learns of a run whose batches are shared out: `training.data_parallel: divided`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from datafree.distributed import divided, own_state
from datafree.distributed.replicas import count
from datafree.recipe.training import Training
from datafree.sources.base import ImageSource
from datafree.storage.environment import environment, hardware


def require_alike(recipe: Mapping[str, Any]) -> None:
    """Raise DatafreeError, on all processes, if one has another recipe, version or number of threads than the first.

    Of files on each machine the names count; what is in them is compared when it is read.
    """
    if count() == 1:
        return
    facts = {".".join(path): _named(value) for path, value in own_state.leaves(dict(recipe))}
    facts |= {f"version of {name}": str(text) for name, text in environment()["versions"].items()}
    divided.require_alike({**facts, "number of threads": str(hardware()["threads"])})


def _named(value: object) -> str:
    """A recipe's value as text, a path without its folder."""
    text = str(value)
    return Path(text).name if isinstance(value, str) and Path(text).is_absolute() else text


def part_of(training: Training, source: ImageSource) -> tuple[Training, ImageSource]:
    """Both with this process's part of each batch; a copy of the source, or itself where there is nothing to share.

    Raises DatafreeError for a batch that the processes cannot share out evenly.
    """
    if not divided.is_on():
        return training, source
    training = training.with_batch_size(divided.share_of(training.batch_size, "training.batch_size"))
    source = copy.deepcopy(source)
    for each in source.all_sources():
        if (size := each.update_size()) is not None:
            what = f"batch_size of {type(each).__name__.lower()}"
            each.resize_updates(replace(size, images=divided.share_of(size.images, what)))
    return training, source
