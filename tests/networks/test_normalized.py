"""networks/normalized.py: scaling of images and the one form of answers."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.errors import NetworkError
from datafree.networks.normalized import Normalized

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Answers(nn.Module):
    """Answers what it was told to, whatever the images."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> object:
        return self.answer


def test_images_are_normalised_channel_by_channel() -> None:
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    got = Normalized(nn.Identity(), MEAN, STD)(images)
    for c in range(3):
        torch.testing.assert_close(got[:, c], (images[:, c] - MEAN[c]) / STD[c])


def test_default_leaves_images_as_they_are() -> None:
    images = torch.rand(1, 3, 4, 4)
    assert torch.equal(Normalized(nn.Identity())(images), images)


def test_out_of_a_dict_is_the_answer() -> None:
    out, aux = torch.ones(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
    network = Normalized(Answers(OrderedDict(aux=aux, out=out)))
    assert torch.equal(network(torch.rand(1, 3, 4, 4)), out)


@dataclass
class Output:
    loss: Tensor | None
    logits: Tensor


class Named(NamedTuple):
    logits: Tensor
    features: Tensor


@pytest.mark.parametrize(
    "answer",
    [
        {"logits": torch.ones(1, 2), "loss": None},
        Output(loss=None, logits=torch.ones(1, 2)),
        Named(logits=torch.ones(1, 2), features=torch.zeros(1, 4)),
    ],
)
def test_logits_are_taken_by_name(answer: object) -> None:
    assert torch.equal(Normalized(Answers(answer))(torch.rand(1, 3, 4, 4)), torch.ones(1, 2))


@pytest.mark.parametrize("size", [None, (8, 12)])
def test_smaller_class_maps_are_brought_to_the_images_size_where_asked(size: tuple[int, int] | None) -> None:
    network = nn.Conv2d(3, 2, 4, stride=4)
    images = torch.rand(2, 3, 16, 24)
    seen = images if size is None else F.interpolate(images, size=size, mode="bilinear", antialias=True)
    wanted = F.interpolate(network(seen), size=(16, 24), mode="bilinear", align_corners=False)
    torch.testing.assert_close(Normalized(network, input_size=size, upsample=True)(images), wanted)
    assert Normalized(network, input_size=size)(images).shape[2:] != (16, 24)


def test_an_answer_at_a_single_place_is_no_map_to_enlarge() -> None:
    network = Normalized(nn.AdaptiveAvgPool2d(1), upsample=True)
    assert network(torch.rand(2, 3, 8, 8)).shape == (2, 3, 1, 1)


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ((torch.ones(1), None), "tuple of 2 (Tensor, NoneType)"),
        ([torch.ones(1)], "list of 1 (Tensor)"),
        ({"scores": torch.ones(1), "aux": None}, "keys ['aux', 'scores']"),
        ({"out": [torch.ones(1)]}, "keys ['out']"),
        (None, "NoneType"),
    ],
)
def test_other_answers_are_one_line_that_names_them(answer: object, named: str) -> None:
    with pytest.raises(NetworkError) as caught:
        Normalized(Answers(answer))(torch.rand(1, 3, 4, 4))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bfloat16_pass_answers_float32_close_to_the_float32_pass() -> None:
    torch.manual_seed(0)
    network = nn.Conv2d(3, 4, 3)
    images = torch.rand(2, 3, 8, 8)
    seen: list[torch.dtype] = []
    network.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    low = Normalized(network, MEAN, STD, torch.bfloat16)(images)
    full = Normalized(network, MEAN, STD)(images)
    assert seen == [torch.bfloat16, torch.float32]
    assert low.dtype == full.dtype == torch.float32
    torch.testing.assert_close(low, full, atol=0.05, rtol=0.02)
    assert not torch.equal(low, full)


def test_half_precision_answers_become_float32() -> None:
    network = Normalized(Answers(torch.ones(1, 2, 4, 4, dtype=torch.float16)))
    assert network(torch.rand(1, 3, 4, 4)).dtype == torch.float32


def test_gradients_reach_the_images_divided_by_std() -> None:
    images = torch.rand(1, 3, 2, 2, requires_grad=True)
    Normalized(nn.Identity(), MEAN, STD)(images).sum().backward()
    assert images.grad is not None
    torch.testing.assert_close(images.grad[0, :, 0, 0], 1 / torch.tensor(STD))


def test_mean_and_std_are_in_no_state_dict_but_follow_the_network() -> None:
    network = Normalized(nn.Conv2d(3, 2, 1), MEAN, STD)
    assert sorted(network.state_dict()) == ["network.bias", "network.weight"]
    assert network.to(torch.float64).mean.dtype == torch.float64


@pytest.mark.parametrize(
    ("mean", "std", "named"),
    [
        ((0.5, 0.5), (1, 1, 1), "mean is (0.5, 0.5)"),
        ((0, 0, float("nan")), (1, 1, 1), "mean is (0, 0, nan)"),
        ((0, 0, 0), (1, 1, 1, 1), "std is (1, 1, 1, 1)"),
        ((0, 0, 0), (1, 0, 1), "std is (1, 0, 1)"),
        ((0, 0, 0), (1, -0.2, 1), "std is (1, -0.2, 1)"),
    ],
)
def test_a_mean_or_std_that_cannot_normalise_is_refused(
    mean: tuple[float, ...], std: tuple[float, ...], named: str
) -> None:
    with pytest.raises(NetworkError) as caught:
        Normalized(nn.Identity(), mean, std)
    assert named in str(caught.value)
