"""Attention maps by their formula; layers watched and paired in real networks."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from datafree.errors import NetworkError
from datafree.networks.features import attention_loss, attention_map, last_layers, pair_layers, watched
from datafree.networks.normalized import Normalized
from datafree.networks.resnet import resnet
from datafree.networks.unet import unet
from thorough import some


def images(side: int, width: int | None = None) -> Tensor:
    torch.manual_seed(0)
    return torch.rand(2, 3, side, width or side)


def without_hooks(network: nn.Module) -> bool:
    return not any(module._forward_hooks for module in network.modules())


def at(features: Tensor) -> Tensor:
    """Q / ||Q||_2 with Q = mean over channels of |A|^2, of each image: section 3.1 of arXiv 1612.03928."""
    rows = []
    for one in features:  # (K, h, w)
        energy = sum(channel.abs() ** 2 for channel in one).flatten() / len(one)
        rows.append(energy / (energy**2).sum().sqrt())
    return torch.stack(rows)


# Attention.


def test_attention_map_is_the_papers_formula() -> None:
    features = torch.randn(3, 5, 4, 6)
    assert attention_map(features).shape == (3, 24)
    torch.testing.assert_close(attention_map(features), at(features))
    torch.testing.assert_close(attention_map(7 * features), attention_map(features))  # only where, not how much


def test_attention_loss_is_the_papers_formula_summed_over_pairs() -> None:
    student = {"a": torch.randn(3, 5, 4, 4), "b": torch.randn(3, 2, 8, 8)}
    teacher = {"x": torch.randn(3, 7, 4, 4), "y": torch.randn(3, 9, 8, 8)}
    expected = ((at(student["a"]) - at(teacher["x"])) ** 2).mean() + ((at(student["b"]) - at(teacher["y"])) ** 2).mean()
    torch.testing.assert_close(attention_loss(student, teacher, {"x": "a", "y": "b"}), expected)
    assert attention_loss(teacher, teacher, {"x": "x", "y": "y"}) == 0


def test_a_students_map_of_another_size_is_brought_to_the_teachers() -> None:
    student, teacher = torch.randn(2, 5, 8, 8), torch.randn(2, 3, 4, 4)
    halved = nn.functional.avg_pool2d(student.square().mean(1), 2).flatten(1)  # bilinear, between the four
    expected = ((halved / halved.norm(dim=1, keepdim=True) - at(teacher)) ** 2).mean()
    torch.testing.assert_close(attention_loss({"a": student}, {"x": teacher}, {"x": "a"}), expected)


def test_attention_of_dead_features_is_zero_and_has_a_finite_gradient() -> None:
    dead = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = attention_loss({"a": dead}, {"x": torch.rand(2, 3, 4, 4)}, {"x": "a"})
    loss.backward()
    assert attention_map(dead).eq(0).all()
    assert dead.grad is not None
    assert dead.grad.isfinite().all()


def test_bf16_features_are_compared_in_float32() -> None:
    features = torch.randn(2, 5, 4, 4)
    assert attention_map(features.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(attention_map(features.bfloat16()), at(features), rtol=0.05, atol=0.01)


# Layers watched.


def test_watched_layers_give_their_outputs_of_the_latest_pass() -> None:
    network = resnet(3, depth=8, width=4).eval()
    with watched(network, ["layer1", "layer3.0.conv1", "linear"]) as outputs:
        network(images(16))
        logits = network(images(32))
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {
        "layer1": (2, 4, 32, 32),
        "layer3.0.conv1": (2, 16, 8, 8),
        "linear": (2, 3),
    }
    assert torch.equal(outputs["linear"], logits)
    assert without_hooks(network)


def test_hooks_are_gone_after_an_error() -> None:
    network = resnet(3, depth=8, width=4)
    with pytest.raises(RuntimeError), watched(network, ["layer1"]):
        network(torch.rand(2, 4, 16, 16))
    assert without_hooks(network)
    with pytest.raises(NetworkError), watched(network, ["layer1", "layer9"]):
        raise AssertionError("never reached")
    assert without_hooks(network)
    with pytest.raises(RuntimeError):
        last_layers(network, torch.rand(2, 4, 16, 16))
    assert without_hooks(network)


@pytest.mark.parametrize(("name", "near"), [("layer4", "layer3"), ("layer1.0.convl", "layer1.0.conv1"), ("?", "conv1")])
def test_a_layer_that_does_not_exist_is_named_with_one_that_does(name: str, near: str) -> None:
    with pytest.raises(NetworkError) as caught, watched(resnet(3, depth=8, width=4), [name]):
        pass
    said, _, nearest = str(caught.value).partition("did you mean")
    assert f"no layer '{name}'" in said
    assert near in nearest
    assert "\n" not in str(caught.value)


def test_a_layer_that_answers_no_tensor_is_named() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    network = nn.Sequential(Two())
    with pytest.raises(NetworkError, match="the layer '0' answers a tuple"), watched(network, ["0"]):
        network(images(8))
    assert without_hooks(network)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_networks_with_relu_in_place_backpropagate_from_watched_layers(library: str) -> None:
    torch.manual_seed(0)
    if library == "torchvision":
        network: nn.Module = torchvision.models.resnet18(num_classes=3)
        layers = ["layer1.0.bn1", "layer2", "layer3.1.conv2"]
    else:
        network = timm.create_model("mobilenetv3_small_050", num_classes=3)
        layers = ["bn1", "blocks.0", "blocks.2.0.bn1"]
    assert any(getattr(module, "inplace", False) for module in network.modules())
    with watched(network, layers) as learnt:
        network(images(64))
    with torch.no_grad(), watched(network, layers) as taught:
        network(images(64).flip(3))
    attention_loss(learnt, taught, {name: name for name in layers}).backward()
    first = next(network.parameters()).grad
    assert first is not None
    assert first.isfinite().all()
    assert first.norm() > 0


# Layers paired.


def test_stages_of_two_cifar_resnets_are_paired() -> None:
    pairs = pair_layers(Normalized(resnet(10, depth=20)), Normalized(resnet(10, depth=8)), images(32))
    assert pairs == {"layer3": "layer3", "layer2": "layer2", "layer1": "layer1"}


def test_stages_of_torchvision_networks_of_different_kinds_are_paired_deepest_first() -> None:
    teacher = torchvision.models.resnet18(num_classes=10)
    student = torchvision.models.mobilenet_v3_small(num_classes=10)
    pairs = pair_layers(teacher, student, images(64))
    assert list(pairs) == ["layer4", "layer3", "layer2"]
    with watched(teacher, pairs) as taught, watched(student, pairs.values()) as learnt:
        teacher(images(64)), student(images(64))
    assert [tuple(taught[name].shape[2:]) for name in pairs] == [(2, 2), (4, 4), (8, 8)]
    assert [tuple(learnt[name].shape[2:]) for name in pairs.values()] == [(2, 2), (4, 4), (8, 8)]
    assert attention_loss(learnt, taught, pairs) > 0


# Networks that halve the size stage by stage: their layers for images of 64 px, largest maps first.
STAGE_ENDS = {
    "torchvision/resnet18": ["relu", "layer1", "layer2", "layer3", "layer4"],
    "torchvision/resnet50": ["relu", "layer1", "layer2", "layer3", "layer4"],  # one ReLU called thrice in a block
    "timm/resnet50": ["act1", "layer1", "layer2", "layer3", "layer4"],
    "torchvision/vgg11_bn": ["features.2", "features.6", "features.13", "features.20", "features.27", "features"],
    "torchvision/mobilenet_v2": ["features.1", "features.3", "features.6", "features.13", "features"],
    "torchvision/mnasnet0_5": ["layers.7", "layers.8", "layers.9", "layers.11", "layers"],
    "timm/convnext_atto": ["stages.0", "stages.1", "stages.2", "norm_pre"],  # the stem is as large as the first stage
    "torchvision/squeezenet1_1": ["features.1", "features.4", "features.7", "features"],  # 31, 15, 7 and 3 px
}


@cache
def built(name: str) -> nn.Module:
    """On the meta device: names and sizes, without memory or time."""
    library, _, kind = name.partition("/")
    with torch.device("meta"):
        network: nn.Module = (torchvision.models.get_model if library == "torchvision" else timm.create_model)(kind)
    return network.eval()


def sizes_of(network: nn.Module, layers: Iterable[str], side: int = 64) -> list[tuple[int, ...]]:
    """The sizes of what `watched` records."""
    names = list(layers)
    with torch.no_grad(), watched(network, names) as maps:
        network(images(side).to(next(network.parameters()).device))
    return [tuple(maps[name].shape[2:]) for name in names]


@pytest.mark.parametrize(
    "name", some(STAGE_ENDS, "torchvision/resnet18", "torchvision/squeezenet1_1", "timm/convnext_atto")
)
def test_the_ends_of_stages_have_the_size_that_they_are_chosen_for(name: str) -> None:
    network = built(name)
    found = last_layers(network, images(64).to("meta"))
    assert list(found.values()) == STAGE_ENDS[name]
    assert sizes_of(network, found.values()) == list(found)


@pytest.mark.parametrize(
    ("teacher", "student"),
    some(
        [
            ("torchvision/resnet50", "torchvision/resnet18"),
            ("timm/resnet50", "torchvision/resnet50"),
            ("torchvision/vgg11_bn", "torchvision/resnet18"),
            ("timm/convnext_atto", "torchvision/mobilenet_v2"),
        ],
        ("torchvision/vgg11_bn", "torchvision/resnet18"),
    ),
)
def test_stages_of_equal_stride_are_paired(teacher: str, student: str) -> None:
    theirs, ours = built(teacher), built(student)
    pairs = pair_layers(theirs, ours, images(64).to("meta"))
    assert pairs == dict(zip(STAGE_ENDS[teacher][:-4:-1], STAGE_ENDS[student][:-4:-1], strict=True))
    assert sizes_of(theirs, pairs) == sizes_of(ours, pairs.values()) == [(2, 2), (4, 4), (8, 8)]


def test_class_maps_before_a_global_pooling_are_no_features() -> None:
    pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    scores = nn.Sequential(nn.Conv2d(7, 5, 1), nn.BatchNorm2d(5), nn.ReLU())
    network = nn.Sequential(nn.Conv2d(3, 7, 3, 2, 1), nn.ReLU(), scores, pooling)
    assert last_layers(network, images(16)) == {(8, 8): "1"}
    as_many_features_as_classes = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.ReLU(), pooling, nn.Linear(5, 5))
    assert last_layers(as_many_features_as_classes, images(16)) == {(8, 8): "1"}


def test_what_an_adaptive_pooling_enlarged_is_no_stage() -> None:
    features = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1))
    pooled = nn.Sequential(features, nn.AdaptiveAvgPool2d(7))
    network = nn.Sequential(pooled, nn.Dropout2d(), nn.Flatten(), nn.Linear(4 * 49, 3))
    assert last_layers(network, images(16)) == {(8, 8): "0.0.0", (4, 4): "0.0"}
    assert last_layers(network, images(64)) == {(32, 32): "0.0.0", (16, 16): "0.0", (7, 7): "1"}  # made smaller


def test_an_activation_that_is_called_last_on_no_map_is_not_chosen() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.head(self.act(self.act(self.conv(x)).mean((2, 3))))
            return answer

    assert last_layers(Shared(), images(16)) == {(8, 8): "conv"}


@pytest.mark.parametrize("stride", [1, 2])
def test_unets_are_paired_without_their_logits(stride: int) -> None:
    teacher, student = (Normalized(unet(5, width=w, depth=3, stride=stride)) for w in (6, 4))
    pairs = pair_layers(teacher, student, images(32, 48))
    assert pairs == {name: name for name in ("up.0.reduce", "up.1.reduce", "up.1")}
    assert last_layers(teacher, images(32, 48)) == {
        (8 // stride, 12 // stride): "up.0.reduce",
        (16 // stride, 24 // stride): "up.1.reduce",
        (32 // stride, 48 // stride): "up.1",
    }


def test_pairs_are_as_many_as_asked_for() -> None:
    network = resnet(10, depth=8)
    assert pair_layers(network, network, images(32), most=1) == {"layer3": "layer3"}


def test_looking_at_layers_leaves_mode_and_statistics_alone() -> None:
    network = resnet(3, depth=8, width=4).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    last_layers(network, images(32))
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_transformers_tokens_are_no_feature_maps() -> None:
    torch.manual_seed(0)
    network = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, depth=1, embed_dim=24, num_heads=2, num_classes=3, qk_norm=True
    )
    assert last_layers(network, images(64)) == {(4, 4): "patch_embed.proj"}


def test_networks_with_nothing_in_common_are_refused_with_a_way_out() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    with pytest.raises(NetworkError) as caught:
        pair_layers(resnet(10, depth=8), flat, images(32))
    line = str(caught.value)
    assert "\n" not in line
    assert "(32 x 32, 16 x 16, 8 x 8; none)" in line
    assert "training.attention_layers=" in line
    assert "training.attention_weight=0" in line
