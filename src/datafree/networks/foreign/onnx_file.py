"""ONNX files that are not trusted: what they declare, checked before anything is computed.

A file is refused that names operators of other makers (they are code), data outside its folder, or tensors of other
sizes than it holds. The messages and their fields are those of onnx.proto (ONNX, IR version 3 and later).

B images, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datafree.config.extras import require
from datafree.errors import WeightsError
from datafree.networks.foreign.protobuf import count_fields
from datafree.text import one_line, show

SUFFIX = ".onnx"
MAX_BYTES = 2**31 - 1  # protobuf's own limit; larger networks keep their tensors beside the file
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")  # whose operators onnxruntime has by itself
_LOADERS = ("EPContext",)  # of these domains, but it loads what another tool has compiled
_NAMES = 4  # shown of a list
_SIDES = 8  # shown of a shape
_MOST_DIMENSIONS = 64  # of a tensor; onnxruntime's operators take few more than 8


@dataclass(frozen=True, kw_only=True)
class Images:
    """The one input."""

    name: str
    type: str  # float32, float16, float64, uint8
    shape: tuple[int | None, ...]  # (B, channels, H, W), whatever its layout; None: any
    channels_last: bool  # it takes (B, H, W, channels)


@dataclass(frozen=True, kw_only=True)
class Output:
    """A value that a file answers."""

    name: str
    shape: tuple[int | None, ...] | None  # None: it does not say


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """A file that may be computed."""

    path: Path
    files: tuple[Path, ...]  # itself and those that hold its tensors
    model: Any  # onnx.ModelProto, without what lies in other files
    images: Images
    outputs: tuple[Output, ...]
    metadata: dict[str, str]
    parameter_count: int


def read_onnx(path: Path) -> OnnxFile:
    """What an ONNX file holds; nothing is computed. Raises WeightsError; DatafreeError without the packages."""
    require("a teacher in an ONNX file", "onnx", "onnxruntime")
    try:
        if not path.is_file():
            raise _fault(path, "not a file" if path.exists() else "no such file")
        if path.stat().st_size > MAX_BYTES:
            raise _fault(path, f"{path.stat().st_size:,} bytes; an ONNX file has {MAX_BYTES:,} at most")
        return _read(path)
    except WeightsError:
        raise
    except (OSError, MemoryError) as error:
        raise _fault(path, f"cannot be read ({one_line(error)})") from error
    except Exception as error:  # of whatever class the parsers have
        raise _fault(path, f"damaged, or not an ONNX file ({one_line(error)}): fetch it again") from error


def _fault(path: Path, what: str) -> WeightsError:
    return WeightsError(f"network {path}: {what}")


def _read(path: Path) -> OnnxFile:
    import onnx

    content = path.read_bytes()
    try:
        count_fields(content)
    except ValueError as error:  # of a message's inner form, which says nothing to a user
        said = str(error)
        known = said if "more than" in said or "not read" in said else "its bytes have another form"
        raise _fault(path, f"damaged, or not an ONNX file ({known})") from error
    model: Any = onnx.ModelProto()
    model.ParseFromString(content)
    if not model.graph.node or not model.graph.output:
        raise _fault(path, "damaged, or not an ONNX file (it has no graph)")
    nodes = [node for graph in _graphs(model) for node in graph.node]
    _check_operators(path, model, nodes)
    tensors = list(_tensors(model, nodes))
    beside: dict[Path, None] = {}
    taken: dict[tuple[int, int], int] = {}
    for tensor in tensors:
        if (count := len(tensor.dims)) > _MOST_DIMENSIONS:  # whose product would take for ever
            raise _fault(
                path,
                f"the tensor {show(tensor.name)} has {count:,} dimensions, {_MOST_DIMENSIONS} are read at most; the "
                "file is damaged or forged: fetch it again",
            )
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            beside[_external(path, tensor, taken)] = None
        elif not _is_whole(tensor):
            raise _fault(path, f"the tensor {show(tensor.name)} is declared as {_form(tensor)}, but not held whole")
    return OnnxFile(
        path=path,
        files=(path, *beside),
        model=model,
        images=_images(path, model),
        outputs=tuple(Output(name=value.name, shape=_shape(value)) for value in model.graph.output),
        metadata={entry.key: entry.value for entry in model.metadata_props},
        parameter_count=sum(math.prod(t.dims) for t in tensors if t.data_type in _FLOATING and len(t.dims) > 0),
    )


# --- operators ---


def _graphs(model: Any) -> Iterator[Any]:
    """The graph, those within its nodes (of If, Loop, Scan), and the file's own functions, which are graphs as well."""
    left = [model.graph, *model.functions]
    while left:
        graph = left.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                left += [attribute.g] if attribute.HasField("g") else []
                left += attribute.graphs


def _check_operators(path: Path, model: Any, nodes: list[Any]) -> None:
    own = {(function.domain, function.name) for function in model.functions}
    for node in nodes:
        known = node.domain in _DOMAINS and node.op_type not in _LOADERS
        if not known and (node.domain, node.op_type) not in own:
            name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            raise _fault(
                path,
                f"uses the operator {show(name)}, which is no standard one; operators of other makers are code and are "
                "never loaded: export it with standard operators",
            )


# --- tensors ---

