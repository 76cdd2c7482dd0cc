"""Digests of files: whether what is read is what a run, an export or a data set wrote there.

Whoever writes a file that others read notes its SHA-256 in a sealed record beside it: student.json that of weights,
result.json those of all else, an export's config.json those of its files. (Of data sets see `made_set`.)
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from datafree.errors import RunError
from datafree.storage import strict_json
from datafree.storage.atomic import sha256_of
from datafree.storage.run_files import ConfigForm

RECORDS = ("student.json", "result.json", "config.json")  # each may have `sha256`: file name -> digest


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of each file of `folder` that is there, by name. Raises OSError."""
    return {name: sha256_of(folder / name) for name in names if (folder / name).is_file()}


def noted(file: Path) -> tuple[Path, str] | None:
    """The record beside `file` that notes its digest, and the digest; None where there is none.

    A record that cannot be read notes nothing: whoever needs it says what is wrong with it.
    """
    for name in RECORDS:
        record = file.parent / name
        if name == file.name or not record.is_file():
            continue
        try:
            if record.stat().st_size > strict_json.MAX_BYTES:
                continue
            known = strict_json.look(record.read_bytes(), ConfigForm).content.get("sha256", {})
        except (OSError, strict_json.Damaged):
            continue
        if file.name in known:
            return record, known[file.name]
    return None


def difference(file: Path) -> str:
    """What tells `file` from what was written; "" where it is the same, or nothing is noted of it. Raises OSError."""
    if (found := noted(file)) is None:
        return ""
    record, digest = found
    try:
        now = sha256_of(file)
    except FileNotFoundError:
        return f"it is gone, though {record.name} has its digest"
    if now == digest:
        return ""
    return f"its SHA-256 is {now[:12]}..., but {digest[:12]}... in {record.name}"


def check(file: Path) -> None:
    """Raise RunError if `file` is not what was written there, as far as that is noted."""
    try:
        problem = difference(file)
    except OSError as error:
        raise RunError(f"cannot read {file}: {error.strerror}; make it readable") from error
    if problem:
        raise RunError(
            f"{file} has changed since it was written: {problem}; take it from its original place, or make it again "
            "(of a run: remove its result.json and run the same `datafree distill`)"
        )
