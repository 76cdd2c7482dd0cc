"""The CIFAR ResNets: the paper's shape, and the public weights, which load as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from datafree.errors import NetworkError
from datafree.networks.load import NetworkSpec, build_network
from datafree.networks.normalized import Normalized
from datafree.networks.resnet import BasicBlock, resnet
from datafree.ops.modes import frozen

# As the folder of the public weights states them.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PARAMETERS = {20: 269_722, 32: 464_154, 56: 853_018}


@pytest.mark.parametrize("depth", [20, 32, 56])
def test_parameters_are_as_many_as_in_the_paper(depth: int) -> None:
    network = resnet(10, depth=depth)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[depth]
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth  # the paper counts layers with weights; option A has none in its shortcuts


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (28, 28), (33, 47)])
def test_any_size_from_8_pixels_is_taken(size: tuple[int, int]) -> None:
    network = resnet(5, depth=8, width=4)
    assert network(torch.rand(2, 3, *size)).shape == (2, 5)
    assert network.layer3(network.layer2(network.layer1(torch.rand(1, 4, *size)))).shape[2:] == tuple(
        -(-side // 4) for side in size
    )


def test_a_block_adds_every_other_pixel_with_zeros_for_new_channels() -> None:
    torch.manual_seed(0)
    block, x = BasicBlock(4, 8, stride=2).eval(), torch.rand(2, 4, 6, 6)
    shortcut = torch.cat([torch.zeros(2, 2, 3, 3), x[:, :, [0, 2, 4]][..., [0, 2, 4]], torch.zeros(2, 2, 3, 3)], 1)
    inside = F.relu(block.bn1(F.conv2d(x, block.conv1.weight, stride=2, padding=1)))
    expected = F.relu(block.bn2(F.conv2d(inside, block.conv2.weight, padding=1)) + shortcut)
    torch.testing.assert_close(block(x), expected)
    with torch.no_grad():
        block.bn2.weight.zero_()
    torch.testing.assert_close(block(x), shortcut)


def test_shortcuts_of_any_width_fit() -> None:
    assert BasicBlock(3, 6, stride=1)(torch.rand(2, 3, 4, 4)).shape == (2, 6, 4, 4)
    assert resnet(3, depth=8, width=3)(torch.rand(2, 3, 16, 16)).shape == (2, 3)


def test_it_is_built_by_its_name_and_is_named_as_the_public_weights() -> None:
    network = build_network(NetworkSpec(network="datafree/resnet", args={"depth": 14, "width": 8}), num_classes=4)
    names = set(network.state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer3.1.bn2.bias", "linear.bias"} <= names
    assert network(torch.rand(2, 3, 16, 16)).shape == (2, 4)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"depth": 18}, "depth of datafree/resnet is 18"),
        ({"depth": 2}, "6 n"),
        ({"depth": 20.0}, "depth of datafree/resnet is 20.0"),
        ({"width": 0}, "width of datafree/resnet is 0"),
        ({"width": "16"}, "width of datafree/resnet is '16'"),
    ],
)
def test_values_that_make_no_network_are_one_line(args: dict[str, object], said: str) -> None:
    with pytest.raises(NetworkError, match=said) as caught:
        build_network(NetworkSpec(network="datafree/resnet", args=args), num_classes=4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("depth", "right"), [(20, 94), (32, 92), (56, 96)])
def test_public_weights_load_and_name_the_first_100_test_images_as_stated(
    depth: int, right: int, shared_data: Path
) -> None:
    folder = shared_data / "cifar10"
    weights = folder / "teachers" / f"resnet{depth}.safetensors"
    if not weights.exists():
        pytest.skip("DATAFREE_DATA holds no cifar10")
    spec = NetworkSpec(network="datafree/resnet", args={"depth": depth}, weights=weights, mean=MEAN, std=STD)
    network = Normalized(build_network(spec, num_classes=10), spec.mean, spec.std)
    file = np.load(folder / "exact_test100.npz")
    images = torch.from_numpy(file["images"]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad(), frozen(network):
        named = network(images).argmax(1)
    assert int((named == torch.from_numpy(file["labels"]).long()).sum()) == right
