"""What becomes of channels in layers: convolutions, normalisations, linear layers and attention.

B images or rows, K channels that a product sums over, I and O channels of a layer, G groups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datafree.networks.pruning.channels import none, place
from datafree.networks.pruning.entrywise import entrywise, first

if TYPE_CHECKING:
    from datafree.networks.pruning.channel_labels import ChannelLabels


def convolution(carried: ChannelLabels, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Any) -> Tensor | None:
    x, weight, bias, *_, transposed, _, groups = args
    channels, labels = carried.channels, carried.labels(x)
    batched = x.ndim == weight.ndim
    axis = 1 if batched else 0
    if labels is None:
        labels = none(x.shape)
    dims = tuple(d for d in range(x.ndim) if d != axis)
    inputs = channels.tied(labels, dims).reshape(-1)  # (I,)
    count = answer.shape[axis]
    depthwise = groups == len(inputs) == count
    outputs = inputs if depthwise else channels.fresh(count)
    ones = (1,) * (weight.ndim - 2)
    if groups == 1:
        along = (1, -1, *ones) if not transposed else (-1, 1, *ones)
        carried.role(weight, "inputs", inputs.view(along).expand(weight.shape))
    elif not depthwise:
        marks = channels.fresh(groups)
        channels.own(inputs.view(groups, -1), marks[:, None])
        channels.own(outputs.view(groups, -1), marks[:, None])
        each = inputs.view(groups, 1, -1).expand(groups, count // groups, -1).reshape(count, -1)  # (O, I / G)
        if not transposed:
            carried.role(weight, "inputs", each.view(*each.shape, *ones).expand(weight.shape))
    if not transposed:
        carried.role(weight, "outputs", outputs.view(-1, 1, *ones).expand(weight.shape))
    elif groups == 1:
        carried.role(weight, "outputs", outputs.view(1, -1, *ones).expand(weight.shape))
    else:
        carried.role(weight, "outputs", inputs.view(-1, 1, *ones).expand(weight.shape))
    carried.role(bias, "outputs", outputs)
    _produced(carried, answer, weight)
    return outputs.view((1, -1, *ones) if batched else (-1, *ones)).expand(answer.shape)


def _produced(carried: ChannelLabels, answer: Tensor, weight: Tensor) -> None:
    name = carried.name(weight)
    if name is not None:
        carried.producers[place(answer)] = name


def batch_norm(carried: ChannelLabels, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Any) -> Tensor | None:
    x, labels = args[0], carried.labels(args[0])
    if labels is None:
        return None
    each = carried.channels.tied(labels, tuple(d for d in range(x.ndim) if d != 1)).reshape(-1)
    for tensor in args[1:5]:
        if isinstance(tensor, Tensor):
            carried.role(tensor, "outputs", each)
    producer = carried.producers.get(place(x))
    gain = carried.name(args[1]) if isinstance(args[1], Tensor) else None
    if producer is not None and gain is not None:
        carried.norms[producer] = (gain, place(x))
    return labels


def group_norm(carried: ChannelLabels, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Any) -> Tensor | None:
    x, weight, bias, *_, groups, _ = args
    labels = carried.labels(x)
    if labels is None:
        return None
    each = carried.channels.tied(labels, tuple(d for d in range(x.ndim) if d != 1)).reshape(-1)
    carried.role(weight, "outputs", each)
    carried.role(bias, "outputs", each)
    if 1 < groups < len(each):
        carried.channels.own(each.view(groups, -1), carried.channels.fresh(groups)[:, None])
    return labels


def layer_norm(carried: ChannelLabels, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Any) -> Tensor | None:
    return entrywise(carried, (args[0], args[2], args[3]), {}, answer)


def _product(carried: ChannelLabels, x: Tensor, matrix: Tensor, answer: Tensor) -> Tensor | None:
    """(B, K) @ (K, O), of which one is the transposed weight of a linear layer."""
    labels = carried.labels(x)
    if carried.is_parameter(x) or not carried.is_parameter(matrix):
        return None
    channels = carried.channels
    if labels is not None and not channels.vary(labels, 1) and channels.vary(labels, 0):
        return labels.narrow(1, 0, 1).expand(answer.shape)  # sums over places, not channels: as a mixer's tokens
    inputs = none(x.shape[1:]) if labels is None else channels.tied(labels, (0,)).reshape(-1)  # (K,)
    outputs = channels.fresh(matrix.shape[1])
    weight = matrix.t()  # (O, K)
    carried.role(weight, "inputs", inputs.expand(weight.shape))
    carried.role(weight, "outputs", outputs[:, None].expand(weight.shape))
    _produced(carried, answer, weight)
    return outputs.expand(answer.shape)


def mm(carried: ChannelLabels, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Any) -> Tensor | None:
    return _product(carried, args[0], args[1], answer)


def addmm(carried: ChannelLabels, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Any) -> Tensor | None:
    labels = _product(carried, args[1], args[2], answer)
    if labels is None:
        return None
    bias = carried.labels(args[0])
    if bias is not None and carried.channels.vary(labels, 1) | (labels.shape[1] == 1):
        carried.channels.unite(bias.expand(labels.shape), labels)
    return labels


def _marks(carried: ChannelLabels, each: Tensor) -> Tensor:
    """(N, K) channels of N heads -> (N,) a variable for each head; the same for rows of the same channels."""
    rows, inverse = torch.unique(carried.channels.find(each[:, 0]), return_inverse=True)
    marks = carried.channels.fresh(len(rows))[inverse]
    carried.channels.own(each, marks[:, None])
    return marks


def bmm(carried: ChannelLabels, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Any) -> Tensor | None:
    """(N, B, K) @ (N, K, M): queries with keys, whose K are one and the same; or attention with values."""
    one, other = args[-2], args[-1]
    left, right, channels = carried.labels(one), carried.labels(other), carried.channels
    if carried.is_parameter(other) and (other.stride(0) == 0 or other.shape[0] == 1) and not carried.is_parameter(one):
        flat = _product(carried, one.flatten(0, 1), other[0], answer.flatten(0, 1)) if len(one) == 1 else None
        return None if flat is None else flat.view(answer.shape)
    if left is None and right is None:
        return None
    left = none(one.shape) if left is None else left
    right = none(other.shape) if right is None else right
    if channels.vary(left, 2) and channels.vary(right, 1):
        queries, keys = channels.tied(left, (1,))[:, 0], channels.tied(right, (2,))[:, :, 0]  # (N, K)
        channels.unite(queries, keys)
        return _marks(carried, queries)[:, None, None].expand(answer.shape)
    if channels.vary(left, 2) or channels.vary(right, 1):
        return None
    if channels.vary(right, 2) and not channels.vary(left, 1):
        values = right[:, 0]  # (N, M)
        channels.own(values, left[:, 0, :1])
        return channels.tied(right, (1,)).expand(answer.shape)
    if channels.vary(left, 1) and not channels.vary(right, 2):
        channels.own(left[:, :, 0], right[:, :1, 0])
        return channels.tied(left, (2,)).expand(answer.shape)
    return None if channels.vary(left, 1) else left[:, :, :1].expand(answer.shape)


def attention(carried: ChannelLabels, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Any) -> Tensor | None:
    """Queries, keys and values (N, heads, B, K)."""
    labels = [carried.labels(x) for x in args[:3]]
    if any(one is None for one in labels):
        return None
    channels = carried.channels
    queries, keys, values = (channels.tied(one, (2,))[:, :, 0].flatten(0, 1) for one in labels if one is not None)
    channels.unite(queries, keys)
    channels.own(values, _marks(carried, queries)[:, None])
    shape = first(answer).shape
    return values.view(*shape[:2], 1, shape[3]).expand(shape)
