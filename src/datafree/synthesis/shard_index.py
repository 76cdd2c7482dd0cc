"""The index of a made data set: a record of each shard, read one at a time.

A record is shards/NNNNN.json: {"shard": number, "images": count, "carries": whether the source carried something on,
"files": {path below data/: SHA-256}, "entries": [what `Task.write_example` answered for each image, if anything],
"figures": {what the update that made it logged}}. The index is index.json: {"images", "shards", "files"}, these being
about all images, such as classes.txt.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datafree.errors import RunError
from datafree.storage.atomic import sha256_of, write_whole
from datafree.tasks.base import Task

INDEX = "index.json"  # the whole set's
RECORD = "record.json"  # the name of a shard's record before the shard is in its place

Record = dict[str, Any]  # of a shard or of the whole, as its json holds it


def records(path: Path) -> Iterator[Record]:
    """The record of each whole shard of the set at `path`, in their order. Raises RunError for a damaged one."""
    for file in sorted((path / "shards").glob("*.json")):
        yield read_record(file)


def read_record(file: Path) -> Record:
    """A record or the index. Raises RunError if it is damaged, or names files that are not below data/."""
    try:
        record: Record = json.loads(file.read_text(encoding="utf-8"))
        whole = file.name == INDEX
        counts = [record["images"], record["shards" if whole else "shard"]]
        sound = all(type(count) is int and 0 <= count < 2**63 for count in counts) and all(
            isinstance(digest, str) and _is_below(name) for name, digest in record["files"].items()
        )
        if not whole:
            sound &= isinstance(record["carries"], bool) and isinstance(record["entries"], list)
            sound &= file.name in (RECORD, f"{record['shard']:05}.json")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(_damaged(file, type(error).__name__)) from error
    if not sound:
        raise RunError(_damaged(file, "it does not say what such a file says"))
    return record


def _is_below(name: str) -> bool:
    """Whether a path stays below the folder that it is joined to."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts and "\0" not in name


def _damaged(file: Path, what: str) -> str:
    return f"{file} is damaged ({what}); remove it, and the command that made it makes what it was about again"


def hashes(path: Path) -> Iterator[tuple[str, str]]:
    """Every file of the set at `path`, its name below data/, with the SHA-256 that was written down."""
    for record in records(path):
        yield from record["files"].items()
    if (path / INDEX).exists():
        yield from read_record(path / INDEX)["files"].items()


def damages(path: Path) -> Iterator[tuple[str, str]]:
    """Every file of the set at `path` that is not as it was written: its name below `path`, and what is wrong."""
    for name, digest in hashes(path):
        try:
            sound = sha256_of(path / "data" / name) == digest
        except OSError as error:
            yield f"data/{name}", "missing" if isinstance(error, FileNotFoundError) else str(error.strerror)
            continue
        if not sound:
            yield f"data/{name}", "damaged"


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
    write_whole(path / INDEX, (json.dumps({"images": images, "shards": shards, "files": about}) + "\n").encode())


def listings(path: Path, task: Task) -> Iterator[list[Any]]:
    """The entries of one shard after the other. Raises RunError for one that the task would not have written."""
    for record in records(path):
        if not all(map(task.is_entry, record["entries"])):
            raise RunError(_damaged(path / "shards" / f"{record['shard']:05}.json", "it lists what is no image"))
        yield record["entries"]
