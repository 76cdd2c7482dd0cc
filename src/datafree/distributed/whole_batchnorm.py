"""BatchNorm by the statistics of the whole batch, while each process passes a part of it through a network.

b images of this process's part, K channels, P processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from datafree.distributed.collectives import average
from datafree.ops.moments import moments_of


class TrainedBatchNorm(TorchFunctionMode):
    """Within it, BatchNorm in train mode answers by `norm`, whatever library it is of."""

    def __init__(self, norm: Callable[..., Tensor]) -> None:
        super().__init__()
        self._norm = norm

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func is F.batch_norm and (given["training"] if "training" in given else args[5:6] == (True,)):
            return self._norm(*args, **given)
        return func(*args, **given)


def of_equal_parts(images: int) -> TrainedBatchNorm:
    """For passes in which every process has `images` of its own: one exchange forward and one backward a layer.

    Inputs of another length (the proposals of a two-stage detector) keep their own statistics: their number differs.
    """

    def norm(
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if len(x) != images:
            return F.batch_norm(x, running_mean, running_var, weight, bias, True, momentum, eps)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        gain = torch.ones(x.shape[1], device=x.device, dtype=wide.dtype) if weight is None else weight
        answer: Tensor = _Normed.apply(wide, gain, bias, running_mean, running_var, momentum, eps)
        return answer.to(x.dtype)

    return TrainedBatchNorm(norm)


class _Normed(torch.autograd.Function):
    """`F.batch_norm` in train mode on x (b, K, ...), with the moments of all P parts. No double backward.

    The kernels are torch's own for fixed statistics; what the whole batch's add to the gradient is a line in x. Where
    maps are small each operation on K numbers costs as much as one on the maps, so there are few.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        parts = torch.distributed.get_world_size()
        mean, var = moments_of(x)
        # About the running mean, so that the difference of squares loses no figures.
        origin = None if running_mean is None else running_mean.to(mean.dtype)
        apart = mean if origin is None else mean - origin
        whole = torch.stack([apart, torch.addcmul(var, apart, apart)])
        average(whole)
        apart, square = whole.unbind()
        mean = apart if origin is None else origin + apart
        var = torch.addcmul(square, apart, apart, value=-1).clamp_min_(0)
        if running_mean is not None and running_var is not None:
            values = parts * (x.numel() // x.shape[1])
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * (values / max(values - 1, 1))).to(running_var.dtype), momentum)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps, ctx.biased = eps, bias is not None
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        none = x.new_empty(0)  # no pass has saved any; CUDA's kernel refuses None
        _, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, var, none, none, False, ctx.eps, [False, True, True]
        )
        sums = torch.stack([to_bias, to_weight])
        average(sums)
        spread = (var + ctx.eps).rsqrt_()
        gain = weight * spread
        along, across = sums.mul_(gain * (-x.shape[1] / x.numel())).unbind()
        scale = across * spread
        shift = torch.addcmul(along, scale, mean, value=-1)
        view = [1, -1, *[1] * (x.ndim - 2)]
        to_x = torch.addcmul(shift.view(view), x, scale.view(view)).addcmul_(grad, gain.view(view))
        return to_x, to_weight, to_bias if ctx.biased else None, None, None, None, None
