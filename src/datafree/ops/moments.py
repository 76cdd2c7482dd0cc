"""Mean and variance of a layer's inputs, as few passes over them as there can be.

B images, K channels, H x W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# An aten function that is not documented: where a release has it not, the plain form serves.
_FUSED = hasattr(torch, "batch_norm_update_stats")


def moments(x: Tensor, *, fused: bool = True) -> tuple[Tensor, Tensor]:
    """(K,) mean and (K,) biased variance of x (B, K, ...) over all but the channels, in float32 (float64 stays so).

    `fused`: four-dimensional inputs take one pass forward and one backward; otherwise as `plain_moments`. A bfloat16 x
    then has its gradient rounded by bfloat16's step, times the mean over the standard deviation where that is above 1.
    """
    return _Moments.apply(x) if fused and x.ndim == 4 and _FUSED else plain_moments(x)


def moments_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """What `moments` computes, without gradients."""
    return _by_kernel(x) if x.ndim == 4 and _FUSED else plain_moments(x)


def plain_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """What `moments` computes, in plain operations: its reference."""
    dims = [d for d in range(x.ndim) if d != 1]
    var, mean = torch.var_mean(x.to(_wide(x)), dims, correction=0)
    return mean, var


def normalised(layer: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a layer that `is_line` answers to x (B, K, H, W), and the moments (K,), (K,) of x.

    One function for both, since their gradients to x are one multiply-add each: written into the same tensor, they
    take half the time of the layer's own way back, the moments' and the sum of the two.
    """
    gain = (layer.running_var + layer.eps).rsqrt()
    gain = gain if layer.weight is None else gain * layer.weight
    shift = -layer.running_mean * gain
    shift = shift if layer.bias is None else shift + layer.bias
    answer, mean, var = _Normalised.apply(x, gain, shift)
    return answer, mean, var


def is_line(layer: nn.Module, x: Tensor) -> bool:
    """Whether `layer` multiplies and adds a constant for each channel of x and nothing more, so `normalised` can do it.

    That is BatchNorm, torch's or torchvision's frozen kind, by its running statistics, with nothing to learn. Kinds
    derived from it may do more (timm's have an activation). Below float32 torch's kernel keeps more figures.
    """
    kind = type(layer)
    if kind is nn.BatchNorm2d:
        learns = layer.training or any(p.requires_grad for p in layer.parameters())
        fixed = layer.running_mean is not None and not learns
    else:  # by name: its module takes seconds to import, and who has such a layer has done so
        fixed = (kind.__module__, kind.__qualname__) == ("torchvision.ops.misc", "FrozenBatchNorm2d")
    return fixed and _FUSED and x.ndim == 4 and x.dtype in (torch.float32, torch.float64)


class _Moments(torch.autograd.Function):
    """Mean and variance by BatchNorm's own kernel; the gradient is one multiply-add. No double backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = _by_kernel(x)
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_mean: Tensor, grad_var: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        return _moments_gradient(x, mean, grad_mean, grad_var)


class _Normalised(torch.autograd.Function):
    """gain x + shift, and x's mean and variance. No double backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, var = _by_kernel(x)
        ctx.save_for_backward(x, mean, gain)
        return torch.addcmul(_as_map(shift, x), x, _as_map(gain, x)), mean, var

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_mean: Tensor, grad_var: Tensor) -> tuple[Tensor, None, None]:
        x, mean, gain = ctx.saved_tensors
        return _moments_gradient(x, mean, grad_mean, grad_var).addcmul_(grad, _as_map(gain, x)), None, None


def _by_kernel(x: Tensor) -> tuple[Tensor, Tensor]:
    wide = _wide(x)
    if x.dtype == wide:
        mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
    else:  # statistics in float32 make the kernel accumulate a bf16 x in float32
        keep = torch.zeros(x.shape[1], device=x.device, dtype=wide)
        mean, var = torch.batch_norm_update_stats(x, keep, keep.clone(), 0.0)
    return mean, var


def _moments_gradient(x: Tensor, mean: Tensor, grad_mean: Tensor, grad_var: Tensor) -> Tensor:
    count = x.numel() // x.shape[1]
    scale = 2 * grad_var / count
    shift = grad_mean / count - scale * mean
    return torch.addcmul(_as_map(shift, x), x, _as_map(scale, x))


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _as_map(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype)[None, :, None, None]