_BITS = {  # of the types of TensorProto; texts (8) are counted one by one
    **dict.fromkeys((1, 6, 12), 32),
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8),
    **dict.fromkeys((4, 5, 10, 16), 16),
    **dict.fromkeys((7, 11, 13, 14), 64),
    15: 128,
    **dict.fromkeys((21, 22, 23), 4),
    **dict.fromkeys((25, 26), 2),
}
_FLOATING = (1, 10, 11, 16)
_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


def _tensors(model: Any, nodes: list[Any]) -> Iterator[Any]:
    for graph in _graphs(model):
        yield from getattr(graph, "initializer", ())  # functions have none
        if len(getattr(graph, "sparse_initializer", ())):
            raise ValueError("sparse tensors, whose size is not that of their values")
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor") or len(attribute.sparse_tensors):
                raise ValueError("sparse tensors, whose size is not that of their values")
            yield from [attribute.t] if attribute.HasField("t") else []
            yield from attribute.tensors


def _form(tensor: Any) -> str:
    return " x ".join(map(str, tensor.dims[:_SIDES])) or "one value"


def _is_whole(tensor: Any) -> bool:
    """Whether a tensor has as many values as it declares."""
    count = math.prod(tensor.dims)
    if any(side < 0 for side in tensor.dims) or tensor.data_type not in (*_BITS, 8):
        return False
    if tensor.HasField("raw_data"):
        return bool(tensor.data_type != 8 and len(tensor.raw_data) == -(-count * _BITS[tensor.data_type] // 8))
    held = sum(len(getattr(tensor, name)) for name in _FIELDS)
    each = {14: 2, 15: 2}.get(tensor.data_type, 1)  # complex numbers are two
    small = _BITS.get(tensor.data_type, 8)  # numbers of 4 and 2 bits share a byte
    return bool(held == (-(-count * small // 8) if small < 8 else count * each))


def _external(path: Path, tensor: Any, taken: dict[tuple[int, int], int]) -> Path:
    """The file beside `path` that holds a tensor, whole. Raises WeightsError.

    `taken`: bytes of each such file that are tensors so far, by its device and inode: it has other names by links. In
    all they are no more than the file has; exporters give each tensor, those of branches too, bytes of its own, and
    many tensors on the same ones would take many times the files' size in memory.
    """
    said = {entry.key: entry.value for entry in tensor.external_data}
    name = said.get("location", "")
    place = Path(name)
    file: Path = path.parent / name
    if not name or place.is_absolute() or ".." in place.parts or any(c in name for c in "\0\\:"):
        raise _fault(path, f"keeps tensors in {show(name)}; only files in its own folder are read")
    if not file.is_file():
        raise _fault(path, f"keeps tensors in {show(name)}, which is not beside it; copy that file, too")
    if not file.resolve().is_relative_to(path.resolve().parent):
        raise _fault(path, f"keeps tensors in {show(name)}, a link to another folder; copy the file itself (cp -L)")
    begin, wanted = int(said.get("offset", 0)), -(-math.prod(tensor.dims) * _BITS[tensor.data_type] // 8)
    length = int(said.get("length", wanted))
    if begin < 0 or any(side < 0 for side in tensor.dims) or length != wanted:
        raise _fault(path, f"the tensor {show(tensor.name)} is declared as {_form(tensor)}, but has {length:,} bytes")
    state = file.stat()
    if begin + length > state.st_size:
        raise _fault(path, f"the tensor {show(tensor.name)} does not lie whole in {show(name)}; copy that file again")
    key = state.st_dev, state.st_ino
    taken[key] = taken.get(key, 0) + length
    if taken[key] > state.st_size:
        raise _fault(
            path,
            f"tensors in {show(name)} lie on top of each other, more bytes in all than the {state.st_size:,} of that "
            "file; export it again, or save it where it was made by onnx.save(..., save_as_external_data=True)",
        )
    return file


# --- inputs and outputs ---

_IMAGE_TYPES = {1: "float32", 10: "float16", 11: "float64", 2: "uint8"}


def _images(path: Path, model: Any) -> Images:
    held = {tensor.name for tensor in model.graph.initializer}  # old files list them as inputs as well
    inputs = [value for value in model.graph.input if value.name not in held]
    if len(inputs) != 1:
        names = ", ".join(value.name[:40] for value in inputs[:_NAMES])
        raise _fault(path, f"takes {len(inputs)} inputs ({names}); only images and nothing else can be given to it")
    (given,) = inputs
    kind = _IMAGE_TYPES.get(given.type.tensor_type.elem_type)
    shape = _shape(given) or (None,) * 4
    if len(shape) != 4 or kind is None:
        shown = " x ".join("any" if side is None else str(side) for side in shape[:_SIDES])
        wanted = "images (B, channels, height, width) of float numbers or of 0 to 255 are needed"
        raise _fault(path, f"takes {show(given.name)} of {shown}, {kind or 'another type'}; {wanted}")
    last = shape[3] in (1, 3) and shape[1] not in (1, 3)
    shape = (shape[0], shape[3], *shape[1:3]) if last else shape
    if shape[1] not in (None, 1, 3):
        raise _fault(path, f"takes images of {shape[1]} channels; 1 (grey) and 3 (R, G, B) can be given to it")
    return Images(name=given.name, type=kind, shape=shape, channels_last=last)


def _shape(value: Any) -> tuple[int | None, ...] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(side.dim_value if side.dim_value > 0 else None for side in tensor.shape.dim)
