"""The index of a made data set, written: the files about all its images, each listed one shard at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datafree.errors import RunError
from datafree.storage import strict_json
from datafree.storage.atomic import sha256_of, write_whole
from datafree.storage.made_set import INDEX, damaged, records
from datafree.tasks.base import Task


def sealed(file: Path) -> str:
    """The SHA-256 of a file, which is on the disk from then on, also after a power cut."""
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())
    return sha256_of(file)


def write_index(path: Path, task: Task, class_names: list[str]) -> None:
    """Write what is about the whole set: the files of `Task.write_index`, and index.json at last. Raises RunError."""
    data, images, shards = path / "data", 0, 0
    for record in records(path):
        images, shards = images + record["images"], shards + 1
    task.write_index(data, lambda: listings(path, task), class_names)
    about = {file.name: sealed(file) for file in sorted(data.glob("[!.]*")) if file.is_file()}
    write_whole(path / INDEX, strict_json.sealed({"images": images, "shards": shards, "files": about}))


def listings(path: Path, task: Task) -> Iterator[list[Any]]:
    """The entries of one shard after the other. Raises RunError for one that the task would not have written."""
    for record in records(path):
        if not all(map(task.is_entry, record["entries"])):
            raise RunError(damaged(path / "shards" / f"{record['shard']:05}.json", "it lists what is no image"))
        yield record["entries"]
