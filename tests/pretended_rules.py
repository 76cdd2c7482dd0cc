"""What CUDA refuses and where it makes the host wait, told of each operator before it runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

aten: Any = torch.ops.aten

# Operators whose operands on the host are taken as they are: copies, and indices, which CUDA brings over itself.
COPIES = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default, aten.copy.default}
INDEXED = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}
# Not tagged pointwise, but a number on the host (a tensor of no dimension) will do.
TAKE_SCALARS = {aten.masked_fill.Tensor, aten.masked_fill_.Tensor, aten.fill.Tensor, aten.fill_.Tensor}
# Steps of optimisers, which keep a count on the host where they are not fused.
TAKE_SCALARS |= {aten._foreach_add_.Tensor, aten._foreach_mul_.Tensor, aten._foreach_div_.Tensor}

# The host has to know how large the answer is, or the answer itself.
WAITS = {
    aten._local_scalar_dense.default: "item",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten.unique_consecutive.default: "unique",
    aten._unique.default: "unique",
    aten._unique2.default: "unique",
    aten.unique_dim.default: "unique",
    aten.bincount.default: "bincount",
    aten.equal.default: "equal",
    aten.is_nonzero.default: "bool",
    aten.repeat_interleave.Tensor: "repeat_interleave",
    aten.repeat_interleave.self_Tensor: "repeat_interleave",
    aten.isin.Tensor_Tensor: "isin",
    aten.histc.default: "histc",
}
WAITS_BY_NAME = {"torchvision::nms": "nms"}


def refuse_mixture(func: Any, args: Any, host: list[Tensor], first_is_host: bool) -> None:
    """Raise RuntimeError if an operator has operands on the device and, in `host`, on the host, and CUDA minds."""
    if func in COPIES:
        return
    if func in INDEXED and not first_is_host:
        indices = {id(index) for index in args[1] if index is not None}
        host = [tensor for tensor in host if id(tensor) not in indices and tensor.ndim]
    elif not first_is_host or torch.Tag.inplace not in func.tags:
        scalars = torch.Tag.pointwise in func.tags or func in TAKE_SCALARS
        host = [tensor for tensor in host if tensor.ndim or not scalars]
    if host:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {func} got one of shape {tuple(host[0].shape)} on the "
            "cpu beside others on the pretended device"
        )


def waits(func: Any, args: Any, *, from_host: bool, onto_host: bool, non_blocking: bool) -> str | None:
    """Why the host waits for the device at an operator with operands or the result there; None where it does not.

    A copy onto the device waits too, unless it is told not to.
    """
    if func in COPIES:
        if non_blocking:
            return None
        return "to the CPU" if onto_host else "upload" if from_host else None
    if func in INDEXED and any(index is not None and index.device.type == "cpu" for index in args[1]):
        return "upload of an index"
    if func in INDEXED and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
        # One mask and a number are a masked_fill, whose size is known.
        number = func not in (aten.index.Tensor, aten._unsafe_index.Tensor) and args[2].numel() == 1
        return None if number else "boolean index"
    return WAITS.get(func) or WAITS_BY_NAME.get(func.name().partition(".")[0])


def generators(args: Any, kwargs: dict[str, Any]) -> list[torch.Generator]:
    return [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Generator)]
