"""Names of a made data set's shards and of the states between them; which names mean nothing."""

from __future__ import annotations

import re
from pathlib import Path

from datafree.storage.lock import NAME as LOCK
from datafree.synthesis.claims import FOLDER as CLAIMS


def named(number: int) -> str:
    """What a shard is called."""
    return f"{number:05}"


def state_for(number: int) -> str:
    """The file of what the source goes on from for a shard."""
    return f"before-{named(number)}.pt"


def is_past(state: str, number: int) -> bool:
    """Whether a file of the folder of states is what a source went on from for this shard, or an earlier one."""
    found = re.fullmatch(r"before-(\d{5,})\.pt", state)
    return found is not None and int(found[1]) <= number


def means_something(entry: Path) -> bool:
    """Whether an entry of the directory is more than what a process leaves that is killed before its first file."""
    if entry.name in (LOCK, CLAIMS) or entry.match(".recipe.yaml.*.part"):
        return False
    return entry.name != "shards" or not entry.is_dir() or any(entry.iterdir())
