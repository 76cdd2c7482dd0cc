"""Whether a network takes images at all: colour or grey ones, of two dimensions."""

from __future__ import annotations

from torch import nn

from datafree.errors import NetworkError
from datafree.networks.normalized import bare


def require_flat_images(network: nn.Module, what: str) -> None:
    """Raise NetworkError for a network of volumes or video."""
    if any(isinstance(module, nn.Conv3d) for module in bare(network).modules()):
        raise NetworkError(
            f"{what} has 3-D convolutions, so it takes volumes or video; networks of images (B, 3, H, W) are needed"
        )


def channels_hint(network: nn.Module, channels: int) -> str:
    """What to say of a network that has failed on images of `channels` where its first convolution takes others."""
    first = next((module for module in bare(network).modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.in_channels in (channels, 3):
        return ""
    if first.in_channels == 1:
        return "; its first layer takes grey images: set channels to 1 (--channels 1)"
    return f"; its first layer takes {first.in_channels} channels, but images here have 3 (RGB), or 1 (grey)"
