"""Sharded weights: the index that says which file holds which tensor (`*.index.json`, as Hugging Face)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from datafree.errors import WeightsError
from datafree.text import show

MAX_BYTES = 8 * 2**20  # of an index, or of any other table of contents in JSON: about 80,000 tensors
_ENDINGS = (".safetensors", ".bin", ".pt", ".pth")


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, for `object_pairs_hook`. Raises ValueError if a name comes twice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name comes twice")
    return made


def read_indexed(path: Path, read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of all files that the index at `path` names, each read by `read`.

    The files lie beside the index, none elsewhere and none behind a link that leads elsewhere, and hold exactly the
    tensors that the index places in them. Raises WeightsError, and ValueError for what is no JSON.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise WeightsError(f"weights {path}: an index of more than {MAX_BYTES:,} bytes")
    index = json.loads(content, object_pairs_hook=unique)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise WeightsError(f"weights {path}: no index of weights; it needs `weight_map`, from tensors to files")
    files: dict[str, set[str]] = {}
    for tensor, name in places.items():
        files.setdefault(name, set()).add(tensor)
    for name in files:
        _check_place(path, name)
    found: dict[str, Tensor] = {}
    for name, promised in files.items():
        tensors = read(path.parent / name)
        for given, wanted, fault in ((tensors, promised, "does not hold"), (promised, tensors, "also holds")):
            absent = [tensor for tensor in wanted if tensor not in given]
            if absent:
                raise WeightsError(
                    f"weights {path}: {show(name)} {fault} {show(sorted(absent)[0])}, unlike the index says "
                    f"({len(absent)} such tensors); fetch all the files again"
                )
        found |= tensors
    return found


def _check_place(path: Path, name: str) -> None:
    """Whether `name` is a weights file beside the index. Raises WeightsError."""
    if any(c in name for c in "/\\:\0") or name.startswith(".") or not name.endswith(_ENDINGS):
        raise WeightsError(
            f"weights {path}: names {show(name)}, which is no weights file beside it ({', '.join(_ENDINGS)})"
        )
    file = path.parent / name
    if not file.is_file():
        raise WeightsError(f"weights {path}: {show(name)} is not beside it; fetch all the files")
    if file.resolve().parent != path.parent.resolve():
        raise WeightsError(
            f"weights {path}: {show(name)} is a link to another folder; copy the files themselves (cp -L)"
        )
