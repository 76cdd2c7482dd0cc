"""Layers of a student matched with its teacher's, and blocks dropped."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
import torchvision
from pruning_families import Flattened
from torch import nn

from datafree.errors import NetworkError
from datafree.networks.pruning import rules
from datafree.networks.pruning.copying import copy
from datafree.networks.pruning.correspondence import block_effects, correspond
from datafree.networks.pruning.follow import follow
from datafree.networks.pruning.groups import keep
from datafree.networks.resnet import resnet
from datafree.networks.unet import unet


def test_of_nine_blocks_three_are_kept_the_first_the_middle_and_the_last() -> None:
    found = correspond(resnet(10, 56, 4), resnet(10, 20, 4))
    assert [found.modules[f"layer1.{n}"] for n in range(3)] == ["layer1.0", "layer1.4", "layer1.8"]
    assert [name for name in found.dropped if name.startswith("layer2")] == [f"layer2.{n}" for n in (1, 2, 3, 5, 6, 7)]
    assert found.ends["layer1.0"] == "layer1.3"  # a student's block stands for those dropped behind it, too
    assert found.modules["layer3.1.bn2"] == "layer3.4.bn2"
    assert found.tensors(resnet(10, 20, 4))["layer3.1.conv1.weight"] == "layer3.4.conv1.weight"


def test_the_blocks_of_most_effect_are_kept_in_their_order() -> None:
    effects = {f"layer1.{n}": effect for n, effect in enumerate([0.1, 0.0, 0.9, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0])}
    found = correspond(resnet(10, 56, 4), resnet(10, 20, 4), effects)
    assert [found.modules[f"layer1.{n}"] for n in range(3)] == ["layer1.0", "layer1.2", "layer1.5"]


def test_a_blocks_effect_is_one_minus_the_cosine_of_what_it_takes_and_answers() -> None:
    class Turn(nn.Module):
        def __init__(self, degrees: float) -> None:
            super().__init__()
            angle = torch.tensor(degrees).deg2rad()
            self.turn = nn.Parameter(torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.einsum("oi,bihw->bohw", self.turn, x)

    network = nn.Sequential(Turn(0.0), Turn(60.0), Turn(90.0))
    effects = block_effects(network, torch.rand(2, 2, 4, 4))
    assert [effects[str(n)] for n in range(3)] == pytest.approx([0.0, 0.5, 1.0], abs=1e-6)


def test_torchvisions_resnet34_gives_resnet18_every_block_a_place_in_its_stage() -> None:
    with torch.device("meta"):
        found = correspond(torchvision.models.resnet34(), torchvision.models.resnet18())
    assert [found.modules[f"layer3.{n}"] for n in range(2)] == ["layer3.0", "layer3.5"]
    assert len(found.dropped) == 8


@pytest.mark.parametrize(
    ("teacher", "student", "said"),
    [
        (lambda: resnet(10, 20, 4), lambda: resnet(10, 26, 4), "the student's layer1 has 4 blocks, its teacher's 3"),
        (lambda: resnet(10, 20, 4), lambda: unet(10, 4), "has a layer stem that the teacher has not"),
        (lambda: unet(3, 4, 2), lambda: unet(3, 4, 2, stride=4), "layer stem.1.0 is a Conv2d of 3 x 3, stride 2"),
        (torchvision.models.resnet50, torchvision.models.resnet18, "layer layer1.0 is like none of its teacher's"),
        (
            lambda: nn.Sequential(OrderedDict(a=nn.Conv2d(3, 4, 5))),
            lambda: nn.Sequential(OrderedDict(a=nn.Conv2d(3, 4, 3))),
            "layer a is a Conv2d of 3 x 3, stride 1, its teacher's a Conv2d of 5 x 5, stride 1",
        ),
        (
            lambda: nn.Sequential(OrderedDict(a=nn.Conv2d(3, 4, 3))),
            lambda: nn.Sequential(OrderedDict(a=nn.Conv2d(3, 4, 3, bias=False))),
            "layer a is a Conv2d of 3 x 3, stride 1",
        ),
    ],
)
def test_the_first_layer_without_a_match_is_named_and_random_offered(teacher, student, said: str) -> None:  # type: ignore[no-untyped-def]
    with torch.device("meta"), pytest.raises(NetworkError) as error:
        correspond(teacher(), student())
    assert said in str(error.value) and "init: random" in str(error.value) and "\n" not in str(error.value)


def test_a_wider_student_is_refused_by_its_first_wider_layer() -> None:
    teacher, student = resnet(10, 8, 4).eval(), resnet(10, 8, 6).eval()
    found, images = correspond(teacher, student), torch.rand(1, 3, 16, 16)
    with pytest.raises(NetworkError, match=r"layer conv1 has 6 outputs, its teacher's 4: .* init: random"):
        keep(follow(teacher, images), follow(student, images), found.tensors(student), {})


def too_few_dimensions(*given: object) -> None:
    raise IndexError("Dimension out of range")


@pytest.mark.parametrize("rule", [None, too_few_dimensions])
def test_channels_lost_in_an_operation_are_an_error_that_names_it(rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one without a rule, and in one of a form that its rule does not know."""
    if rule is not None:
        monkeypatch.setitem(rules._RULES, "sort", rule)

    class Sorted(Flattened):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x = self.norm(self.conv(images)).relu().amax((2, 3)).repeat_interleave(16, 1)
            answer: torch.Tensor = self.last(self.first(x.sort(1).values).relu())
            return answer

    teacher, student, images = Sorted(8).eval(), Sorted(4).eval(), torch.rand(1, 3, 32, 32)
    names, followed = correspond(teacher, student).tensors(student), (follow(teacher, images), follow(student, images))
    with pytest.raises(NetworkError, match=r"first.weight is \(8, 64\).*not followed through sort.*init: random"):
        copy(teacher, student, followed, names, keep(*followed, names, {}))
