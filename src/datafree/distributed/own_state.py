"""What of a saved state is another on each process: found by digests, gathered by the first, put back on each.

A state is nested dicts; what is not a dict, or an empty one, is a leaf. Only leaves that differ from the first
process's are gathered, so that networks and optimisers, the same on all, are saved once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from datafree.distributed import divided, replicas
from datafree.errors import TrainingError

OTHERS = "others"  # of a saved state: a list, for each process but the first (path, leaf) pairs and paths it has not

Path = tuple[Any, ...]  # the keys from the outermost dict to a leaf


def leaves(state: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every leaf with its path."""
    if isinstance(state, dict) and state:
        for key, value in state.items():
            yield from leaves(value, (*path, key))
    else:
        yield path, state


def digest(value: Any) -> str:
    """The same text for the same tensors and plain values, wherever they are."""
    found = hashlib.blake2b(digest_size=16)
    _feed(found, value)
    return found.hexdigest()


def _feed(found: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        found.update(f"{tuple(value.shape)} {value.dtype}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, dict):
        for key, item in value.items():
            found.update(repr(key).encode())
            _feed(found, item)
    elif isinstance(value, (list, tuple)):
        found.update(f"[{len(value)}".encode())
        for item in value:
            _feed(found, item)
    else:
        found.update(repr(value).encode())


def others(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For the first process: what each of the others has in place of its own, in plain values; for these: nothing."""
    mine = dict(leaves(dict(state)))
    digests = {path: digest(leaf) for path, leaf in mine.items()}
    first = replicas.broadcast_from_rank0(lambda: digests)
    differing = [(list(path), _at_home(leaf)) for path, leaf in mine.items() if digests[path] != first.get(path)]
    own = {"leaves": differing, "without": [list(path) for path in first if path not in mine]}
    every: list[Any] | None = [None] * replicas.count() if replicas.is_first() else None
    dist.gather_object(None if replicas.is_first() else own, every)
    return [] if every is None else every[1:]


def _at_home(leaf: Any) -> Any:
    """A leaf that can travel: its tensors on the host."""
    if isinstance(leaf, Tensor):
        return leaf.detach().cpu()
    return type(leaf)(map(_at_home, leaf)) if type(leaf) in (list, tuple) else leaf


def of_this_process(state: dict[str, Any]) -> dict[str, Any]:
    """A saved state as this process is to go on with it; `state` itself stays as it is.

    Of fewer processes than before the first ones' banks and places go on; of more, those beyond take the banks of the
    others once more. Raises nothing: who has no part of its own goes on with the first one's.
    """
    saved = state.get(OTHERS, [])
    number = divided.turn()[0] % (len(saved) + 1)
    if not number:
        return state
    part = saved[number - 1]
    merged: dict[str, Any] = _copied(state)
    for path in part["without"]:
        _within(merged, path[:-1]).pop(path[-1], None)
    for path, leaf in part["leaves"]:
        _within(merged, path[:-1])[path[-1]] = leaf
    return merged


def is_saved_of(state: Mapping[str, Any]) -> bool:
    """Whether a saved state holds a part for this process's number."""
    return divided.turn()[0] <= len(state.get(OTHERS, []))


def _copied(state: Any) -> Any:
    return {key: _copied(value) for key, value in state.items()} if isinstance(state, dict) else state


def _within(state: dict[Any, Any], path: list[Any]) -> dict[Any, Any]:
    for key in path:
        held = state.get(key)
        state[key] = state = held if isinstance(held, dict) else {}
    return state


def require_equal(networks: Mapping[str, nn.Module]) -> None:
    """Raise TrainingError, on all processes, for the first of the networks whose weights are not the same on all."""
    mine = {name: digest(dict(network.named_parameters())) for name, network in networks.items()}
    every = divided.gathered_objects(mine)
    for name in mine:
        if len({each[name] for each in every}) > 1:
            raise TrainingError(
                f"the weights of the {name} are no longer the same on all processes; a source whose networks are not "
                "trained by datafree's own parts needs training.data_parallel=exact"
            )


def require_same_start(state: Callable[[], dict[str, Any]]) -> None:
    """Raise DatafreeError if processes begin with other networks or other lists of files; times of files may differ."""
    if replicas.count() > 1:
        facts = {"/".join(map(str, path)): digest(leaf) for path, leaf in leaves(state())}
        divided.require_alike({f"{name} of its source": facts[name] for name in facts if "files/" not in name})
