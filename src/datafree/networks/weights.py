"""Weights from files that are not trusted, and to files.

A weights file is only ever read as tensors: nothing in it is run or imported.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from datafree.errors import DatafreeError, WeightsError
from datafree.files import write_whole
from datafree.wording import one_line

# Where training scripts keep the weights among other things; plain weights before their moving average,
# because every such file has them, so that one recipe means the same for all.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name, on the CPU; runs no code, whatever the file holds.

    `.safetensors`, else what `torch.save` wrote. Weights inside a checkpoint are found under state_dict,
    model_state_dict, model, state_dict_ema or model_ema, in this order; the prefixes module. and _orig_mod.
    (DataParallel, torch.compile) are taken off where all names share them. Raises WeightsError.
    """
    if not path.is_file():  # also keeps from waiting on a pipe
        raise WeightsError(f"weights {path}: {'not a file' if path.exists() else 'no such file'}")
    try:
        found = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except DatafreeError:
        raise
    except Exception as error:  # the parsers raise anything from KeyError to RuntimeError for damaged files
        raise WeightsError(f"weights {path}: damaged, or not a weights file ({one_line(error)})") from error
    for _ in range(3):  # wrapped in a wrapper at most: a forged dict may hold itself
        if isinstance(found, dict):
            found = next((found[k] for k in _WRAPPERS if isinstance(found.get(k), dict)), found)
    if not isinstance(found, dict) or not found:
        what = "an empty dict" if isinstance(found, dict) else f"a {type(found).__name__}"
        raise WeightsError(f"weights {path}: holds {what}, not named tensors; save network.state_dict()")
    size = path.stat().st_size
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            shown = f"entry {name[:80]!r}" if isinstance(name, str) else f"a key of type {type(name).__name__}"
            raise WeightsError(
                f"weights {path}: {shown} holds a {type(tensor).__name__}; tensors under names are needed: "
                f"save network.state_dict(), alone or under one of {', '.join(_WRAPPERS)}"
            )
        # A few bytes can declare terabytes: strides of 0, no values at all.
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.nbytes > size:
            raise WeightsError(f"weights {path}: {name[:80]!r} is no plain tensor stored whole in the file")
    prefix = _wrapper_prefix(found)
    return {name[len(prefix) :]: tensor.detach() for name, tensor in found.items()}


def _wrapper_prefix(names: Iterable[str]) -> str:
    """What wrappers put before every one of `names`, for instance "_orig_mod.module."."""
    names = list(names)
    leads = [match[0] for name in names if (match := re.match(r"(?:module\.|_orig_mod\.)*", name))]
    shortest = min(leads, key=len, default="")
    return shortest if all(name.startswith(shortest) for name in names) else ""


def _read_pickle(path: Path) -> Any:
    """What `torch.save` wrote, through torch's restricted unpickler."""
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"  # torch's own test
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(_checked_zip(path) if zipped else path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        needs = f"needs {refused[1]} to be loaded" if refused else "needs more than tensors to be loaded"
        raise WeightsError(
            f"weights {path}: {needs}, which could run any code; if you trust it, load it where it was made, "
            f"then safetensors.torch.save_file(network.state_dict(), '{path.stem}.safetensors')"
        ) from None


def _checked_zip(path: Path) -> io.BytesIO:
    """A clean copy of torch's zip archive, after a look at the sizes it declares.

    torch stores its members, so they cannot be larger than the file. A copy, because two zip readers may
    disagree about a forged archive: torch sees only what was checked here.
    """
    copy = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as clean:
        members = archive.infolist()
        if any(m.compress_type != zipfile.ZIP_STORED for m in members):
            raise WeightsError(f"weights {path}: a compressed archive, which torch never writes; unpack it")
        if sum(m.file_size for m in members) > path.stat().st_size:
            raise WeightsError(f"weights {path}: declares more bytes than it has; it is damaged or forged")
        if any(m.filename.endswith("/constants.pkl") for m in members):
            raise WeightsError(f"weights {path}: a TorchScript program, that is code; save its state_dict()")
        for name in dict.fromkeys(archive.namelist()):
            clean.writestr(name, archive.read(name))
    copy.seek(0)
    return copy


def load_weights(network: nn.Module, path: Path) -> None:
    """Copy the file's tensors into `network`, all or none, converted to its types. Raises WeightsError."""
    tensors = read_tensors(path)
    own = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    prefix = _wrapper_prefix(own)
    own_name = {name[len(prefix) :]: name for name in own}
    # BatchNorm's counter is absent from old files, and no answer depends on it.
    missing = [n for n in own_name if n not in tensors and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in tensors if n not in own_name]
    shared = {own_name[n]: t for n, t in tensors.items() if n in own_name}
    reshaped = [n for n, t in shared.items() if t.shape != own[n].shape]
    if missing or unexpected or reshaped:
        faults = [f"{len(missing)} missing (first: {missing[0]!r})"] if missing else []
        faults += [f"{len(unexpected)} unexpected (first: {unexpected[0][:80]!r})"] if unexpected else []
        for n in reshaped[:1]:
            shapes = f"{tuple(shared[n].shape)} in the file, {tuple(own[n].shape)} in the network"
            faults.append(f"{len(reshaped)} of another shape (first: {n!r}, {shapes})")
        raise WeightsError(
            f"weights {path} do not fit the network, of {len(own)} tensors: {', '.join(faults)}; "
            "give the network and args it was trained with"
        )
    for name, tensor in shared.items():
        to = own[name].dtype
        if tensor.dtype != to and not (tensor.dtype in _FLOATS and to in _FLOATS):
            raise WeightsError(f"weights {path}: {name!r} is {tensor.dtype}, but {to} in the network")
        if not torch.isfinite(tensor.to(to)).all():
            raise WeightsError(f"weights {path}: {name!r} has values that are not finite; use another file")
    network.load_state_dict(shared, strict=False)


def save_weights(network: nn.Module, path: Path) -> None:
    """Write `network.state_dict()` as safetensors, whole or not at all. Tied tensors are written once a name.

    Raises WeightsError if it cannot be written.
    """
    tensors = {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in network.state_dict().items()
        if isinstance(value, Tensor)
    }
    try:
        write_whole(path, safetensors.torch.save(tensors, metadata={"format": "pt"}))
    except OSError as error:
        raise WeightsError(f"weights {path}: cannot be written ({one_line(error)})") from error
