"""A small ResNet with GroupNorm in place of BatchNorm: a teacher of today's kind, whose layers keep no statistics.

B images, C classes, H x W pixels.
"""

from __future__ import annotations

from torch import nn

from datafree.networks.resnet import resnet as with_batchnorm

GROUP = 4  # channels


def resnet(num_classes: int, depth: int = 14, width: int = 16, stride: int = 1, channels: int = 3) -> nn.Module:
    """`datafree/resnet` with GroupNorm, Wu and He, arXiv 1803.08494, of groups of 4 channels.

    (B, channels, H, W) -> logits (B, C). Named by recipes as `group_normed:resnet`. Raises NetworkError for values that
    make no network, ValueError for a width that is no multiple of 4.
    """
    network = with_batchnorm(num_classes, depth=depth, width=width, stride=stride, channels=channels)
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.BatchNorm2d):
            if layer.num_features % GROUP:
                raise ValueError(f"width is {width}: give a multiple of {GROUP}, the channels of a group")
            network.set_submodule(name, nn.GroupNorm(layer.num_features // GROUP, layer.num_features))
    return network
