"""networks/preprocessing.py and first_input.py: what a network's images must be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.networks import preprocessing
from datafree.networks.checkpoints.weights import read_tensors, save_weights
from datafree.networks.checks.preprocessing_doubt import doubt
from datafree.networks.first_input import Seen, Three, distance, first_input, implied
from datafree.networks.load import NetworkSpec, build_network
from datafree.networks.normalized import Normalized
from datafree.networks.onnx import write_onnx
from datafree.networks.preprocessing import explained, known, suggested

PHOTO_MEAN = (0.485, 0.456, 0.406)
IMAGENET = (PHOTO_MEAN, (0.229, 0.224, 0.225))


def photos(count: int = 64) -> Tensor:
    """(count, 3, 32, 32): smooth, of photographs' colours and spread; red is the first channel."""
    generator = torch.Generator().manual_seed(3)
    grey = F.interpolate(torch.randn(count, 1, 4, 4, generator=generator), size=32, mode="bicubic")
    colour = F.interpolate(torch.randn(count, 3, 4, 4, generator=generator), size=32, mode="bicubic")
    made = grey + 0.2 * colour
    made = 0.265 * (made - made.mean((0, 2, 3), keepdim=True)) / made.std()
    return made + torch.tensor(PHOTO_MEAN).view(1, 3, 1, 1)


def trained(images: Tensor, *, bias: bool = False, filters: int = 32, padding: int = 1) -> nn.Sequential:
    """A convolution and a BatchNorm that has the statistics of the images."""
    torch.manual_seed(0)
    conv = nn.Conv2d(images.shape[1], filters, 3, padding=padding, bias=bias)
    network = nn.Sequential(conv, nn.BatchNorm2d(filters, momentum=None), nn.ReLU(), nn.Conv2d(filters, 2, 1))
    with torch.no_grad():
        network.train()(images)
    return network.eval()


