"""The architecture of a weights file, told by the names and shapes of its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from torch import nn

from datafree.errors import NetworkError, WeightsError
from datafree.networks import bounded, libraries
from datafree.networks.checkpoints.weights import read_shapes, read_tensors, save_weights
from datafree.networks.fingerprints import MARK, fingerprint, proposed, shapes_of
from datafree.networks.libraries import build_from_library
from datafree.networks.load import build_network
from datafree.networks.resnet import resnet
from datafree.networks.unet import unet
from datafree.preflight.identify import identify


def saved(network: nn.Module, file: Path) -> Path:
    save_weights(network, file)
    return file


def refusal(file: Path) -> str:
    with pytest.raises(NetworkError) as caught:
        identify(file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("network", "told", "args", "channels"),
    [
        (lambda: timm.create_model("mobilenetv3_small_050", num_classes=7), "timm/mobilenetv3_small_050", {}, 3),
        (lambda: torchvision.models.squeezenet1_1(num_classes=5), "torchvision/squeezenet1_1", {}, 3),
        (lambda: timm.create_model("test_resnet", num_classes=7, in_chans=1), "timm/test_resnet", {}, 1),
        (lambda: resnet(10, depth=14, width=6, channels=1), "datafree/resnet", {"depth": 14, "width": 6}, 1),
        (lambda: unet(4, width=4, depth=3), "datafree/unet", {"depth": 3, "width": 4}, 3),
    ],
)
def test_a_network_of_any_number_of_classes_is_told(
    network: Any, told: str, args: dict[str, int], channels: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    found = identify(saved(network(), tmp_path / "mine.safetensors"))
    assert (found.spec.network, found.spec.args, found.spec.channels) == (told, args, channels)
    assert found.spec.weights == tmp_path / "mine.safetensors"
    assert f"names and shapes of {told}" in found.why


def test_a_second_head_for_training_is_left_out(tmp_path: Path) -> None:
    """As torchvision's own files of fcn_resnet50 and deeplabv3_resnet50 have it; here of the smallest of its kind."""
    given = {"weights": None, "weights_backbone": None, "num_classes": 5}
    network = torchvision.models.get_model("deeplabv3_mobilenet_v3_large", aux_loss=True, **given).eval()
    found = identify(saved(network, tmp_path / "mine.safetensors"))
    assert (found.spec.network, found.spec.args) == ("torchvision/deeplabv3_mobilenet_v3_large", {})
    assert "tensors but for 8 of a second head have the names" in found.why
    said: list[str] = []
    built = build_network(found.spec, num_classes=5, say=said.append).eval()
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(built(images)["out"], network(images)["out"])
    assert "left out as parts of something else: 7" in said[0]


def test_a_googlenet_without_its_second_heads_is_told(tmp_path: Path) -> None:
    """torchvision takes them off where its own weights are loaded, to be trained on."""
    network = torchvision.models.googlenet(num_classes=5, aux_logits=False, init_weights=False)
    found = identify(saved(network, tmp_path / "mine.safetensors"))
    assert (found.spec.network, found.spec.args) == ("torchvision/googlenet", {"aux_logits": False})


def test_names_of_very_many_layers_are_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "MOST_MODULES", 500)
    begun: list[int] = []
    made: list[nn.Module] = []

    def build(**args: Any) -> nn.Module:
        begun.append(args["depth"])
        made.append(resnet(**args))
        return made[-1]

    monkeypatch.setattr(libraries, "_DATAFREE", {"resnet": build})
    names = {f"layer1.{index}.weight": torch.ones(1) for index in range(300)}
    tensors = {**names, "linear.weight": torch.ones(5, 8), "conv1.weight": torch.ones(4, 3, 3, 3)}
    safetensors.torch.save_file(tensors, tmp_path / "deep.safetensors")
    assert "of no network that is known" in refusal(tmp_path / "deep.safetensors")
    assert set(begun) == {1802}
    assert not made


@pytest.mark.slow
def test_a_decoder_of_smp_is_told_with_its_encoder(tmp_path: Path) -> None:
    network = smp.Unet("mobilenet_v2", encoder_weights=None, classes=3)
    found = identify(saved(network, tmp_path / "mine.safetensors"))
    assert (found.spec.network, found.spec.args) == ("smp/unet", {"encoder": "mobilenet_v2"})


