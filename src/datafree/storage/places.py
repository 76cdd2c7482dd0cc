"""Places that commands are given: what a run is, what holds a student, and what may lie where they write.

They are looked at before torch is imported and before any work; whoever writes there looks again.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from datafree.errors import RunError, WeightsError
from datafree.storage.atomic import NoFile, require_ordinary
from datafree.storage.lock import NAME as LOCK

OF_A_RUN = ("recipe.yaml", "environment.json", "metrics.jsonl", "result.json", "student.json")


def require_run(run: Path) -> None:
    """Raise RunError where nothing of a run is."""
    if not run.is_dir():
        raise RunError(f"{run} is not a run directory; `datafree distill` makes one")
    if not any((run / name).is_file() for name in OF_A_RUN):
        raise RunError(f"{run} holds no run: none of {', '.join(OF_A_RUN)} is there; `datafree distill` makes one")


def is_run(path: Path) -> bool:
    """Whether a run or a data set has begun there."""
    return path.is_dir() and any((path / name).is_file() for name in ("student.json", "recipe.yaml"))


def require_student(run: Path) -> None:
    """Raise RunError where no run has left a student."""
    require_run(run)
    if not (run / "student.json").is_file():
        raise RunError(f"{run} holds no finished student; run the same `datafree distill` again to finish it")


def require_for_run(out: Path) -> None:
    """Raise RunError where a run can neither begin nor be gone on with."""
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; choose another --out")
    if entries_of_run(out) and not (out / "recipe.yaml").is_file():
        raise RunError(f"{out} is not empty and holds no run; choose another --out")


def entries_of_run(path: Path) -> list[str]:
    """What lies in a run directory, but for what a process left that was killed before its first file was whole."""
    try:
        names = [file.name for file in path.iterdir()] if path.is_dir() else []
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}; choose another --out") from error
    return [name for name in names if name != LOCK and not (name.startswith(".recipe.yaml.") and ".part" in name)]


def require_for_set(out: Path) -> None:
    """Raise RunError where a data set can neither begin nor be gone on with."""
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; choose another --out")
    try:
        names = [file.name for file in out.iterdir()] if out.is_dir() else []
    except OSError as error:
        raise RunError(f"cannot read {out}: {error.strerror}; choose another --out") from error
    held = [name for name in names if not name.startswith(".") and name != "shards"]
    if held and not ((out / "recipe.yaml").is_file() and (out / "shards").is_dir()):
        raise RunError(f"{out} is not empty and holds no made data set; choose another --out")


def require_new(file: Path, suffix: str) -> None:
    """Raise WeightsError for a file that is there already, or that is named otherwise than `suffix`."""
    if file.suffix != suffix:
        raise WeightsError(f"{file} is to be {suffix[1:]}: name it {file.stem}{suffix}")
    if file.exists():
        raise WeightsError(f"{file} is there already; remove it, or give another name")


def require_replaceable(out: Path, files: Collection[str], folders: Collection[str] = (), *, what: str) -> None:
    """Raise RunError if `out` holds anything that `what` ("export"), which writes these, would not replace."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise RunError(f"{out} is not a folder; choose another --out")
    names = {*files, *folders}
    try:
        strange = sorted(entry.name for entry in out.iterdir() if entry.name not in names) if out.exists() else []
        if strange:
            raise RunError(f"{out} holds {strange[0]!r}, which no {what} writes; move it away or choose another --out")
        for name in files:
            require_ordinary(out / name)
    except NoFile as error:
        raise RunError(f"{out}: {error.strerror}; move it away or choose another --out") from error
    except OSError as error:
        raise RunError(f"cannot read {out}: {error.strerror}; choose another --out") from error
    for place in (out / name for name in folders):
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            raise RunError(f"{place} is not a folder; move it away or choose another --out")
