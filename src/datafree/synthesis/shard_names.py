"""Names of a made data set's shards and of the states between them."""

from __future__ import annotations


def named(number: int) -> str:
    """What a shard is called."""
    return f"{number:05}"


def state_for(number: int) -> str:
    """The file of what the source goes on from for a shard."""
    return f"before-{named(number)}.pt"
