"""networks/pretrained.py: weights that libraries offer are asked for in one way, and their absence is one line."""

from __future__ import annotations

import inspect
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from torch import nn

from datafree.errors import NetworkError
from datafree.networks import pretrained
from datafree.networks.load import NetworkSpec, build_network

CLOSED = "http://127.0.0.1:9"  # the port "discard", where nothing listens


def build(network: str, num_classes: int = 1000, **args: Any) -> nn.Module:
    return build_network(NetworkSpec(network=network, args=args), num_classes=num_classes)


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def nothing_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has fetched nothing yet; its folders of what is kept are below the one returned."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return tmp_path


@pytest.fixture
def no_network(nothing_kept: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", CLOSED)
    place = pretrained._torchvision_place
    monkeypatch.setattr(pretrained, "_torchvision_place", lambda *given: CLOSED if place(*given) else None)
    return nothing_kept


@pytest.mark.parametrize(
    "network",
    [
        "torchvision/resnet18?pretrained=true",
        "torchvision/fcn_resnet50?weights_backbone=DEFAULT",
        "timm/resnet18?pretrained=true",
        "smp/unet?encoder=resnet18&pretrained=true",
        "smp/unet?encoder=tu-resnet18&pretrained=true",
    ],
)
def test_weights_out_of_reach_are_one_line_at_once(network: str, no_network: Path) -> None:
    with pytest.raises(NetworkError) as caught:
        build(network)
    line = str(caught.value)
    assert line.startswith(f"the weights offered for {network.partition('?')[0]} are not on this machine")
    assert "127.0.0.1 is out of reach (" in line
    assert "give the file as `weights`" in line
    assert "\n" not in line
    assert not huggingface_hub.constants.HF_HUB_OFFLINE  # as it was


def test_the_users_own_word_to_stay_offline_is_named(no_network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NetworkError, match="out of reach \\(HF_HUB_OFFLINE is set\\)"):
        build("timm/resnet18", pretrained=True)


def test_a_place_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "_LIMIT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes calls, says nothing
        assert pretrained._silent(f"http://127.0.0.1:{silent.getsockname()[1]}/") is not None


@pytest.fixture
def server() -> Iterator[str]:
    """The address of a server that has nothing."""

    class Nothing(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(404)

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Nothing) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}/"
        made.shutdown()


def test_a_place_that_answers_anything_is_within_reach(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pretrained._silent(server) is None
    monkeypatch.setattr(pretrained, "_place", lambda *given: server)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pretrained.within_reach("timm", "resnet18", {"pretrained": True}):
        assert not huggingface_hub.constants.HF_HUB_OFFLINE  # the library may try
    with pytest.raises(KeyError), pretrained.within_reach("timm", "resnet18", {"pretrained": True}):
        raise KeyError("its own fault")


def test_torchvisions_weights_that_were_fetched_before_need_no_network(no_network: Path) -> None:
    torch.manual_seed(5)
    trained = torchvision.models.shufflenet_v2_x0_5(weights=None)
    url = torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT.url
    kept = no_network / "torch" / "checkpoints" / url.rpartition("/")[2]
    kept.parent.mkdir(parents=True)
    torch.save(trained.state_dict(), kept)
    assert same(build("torchvision/shufflenet_v2_x0_5", pretrained=True), trained)
    assert not same(build("torchvision/shufflenet_v2_x0_5", pretrained=False), trained)


def test_timms_weights_that_were_fetched_before_need_no_network(no_network: Path) -> None:
    torch.manual_seed(5)
    trained = timm.create_model("test_resnet", pretrained=False)
    config: Any = timm.get_pretrained_cfg("test_resnet")
    repository = no_network / "hub" / f"models--{config.hf_hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    safetensors.torch.save_file(trained.state_dict(), repository / "snapshots" / ("0" * 40) / "model.safetensors")
    assert same(build("timm/test_resnet", pretrained=True), trained)


@pytest.mark.parametrize(
    ("network", "args", "said"),
    [
        ("datafree/unet", {"pretrained": True}, "comes without weights"),
        ("torchvision/resnet18", {"pretrained": True, "weights": "DEFAULT"}, "mean the same"),
        ("smp/unet", {"pretrained": "yes"}, "write true or false"),
        ("torchvision/resnet18", {"weights": "NONE_SUCH"}, "NONE_SUCH"),
    ],
)
def test_asking_in_a_way_that_cannot_be_met_is_one_line(network: str, args: dict[str, Any], said: str) -> None:
    with pytest.raises(NetworkError, match=said) as caught:
        build(network, **args)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoder", ["resnet18", "mit_b0", "timm-efficientnet-b0"])
def test_smps_encoders_are_asked_for_weights_that_they_have(encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    make: Callable[..., nn.Module] = smp.MODEL_ARCHITECTURES_MAPPING["unet"]

    def note(*, encoder_weights: object, **kwargs: Any) -> nn.Module:
        asked.append(encoder_weights)
        return make(encoder_weights=None, **kwargs)

    note.__signature__ = inspect.signature(make)  # type: ignore[attr-defined]
    monkeypatch.setitem(smp.MODEL_ARCHITECTURES_MAPPING, "unet", note)
    monkeypatch.setattr(pretrained, "_place", lambda *given: None)
    build("smp/unet", num_classes=3, encoder=encoder, pretrained=True)
    (weights,) = asked
    assert weights in smp.encoders.encoders[encoder]["pretrained_settings"]