def normalised(images: Tensor, mean: Three, std: Three) -> Tensor:
    return (images - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


# --- what libraries say ---


@pytest.mark.parametrize(
    ("network", "mean", "std", "size", "classes"),
    [
        ("timm/resnet18", *IMAGENET, (224, 224), 1000),
        ("timm/vit_tiny_patch16_224?img_size=96", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), (96, 96), 1000),
        ("torchvision/vit_b_16?image_size=96", *IMAGENET, (96, 96), 1000),
        ("torchvision/inception_v3", *IMAGENET, (299, 299), 1000),
        ("torchvision/lraspp_mobilenet_v3_large", *IMAGENET, (520, 520), 21),
        ("torchvision/ssd300_vgg16", (0.48235, 0.45882, 0.40784), (1 / 255,) * 3, (300, 300), 90),
        ("torchvision/retinanet_resnet50_fpn", *IMAGENET, None, 90),
    ],
)
def test_a_librarys_own_metadata_are_known_and_nothing_is_downloaded(
    network: str,
    mean: Three,
    std: Three,
    size: tuple[int, int] | None,
    classes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def download(*args: object, **kwargs: object) -> None:
        raise AssertionError("asked for a download")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    found = known(NetworkSpec(network=network))
    assert found is not None
    assert (found.mean, found.std) == (pytest.approx(mean), pytest.approx(std))
    assert (found.channel_order, found.input_size, found.classes) == ("rgb", size, classes)
    assert found.origin.startswith(network.partition("/")[0])


@pytest.mark.parametrize(
    "network", ["datafree/resnet", "smp/unet", "timm/nosuch", "torchvision/nosuch", "own.nets:make"]
)
def test_of_other_networks_nothing_is_known(network: str) -> None:
    assert known(NetworkSpec(network=network)) is None


# --- what the first BatchNorm tells ---


def test_the_means_of_the_input_are_the_solution_of_the_filters_equations() -> None:
    torch.manual_seed(0)
    filters, wanted = torch.randn(16, 3, 3, 3), torch.tensor([0.3, -0.2, 0.1])
    mean = torch.einsum("kchw,c->k", filters, wanted)  # E[conv(x)] of an x that has these means everywhere
    seen = first_input(filters, mean + 0.5, torch.ones(16), torch.full((16,), 0.5))
    assert seen is not None
    assert seen.mean == pytest.approx(wanted.tolist(), abs=1e-5)
    assert seen.residual < 1e-5
    assert seen.error < 1e-5


@pytest.mark.parametrize("bias", [False, True])
def test_mean_and_spread_are_those_of_the_images_that_went_through(bias: bool) -> None:
    images = normalised(photos(), *IMAGENET)
    seen = suggested(trained(images, bias=bias, padding=0), images[:1]).seen
    assert seen is not None
    assert seen.mean == pytest.approx(images.mean((0, 2, 3)).tolist(), abs=0.05)
    assert seen.spread == pytest.approx(float(images.std()), rel=0.2)


@pytest.mark.parametrize("name", preprocessing._USUAL)
def test_photographs_in_each_usual_range_are_recognised(name: str) -> None:
    mean, std = preprocessing._USUAL[name]
    images = normalised(photos(), mean, std)
    found = suggested(trained(images), images[:1])
    assert found.preprocessing is not None
    assert (found.preprocessing.mean, found.preprocessing.std) == (mean, std)
    assert found.why.endswith(name)
    # Where a mean was taken off in each channel, the order went with it.
    assert found.preprocessing.channel_order == ("rgb" if len(set(mean)) == 1 else None)


@pytest.mark.parametrize("name", ["in [0, 1], as they are", "brought to 0 to 255", "brought to -1 to 1"])
def test_blue_before_red_is_told_by_the_means(name: str) -> None:
    images = normalised(photos(), *preprocessing._USUAL[name]).flip(1)
    found = suggested(trained(images), images[:1]).preprocessing
    assert found is not None
    assert found.channel_order == "bgr"


def test_grey_photographs_are_recognised() -> None:
    images = normalised(photos(), *IMAGENET).mean(1, keepdim=True)
    found = suggested(trained(images), images[:1]).preprocessing
    assert found is not None
    assert (found.mean, found.std, found.channel_order) == (*IMAGENET, None)


def test_what_is_no_photograph_is_unknown_but_what_was_seen_is_said() -> None:
    images = photos() * 3 + 2
    found = suggested(trained(images), images[:1])
    assert found.preprocessing is None
    assert found.seen is not None
    assert "no usual form" in found.why
    level, spread = implied(found.seen, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert level == pytest.approx(float(images.mean()), rel=0.1)
    assert spread == pytest.approx(float(images.std()), rel=0.2)


class Scaled(nn.Module):
    """Normalises its images itself."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.inner(images / 255)
        return answer


def test_where_the_statistics_cannot_tell_the_reason_is_said() -> None:
    images = photos(8)
    cases: list[tuple[nn.Module, str]] = [
        (nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)), "as new"),
        (trained(images, filters=4), "do not tell"),
        (nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.BatchNorm2d(16)), "no BatchNorm follows"),
        (nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(16)), "no BatchNorm follows"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2)), "no convolution"),
        (Scaled(trained(images)), "changes its images itself"),
    ]
    for network, reason in cases:
        found = suggested(network, images[:1])
        assert found.preprocessing is None
        assert found.seen is None
        assert reason in found.why


def test_equations_that_contradict_each_other_do_not_tell() -> None:
    torch.manual_seed(0)
    seen = first_input(torch.randn(16, 3, 3, 3), 5 * torch.randn(16), torch.ones(16))
    assert seen is not None
    assert seen.error > 0.1
    found = explained(seen)
    assert (found.preprocessing, found.seen) == (None, None)
    assert "standard error" in found.why


def test_looking_leaves_the_network_as_it_was() -> None:
    images = photos(8)
    network = trained(images).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    suggested(network, images[:1])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


# --- networks that others have trained ---


@pytest.mark.parametrize(
    ("file", "conv", "norm", "name", "order"),
    [
        ("cifar10/teachers/resnet20", "conv1", "bn1", "normalised by ImageNet's mean and std", None),
        ("cifar10/teachers/resnet32", "conv1", "bn1", "normalised by ImageNet's mean and std", None),
        ("cifar10/teachers/resnet56", "conv1", "bn1", "normalised by ImageNet's mean and std", None),
        ("weights/fastestdet-coco", "backbone.first_conv.0", "backbone.first_conv.1", "in [0, 1], as they are", "bgr"),
        (
            "weights/espnet-p2q8-camvid",
            "encoder.level1.conv",
            "encoder.level1.bn",
            "normalised, then divided by 255",
            None,
        ),
    ],
)
def test_real_networks_tell_what_they_were_trained_with(
    file: str, conv: str, norm: str, name: str, order: str | None, shared_data: Path
) -> None:
    path = shared_data / f"{file}.safetensors"
    if not path.is_file():
        pytest.skip(f"no {path}")
    tensors = read_tensors(path)
    statistics = (tensors[f"{norm}.running_mean"], tensors[f"{norm}.running_var"])
    seen = first_input(tensors[f"{conv}.weight"], *statistics)
    found = explained(seen)
    assert found.preprocessing is not None
    assert found.why.endswith(name)
    assert found.preprocessing.channel_order == order
    assert seen is not None
    assert seen.residual < 0.05


def test_distance_is_one_at_the_limits() -> None:
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    exact = tuple((p - 0.5) / 0.5 for p in PHOTO_MEAN)
    assert distance(Seen(mean=exact, spread=0.53, error=0, residual=0), mean, std) < 1e-6
    assert distance(Seen(mean=exact, spread=0.53 * 1.4, error=0, residual=0), mean, std) == pytest.approx(1)
    shifted = tuple(m + 0.35 * 0.53 for m in exact)
    assert distance(Seen(mean=shifted, spread=0.53, error=0, residual=0), mean, std) == pytest.approx(1)


# --- a teacher that is given images in another way than it was trained ---


def doubted(images: Tensor, mean: Three, std: Three, network: str = "own:net") -> str:
    spec = NetworkSpec(network=network, mean=mean, std=std)
    return doubt(spec, spec.wrap(trained(images)), (32, 32))


@pytest.mark.parametrize(
    ("trained_as", "given", "set_to"),
    [
        (IMAGENET, IMAGENET, None),
        (
            IMAGENET,
            ((0.0,) * 3, (1.0,) * 3),
            "teacher.mean=[0.485, 0.456, 0.406] and teacher.std=[0.229, 0.224, 0.225]",
        ),
        (((0.0,) * 3, (1.0,) * 3), IMAGENET, "teacher.mean=[0, 0, 0] and teacher.std=[1, 1, 1]"),
        (((0.5,) * 3, (0.5,) * 3), ((0.0,) * 3, (1.0,) * 3), "teacher.mean=[0.5, 0.5, 0.5] and teacher.std=[0.5, 0.5"),
        (((0.0,) * 3, (1 / 255,) * 3), ((0.0,) * 3, (1.0,) * 3), "teacher.std=[0.003922, 0.003922, 0.003922]"),
    ],
)
def test_images_that_the_first_batchnorm_cannot_have_seen_are_doubted_with_the_values_to_set(
    trained_as: tuple[Three, Three], given: tuple[Three, Three], set_to: str | None
) -> None:
    line = doubted(normalised(photos(), *trained_as), *given)
    assert line == "" if set_to is None else set_to in line
    assert "\n" not in line
    assert (", the defaults" in line) == (set_to is not None and given == ((0.0,) * 3, (1.0,) * 3))


def test_images_that_are_no_photographs_but_could_be_images_are_not_doubted() -> None:
    drawings = (photos() > 0.5).float()  # of mean 0.4 and spread 0.5, as digits and drawings are
    middle, spread = drawings.mean().item(), drawings.std().item()
    own = ((middle,) * 3, (spread,) * 3)
    assert doubted(drawings * 0.8, (0.0,) * 3, (1.0,) * 3) == ""
    assert doubted(normalised(drawings * 0.8, *own), *own) == ""


def test_the_librarys_own_word_counts_for_its_own_weights_and_against_defaults(tmp_path: Path) -> None:
    """Of a network without BatchNorm, which says nothing itself."""
    own = NetworkSpec(network="timm/test_vit?pretrained=true")
    said = known(own)
    assert said is not None
    network = build_network(NetworkSpec(network="timm/test_vit"), num_classes=3)
    assert f"teacher.mean=[{said.mean[0]:.4g}" in doubt(own, own.wrap(network), (160, 160))
    right = replace(own, mean=said.mean, std=said.std)
    assert doubt(right, right.wrap(network), (160, 160)) == ""
    save_weights(network, tmp_path / "w.safetensors")
    file = NetworkSpec(network="timm/test_vit", weights=tmp_path / "w.safetensors")
    assert "the defaults, but timm's" in doubt(file, file.wrap(network), (160, 160))
    stated = replace(file, mean=(0.3, 0.3, 0.3), std=(0.4, 0.4, 0.4))  # its owner may know better
    assert doubt(stated, stated.wrap(network), (160, 160)) == ""


def test_a_pixel_range_of_255_is_a_mean_and_std_of_images_in_0_to_1() -> None:
    spec = NetworkSpec(network="own:net", pixel_range=255, mean=(123.0, 117.0, 104.0), std=(58.0, 57.0, 57.5))
    assert spec.pixel_range == 1
    assert replace(spec) == spec
    x = torch.rand(2, 3, 4, 4)
    seen = spec.wrap(nn.Identity())(x)
    wanted = normalised(255 * x, (123.0, 117.0, 104.0), (58.0, 57.0, 57.5))
    torch.testing.assert_close(seen, wanted, atol=1e-4, rtol=1e-5)
    plain = NetworkSpec(network="own:net", pixel_range=255).wrap(nn.Identity())
    torch.testing.assert_close(plain(x), 255 * x)


@pytest.mark.thorough
def test_a_file_that_datafree_exported_takes_images_as_they_are_and_another_says_nothing(tmp_path: Path) -> None:
    network = Normalized(nn.Conv2d(3, 2, 3), mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2))
    write_onnx(network, tmp_path / "ours.onnx", (8, 8), {"task": {"kind": "classification"}})
    found = known(NetworkSpec(network=str(tmp_path / "ours.onnx")))
    assert found is not None
    assert (found.mean, found.std, found.channel_order) == ((0, 0, 0), (1, 1, 1), "rgb")
    model = onnx.load(str(tmp_path / "ours.onnx"))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "another.onnx"))
    assert known(NetworkSpec(network=str(tmp_path / "another.onnx"))) is None
