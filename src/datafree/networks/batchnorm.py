"""The BatchNorm feature prior: distance of a batch's statistics from those a network's layers have kept.

DeepInversion's feature prior (Yin et al., arXiv 1912.08795, eq. 4), also in DIODE, CMI, Fast-DFKD and others:
R = sum over layers l of ||mean_l(x) - running_mean_l||_p + ||var_l(x) - running_var_l||_p, of the layers' inputs, with
the biased variance; neither squared nor divided by the number of channels.

B images, K channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from datafree.distributed import replicas
from datafree.errors import NetworkError
from datafree.networks.normalized import bare
from datafree.ops.moments import is_line, moments, normalised
from datafree.ops.whole_batch import parts, whole_mean

# What a teacher without any can use.
WITHOUT_BATCHNORM = ("dfad", "zskt", "dafl", "cgdd, and diode for detection (their BatchNorm terms off)")


def batchnorm_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Name -> layer, in the order of the network's definition: BatchNorm with kept statistics, frozen or not.

    Found by what it holds (running_mean and running_var), so that torchvision's and timm's frozen kinds count.
    A BatchNorm that was folded into its convolution is gone and cannot be found; one without running statistics and
    InstanceNorm keep nothing of the data and do not count; a TorchScript program calls no hook of its layers.
    """
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(getattr(module, "running_mean", None), Tensor)
        and isinstance(getattr(module, "running_var", None), Tensor)
        and not isinstance(module, (nn.modules.instancenorm._InstanceNorm, torch.jit.ScriptModule))
    }


def is_as_new(layer: nn.Module) -> bool:
    """Whether a layer's statistics, mean 0 and variance 1, are those that it was made with: no image has moved them."""
    kept: Any = layer
    return not kept.running_mean.any() and bool((kept.running_var == 1).all())


def require_batchnorm(network: nn.Module, method: str) -> None:
    """Raises NetworkError if the teacher holds no statistics that `method` could match."""
    if not batchnorm_layers(network):
        raise NetworkError(
            f"the teacher has no BatchNorm statistics (none, or folded into its convolutions), and source.method="
            f"{method} is built on them; methods that do without: {', '.join(WITHOUT_BATCHNORM)}"
        )


def _lies_in(name: str, module: str) -> bool:
    return f"{name}.".startswith(f"{module}.")


