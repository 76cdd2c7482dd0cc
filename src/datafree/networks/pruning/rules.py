"""What becomes of channels in each operation of ATen.

An operation without a rule is taken for one that works entry by entry where its answer's shape allows it; behind any
other the channels are lost, which is an error only where a student's shape has to be found from them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datafree.networks.pruning import layer_rules
from datafree.networks.pruning.channels import NONE, none, place
from datafree.networks.pruning.entrywise import entrywise, first, tensors

if TYPE_CHECKING:
    from datafree.networks.pruning.channel_labels import ChannelLabels

Rule = Callable[["ChannelLabels", tuple[Any, ...], dict[str, Any], Any], "Tensor | list[Tensor] | None"]

_SAME = {"clone", "alias", "detach", "_to_copy", "lift_fresh", "contiguous"}
_RESHAPED = {"view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "unsqueeze"}
_MOVED = (
    *("permute", "transpose", "t", "slice", "select", "expand", "cat", "stack", "split", "split_with_sizes"),
    *("chunk", "unbind", "narrow", "flip", "roll", "index", "index_select", "pixel_shuffle", "pixel_unshuffle"),
    *("repeat", "channel_shuffle", "native_channel_shuffle", "constant_pad_nd", "unfold", "diagonal"),
)
_SPATIAL = ("max_pool", "avg_pool", "_adaptive", "adaptive", "upsample", "_upsample", "reflection", "replication")
_REDUCED = {"mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "logsumexp"}
_LOST = {"topk", "sort", "gather", "scatter", "index_put", "grid_sampler_2d", "argmax", "nonzero"}


def see(carried: ChannelLabels, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Any) -> None:
    """Give labels to what an operation answers."""
    carried.takers.update(place(x) for x in tensors(args))
    name = func._schema.name.partition("::")[2]
    in_place = name.endswith("_") and not name.endswith("__")
    name = name.rstrip("_") if in_place else name
    outs = [out for out in answer if isinstance(out, Tensor)] if isinstance(answer, (tuple, list)) else [answer]
    outs = [out for out in outs if isinstance(out, Tensor) and out.is_floating_point()]
    if not outs or (all(carried.is_parameter(out) for out in outs) and not in_place):
        return
    try:
        found = _rule(name)(carried, args, kwargs, answer)
    except Exception:  # whatever a rule raises for an operation in a form that it does not know: lost
        found = None
    if found is None and any(carried.labels(x) is not None for x in tensors(args) if not carried.is_parameter(x)):
        carried.lost.append(name)
    labels = found if isinstance(found, list) else [found]
    for out, those in zip(outs, labels, strict=False):
        if in_place and those is not None and out.numel() * out.element_size() != out.untyped_storage().nbytes():
            before = carried.labels(out)  # a part of another tensor, whose labels would have to change with it
            if before is None or not torch.equal(carried.channels.find(before), carried.channels.find(those)):
                carried.lost.append(f"{name}_ of a part")
        carried.label(out, those)


def _rule(name: str) -> Rule:
    if name in _RULES:
        return _RULES[name]
    return _spatial if name.startswith(_SPATIAL) else entrywise


# --- operations that move entries: done with the labels instead ---


def _same(carried: ChannelLabels, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Any) -> Tensor | None:
    return carried.labels(args[0])


def _copied(carried: ChannelLabels, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Any) -> Tensor | None:
    labels = carried.labels(args[1])
    return None if labels is None else labels.expand(args[0].shape)


def _reshaped(carried: ChannelLabels, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Any) -> Tensor | None:
    labels = carried.labels(args[0])
    return None if labels is None else labels.reshape(answer.shape)


def _moved(op: str) -> Rule:
    def rule(carried: ChannelLabels, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Any) -> Any:
        taken = list(tensors(args[:1]))
        labels = [carried.labels(x) for x in taken]
        if all(one is None for one in labels):
            return None
        full = [none(x.shape) if one is None else one for x, one in zip(taken, labels, strict=True)]
        rest = [_on_cpu(arg) for arg in args[1:]]
        if op == "constant_pad_nd":
            rest = [rest[0], NONE]
        with contextlib.suppress(RuntimeError):  # a form that whole numbers have not
            made = getattr(torch.ops.aten, op)(full if isinstance(args[0], (tuple, list)) else full[0], *rest, **kwargs)
            return list(made) if isinstance(made, (tuple, list)) else made
        return None

    return rule


def _on_cpu(arg: Any) -> Any:
    if isinstance(arg, (tuple, list)):
        return [_on_cpu(one) for one in arg]
    return arg.cpu() if isinstance(arg, Tensor) else arg


def _halved(carried: ChannelLabels, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Any) -> Tensor | None:
    labels = carried.labels(args[0])
    if labels is None:
        return None
    value, gate = labels.chunk(2, args[1] if len(args) > 1 else -1)
    carried.channels.unite(value, gate)
    return value


# --- operations on places ---


def _spatial(carried: ChannelLabels, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Any) -> Tensor | None:
    labels, out = carried.labels(args[0]), first(answer)
    if labels is None:
        return None
    dims = tuple(range(min(2, out.ndim - 1), out.ndim))
    return carried.channels.tied(labels, dims).expand(out.shape)


def _norm(carried: ChannelLabels, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Any) -> Tensor | None:
    """Of `linalg_vector_norm(x, order, dims)`; without dims, over all of x."""
    return _reduced(carried, (args[0], *args[2:]), kwargs, answer)


def _reduced(carried: ChannelLabels, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Any) -> Tensor | None:
    """A mean over places keeps channels, and so does a sum over branches; a mean over channels has none."""
    labels, out = carried.labels(args[0]), first(answer)
    given = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if labels is None or given is None or isinstance(given, Tensor):
        return None if labels is None or given is not None else none(out.shape)
    dims = [d % labels.ndim for d in ([given] if isinstance(given, int) else given)] or list(range(labels.ndim))
    once = labels
    for dim in dims:
        once = once.narrow(dim, 0, 1)
    vary = carried.channels.vary
    if any(vary(once, d) for d in range(labels.ndim)) or not any(vary(labels, d) for d in dims):
        return carried.channels.tied(labels, tuple(dims)).reshape(out.shape)
    return none(out.shape)


def _restrided(carried: ChannelLabels, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Any) -> Tensor | None:
    """In adaptive pooling of channels_last only strides of sides of length 1 change: all stays in its place."""
    return carried.labels(answer)


def _forgotten(carried: ChannelLabels, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Any) -> None:
    return None


_RULES: dict[str, Rule] = {
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(_RESHAPED, _reshaped),
    **{op: _moved(op) for op in _MOVED},
    **dict.fromkeys(_REDUCED, _reduced),
    "linalg_vector_norm": _norm,
    **dict.fromkeys(_LOST, _forgotten),
    **dict.fromkeys(
        ("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution"), layer_rules.convolution
    ),
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm"), layer_rules.batch_norm),
    **dict.fromkeys(("_native_batch_norm_legit_no_training", "_batch_norm_no_update"), layer_rules.batch_norm),
    **dict.fromkeys(("batch_norm_with_update", "miopen_batch_norm"), layer_rules.batch_norm),
    "as_strided": _restrided,
    "native_group_norm": layer_rules.group_norm,
    "native_layer_norm": layer_rules.layer_norm,
    "copy": _copied,
    "glu": _halved,
    "mm": layer_rules.mm,
    "addmm": layer_rules.addmm,
    "_addmm_activation": layer_rules.addmm,
    "bmm": layer_rules.bmm,
    "baddbmm": layer_rules.bmm,
    **dict.fromkeys(
        ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention"), layer_rules.attention
    ),
    **dict.fromkeys(
        ("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"), layer_rules.attention
    ),
}
