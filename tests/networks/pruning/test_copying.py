"""A teacher's tensors at the channels that a student keeps."""

from __future__ import annotations

import pytest
import torch
from pruning_families import FAMILIES, Heads, answer, made
from torch import Tensor, nn

from datafree.networks.normalized import bare
from datafree.networks.pruning.channel_labels import Followed
from datafree.networks.pruning.channels import NONE
from datafree.networks.pruning.copying import copy
from datafree.networks.pruning.correspondence import correspond
from datafree.networks.pruning.follow import follow
from datafree.networks.pruning.groups import keep
from datafree.networks.pruning.importance import filter_norms, scores
from datafree.networks.resnet import resnet
from thorough import some

# Of the families by default: shortcuts, a squeezed product, joined maps, a flattened map, groups, heads.
FEW = ("datafree/resnet", "squeeze and excitation", "joined maps", "flattened", "groups", "heads")
IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def copied(teacher: nn.Module, student: nn.Module, values: dict[int, float] | None = None) -> tuple[Followed, set[int]]:
    """Copy; the teacher's channels, and those that were kept."""
    found = correspond(teacher, student)
    names = found.tensors(bare(student))
    followed = (follow(teacher, IMAGES[:1]), follow(student, IMAGES[:1]))
    kept = keep(*followed, names, filter_norms(teacher, followed[0]) if values is None else values)
    assert not kept.loose
    done = copy(teacher, student, followed, names, kept)
    assert done.new == 0
    return followed[0], set(kept.teacher_of.values())


def silence(teacher: nn.Module, followed: Followed, alive: set[int]) -> None:
    """Make all channels but those `alive` answer 0, whatever the image."""
    with torch.no_grad():
        for name, tensor in [*bare(teacher).named_parameters(), *bare(teacher).named_buffers()]:
            if name in followed.outputs:
                dead = followed.outputs[name].clone().apply_(lambda one: one not in alive and one != NONE)
                tensor[dead.bool()] = 0.0


@pytest.mark.parametrize("family", some(FAMILIES, *FEW))
def test_a_student_of_the_teachers_shape_answers_as_the_teacher(family: str) -> None:
    teacher, _ = made(family)
    torch.manual_seed(1)
    student, _ = FAMILIES[family]()
    copied(teacher, student.eval())
    assert torch.equal(answer(teacher, IMAGES), answer(student, IMAGES))


@pytest.mark.parametrize("family", some(FAMILIES, *FEW))
def test_a_student_that_keeps_all_live_channels_of_a_teacher_answers_as_the_teacher(family: str) -> None:
    """Half of the teacher's channels, drawn at random, are silenced: importance has to find the others."""
    teacher, student = made(family)
    generator = torch.Generator().manual_seed(2)
    followed = follow(teacher, IMAGES[:1])
    drawn = {one: float(torch.rand((), generator=generator)) for one in range(len(followed.channels))}
    _, alive = copied(teacher, student, drawn)
    silence(teacher, followed, alive)
    _, kept = copied(teacher, student)
    torch.testing.assert_close(answer(student, IMAGES), answer(teacher, IMAGES), rtol=1e-4, atol=1e-5)
    assert kept == alive


@pytest.mark.parametrize(
    "family", some(["datafree/resnet", "heads", "groups", "datafree/yolov3 tiny"], "heads", "groups")
)
def test_taylors_scores_find_the_live_channels_too(family: str) -> None:
    teacher, student = made(family)
    followed = follow(teacher, IMAGES[:1])
    drawn = {one: float(one % 7) for one in range(len(followed.channels))}
    _, alive = copied(teacher, student, drawn)
    silence(teacher, followed, alive)
    copied(teacher, student, scores("taylor", teacher, followed, IMAGES))
    torch.testing.assert_close(answer(student, IMAGES), answer(teacher, IMAGES), rtol=1e-4, atol=1e-5)


def test_gains_times_norms_are_summed_over_all_layers_that_make_a_channel() -> None:
    """By hand, for channel 2 of the first stage of a ResNet-8, which shortcuts put at 4 of 8 and at 8 of 16."""
    network = resnet(3, 8, 4).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1, 1)
    made = [(network.conv1, network.bn1, 2)]
    for block, place in ((network.layer1[0], 2), (network.layer2[0], 4), (network.layer3[0], 8)):
        made.append((block.conv2, block.bn2, place))
    wanted = sum(conv.weight[o].square().sum().sqrt() * norm.weight[o].abs() for conv, norm, o in made)
    followed = follow(network, IMAGES[:1])
    channel = int(followed.outputs["conv1.weight"][2, 0, 0, 0])
    assert filter_norms(network, followed)[channel] == pytest.approx(wanted.item(), rel=1e-5)


def test_taylors_score_is_the_squared_sum_of_weight_times_gradient() -> None:
    """A linear layer y = W x: half the squared answer has the gradient y x', so row o scores (y_o W_o x)^2 = y_o^4."""

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 3, bias=False)

        def forward(self, images: Tensor) -> Tensor:
            made: Tensor = self.layer(images.flatten(1))
            return made

    network, image = Flat(), torch.rand(1, 3, 2, 2)
    followed = follow(network, image)
    found = scores("taylor", network, followed, image)
    for row, channel in enumerate(followed.outputs["layer.weight"][:, 0].tolist()):
        assert found[channel] == pytest.approx(network(image)[0, row].item() ** 4, rel=1e-4)


def test_whole_heads_are_kept() -> None:
    """Of three heads the one with small values goes, with its queries, keys and values."""
    torch.manual_seed(0)
    teacher, student = Heads(3, 8).eval(), Heads(2, 8).eval()
    with torch.no_grad():
        teacher.qkv.weight.view(3, 3, 4, 12)[:, 1] *= 0.01
    copied(teacher, student)
    wanted = teacher.qkv.weight.view(3, 3, 4, 12)[:, [0, 2]].reshape(24, 12)
    assert torch.equal(student.qkv.weight, wanted)
    assert torch.equal(student.proj.weight, teacher.proj.weight.view(12, 3, 4)[:, [0, 2]].reshape(12, 8))
