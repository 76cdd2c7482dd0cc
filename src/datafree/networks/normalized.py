"""Preprocessing inside the network: mean, std, channels and input size, and one form of its answers.

B images, C classes, H x W pixels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.errors import NetworkError
from datafree.networks.detectors import Detector
from datafree.ops import modes
from datafree.ops.predictions import Predictions


class Normalized(nn.Module):
    """A network that takes RGB images in [0, 1] of any size and answers one float32 tensor, or `Predictions`.

    `network` is the network as it was built: its state_dict is what is loaded and shipped (`mean` and `std` are in no
    state_dict). `mean` and `std` are those of R, G and B in [0, 1]; `order` "bgr" hands the channels on the other way
    round; a network of one channel gets the average of the three, so that colour, which it knows nothing of, cannot
    reach it. `input_size` (height, width): images are resized to it, boxes and class maps come back at the images'
    own size, and so do smaller class maps where `upsample` says so. `dtype` is the type of the forward pass, under
    autocast; the answer is float32 whatever it is. `one_output` says what the only output of a network is, where it is
    to answer two classes.
    Raises NetworkError for a mean or std that cannot normalise.
    """

    mean: Tensor  # (1, 3, 1, 1)
    std: Tensor  # (1, 3, 1, 1)

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        dtype: torch.dtype = torch.float32,
        channels: int = 3,
        channel_order: Literal["rgb", "bgr"] = "rgb",
        input_size: tuple[int, int] | None = None,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != 3 or not all(math.isfinite(v) for v in values):
                raise NetworkError(f"{name} is {tuple(values)}: give three finite numbers, for R, G and B")
        if min(std) <= 0:
            raise NetworkError(f"std is {tuple(std)}: give three numbers above 0 (1, 1, 1 leaves images as they are)")
        self.network = network
        self.dtype = dtype
        self.channels = channels
        self.channel_order = channel_order
        self.input_size = input_size
        self.upsample = upsample
        self.one_output: Literal["logit", "probability"] | None = None
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor | Predictions:
        """(B, 3, H, W) in [0, 1] -> the network's outputs, float32. Raises as `only_answer`."""
        x = self.prepared(images)
        if self.dtype == torch.float32:  # leaves a caller's own autocast as it is
            return self._at_size(only_answer(self.network(x)), images)
        with modes.autocast(images.device, self.dtype):
            outputs = self.network(x)
        return self._at_size(only_answer(outputs), images)

    def prepared(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> what the network inside takes: normalised, resized, its channels in its order."""
        x = (images - self.mean) / self.std
        if self.input_size is not None:
            x = F.interpolate(x, size=self.input_size, mode="bilinear", align_corners=False, antialias=True)
        if self.channel_order == "bgr":
            x = x.flip(1)
        if self.channels == 1:
            x = x.mean(1, keepdim=True)  # (B, 1, H, W)
        return x

    def _at_size(self, answer: Tensor | Predictions, images: Tensor) -> Tensor | Predictions:
        """The answer in float32, its places those of `images`."""
        answer = answer.float() if isinstance(answer, Tensor) else answer.floats()
        (height, width), size = images.shape[-2:], self.input_size or images.shape[-2:]
        if isinstance(answer, Predictions):
            return answer if self.input_size is None else answer.scaled(width / size[1], height / size[0])
        if self.one_output is not None:
            answer = _two_classes(answer, self.one_output)
        if answer.ndim != 4 or answer.shape[-2:] == (height, width):
            return answer
        coarse = self.upsample and answer.shape[-2:] != (1, 1)  # a single place is a class, not a map
        if coarse or answer.shape[-2:] == size:
            return F.interpolate(answer, size=(height, width), mode="bilinear", align_corners=False)
        return answer


def _two_classes(answer: Tensor, what: Literal["logit", "probability"]) -> Tensor:
    """(B, 1, ...) -> (B, 2, ...), the logits 0 and z: their softmax is 1 - sigmoid(z) and sigmoid(z)."""
    z = answer if what == "logit" else torch.logit(answer, eps=1e-6)
    return torch.cat((torch.zeros_like(z), z), 1)


@contextmanager
def in_float32(*networks: nn.Module) -> Iterator[None]:
    """Hold the forward passes of those that are `Normalized` in float32."""
    wrapped = [network for network in networks if isinstance(network, Normalized)]
    kept = [network.dtype for network in wrapped]
    try:
        for network in wrapped:
            network.dtype = torch.float32
        yield
    finally:
        for network, dtype in zip(wrapped, kept, strict=True):
            network.dtype = dtype


def bare(network: nn.Module) -> nn.Module:
    """The network inside a `Normalized` or a `Detector`, whose layers users know by name; any other itself."""
    while isinstance(network, (Normalized, Detector)):
        network = network.network
    return network


def detector_of(network: nn.Module) -> Detector | None:
    """The adapted detector inside, if it is one."""
    while isinstance(network, Normalized):
        network = network.network
    return network if isinstance(network, Detector) else None


def only_answer(outputs: object) -> Tensor | Predictions:
    """What a network says: a tensor, a detector's `Predictions`, or what lies under "logits" or "out".

    Dicts and dataclasses have these: torchvision's {"out": ..., "aux": ...}, transformers' outputs with `logits`.

    Raises NetworkError for any other answer, naming what it is.
    """
    if isinstance(outputs, (Tensor, Predictions)):
        return outputs
    if (name := name_of_answer(outputs)) is not None:
        answer = _named(outputs)[name]
        assert isinstance(answer, Tensor)
        return answer
    if isinstance(outputs, Mapping):
        found = f"a dict with the keys {sorted(map(str, outputs))}"
    elif isinstance(outputs, (tuple, list)):
        parts = ", ".join(type(part).__name__ for part in outputs[:4]) + (", ..." if len(outputs) > 4 else "")
        found = f"a {type(outputs).__name__} of {len(outputs)} ({parts})"
    else:
        found = f"a {type(outputs).__name__}"
    raise NetworkError(
        f"the network answers {found}: one tensor, or a dict with a tensor under 'logits' or 'out', is needed; "
        "wrap the network in a module that returns just its logits and name it as 'package.module:callable'"
    )


def name_of_answer(outputs: object) -> str | None:
    """Under which name a dict, a dataclass's object or a named tuple holds the logits; None where it has no such."""
    named = _named(outputs)
    return next((name for name in ("logits", "out") if isinstance(named.get(name), Tensor)), None)


def _named(outputs: object) -> Mapping[str, object]:
    """What a dict, a dataclass's object or a named tuple holds, by name; of anything else, nothing."""
    if isinstance(outputs, Mapping):
        return outputs
    if dataclasses.is_dataclass(outputs):
        return {field.name: getattr(outputs, field.name) for field in dataclasses.fields(outputs)}
    return {name: getattr(outputs, name) for name in getattr(outputs, "_fields", ())}


def device_of(network: nn.Module) -> torch.device:
    """Where a network is: of a file that only answers, its mean and std."""
    return next(values.device for values in (*network.parameters(), *network.buffers()))


def size_of(network: nn.Module) -> int:
    """Bytes of a network's parameters and buffers."""
    return sum(values.numel() * values.element_size() for values in (*network.parameters(), *network.buffers()))