@contextmanager
def _answering(layer: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within it, the layer answers by `forward`; its hooks are called as ever."""
    had = layer.__dict__.get("forward")  # of its own, where somebody else has done the same
    layer.__dict__["forward"] = forward
    try:
        yield
    finally:
        del layer.__dict__["forward"]
        if had is not None:
            layer.__dict__["forward"] = had


@dataclass(kw_only=True)
class StatisticsMatch:
    """Watches a network's BatchNorm inputs and says how far their statistics are from the kept ones.

        match = StatisticsMatch(network=teacher)
        with match.watching():
            teacher(images)
        loss = match.distance()

    `momentum` m > 0 compares (1 - m) * this batch + m * an average over past rounds instead of this batch alone, which
    steadies small batches (Fast-DFKD's option); `remember` ends a round.

    `clip` keeps layers that explode from drowning the rest, as happens with some detectors: a layer above `clip` times
    the median of all (of two in the middle the lower) counts as that limit, its gradient scaled by the same factor.

    Layers go by their names in the bare network. One that runs several times in a pass counts as it ran last.
    Raises NetworkError if `within` leaves no layer of a network that has some.
    """

    network: nn.Module
    p: float = 2.0  # of the norm
    first: float = 0.0  # added to the first layer's weight of 1 (DIODE's first_bn_coef, relative)
    momentum: float = 0.0  # m
    within: str = ""  # the bare network's module whose layers alone count, such as a detector's backbone; empty = all
    count: int = 0  # the first so many of them count, in the order of the network's definition; 0 = all
    clip: float = 0.0  # a layer counts for at most this times the median layer; 0 = for whatever it is
    fused: bool = True  # of `moments`
    layers: dict[str, nn.Module] = field(init=False)

    def __post_init__(self) -> None:
        every = batchnorm_layers(bare(self.network))
        inside = {name: layer for name, layer in every.items() if not self.within or _lies_in(name, self.within)}
        if every and not inside:
            raise NetworkError(
                f"no BatchNorm layer lies in {self.within!r}; the network has {len(every)}, the first of them "
                f"{', '.join(list(every)[:3])}: mend the adapter's `backbone`, or set source.bn_weight=0"
            )
        self.layers = dict(list(inside.items())[: self.count or None])
        self._now: dict[str, tuple[Tensor, Tensor]] = {}
        self._past: dict[str, tuple[Tensor, Tensor]] = {}
        self._excess: tuple[list[str], Tensor] = [], torch.zeros(0)  # layers, times the median; 0 where not clipped

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it, a forward pass of the network records its layers' statistics."""
        self._now = {}
        with ExitStack() as stack:
            for name, layer in self.layers.items():
                stack.enter_context(_answering(layer, self._recorder(name, layer, layer.forward)))
            yield

    def _recorder(self, name: str, layer: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The layer's forward pass, that records the moments of its input under `name`."""

        def recorded(x: Tensor, *rest: Any, **options: Any) -> Any:
            if self.fused and is_line(layer, x):
                answer, mean, var = normalised(layer, x)
            else:
                mean, var = moments(x, fused=self.fused)
                answer = forward(x, *rest, **options)
            if not self._now:
                replicas.at_end(self._brought_together)
            self._now[name] = replicas.pooled(mean, var)
            return answer

        return recorded

    def _brought_together(self) -> None:
        """Of a pass whose batch is shared out: the whole batch's moments of all layers, in one exchange.

        About the kept means, so that the difference of squares loses no figures.
        """
        if parts() == 1:
            return
        layers: list[Any] = [self.layers[name] for name in self._now]
        kept = torch.cat([layer.running_mean for layer in layers])
        apart = torch.cat([mean for mean, _ in self._now.values()]) - kept
        squares = torch.cat([var for _, var in self._now.values()]) + apart.square()
        apart, squares = whole_mean(torch.stack([apart, squares])).unbind()
        sizes = [len(layer.running_mean) for layer in layers]
        means, variances = torch.split(apart + kept, sizes), torch.split(squares - apart.square(), sizes)
        self._now = dict(zip(self._now, zip(means, variances, strict=True), strict=True))

    def terms(self) -> dict[str, Tensor]:
        """Layer -> its scalar distance in the pass just watched, clipped but not weighted, in the order of the pass."""
        return dict(zip(self._now, self._distances().unbind(), strict=True)) if self._now else {}

    def distance(self) -> Tensor:
        """The scalar R of the pass just watched. Zero where the network has no such layer."""
        assert self._now or not self.layers, "there was no forward pass to measure: run one within `watching()`"
        if not self._now:
            return torch.zeros(())
        distances = self._distances()
        return distances.sum() + self.first * distances[0]

    def _distances(self) -> Tensor:
        """(L,) of L layers in the order of the pass; all their channels in one row, for the sake of few kernels."""
        blended = [self._blended(name) for name in self._now]
        layers: list[Any] = [self.layers[name] for name in self._now]
        found = torch.cat([mean for mean, _ in blended] + [var for _, var in blended])
        kept = torch.cat([layer.running_mean for layer in layers] + [layer.running_var for layer in layers])
        apart = found - kept.float()
        if self.clip:  # what float32 cannot hold has no slope: one of 0 here, times that of a square, would be none
            apart = apart.where(apart.detach().isfinite(), torch.inf)
        parts = torch.split(apart, 2 * [len(mean) for mean, _ in blended])
        distances = torch.stack([torch.linalg.vector_norm(part, self.p) for part in parts]).view(2, -1).sum(0)
        return self._clipped(distances) if self.clip else distances

    def _clipped(self, distances: Tensor) -> Tensor:
        values = distances.detach()
        median = values.median()
        over = values > self.clip * median
        self._excess = list(self._now), torch.where(over, values / median, 0.0)  # no look from the host
        limit = self.clip * median
        return torch.where(values.isfinite(), distances * torch.where(over, limit / values, 1.0), limit)

    def clipped(self) -> dict[str, float]:
        """The layers clipped when the distance was last taken, and how many times the median they were before."""
        names, times = self._excess
        return {name: ratio for name, ratio in zip(names, times.tolist(), strict=True) if ratio > 0}

    def _blended(self, name: str) -> tuple[Tensor, Tensor]:
        """A layer's mean and variance with their past in them."""
        if name not in self._past:
            return self._now[name]
        mean, var = (new.lerp(old, self.momentum) for new, old in zip(self._now[name], self._past[name], strict=True))
        return mean, var

    def remember(self) -> None:
        """End a round: this pass's statistics enter the average of past rounds (Fast-DFKD does so once a batch)."""
        if not self.momentum:
            return
        for name in self._now:
            mean, var = self._blended(name)
            self._past[name] = (mean.detach(), var.detach())

    def state_dict(self) -> dict[str, Any]:
        """The averages of past rounds."""
        return dict(self._past)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self._past = {}
        for name, (mean, var) in state.items():
            layer: Any = self.layers[name]
            self._past[name] = (mean.to(layer.running_mean.device), var.to(layer.running_mean.device))
