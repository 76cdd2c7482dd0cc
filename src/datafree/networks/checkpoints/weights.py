"""Loading weights from untrusted files, and saving them as safetensors.

A weights file is only ever read as tensors: nothing in it is run or imported.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from datafree.errors import DatafreeError, WeightsError
from datafree.networks.checkpoints.index import MAX_BYTES, read_indexed, unique
from datafree.networks.checkpoints.naming import WRAPPED, correspondence, is_counter, shared_prefix
from datafree.networks.checkpoints.other_files import other_file
from datafree.networks.checkpoints.stored_tensors import StoredTensor
from datafree.networks.checkpoints.torch_files import read_torch_file
from datafree.networks.checkpoints.unpickler import kind_of
from datafree.storage import written
from datafree.storage.atomic import write_whole
from datafree.text import is_unicode, one_line, show

# Where training scripts keep the weights among other things; plain weights before their moving average,
# because every such file has them, so that one recipe means the same for all.
_WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "module"),
    *("state_dict_ema", "ema_state_dict", "model_ema", "ema"),
)
_AS_TRAINED = "give the network and args it was trained with (`datafree inspect FILE` tells which a file fits)"
_PROGRAM = "is a whole network, not weights alone: name it as the network itself, and leave weights out"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name, on the CPU; runs no code, whatever the file holds.

    `.safetensors`, an index of several files (`.index.json`), else what `torch.save` wrote. No more memory is taken
    than the file is large, but for a table of contents. Weights inside a checkpoint are found under state_dict,
    model_state_dict, model, module and then the same of a moving average, or under any name if there are no others;
    the prefixes of wrapped networks (module., _orig_mod., ema.) are taken off where all names share them.
    Raises WeightsError; RunError for one that is not what the run beside it wrote (`storage.written`).
    """
    return _read(path, _read_file)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that `read_tensors` reads, by the same names, without values. Raises WeightsError."""
    return {name: tuple(tensor.shape) for name, tensor in _read(path, _read_file_shapes).items()}


def _read(path: Path, read_file: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    try:
        if not path.is_file():  # also keeps from waiting on a pipe
            raise WeightsError(f"weights {path}: {'not a file' if path.exists() else 'no such file'}")
        if (what := _PROGRAM if path.suffix == ".onnx" else other_file(path)) is not None:
            raise WeightsError(f"weights {path}: {what}")
        written.check(path)
        found = read_indexed(path, read_file) if path.name.endswith(".index.json") else read_file(path)
    except DatafreeError:
        raise
    except OSError as error:
        raise WeightsError(f"weights {path}: cannot be read ({error.strerror or one_line(error)})") from error
    except MemoryError as error:
        raise WeightsError(f"weights {path}: not enough memory to read it") from error
    except Exception as error:  # the parsers raise anything from KeyError to RuntimeError for damaged files
        raise WeightsError(
            f"weights {path}: damaged, or not a weights file ({one_line(error)}): fetch it again"
        ) from error
    prefix = shared_prefix((name for name in found if name != "n_averaged"), WRAPPED)
    if prefix:
        found.pop("n_averaged", None)  # the counter of torch's AveragedModel, beside its module
    return {name[len(prefix) :]: tensor for name, tensor in found.items()}


def _read_file(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return read_torch_file(path, lambda content: weights_in(content, path))


def _read_file_shapes(path: Path) -> dict[str, Tensor]:
    """What `_read_file` reads, without values: on the meta device."""
    if path.suffix == ".safetensors":
        entries = {name: entry for name, entry in _safetensors_header(path).items() if name != "__metadata__"}
        return {name: torch.empty(entry["shape"], device="meta") for name, entry in entries.items()}
    shapes: dict[str, tuple[int, ...]] = {}

    def note(content: Any) -> dict[str, StoredTensor]:
        shapes.update({name: stored.size for name, stored in weights_in(content, path).items()})
        return {}  # none whose values would be read

    read_torch_file(path, note)
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """What the library reads, after a look at what it lets pass: a name given twice, a very long header."""
    _safetensors_header(path)
    opens = is_unicode(str(path))  # the library opens no file whose name is not UTF-8
    tensors = safetensors.torch.load_file(path) if opens else safetensors.torch.load(path.read_bytes())
    if not tensors:
        raise WeightsError(f"weights {path}: holds no tensors")
    return tensors


def _safetensors_header(path: Path) -> dict[str, Any]:
    """Its table of contents. Raises WeightsError, ValueError."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > size - 8:
            if start.startswith((b"PK\x03\x04", b"\x80\x02")):
                raise WeightsError(f"weights {path}: no safetensors but what torch.save writes; name it {path.stem}.pt")
            raise WeightsError(f"weights {path}: damaged, cut short or no safetensors: its header would be longer")
        if length > MAX_BYTES:
            raise WeightsError(f"weights {path}: a header of {length:,} bytes; up to {MAX_BYTES:,} are read")
        header: dict[str, Any] = json.loads(file.read(length), object_pairs_hook=unique)
    return header


