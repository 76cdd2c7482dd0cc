"""Distance of a batch's statistics to those a network's BatchNorm layers have kept from its training data.

DeepInversion's feature prior (Yin et al., arXiv 1912.08795, eq. 4), also in DIODE, CMI, Fast-DFKD and others:
R = sum over layers l of ||mean_l(x) - running_mean_l||_p + ||var_l(x) - running_var_l||_p, of the layers' inputs, with
the biased variance; neither squared nor divided by the number of channels.

B images, K channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from datafree.errors import NetworkError

WITHOUT_BATCHNORM = ("dfad", "zskt", "dafl", "cgdd (its BatchNorm term off)")  # what a teacher without any can use


def batchnorm_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Name -> layer, in the order of the network's definition: BatchNorm with kept statistics, frozen or not.

    Found by what it holds (running_mean and running_var), so that torchvision's and timm's frozen kinds count.
    A BatchNorm that was folded into its convolution is gone and cannot be found; one without running statistics and
    InstanceNorm keep nothing of the data and do not count.
    """
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(getattr(module, "running_mean", None), Tensor)
        and isinstance(getattr(module, "running_var", None), Tensor)
        and not isinstance(module, nn.modules.instancenorm._InstanceNorm)
    }


def require_batchnorm(network: nn.Module, method: str) -> None:
    """Raises NetworkError if the teacher holds no statistics that `method` could match."""
    if not batchnorm_layers(network):
        raise NetworkError(
            f"the teacher has no BatchNorm statistics (none, or folded into its convolutions), and source.method="
            f"{method} is built on them; methods that do without: {', '.join(WITHOUT_BATCHNORM)}"
        )


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """(K,) mean and (K,) biased variance of x (B, K, ...) over all but the channels, in float32 (float64 stays so).

    Four-dimensional inputs take one fused pass forward and one backward; `plain_moments` is the reference. A bfloat16
    x has its gradient rounded by bfloat16's step, times the mean over the standard deviation where that is above 1.
    """
    return _Moments.apply(x) if x.ndim == 4 and _FUSED else plain_moments(x)


def plain_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """What `moments` computes, in plain operations."""
    dims = [d for d in range(x.ndim) if d != 1]
    var, mean = torch.var_mean(x.to(_wide(x)), dims, correction=0)
    return mean, var


class _Moments(torch.autograd.Function):
    """Mean and variance by BatchNorm's own kernel; the gradient is one multiply-add. No double backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        # Statistics in float32 make the kernel accumulate a bf16 x in float32.
        keep = torch.zeros(x.shape[1], device=x.device, dtype=_wide(x))
        mean, var = torch.batch_norm_update_stats(x, keep, keep.clone(), 0.0)
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_mean: Tensor, grad_var: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        scale = 2 * grad_var / count
        shift = grad_mean / count - scale * mean
        return torch.addcmul(_as_map(shift, x), x, _as_map(scale, x))


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _as_map(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype)[None, :, None, None]


# An aten function that is not documented: where a release has it not, the plain form serves.
_FUSED = hasattr(torch, "batch_norm_update_stats")


@dataclass(kw_only=True)
class StatisticsMatch:
    """Watches a network's BatchNorm inputs and says how far their statistics are from the kept ones.

        match = StatisticsMatch(network=teacher)
        with match.watching():
            teacher(images)
        loss = match.distance()

    `momentum` m > 0 compares (1 - m) * this batch + m * an average over past rounds instead of this batch alone, which
    steadies small batches (Fast-DFKD's option); `remember` ends a round.
    """

    network: nn.Module
    p: float = 2.0  # of the norm
    first: float = 0.0  # added to the first layer's weight of 1 (DIODE's first_bn_coef, relative)
    momentum: float = 0.0  # m
    layers: dict[str, nn.Module] = field(init=False)

    def __post_init__(self) -> None:
        self.layers = batchnorm_layers(self.network)
        self._now: dict[str, tuple[Tensor, Tensor]] = {}
        self._past: dict[str, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it, a forward pass of the network records its layers' statistics."""
        self._now = {}
        handles = [layer.register_forward_pre_hook(self._recorder(name)) for name, layer in self.layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _recorder(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def record(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._now[name] = moments(inputs[0])

        return record

    def terms(self) -> dict[str, Tensor]:
        """Layer -> its scalar distance in the pass just watched, unweighted, in the order of the pass."""
        found = {}
        for name, (mean, var) in self._now.items():
            layer: Any = self.layers[name]
            if name in self._past:
                kept_mean, kept_var = self._past[name]
                mean = (1 - self.momentum) * mean + self.momentum * kept_mean
                var = (1 - self.momentum) * var + self.momentum * kept_var
            found[name] = torch.linalg.vector_norm(
                mean - layer.running_mean.float(), self.p
            ) + torch.linalg.vector_norm(var - layer.running_var.float(), self.p)
        return found

    def distance(self) -> Tensor:
        """The scalar R of the pass just watched. Zero where the network has no such layer."""
        assert self._now or not self.layers, "there was no forward pass to measure: run one within `watching()`"
        terms = list(self.terms().values())
        if not terms:
            return torch.zeros(())
        return torch.stack(terms).sum() + self.first * terms[0]

    def remember(self) -> None:
        """End a round: this pass's statistics enter the average of past rounds (Fast-DFKD does so once a batch)."""
        if not self.momentum:
            return
        for name, (mean, var) in self._now.items():
            mean, var = mean.detach(), var.detach()
            if name in self._past:
                kept_mean, kept_var = self._past[name]
                mean = (1 - self.momentum) * mean + self.momentum * kept_mean
                var = (1 - self.momentum) * var + self.momentum * kept_var
            self._past[name] = (mean, var)

    def state_dict(self) -> dict[str, Any]:
        """The averages of past rounds."""
        return dict(self._past)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self._past = {}
        for name, (mean, var) in state.items():
            layer: Any = self.layers[name]
            self._past[name] = (mean.to(layer.running_mean.device), var.to(layer.running_mean.device))
