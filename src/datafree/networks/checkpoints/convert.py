"""Files of `torch.save` rewritten as safetensors: their tensors, taken out without running what else is in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from datafree.errors import DatafreeError, WeightsError
from datafree.networks.checkpoints.torch_files import read_torch_file
from datafree.networks.checkpoints.weights import weights_in
from datafree.networks.checkpoints.whole_modules import read_module
from datafree.storage.atomic import write_whole
from datafree.storage.places import require_new
from datafree.text import counted, one_line, size

_SPARE = 200_000_000  # bytes that may be written beyond twice the file's: tied weights of small files


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What was found in a file."""

    kind: str  # the class of the module whose tensors they are; "" for plain weights
    key: str  # where in a checkpoint they were; "" for the file itself
    tensors: int
    values: int


def convert(old: Path, new: Path) -> Converted:
    """Write the tensors of a whole module, or of a checkpoint that holds anything beside its weights, as safetensors.

    Raises WeightsError for a file without tensors, for one that would grow far beyond its size, and where `new` is
    there or cannot be written.
    """
    require_new(new, ".safetensors")
    module = read_module(old)
    tensors = _plain(old) if module is None else module.tensors
    _require_bounded(old, tensors)
    # A file of safetensors holds each tensor for itself.
    content = safetensors.torch.save({name: value.clone().contiguous() for name, value in tensors.items()})
    try:
        write_whole(new, content)
    except OSError as error:
        raise WeightsError(f"{new} cannot be written ({one_line(error)})") from error
    return Converted(
        kind="" if module is None else module.kind,
        key="" if module is None else module.key,
        tensors=len(tensors),
        values=sum(value.numel() for value in tensors.values()),
    )


def _require_bounded(path: Path, tensors: dict[str, Tensor]) -> None:
    """Raise WeightsError where names of the same values would take far more than the file's size, written one by one.

    Tied weights are a few names for one tensor; a thousand would make gigabytes of a small file.
    """
    written = sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())
    held = path.stat().st_size
    if written > 2 * held + _SPARE:
        raise WeightsError(
            f"weights {path}: {counted(len(tensors), 'tensor')} that share their values would take {size(written)} as "
            f"safetensors, the file has {size(held)}; if you trust it, load it where it was made and save each tensor "
            "under one name"
        )


def _plain(path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint, where `read_tensors` would find them, whatever stands beside them."""

    def choose(content: Any) -> Any:
        return weights_in(content, path)

    try:
        return read_torch_file(path, choose, objects=True)
    except DatafreeError:
        raise
    except Exception as error:  # the parsers raise anything for damaged files
        raise WeightsError(
            f"weights {path}: damaged, or not a weights file ({one_line(error)}): fetch it again"
        ) from error
