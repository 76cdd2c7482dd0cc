"""A mixture of all makers of procedural images: figures as they are, the others warped and joined by masks.

B images, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from datafree.sources.procedural.dead_leaves import dead_leaves
from datafree.sources.procedural.figures import figures
from datafree.sources.procedural.hierarchical_noise import hierarchical_noise, stretched
from datafree.sources.procedural.mask_cutmix import cutmixed
from datafree.sources.procedural.sine_networks import sine_networks
from datafree.sources.procedural.spectrum_noise import spectrum_noise
from datafree.sources.procedural.warps import warped

MAKERS = ("noise", "leaves", "sines", "spectrum", "figures")
_PIXELS = {"cpu": 2**19}  # of a part that is made at once: what a processor's cache holds
_MANY_PIXELS = 2**22  # on other devices, where a step costs the same for few


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Which images are drawn and what becomes of them."""

    shares: tuple[float, ...]  # of MAKERS, relative to one another
    gain: float  # share of hierarchical noise that gets random contrast and offset
    rotation: float  # degrees at most
    elastic: float  # of half the side
    dark: float  # share of images that are darkened by any factor
    cutmix: float  # share of images, but for figures, that are joined with another
    plain: float  # share of these whose other is a single colour

    def draw(self, count: int, size: tuple[int, int], device: torch.device) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1], in random order; from torch's global generators."""
        most = max(8, _PIXELS.get(device.type, _MANY_PIXELS) // (size[0] * size[1]))
        parts = [self._part(min(most, count - first), size, device) for first in range(0, count, most)]
        return torch.cat(parts) if parts else torch.zeros(0, 3, *size, device=device)

    def _part(self, count: int, size: tuple[int, int], device: torch.device) -> Tensor:
        drawn = torch.rand((), device="cpu").item()  # which maker has an odd image
        textures: list[Tensor] = []
        whole: list[Tensor] = []
        for name, n in self._counts(count, drawn):
            if n:
                (whole if name == "figures" else textures).append(_made(name, n, size, device, self.gain))
        parts = [self.varied(self._darkened(torch.cat(textures)))] if textures else []
        parts += [self._darkened(figure) for figure in whole]  # warped or joined they would be figures no longer
        return torch.cat(parts)[torch.randperm(count, device=device)]

    def _darkened(self, images: Tensor) -> Tensor:
        chosen = torch.rand(len(images), 1, 1, 1, device=images.device) < self.dark
        return torch.where(chosen, images * torch.rand(len(images), 1, 1, 1, device=images.device), images)

    def varied(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) warped, and some of them joined with another of them or with a colour."""
        if self.rotation or self.elastic:
            images = warped(images, self.rotation, self.elastic)
        if self.cutmix:
            images = cutmixed(images, self.cutmix, self.plain)
        return images.clamp(0, 1)  # resampling adds weights that sum to 1 but for rounding

    def _counts(self, count: int, start: float) -> list[tuple[str, int]]:
        """How many each makes: its share, rounded up or down as `start` in [0, 1) has it, so that means are exact."""
        total = sum(self.shares)
        edges = [int(count * sum(self.shares[:i]) / total + start) for i in range(len(MAKERS))] + [count + int(start)]
        edges[0] = 0
        return [(name, after - before) for name, (before, after) in zip(MAKERS, pairwise(edges), strict=True)]


def _made(name: str, count: int, size: tuple[int, int], device: torch.device, gain: float) -> Tensor:
    """(B, 3, H, W) in [0, 1] by one maker."""
    if name == "noise":
        images = hierarchical_noise(count, size, device)
        high = torch.rand(count, 1, 1, 1, device=device) < gain
        return torch.where(high, stretched(images), images)
    if name in ("leaves", "figures"):
        half = count // 2
        textures = [spectrum_noise(count - half, size, device)] + ([sine_networks(half, size, device)] if half else [])
        return (dead_leaves if name == "leaves" else figures)(count, size, torch.cat(textures))
    return (sine_networks if name == "sines" else spectrum_noise)(count, size, device)
