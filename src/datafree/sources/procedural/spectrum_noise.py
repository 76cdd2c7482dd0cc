"""Noise whose spectrum falls as a power of the frequency, as that of photographs does, in random colours.

The statistical image models of Baradad et al., "Learning to See by Looking at Noise", arXiv 2106.05963.

B images, H x W pixels, K colours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SLOPES = (0.5, 3.5)  # s: amplitudes fall as f^-s
COLOURS = (3, 22)  # of a palette, least and most


def spectrum_noise(count: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """(B, 3, H, W) in [0, 1]: half of them three mixed fields, half one field cut into the colours of a palette."""
    low, high = SLOPES
    fields = power_law_fields(low + (high - low) * torch.rand(count, device=device), 3, size)
    flat = (torch.rand(count, device=device) < 0.5)[:, None, None, None]
    return torch.where(flat, _in_palette(fields[:, 0]), _in_mixed_colours(fields))


def power_law_fields(slopes: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    """(B, channels, H, W) Gaussian fields of mean 0 and variance 1, amplitudes f^-s for slopes s (B,)."""
    height, width = size
    down = torch.fft.fftfreq(height, device=slopes.device)[:, None]
    right = torch.fft.rfftfreq(width, device=slopes.device)
    frequency = (down**2 + right**2).sqrt()  # (H, W // 2 + 1), cycles a pixel
    frequency[0, 0] = 1.0
    amplitude = frequency ** -slopes[:, None, None, None]
    amplitude[..., 0, 0] = 0.0  # the mean
    shape = (len(slopes), channels, *frequency.shape)
    drawn = torch.complex(torch.randn(shape, device=slopes.device), torch.randn(shape, device=slopes.device))
    fields: Tensor = torch.fft.irfft2(drawn * amplitude, s=size)
    spread = fields.std((-2, -1), correction=0, keepdim=True)
    return fields / spread.clamp_min(1e-12)


def random_colours(normals: Tensor) -> Tensor:
    """(B, 3, N) colours in [0, 1] of standard normals (B, 3, N): a mean and a 3 x 3 mixing matrix for each image."""
    count = len(normals)
    mean = 0.2 + 0.6 * torch.rand(count, 3, 1, device=normals.device)
    matrix = 0.2 * torch.randn(count, 3, 3, device=normals.device)  # rows of norm .35: black and white are reached
    return torch.baddbmm(mean, matrix, normals).clamp_(0, 1)


def _in_mixed_colours(fields: Tensor) -> Tensor:
    """(B, 3, H, W) of three fields (B, 3, H, W) an image."""
    return random_colours(fields.flatten(2)).view_as(fields)


def _in_palette(field: Tensor) -> Tensor:
    """(B, 3, H, W) of a field (B, H, W): K colours for equal shares of a normal distribution's values."""
    count = len(field)
    least, most = COLOURS
    number = torch.randint(least, most + 1, (count, 1, 1), device=field.device)  # K
    place = 0.5 + 0.5 * torch.erf(field / math.sqrt(2))  # in [0, 1], even
    index = (place * number).long().clamp_max(most - 1).flatten(1)  # (B, H * W)
    palette = random_colours(torch.randn(count, 3, most, device=field.device))  # (B, 3, 22), the first K are used
    index = torch.minimum(index, number[:, 0] - 1)
    return palette.gather(2, index[:, None].expand(-1, 3, -1)).view(count, 3, *field.shape[1:])
