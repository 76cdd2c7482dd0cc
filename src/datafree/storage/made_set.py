"""A made data set as it is read: the records of its shards, its index, whether it is whole and holds nothing else.

A record is shards/NNNNN.json: {"shard": number, "images": count, "carries": whether the source carried something on,
"files": {path below data/: SHA-256}, "entries": [what `Task.write_example` answered for each image, if anything],
"figures": {what the update that made it logged}}. The index is index.json: {"images", "shards", "files"}, these being
about all images, such as classes.txt. Both are sealed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datafree.errors import DataError, RunError
from datafree.storage import strict_json
from datafree.storage.atomic import sha256_of
from datafree.storage.run_files import IndexForm, RecordForm
from datafree.text import show

INDEX = "index.json"  # the whole set's
NAMES = "classes.txt"  # below data/
RECORD = "record.json"  # the name of a shard's record before the shard is in its place
_MAX_BYTES = 2**31  # of a record, which lists every image of its shard

Record = dict[str, Any]  # of a shard or of the whole, as its json holds it


def records(path: Path) -> Iterator[Record]:
    """The record of each whole shard of the set at `path`, in their order. Raises RunError for a damaged one."""
    for file in _record_files(path):
        yield read_record(file)


def _record_files(path: Path) -> list[Path]:
    return sorted((path / "shards").glob("*.json"))


def read_record(file: Path) -> Record:
    """A record or the index. Raises RunError if it is damaged, or names files that are not below data/."""
    whole = file.name == INDEX
    try:
        record = strict_json.read(file, IndexForm if whole else RecordForm, _MAX_BYTES)
    except strict_json.Damaged as error:
        raise RunError(damaged(file, str(error))) from error
    sound = all(map(_is_below, record["files"]))
    if not whole:
        sound &= file.name in (RECORD, f"{record['shard']:05}.json")
    if not sound:
        raise RunError(damaged(file, "it does not say what such a file says"))
    return record


def _is_below(name: str) -> bool:
    """Whether a path stays below the folder that it is joined to."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts and "\0" not in name


def damaged(file: Path, what: str) -> str:
    """What is said of a record or index that cannot be used."""
    return f"{file} is damaged ({what}); remove it, and the command that made it makes what it was about again"


def hashes(path: Path) -> Iterator[tuple[str, str]]:
    """Every file of the set at `path`, its name below data/, with the SHA-256 that was written down."""
    for record in records(path):
        yield from record["files"].items()
    if (path / INDEX).exists():
        yield from read_record(path / INDEX)["files"].items()


def damages(path: Path) -> Iterator[tuple[str, str]]:
    """Every file of the set at `path` that is not as it was written: its name below `path`, and what is wrong.

    Of a finished set, files in its data/ that no shard has written are among them, hidden ones apart.
    """
    present = 0
    for name, digest in hashes(path):
        present += (path / "data" / name).is_file()
        try:
            sound = sha256_of(path / "data" / name) == digest
        except OSError as error:
            yield f"data/{name}", "missing" if isinstance(error, FileNotFoundError) else str(error.strerror)
            continue
        if not sound:
            yield f"data/{name}", "damaged"
    if is_finished(path) and sum(1 for _ in files_in(path / "data")) > present:  # names are kept only where need be
        known = {name for name, _ in hashes(path)} | {NAMES}  # which is written before the index, that has it
        for name in sorted(set(files_in(path / "data")) - known):
            yield f"data/{name}", "added: no shard has written it"


def names_changed(path: Path) -> bool:
    """Whether the classes are called otherwise than when the index of the set at `path` was written; OSError."""
    try:
        digest = read_record(path / INDEX)["files"].get(NAMES)
    except RunError:  # there is none, or it is to be written anew in any case
        return False
    return digest is not None and sha256_of(path / "data" / NAMES) != digest


def is_finished(path: Path) -> bool:
    """Whether the index of the set at `path` is about all its shards. Raises RunError."""
    counts = [record["images"] for record in records(path)]
    if not (path / INDEX).exists():
        return False
    index = read_record(path / INDEX)
    return bool((index["images"], index["shards"]) == (sum(counts), len(counts)))


def files_in(folder: Path) -> Iterator[str]:
    """The files below `folder`, as paths below it, in constant memory; hidden names are left out. Raises DataError."""
    waiting = [""] if folder.is_dir() else []
    while waiting:
        place = waiting.pop()
        try:
            with os.scandir(folder / place) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    name = f"{place}{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(f"{name}/")
                    else:
                        yield name
        except OSError as error:
            raise DataError(f"cannot list {folder / place}: {error.strerror}; make it readable") from error


def set_of(path: Path) -> Path | None:
    """The made data set that `path` is, or is the data/ of; None where it is neither."""
    for place in (path, *([path.parent] if path.name == "data" else [])):
        if not ((place / "shards").is_dir() and (place / "data").is_dir()):
            continue
        if any((place / name).is_file() for name in (INDEX, "recipe.yaml")) or any(records(place)):
            return place
    return None


def data_of(path: Path) -> Path:
    """Where the images of a data set are: `path`, or the data/ of a made one, which is looked at before.

    Raises RunError for a set that is not finished, DataError for one whose data/ holds other files than were written.
    Files are compared by name, those about all images by content, and of the others those by content that are younger
    than their shard's record: nobody has a reason to write there after it. `synthesize --verify` compares each.
    """
    made = set_of(path)
    if made is None:
        return path
    shards: list[tuple[int, dict[str, str]]] = []  # when each was written, in ns, and its files' digests
    images = 0
    for file in _record_files(made):
        record = read_record(file)
        images += record["images"]
        shards.append((file.stat().st_mtime_ns, record["files"]))
    if not is_finished(made):
        listed = f" and lists {read_record(made / INDEX)['images']:,}" if (made / INDEX).exists() else ""
        raise RunError(f"{made} is a data set that is not finished: it holds {images:,} images{listed}; {_FINISH}")
    index = read_record(made / INDEX)
    for name, digest in index["files"].items():
        if not (made / "data" / name).is_file() or sha256_of(made / "data" / name) != digest:
            raise DataError(f"{made / 'data' / name} is missing or has changed since it was written; {_AGAIN}")
    there = set(files_in(made / "data"))
    known = {name for _, files in shards for name in files} | index["files"].keys()
    for names, what in ((sorted(there - known), "that no shard has written"), (sorted(known - there), "too few")):
        if names:
            raise DataError(f"{made / 'data'} holds {len(names):,} files {what}, the first {show(names[0])}; {_AGAIN}")
    changed = [
        name
        for written, files in shards
        for name, digest in files.items()
        if _is_changed(made / "data" / name, written, digest)
    ]
    if changed:
        line = f"{len(changed):,} files that have changed since they were written, the first {show(changed[0])}"
        raise DataError(f"{made / 'data'} holds {line}; {_AGAIN}")
    return made / "data"


def _is_changed(file: Path, written: int, digest: str) -> bool:
    """Whether a file is another one than the digest says, if it is younger than `written`, in ns; files are small."""
    return file.stat().st_mtime_ns > written and sha256_of(file) != digest


_FINISH = "run the same `datafree synthesize` again to finish it"
_AGAIN = "`datafree synthesize --verify` names all; copy data/ elsewhere to use it as it is"
