"""Tensors as a `torch.save` pickle declares them: descriptions to be checked before there is any memory for them.

`TORCH_CALLS` are the functions that torch.save's pickles call; ours put descriptions together, not tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datafree.networks.checkpoints.unpickler import Calls, Name, Other, filled

_MOST_DIMENSIONS = 64
_LARGEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Storage:
    """A block of values, or a part of it."""

    key: str  # the block's name in the file
    dtype: torch.dtype
    count: int  # values in the whole block
    start: int = 0  # of the part, in values
    length: int | None = None  # of the part; None: to the block's end

    @property
    def nbytes(self) -> int:
        """Of the whole block."""
        return self.count * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A view of a storage. Its numbers are whole and not negative; nothing else is known of them."""

    storage: Storage
    dtype: torch.dtype
    offset: int  # in values of dtype, as the strides
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def view(self, block: Tensor) -> Tensor | None:
        """The tensor, in `block`: all bytes of its storage, (N,) uint8. None if it does not lie there whole.

        That is also where a few values would be many by strides of 0: a copy would take more memory than the file.
        """
        part, width = self.storage, self.dtype.itemsize
        begin = part.start * part.dtype.itemsize
        length = part.count - part.start if part.length is None else part.length
        end = begin + length * part.dtype.itemsize
        values = 1
        last = self.offset
        for size, stride in zip(self.size, self.stride, strict=True):
            values *= size
            last += (size - 1) * stride
        if begin > end or end > block.numel() or begin % width or values * width > end - begin:
            return None
        if values == 0:
            return torch.empty(self.size, dtype=self.dtype) if max(self.size) <= _LARGEST // width else None
        if last >= (end - begin) // width:
            return None
        whole = block[: block.numel() // width * width].view(self.dtype)
        return whole.as_strided(self.size, self.stride, begin // width + self.offset)


def find_storage(storages: dict[str, Storage], reference: Any) -> Storage:
    """What a pickle's reference to a block means; the block is put into `storages`. Raises ValueError, TypeError.

    `reference`: ("storage", type, key, device, count) and, in old files, (key, start, length) of a part or None.
    """
    if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] != "storage":
        raise ValueError("a reference to what is no storage")
    kind, key, count = reference[1], reference[2], _whole(reference[4])
    dtype = _STORAGES.get(kind.kind) if isinstance(kind, Name) else None
    if dtype is None or not isinstance(key, str):
        raise ValueError("a storage of no known type")
    block = Storage(key, dtype, count)
    if count and storages.setdefault(key, block) != block:  # an empty one may be of many types
        raise ValueError("a storage of two types or sizes")
    if len(reference) == 5 or reference[5] is None:
        return block
    _, start, length = reference[5]
    return Storage(key, dtype, count, _whole(start), _whole(length))


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise ValueError("a size that is no whole number")
    return value


def _wholes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or len(values) > _MOST_DIMENSIONS:
        raise ValueError("a shape that is none")
    return tuple(map(_whole, values))


# --- what torch.save's pickles call ---


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> Any:
    """`more`: requires_grad, hooks and, for conjugated or negated views, metadata."""
    dtype = storage.dtype if isinstance(storage, Storage) else None
    return _stored(storage, dtype, offset, size, stride, *more[2:])


def _tensor_of_type(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> Any:
    """For types that have no storage of their own."""
    found = _DTYPES.get(dtype.kind) if isinstance(dtype, Name) else None
    return _stored(storage, found, offset, size, stride, metadata)


def _stored(
    storage: Any, dtype: torch.dtype | None, offset: Any, size: Any, stride: Any, metadata: Any = None
) -> StoredTensor | Other:
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    if dtype is None or metadata:
        return Other("tensor of packed, conjugated or negated values")
    size, stride = _wholes(size), _wholes(stride)
    if len(size) != len(stride):
        raise ValueError("a tensor with more sizes than strides, or fewer")
    return StoredTensor(storage, dtype, _whole(offset), size, stride)


def _parameter(tensor: Any, *more: Any) -> Any:
    """`more`: requires_grad, hooks, attributes."""
    return tensor


def _tensor_with_attributes(function: Any, kind: Any, arguments: Any, attributes: Any) -> Any:
    """`kind` is torch's, since any other class is refused by its name."""
    make = TORCH_CALLS.get(function.kind) if isinstance(function, Name) else None
    if make is None or make is _tensor_with_attributes or not isinstance(arguments, tuple):
        return Other("tensor of a class of its own")
    return make(*arguments)


def _ordered(items: Any = ()) -> dict[Any, Any]:
    """Python 2 wrote the items here; Python 3 sets them afterwards."""
    return filled((key, value) for key, value in items)


def _other(kind: str) -> Any:
    return lambda *arguments: Other(kind)


_DTYPES = {
    f"torch.{name}": dtype
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex128", "complex64", "complex32", "bool"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    )
    if isinstance(dtype := getattr(torch, name, None), torch.dtype)
}
_STORAGES: dict[str, torch.dtype] = {
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.BoolStorage": torch.bool,
    "torch.ByteStorage": torch.uint8,
    "torch.CharStorage": torch.int8,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.IntStorage": torch.int32,
    "torch.LongStorage": torch.int64,
    "torch.QInt32Storage": torch.int32,  # of quantised tensors, which become Other
    "torch.QInt8Storage": torch.int8,
    "torch.QUInt8Storage": torch.uint8,
    "torch.ShortStorage": torch.int16,
    "torch.storage.UntypedStorage": torch.uint8,
    "torch.storage._UntypedStorage": torch.uint8,
}
# The last are plain data that checkpoints hold beside weights, the same that torch's restricted unpickler allows.
TORCH_CALLS: Calls = {
    "collections.OrderedDict": _ordered,
    "torch._tensor._rebuild_from_type_v2": _tensor_with_attributes,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_type,
    "torch.nn.parameter.Parameter": _parameter,
    "torch._utils._rebuild_meta_tensor_no_storage": _other("tensor without values"),
    "torch._utils._rebuild_nested_tensor": _other("nested tensor"),
    "torch._utils._rebuild_qtensor": _other("quantised tensor"),
    "torch._utils._rebuild_sparse_tensor": _other("sparse tensor"),
    **dict.fromkeys([f"torch.{name}" for name, kind in vars(torch).items() if isinstance(kind, torch.dtype)]),
    **dict.fromkeys(_STORAGES),
    **dict.fromkeys(["torch.Tensor", "torch.Size", "torch.device", "torch.serialization._get_layout"]),
    **dict.fromkeys(["torch.per_tensor_affine", "torch.per_channel_affine", "torch.per_channel_affine_float_qparams"]),
    **dict.fromkeys(
        ["_codecs.encode", "builtins.bytearray", "builtins.complex", "builtins.set", "collections.Counter"]
    ),
    # What training scripts keep beside: arguments, paths, NumPy's numbers. None of it is made, only its kind is known.
    **dict.fromkeys(["argparse.Namespace", "types.SimpleNamespace", "collections.defaultdict"]),
    **dict.fromkeys(
        f"pathlib.{place}{kind}Path" for place in ("", "_local.") for kind in ("", "Posix", "Windows", "PurePosix")
    ),
    **dict.fromkeys(f"{numpy}.multiarray.scalar" for numpy in ("numpy.core", "numpy._core")),
    "numpy.dtype": None,
}
