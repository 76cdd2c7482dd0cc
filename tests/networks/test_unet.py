"""networks/small.py: our U-Net."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from datafree.errors import NetworkError
from datafree.networks.unet import UNet, unet


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (7, 5), (1, 1)])
def test_logits_have_the_size_of_any_image(stride: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = unet(5, width=4, depth=4, stride=stride).eval()
    logits = network(torch.rand(2, 3, *size))
    assert logits.shape == (2, 5, *size)
    assert logits.isfinite().all()


@pytest.mark.parametrize(("depth", "widths"), [(1, [4]), (3, [4, 8, 16]), (6, [4, 8, 16, 32, 32, 32])])
def test_channels_double_up_to_eight_times_the_width(depth: int, widths: list[int]) -> None:
    network = unet(3, width=4, depth=depth)
    assert isinstance(network, UNet)
    seen: list[int] = []
    network.stem.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    for level in network.down:
        level.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    network.eval()(torch.rand(1, 3, 64, 64))
    assert seen == widths


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_stride_divides_the_resolution_of_the_logits(stride: int) -> None:
    network = unet(3, width=4, depth=2, stride=stride)
    assert isinstance(network, UNet)
    seen: list[torch.Size] = []
    network.head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    network(torch.rand(2, 3, 32, 64))
    assert seen == [torch.Size([2, 3, 32 // stride, 64 // stride])]


def test_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(0)
    network = unet(3, width=4)
    torch.autograd.backward(network(torch.rand(2, 3, 32, 32)).square().mean())
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_it_learns_to_tell_left_from_right() -> None:
    torch.manual_seed(0)
    network = unet(2, width=4, depth=2)
    images = torch.rand(4, 3, 16, 16) * 0.2
    images[..., 8:] += 0.7
    labels = torch.zeros(4, 16, 16, dtype=torch.long)
    labels[..., 8:] = 1
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(network(images), labels))
        optimizer.step()
    right = (network(images).argmax(1) == labels).float().mean()
    assert right > 0.95  # chance: 0.5


def test_it_has_batchnorm_and_no_dropout() -> None:
    kinds = {type(m) for m in unet(3, width=4).modules()}
    assert nn.BatchNorm2d in kinds
    assert not any("Dropout" in kind.__name__ for kind in kinds)


@pytest.mark.thorough
def test_export_answers_as_the_network_does_for_another_batch_and_size() -> None:
    torch.manual_seed(0)
    network = unet(3, width=4, depth=3)
    network(torch.rand(4, 3, 32, 32))  # so that BatchNorm has statistics
    network.eval()
    auto = torch.export.Dim.AUTO
    program = torch.export.export(network, (torch.rand(2, 3, 32, 48),), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    images = torch.rand(3, 3, 40, 24)
    torch.testing.assert_close(program.module()(images), network(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ({"stride": 3}, "stride of datafree/unet is 3"),
        ({"width": 0}, "width of datafree/unet is 0"),
        ({"width": "16"}, "width of datafree/unet is '16'"),
        ({"depth": 0}, "depth of datafree/unet is 0"),
        ({"num_classes": 0}, "num_classes of datafree/unet is 0"),
    ],
)
def test_values_that_make_no_network_are_one_line(args: dict[str, object], named: str) -> None:
    with pytest.raises(NetworkError, match=named):
        unet(**{"num_classes": 3, **args})  # type: ignore[arg-type]
