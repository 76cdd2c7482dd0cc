"""What a made data set says about itself: a record of each shard, an index of the whole. Read one shard at a time.

A record is shards/NNNNN.json: {"shard": number, "images": count, "carries": whether the source carried something on,
"files": {path below data/: SHA-256}, "entries": [what `Task.write_example` answered for each image, if anything],
"figures": {what the update that made it logged}}. The index is index.json: {"images", "shards", "files"}, these being
about all images, such as classes.txt.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datafree.config import yaml
from datafree.data.coco_yolo import coco_json
from datafree.errors import RunError
from datafree.storage.atomic import write_whole, written_whole

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
            sound &= all(map(_is_entry, record["entries"]))
            sound &= file.name in (RECORD, f"{record['shard']:05}.json")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(_damaged(file, type(error).__name__)) from error
    if not sound:
        raise RunError(_damaged(file, "it does not say what such a file says"))
    return record


def _is_below(name: str) -> bool:
    """Whether a path stays below the folder that it is joined to."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts and "\0" not in name


def _is_entry(entry: Any) -> bool:
    """Whether an entry is what `Task.write_example` answers: an image's name, size and boxes."""
    sizes = [entry["width"], entry["height"]]
    numbers = [number for box in entry["boxes"] for number in box]
    return (
        isinstance(entry["file_name"], str)
        and all(type(size) is int and size > 0 for size in sizes)
        and all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers)
        and all(len(box) == 5 for box in entry["boxes"])
    )


def _damaged(file: Path, what: str) -> str:
    return f"{file} is damaged ({what}); remove it, and the command that made it makes what it was about again"


def hashes(path: Path) -> Iterator[tuple[str, str]]:
    """Every file of the set at `path`, its name below data/, with the SHA-256 that was written down."""
    for record in records(path):
        yield from record["files"].items()
    if (path / "index.json").exists():
        yield from read_record(path / "index.json")["files"].items()


def damages(path: Path) -> Iterator[tuple[str, str]]:
    """Every file of the set at `path` that is not as it was written: its name below `path`, and what is wrong."""
    for name, digest in hashes(path):
        try:
            with (path / "data" / name).open("rb") as file:
                sound = hashlib.file_digest(file, "sha256").hexdigest() == digest
        except OSError as error:
            yield f"data/{name}", "missing" if isinstance(error, FileNotFoundError) else str(error.strerror)
            continue
        if not sound:
            yield f"data/{name}", "damaged"


def coco_text(path: Path, class_names: list[str]) -> Iterator[str]:
    """The text of a COCO file about all images, piece by piece: what `coco_json` answers, with ids that count on."""
    for key, opening in (("images", '{"images": [\n'), ("annotations", '],\n"annotations": [\n')):
        yield opening
        images = boxes = 0
        between = ""
        for record in records(path):
            entries = record["entries"]
            sizes = [(entry["file_name"], entry["width"], entry["height"]) for entry in entries]
            content = coco_json(sizes, [entry["boxes"] for entry in entries], class_names)
            for entry in content[key]:
                entry["id"] += images if key == "images" else boxes
                if key == "annotations":
                    entry["image_id"] += images
                yield between + json.dumps(entry)
                between = ",\n"
            images, boxes = images + len(content["images"]), boxes + len(content["annotations"])
    yield f'],\n"categories": {json.dumps(coco_json([], [], class_names)["categories"])}}}\n'


def write_pieces(path: Path, pieces: Iterable[str]) -> None:
    """Write a text file piece by piece, whole or not at all. Raises OSError."""
    with written_whole(path) as file:
        file.writelines(piece.encode() for piece in pieces)


def sealed(file: Path) -> str:
    """The SHA-256 of a file, which is on the disk from then on, also after a power cut."""
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())
        return hashlib.file_digest(opened, "sha256").hexdigest()


def write_index(path: Path, class_names: list[str]) -> None:
    """Write what is about the whole set: for boxes data/annotations.json and data.yaml, and index.json at last."""
    data, images, shards, boxes = path / "data", 0, 0, False
    for record in records(path):
        images, shards, boxes = images + record["images"], shards + 1, boxes or bool(record["entries"])
    if boxes:
        write_pieces(data / "annotations.json", coco_text(path, class_names))
        listing = {"train": "images", "val": "images", "names": dict(enumerate(class_names))}
        write_whole(data / "data.yaml", yaml.render(listing).encode())
    about = {file.name: sealed(file) for file in sorted(data.glob("[!.]*")) if file.is_file()}
    write_whole(path / "index.json", (json.dumps({"images": images, "shards": shards, "files": about}) + "\n").encode())
