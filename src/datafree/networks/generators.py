"""Generators and discriminators: DCGAN's and a resize-convolution generator, for sizes from 28 to 512 pixels.

B images, C classes, Z latent dimensions, H x W pixels, h x w the cells of a coarser grid.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.errors import NetworkError

_LEAST = 7  # cells of a `ResizeGenerator`'s coarsest grid, its shorter side


def coarse_grid(size: tuple[int, int], least: int = 4) -> tuple[int, int, int]:
    """(h, w, doublings): the coarsest grid, its shorter side at least `least` cells, that doubles up to `size`.

    Square powers of two start at 4 x 4 as DCGAN does; 96 x 128 starts at 6 x 8. Raises NetworkError for a size
    that does not halve down to a short side of 4 to 15 cells.
    """
    height, width, doublings = _halved(size, least)
    if not _can_be_made(size, least):
        nearest = _nearest(size, least)
        raise NetworkError(
            f"a generator cannot make {size[0]} x {size[1]} pixels: both sides must be multiples of the same power of "
            f"two (such as 128 x 128 or 96 x 128); the nearest is {nearest[0]} x {nearest[1]}"
        )
    return height, width, doublings


def _halved(size: tuple[int, int], least: int) -> tuple[int, int, int]:
    height, width = size
    doublings = 0
    while height % 2 == 0 and width % 2 == 0 and min(height, width) // 2 >= least:
        height, width, doublings = height // 2, width // 2, doublings + 1
    return height, width, doublings


def _can_be_made(size: tuple[int, int], least: int) -> bool:
    height, width, doublings = _halved(size, least)
    return min(size) >= 16 and max(size) <= 1024 and min(height, width) < 16 and doublings >= 2


def can_be_resized_to(size: tuple[int, int]) -> bool:
    """Whether a `ResizeGenerator` makes images of `size` (height, width)."""
    return _can_be_made(size, _LEAST)


def _nearest(size: tuple[int, int], least: int) -> tuple[int, int]:
    """Of all sizes that can be made, the one whose sides differ least from these."""
    sides = range(16, 1025, 4)  # two doublings at least
    made = ((height, width) for height in sides for width in sides if _can_be_made((height, width), least))
    return min(made, key=lambda one: abs(one[0] - size[0]) + abs(one[1] - size[1]))


class Generator(nn.Module):
    """DCGAN's generator (Radford et al., arXiv 1511.06434): latents (B, Z) -> images (B, 3, H, W) in [0, 1].

    Transposed convolutions double the size from the coarse grid up; `width` channels before the last, doubling
    downwards to at most 16 * `width`. 128 x 128 pixels take 6 transposed convolutions.
    DCGAN's tanh, brought from [-1, 1] to [0, 1].
    """

    def __init__(self, size: tuple[int, int], latent: int = 100, width: int = 64) -> None:
        super().__init__()
        h, w, doublings = coarse_grid(size)
        self.latent = latent
        channels = [width * min(2**i, 16) for i in reversed(range(doublings))]  # coarse to fine
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(latent, channels[0], (h, w), bias=False),  # (B, Z, 1, 1) -> (B, ., h, w)
            nn.BatchNorm2d(channels[0]),
            nn.ReLU(inplace=True),
        ]
        for before, after in pairwise(channels):
            layers += [
                nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
        layers += [nn.ConvTranspose2d(channels[-1], 3, 4, stride=2, padding=1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self.apply(_initialise)

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.layers(z[:, :, None, None])
        return (images.float() + 1) / 2

    def draw_latents(self, n: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """n latents (n, Z) ~ N(0, 1); from `generator` (a CPU one) if given, else from the global state."""
        if generator is None:
            return torch.randn(n, self.latent, device=device)
        return torch.randn(n, self.latent, generator=generator).to(device, non_blocking=True)


class ResizeGenerator(nn.Module):
    """Latents (B, Z), and class maps if it is conditional -> images (B, 3, H, W) in [0, 1], by resize-convolutions.

    The generator of DAFL (Chen et al., arXiv 1904.01186) and its successors, for any size: a linear layer to a grid of
    7 to 15 cells on its short side (8 x 8 for 32 and 128 pixels, 7 x 7 for 28 and 224), then nearest-neighbour
    doublings, each followed by a 3x3 convolution, BatchNorm and LeakyReLU; `width` channels at the full size, doubling
    every second level downwards to at most 4 * `width`.

    With `num_classes` > 0 every BatchNorm takes its gain and bias from the class maps (B, C, h, w): class-conditional
    BatchNorm (Dumoulin et al., arXiv 1610.07629) where a map is a single cell, a class for the whole image, and spatial
    conditioning as SPADE's (Park et al., arXiv 1903.07291) where classes have places.
    """

    def __init__(self, size: tuple[int, int], latent: int = 256, width: int = 64, num_classes: int = 0) -> None:
        super().__init__()
        h, w, doublings = coarse_grid(size, least=_LEAST)
        self.latent = latent
        channels = [width * min(2 ** ((level + 1) // 2), 4) for level in reversed(range(doublings + 1))]
        self.grid = (channels[0], h, w)
        self.project = nn.Linear(latent, channels[0] * h * w)
        self.norms = nn.ModuleList(_Norm(count, num_classes) for count in channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1, bias=False) for before, after in pairwise(channels)
        )
        self.to_image = nn.Conv2d(channels[-1], 3, 3, padding=1)

    def forward(self, z: Tensor, class_maps: Tensor | None = None) -> Tensor:
        x = self.project(z).unflatten(1, self.grid)  # (B, ., h, w)
        x = F.leaky_relu(self.norms[0](x, class_maps), 0.2)
        for conv, norm in zip(self.convs, self.norms[1:], strict=True):
            x = conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
            x = F.leaky_relu(norm(x, class_maps), 0.2)
        return torch.sigmoid(self.to_image(x).float())

    def draw_latents(self, n: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """n latents (n, Z) ~ N(0, 1); from `generator` (a CPU one) if given, else from the global state."""
        if generator is None:
            return torch.randn(n, self.latent, device=device)
        return torch.randn(n, self.latent, generator=generator).to(device, non_blocking=True)


class _Norm(nn.Module):
    """BatchNorm whose gain and bias come from class maps, or are its own without classes."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=num_classes == 0)
        self.affine = nn.Conv2d(num_classes, 2 * channels, 1, bias=False) if num_classes else None
        if self.affine is not None:
            nn.init.normal_(self.affine.weight, 0.0, 0.5)  # classes differ from the start, else they grow alike

    def forward(self, x: Tensor, class_maps: Tensor | None) -> Tensor:
        x = self.norm(x)
        if self.affine is None:
            return x
        assert class_maps is not None, "a conditional generator needs class maps"
        if class_maps.shape[-2:] != (1, 1):
            class_maps = F.adaptive_avg_pool2d(class_maps, (x.shape[-2], x.shape[-1]))
        gain, bias = self.affine(class_maps).chunk(2, 1)  # (B, ., 1, 1) or (B, ., h, w) each
        conditioned: Tensor = x * (1 + gain) + bias
        return conditioned


class Discriminator(nn.Module):
    """DCGAN's discriminator: images (B, 3, H, W) in [0, 1] -> logits (B,), positive = looks like the real ones."""

    def __init__(self, size: tuple[int, int], width: int = 64) -> None:
        super().__init__()
        h, w, doublings = coarse_grid(size)
        channels = [3, *(width * min(2**i, 16) for i in range(doublings))]
        layers: list[nn.Module] = []
        for level, (before, after) in enumerate(pairwise(channels)):
            layers.append(nn.Conv2d(before, after, 4, stride=2, padding=1, bias=level == 0))
            if level > 0:  # DCGAN leaves the first layer without
                layers.append(nn.BatchNorm2d(after))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
        layers.append(nn.Conv2d(channels[-1], 1, (h, w)))
        self.layers = nn.Sequential(*layers)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images * 2 - 1)
        return logits.float().flatten()


def _initialise(module: nn.Module) -> None:
    """N(0, 0.02) weights, as DCGAN prescribes."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