def test_a_checkpoint_with_a_few_tensors_of_something_else_is_told_by_the_others(tmp_path: Path) -> None:
    network = timm.create_model("mobilenetv3_small_050", num_classes=7)
    state = {f"net.body.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": {**state, "criterion.weight": torch.ones(7)}}, tmp_path / "last.ckpt")
    found = identify(tmp_path / "last.ckpt")
    assert found.spec.network == "timm/mobilenetv3_small_050"
    assert "tensors under 'net.body.' have the names" in found.why
    more = {f"head.{index}": torch.ones(1) for index in range(len(state) // 4)}
    torch.save({**state, **more}, tmp_path / "more.pt")  # a part of a larger network is not taken for the whole
    assert "of no network that is known" in refusal(tmp_path / "more.pt")


def test_a_checkpoint_of_a_wrapped_network_is_told_too(tmp_path: Path) -> None:
    state = {f"module.model.{name}": value for name, value in resnet(10, 8, 4).state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "checkpoint.pth")
    assert identify(tmp_path / "checkpoint.pth").spec.args == {"depth": 8, "width": 4}


@pytest.mark.thorough
def test_of_networks_that_answer_alike_any_will_do_and_a_files_name_decides(tmp_path: Path) -> None:
    """torchvision's resnet18 is timm's; a ViT and a DeiT differ in what their images are normalised to."""
    network = torchvision.models.resnet18(num_classes=4)
    found = identify(saved(network, tmp_path / "mine.safetensors"))
    assert found.spec.network == "torchvision/resnet18"
    assert found.doubt is not None  # blurred before its strides, it has the same tensors
    assert "timm/resnetblur18" in found.doubt
    assert "timm/resnet18" not in found.doubt
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=4)
    words = refusal(saved(vit, tmp_path / "tiny.safetensors"))
    assert "fit several networks" in words
    assert "timm/vit_tiny_patch16_224" in words
    assert "timm/deit_tiny_patch16_224" in words
    named = identify(saved(vit, tmp_path / "deit_tiny_patch16_224-a1311bcf.safetensors"))
    assert named.spec.network == "timm/deit_tiny_patch16_224"
    (tmp_path / "config.json").write_text('{"architecture": "vit_tiny_patch16_224"}')
    assert identify(tmp_path / "tiny.safetensors").spec.network == "timm/vit_tiny_patch16_224"


def test_what_is_of_no_known_network_says_which_option_to_give(tmp_path: Path) -> None:
    words = refusal(saved(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2)), tmp_path / "own.safetensors"))
    assert "4 tensors (first: '0.bias', '0.weight') of no network that is known here" in words
    assert f"datafree distill NETWORK --weights {tmp_path / 'own.safetensors'}" in words
    widened = torchvision.models.squeezenet1_1(num_classes=5)
    widened.features[0] = nn.Conv2d(3, 65, 3, 2)
    assert "of no network" in refusal(saved(widened, tmp_path / "wide.safetensors"))


def test_darknets_weights_name_no_tensors(tmp_path: Path) -> None:
    (tmp_path / "yolo.weights").write_bytes(bytes(20))
    with pytest.raises(WeightsError, match="--weights"):
        identify(tmp_path / "yolo.weights")


def test_shapes_are_those_of_the_tensors_that_would_be_read(tmp_path: Path) -> None:
    network = resnet(10, 8, 4)
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "a.pth")
    for file in (saved(network, tmp_path / "a.safetensors"), tmp_path / "a.pth"):
        assert read_shapes(file) == {name: tuple(value.shape) for name, value in read_tensors(file).items()}


@pytest.mark.parametrize(
    "name", ["torchvision/resnet50", "torchvision/vit_b_16", "timm/convnext_tiny", "timm/levit_128"]
)
def test_the_index_is_that_of_the_installed_libraries(name: str) -> None:
    with torch.device("meta"):
        network = build_from_library(name, {}, num_classes=21, channels=3)
    assert name in proposed(shapes_of(network))


def test_what_depends_on_the_classes_is_no_part_of_a_body() -> None:
    with torch.device("meta"):
        prints = [fingerprint(resnet(count, 8, 4)) for count in (MARK, MARK + 1)]
    assert prints[0] == prints[1]
    assert prints[0].head == ("linear.bias", "linear.weight")
