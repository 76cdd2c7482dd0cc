"""networks/patches.py: the entropy of patches' similarities against its formula, and which layers it is taken of."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
import torchvision
from scipy import integrate, stats  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor, nn

from datafree.networks.patches import BANDWIDTH, PatchEntropy, attention_layers, similarity_entropy


def by_formula(tokens: Tensor) -> float:
    """H = -integral of f log f of one image's (N, D), f = 1 / (M h) sum K((x - x_m) / h): by quadrature."""
    pairs = [
        float(torch.dot(one, other) / (one.norm() * other.norm()))
        for index, one in enumerate(tokens)
        for other in tokens[:index]
    ]

    def integrand(x: float) -> float:
        f = sum(stats.norm.pdf((x - similar) / BANDWIDTH) for similar in pairs) / (len(pairs) * BANDWIDTH)
        return f * math.log(f) if f > 0 else 0.0

    return -float(integrate.quad(integrand, -1.6, 1.6, limit=200, epsabs=1e-6)[0])


@pytest.mark.parametrize("spread", [0.05, 0.5, 5.0])
def test_entropy_is_that_of_the_formula(spread: float) -> None:
    draw = torch.Generator().manual_seed(0)
    tokens = torch.ones(2, 7, 6) + spread * torch.randn(2, 7, 6, generator=draw)
    expected = torch.tensor([by_formula(image) for image in tokens])
    torch.testing.assert_close(similarity_entropy(tokens), expected, atol=3e-3, rtol=0)


def test_patches_that_are_all_alike_have_the_entropy_of_one_kernel() -> None:
    one = 0.5 * math.log(2 * math.pi * math.e * BANDWIDTH**2)  # of a Gaussian of that width
    torch.testing.assert_close(similarity_entropy(torch.ones(3, 5, 4)), torch.full((3,), one), atol=0.02, rtol=0)


def test_its_gradient_is_that_of_the_formula() -> None:
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randn(1, 6, 5, generator=draw).requires_grad_()
    way = torch.randn(1, 6, 5, generator=draw)
    (gradient,) = torch.autograd.grad(similarity_entropy(tokens).sum(), tokens)
    with torch.no_grad():
        slope = (by_formula((tokens + 0.05 * way)[0]) - by_formula((tokens - 0.05 * way)[0])) / 0.1
    assert float((gradient * way).sum()) == pytest.approx(slope, abs=0.03)


def vit() -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=3
    )
    return network.eval()


def torchvisions_vit() -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = torchvision.models.VisionTransformer(16, 4, 2, 2, 8, 16, num_classes=3)
    return network.eval()


@pytest.mark.parametrize("make", [vit, torchvisions_vit])
def test_it_is_the_sum_over_the_attention_layers_of_a_vit_and_reaches_the_images(make: Any) -> None:
    network = make()
    patches = PatchEntropy(network=network)
    answers: list[Any] = []
    for layer in patches.layers.values():
        layer.register_forward_hook(lambda module, given, answer: answers.append(answer))
    images = torch.rand(3, 3, 16, 16, requires_grad=True)
    with patches.watching():
        network(images)
    found = [answer[0] if isinstance(answer, tuple) else answer for answer in answers]
    assert (patches.count, len(found)) == (2, 2)
    torch.testing.assert_close(patches.entropy(), torch.stack([similarity_entropy(x).mean() for x in found]).sum())
    (gradient,) = torch.autograd.grad(patches.entropy(), images)
    assert gradient.abs().sum() > 0
    network(images)
    assert patches.count == 2  # only what is watched counts


def test_convolutions_have_no_attention_layers() -> None:
    assert not attention_layers(timm.create_model("test_resnet"))
    assert list(attention_layers(vit())) == ["blocks.0.attn", "blocks.1.attn"]  # the outermost, once each