def weights_in(content: Any, path: Path) -> dict[str, StoredTensor]:
    """The weights in a checkpoint. Raises WeightsError."""
    for _ in range(4):  # wrapped in wrappers of wrappers at most: a forged dict may hold itself
        if not isinstance(content, dict):
            break
        inner = next((content[k] for k in _WRAPPERS if isinstance(content.get(k), dict)), None)
        if inner is None and not any(isinstance(value, StoredTensor) for value in content.values()):
            names = [name for name, value in content.items() if _is_weights(value)]
            if len(names) > 1:
                raise WeightsError(
                    f"weights {path}: holds several sets of weights ({', '.join(map(show, names[:5]))}); save one"
                )
            inner = content[names[0]] if names else None
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict) or not content:
        what = "an empty dict" if isinstance(content, dict) else f"a {_kind(content)}"
        raise WeightsError(f"weights {path}: holds {what}, not named tensors; save network.state_dict()")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, StoredTensor):
            shown = f"entry {name[:80]!r}" if isinstance(name, str) else f"a key of type {_kind(name)}"
            raise WeightsError(
                f"weights {path}: {shown} holds a {_kind(value)}; plain tensors under names are needed: "
                "save network.state_dict(), alone or as state_dict in a dict"
            )
    return content


def _is_weights(value: object) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(name, str) and isinstance(tensor, StoredTensor) for name, tensor in value.items())
    )


def _kind(value: object) -> str:
    return "Tensor" if isinstance(value, StoredTensor) else kind_of(value)


def load_weights(network: nn.Module, path: Path) -> str:
    """Copy the file's tensors into `network`, all or none, converted to its types. Raises WeightsError.

    Names correspond as `naming.correspondence` has it; a line says what was left out for that, "" where nothing was.
    """
    tensors = read_tensors(path)
    state = network.state_dict()
    own = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    naming = correspondence(list(tensors), list(own))
    into = naming.into  # name in the file -> in the network
    taken = set(into.values())
    missing = [name for name in own if name not in taken and not is_counter(name)]
    unexpected = [name for name, target in into.items() if target not in own and not is_counter(name)]
    shared = OrderedDict((target, tensors[name]) for name, target in into.items() if target in own)
    reshaped = [name for name, tensor in shared.items() if tensor.shape != own[name].shape]
    if missing or unexpected or reshaped:
        if not (unexpected or reshaped) and (line := without_classifier(own, missing)):
            raise WeightsError(f"weights {path} {line}")
        no_aux = bool(missing) and all(name.startswith("aux_classifier.") for name in missing)
        faults = [f"{len(missing)} missing (first: {missing[0]!r})"] if missing else []
        faults += [f"{len(unexpected)} unexpected (first: {unexpected[0][:80]!r})"] if unexpected else []
        for name in reshaped[:1]:
            shapes = f"{show(tuple(shared[name].shape))} in the file, {tuple(own[name].shape)} in the network"
            faults.append(f"{len(reshaped)} of another shape (first: {name!r}, {shapes})")
        raise WeightsError(
            f"weights {path} do not fit the network, of {len(own)} tensors: {', '.join(faults)}; "
            + ("they come without torchvision's second head: leave args.aux_loss out" if no_aux else _AS_TRAINED)
        )
    for name, tensor in [*shared.items()]:
        to = own[name].dtype
        if is_counter(name) and tensor.dtype != to:  # as where all tensors of a file were made half precision
            del shared[name]
            continue
        if tensor.dtype != to and not (tensor.dtype in _FLOATS and to in _FLOATS):
            raise WeightsError(f"weights {path}: {name!r} is {tensor.dtype}, but {to} in the network")
        if not torch.isfinite(tensor.to(to)).all():
            raise WeightsError(f"weights {path}: {name!r} has values that are not finite; use another file")
    before = {name: own[name].clone() for name in shared}
    try:
        shared._metadata = getattr(state, "_metadata", {})  # type: ignore[attr-defined]  # versions of its modules
        network.load_state_dict(shared, strict=False)
    except Exception as error:  # a module's own way of loading
        with torch.no_grad():
            for name, value in before.items():
                own[name].copy_(value)
        raise WeightsError(f"weights {path}: the network does not take them ({one_line(error)})") from error
    return f"weights {path.name}: {naming.remark}" if naming.remark else ""


def without_classifier(own: Iterable[str], missing: list[str]) -> str:
    """What to say of weights where `missing` is the last layer of a network with tensors `own`; "" for any other."""
    last = [name for name in own if not is_counter(name)][-len(missing) :]
    if set(missing) != set(last) or len({name.rpartition(".")[0] for name in last}) != 1:
        return ""
    return (
        f"hold the network without its last layer, the classifier ({', '.join(map(repr, last))} missing), which "
        "answers embeddings, not classes; give the weights of the whole network, with its classifier trained"
    )


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
