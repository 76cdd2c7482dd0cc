"""The ImageNet ResNets of any width, against torchvision's."""

from __future__ import annotations

import pytest
import torch
import torchvision

from datafree.errors import NetworkError
from datafree.networks.imagenet_resnet import imagenet_resnet
from datafree.ops.modes import frozen
from thorough import some


@pytest.mark.parametrize("depth", some([18, 34, 50, 101, 152], 18, 50))
def test_tensors_have_torchvisions_names_and_shapes(depth: int) -> None:
    with torch.device("meta"):
        ours, theirs = imagenet_resnet(1000, depth=depth), torchvision.models.get_model(f"resnet{depth}")
    shapes = [{name: tensor.shape for name, tensor in one.state_dict().items()} for one in (ours, theirs)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("depth", some([18, 50], 18))
def test_with_torchvisions_weights_it_answers_as_torchvisions(depth: int) -> None:
    torch.manual_seed(0)
    theirs, ours = torchvision.models.get_model(f"resnet{depth}"), imagenet_resnet(1000, depth=depth)
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 3, 64, 72)
    with frozen(ours, theirs), torch.no_grad():
        assert torch.allclose(ours(images), theirs(images), atol=1e-4)


def test_width_is_that_of_the_first_stage_and_channels_those_of_the_images() -> None:
    network = imagenet_resnet(5, width=8, channels=1)
    assert network(torch.rand(2, 1, 32, 32)).shape == (2, 5)
    assert network.state_dict()["layer4.1.conv2.weight"].shape == (64, 64, 3, 3)


@pytest.mark.parametrize(("args", "words"), [({"depth": 20}, "give one of 18, 34"), ({"width": 0}, "above 0")])
def test_what_makes_no_network_is_refused(args: dict[str, int], words: str) -> None:
    with pytest.raises(NetworkError, match=words):
        imagenet_resnet(5, **args)
