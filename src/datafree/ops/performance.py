"""Performance switches of one device, `training.speed`: channels last, fused statistics, fused optimisers.

Each can be turned off, to see what it changes (rounding alone, docs/scale.md says how much) or because a device does
not like it. Whoever builds a network or an optimiser for a run does it through this.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Doc

NetworkT = TypeVar("NetworkT", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Which speed-ups are on. What forward passes compute in is `training.precision`."""

    channels_last: Annotated[
        bool, Doc("networks keep the channels of a pixel side by side, as convolution kernels want them")
    ] = True
    fused_statistics: Annotated[
        bool, Doc("of BatchNorm inputs: one pass forward and one back, in float32 with the layer's own")
    ] = True
    fused_optimizers: Annotated[bool, Doc("a step of Adam or SGD in one pass over the weights")] = True

    def laid_out(self, network: NetworkT) -> NetworkT:
        """The network itself, its weights in the layout that is asked for; images follow the weights.

        Some layers get hooks against faults of torch's kernels; `as_it_came` takes them away.
        """
        as_it_came(network)
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d) and layer.stride[1] > 1 and not isinstance(layer.padding, str):
                layer.register_forward_pre_hook(_wide_enough)
        fits = all(parameter.ndim != 5 for parameter in network.parameters())  # of 3-D convolutions, which have another
        if not self.channels_last or not fits:
            return network
        network.to(memory_format=torch.channels_last)
        for layer in network.modules():
            if _writes_beyond_its_memory(layer):
                layer.to(memory_format=torch.contiguous_format)
                layer.register_forward_pre_hook(_plain_input)
        return network

    def adam(
        self,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> torch.optim.Adam:
        """Adam over parameters, or groups of them."""
        return torch.optim.Adam(parameters, lr, betas, weight_decay=weight_decay, fused=self._fused())

    def sgd(self, parameters: Iterable[Tensor], lr: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
        """SGD with momentum."""
        return torch.optim.SGD(parameters, lr, momentum, weight_decay=weight_decay, fused=self._fused())

    def _fused(self) -> bool | None:
        """What an optimiser is told: False would also keep it from taking all weights of a GPU at once."""
        return self.fused_optimizers or None


ALL_ON = Speed()


def as_it_came(network: nn.Module) -> None:
    """Take back what `laid_out` has done, where a network goes to whoever may save it whole, or compile it."""
    network.to(memory_format=torch.contiguous_format)
    for layer in network.modules():
        for key, hook in list(layer._forward_pre_hooks.items()):
            if hook in (_plain_input, _wide_enough):
                del layer._forward_pre_hooks[key]


def _writes_beyond_its_memory(layer: nn.Module) -> bool:
    """Whether torch's CPU kernel for the gradient of this layer's weight corrupts memory with channels last.

    Seen with torch 2.14.1 on a processor with AVX2: strided 1 x 1 convolutions of fewer than 8 input channels. The
    process dies some steps later, of "double free or corruption" (tests/ops/test_performance.py).
    """
    return (
        isinstance(layer, nn.Conv2d)
        and set(layer.kernel_size) == {1}
        and max(layer.stride) > 1
        and layer.in_channels // layer.groups < 8
    )


def _plain_input(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Before its forward pass: a layer's images in the layout of its weight."""
    return inputs[0].contiguous(), *inputs[1:]


def _wide_enough(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Before its forward pass in bfloat16 on a CPU: images at least as wide as a strided convolution's stride.

    On narrower ones torch's kernel for the gradient of the weight reads what lies beside them in memory, whatever their
    layout. Seen with torch 2.14.1 on a processor with AVX-512's bfloat16. The columns that are added are what it pads
    with, and its answer has the same size.
    """
    images = inputs[0]
    if not isinstance(layer, nn.Conv2d) or images.shape[-1] >= layer.stride[1] or images.device.type != "cpu":
        return None
    if images.dtype != torch.bfloat16 and not torch.is_autocast_enabled("cpu"):
        return None
    reach = layer.dilation[1] * (layer.kernel_size[1] - 1) + 1 - 2 * int(layer.padding[1])
    narrow, wide = ((width - reach) // layer.stride[1] for width in (images.shape[-1], layer.stride[1]))
    if layer.padding_mode != "zeros" or narrow != wide:
        return None
    return F.pad(images, (0, layer.stride[1] - images.shape[-1])), *inputs[1:]
