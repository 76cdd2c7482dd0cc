"""networks/load.py: networks by name, and files that are not to be trusted."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from darknet_files import save_darknet_weights
from datafree.errors import WeightsError
from datafree.networks import load
from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.checks.untrained import untrained
from datafree.networks.darknet.network import Darknet
from datafree.networks.detectors import Detector
from datafree.networks.load import NetworkSpec, build_network
from datafree.networks.normalized import bare
from weights_files import refusal, same


def build(network: str, num_classes: int = 4, **args: Any) -> nn.Module:
    return build_network(NetworkSpec(network=network, args=args), num_classes=num_classes)


# --- networks by name ---


@pytest.mark.parametrize(
    ("network", "args"),
    [
        ("datafree/unet", {"width": 4}),
        ("smp/deeplabv3", {"encoder": "mobilenet_v2", "output_stride": 16}),
        ("smp/unet", {"encoder_name": "mobilenet_v2", "classes": 4}),
        ("smp/fpn", {"encoder": "tu-resnet18"}),
        ("torchvision/lraspp_mobilenet_v3_large", {}),
        ("torchvision/deeplabv3_mobilenet_v3_large", {"aux_loss": True}),
    ],
)
def test_a_named_segmentation_network_has_the_tasks_classes(network: str, args: dict[str, Any]) -> None:
    outputs = build(network, **args).eval()(torch.rand(1, 3, 64, 64))
    logits = outputs["out"] if isinstance(outputs, dict) else outputs
    assert logits.shape == (1, 4, 64, 64)


@pytest.mark.parametrize("network", ["timm/resnet18", "torchvision/resnet18", "timm/resnet18.a1_in1k"])
def test_a_named_classification_network_has_the_tasks_classes(network: str) -> None:
    assert build(network, 7).eval()(torch.rand(1, 3, 64, 64)).shape == (1, 7)


def test_the_listed_names_are_those_of_the_libraries() -> None:
    import segmentation_models_pytorch as smp
    import torchvision

    names = load.network_names()
    assert names == sorted(names)
    assert {n[4:] for n in names if n.startswith("smp/")} <= smp.MODEL_ARCHITECTURES_MAPPING.keys()
    models = torchvision.models
    assert {n[12:] for n in names if n.startswith("torchvision/")} <= {
        *models.list_models(module=models.segmentation),
        *models.list_models(module=models.detection),
    }
    assert {"torchvision/ssdlite320_mobilenet_v3_large", "datafree/yolov3"} <= set(names)
    assert "datafree/unet" in names


@pytest.mark.parametrize(
    ("network", "hint"),
    [
        ("smp/deeplab3", "did you mean smp/deeplabv3"),
        ("datafree/unett", "did you mean datafree/unet"),
        ("torchvision/deeplabv3_resnet5", "did you mean torchvision/deeplabv3_resnet50"),
        ("torchvision/r3d_18", "takes video; networks of one image"),
        ("torchvision/raft_small", "from one image to the next"),
        ("torchvision/quantized_resnet18", "take the network of floats"),
        ("timm/resnet19", "timm/resnet18"),
        ("smpp/unet", "smp/unet"),
        ("deeplabv3", "did you mean smp/deeplabv3?"),
        ("zzz", "timm/NAME"),
        ("timm/hf_hub:timm/resnet18.a1_in1k", "there is no network"),
    ],
)
def test_an_unknown_name_gets_a_hint(network: str, hint: str) -> None:
    line = refusal(lambda: build(network))
    assert repr(network) in line
    assert hint in line


@pytest.mark.parametrize(
    ("network", "args", "named"),
    [
        ("datafree/unet", {"widht": 8}, "widht"),
        ("smp/unet", {"encoder": "mobilenetv2"}, "mobilenet_v2"),
        ("smp/unet", {"encodr": "mobilenet_v2"}, "did you mean encoder"),
        ("smp/unet", {"encoder": "tu-nosuch"}, "nosuch"),
        ("smp/unet", {"encoder": "tu-hf_hub:timm/resnet18"}, "is a place"),
        ("smp/unet", {"encoder": "resnet18", "encoder_name": "resnet18"}, "mean the same"),
        ("smp/deeplabv3", {"encoder": "mobilenet_v2", "output_stride": 4}, "4"),
        ("torchvision/lraspp_mobilenet_v3_large", {"auxloss": True}, "no argument"),
        ("torchvision/resnet18", {"bogus": True}, "bogus"),
        ("timm/resnet18", {"bogus": 1}, "bogus"),
        ("timm/resnet18", {"checkpoint_path": "x.pth"}, "`weights`"),
        ("smp/unet", {"encoder": "tu-resnet18", "pretrained_cfg": {"file": "x"}}, "`weights`"),
    ],
)
def test_args_the_network_does_not_take_are_one_line(network: str, args: dict[str, Any], named: str) -> None:
    assert named in refusal(lambda: build(network, **args))


@pytest.mark.parametrize("key", ["classes", "num_classes"])
@pytest.mark.parametrize("network", ["datafree/unet", "smp/unet", "timm/resnet18"])
def test_another_number_of_classes_than_the_tasks_is_refused(network: str, key: str) -> None:
    spec = NetworkSpec(network=network, args={key: 21})
    line = refusal(lambda: build_network(spec, num_classes=4))
    assert f"{key}=21" in line
    assert "has 4" in line


def test_a_spec_is_checked_by_pydantic(tmp_path: Path) -> None:
    adapter, file = TypeAdapter(NetworkSpec), tmp_path / "a.pt"
    file.touch()
    spec = adapter.validate_python({"network": "datafree/unet", "weights": str(file), "mean": [0.5, 0.5, 0.5]})
    assert spec == NetworkSpec(network="datafree/unet", weights=file, mean=(0.5, 0.5, 0.5))
    with pytest.raises(ValidationError, match="weight\\n"):
        adapter.validate_python({"network": "datafree/unet", "weight": str(file)})


# --- detectors ---


@pytest.mark.parametrize(
    ("network", "args", "named"),
    [
        ("torchvision/ssdlite320_mobilenet_v3_large", {"widht_mult": 0.5}, "did you mean width_mult"),
        ("torchvision/ssdlite320_mobilenet_v3_large", {"min_size": 64}, "set input_size"),
        ("torchvision/ssd300_vgg16", {"size": 64}, "set input_size"),
        ("torchvision/ssd300_vgg16", {"width_mult": 0.5}, "no argument"),
        ("torchvision/fcos_resnet50_fpn", {"image_mean": [0.5, 0.5, 0.5]}, "set mean"),
        ("torchvision/retinanet_resnet50_fpn_v2", {"score_thresh": 0.1}, "set task.score_threshold"),
        ("torchvision/fasterrcnn_resnet50_fpn", {"box_nms_thresh": 0.1}, "set task.nms_iou"),
        ("torchvision/fasterrcnn_resnet50_fpn", {"rpn_nms_tresh": 0.1}, "did you mean rpn_nms_thresh"),
        ("torchvision/maskrcnn_resnet50_fpn", {}, "answers masks or key points; networks of one image"),
        ("datafree/yolov3", {"widht": 0.5}, "widht"),
    ],
)
def test_args_a_detector_does_not_take_are_one_line(network: str, args: dict[str, Any], named: str) -> None:
    assert named in refusal(lambda: build(network, **args))


def test_torchvisions_detectors_have_a_column_more_for_background() -> None:
    network = build("torchvision/ssdlite320_mobilenet_v3_large", 3, width_mult=0.25)
    assert isinstance(network, Detector)
    with torch.no_grad():
        answer = network.eval()(torch.rand(1, 3, 64, 64))
    assert answer.scores.shape[-1] == 3
    assert answer.heads[1].shape[-1] == 4
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in network.modules())
    counted = NetworkSpec(network="torchvision/ssdlite320_mobilenet_v3_large", args={"num_classes": 4})
    assert "leave num_classes out" in refusal(lambda: build_network(counted, num_classes=3))
    grey = NetworkSpec(network="torchvision/ssdlite320_mobilenet_v3_large", channels=1)
    assert "colour images only" in refusal(lambda: build_network(grey, num_classes=3))


def test_our_own_detector_is_built_by_name() -> None:
    network = build("datafree/yolov3?variant=tiny&width=0.0625", 5)
    assert isinstance(network, Detector)
    with torch.no_grad():
        assert network.eval()(torch.rand(1, 3, 64, 64)).scores.shape[-1] == 5


def test_darknets_weights_are_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build("datafree/yolov3", 2, width=0.0625)
    darknet = bare(network)
    assert isinstance(darknet, Darknet)
    save_darknet_weights(darknet, tmp_path / "yolo.weights")
    spec = NetworkSpec(network="datafree/yolov3?width=0.0625", weights=tmp_path / "yolo.weights")
    assert same(bare(build_network(spec, num_classes=2)).state_dict(), darknet.state_dict())
    spec = NetworkSpec(network="datafree/unet", weights=tmp_path / "yolo.weights")
    assert "a Darknet file fits" in refusal(lambda: build_network(spec, num_classes=2), WeightsError)


# --- arguments in the name ---


def test_arguments_after_the_name_are_args() -> None:
    spec = NetworkSpec(network="smp/deeplabv3?encoder=resnet50&output_stride=8", args={"aux_params": None})
    assert spec.network == "smp/deeplabv3"
    assert spec.args == {"aux_params": None, "encoder": "resnet50", "output_stride": 8}
    assert replace(spec, weights=None) == spec
    values = NetworkSpec(network="pkg.mod:make?a=1e-4&b=true&c=no&d='8'&e=null&f=x=y:z&g=.5").args
    assert values == {"a": 1e-4, "b": True, "c": "no", "d": "8", "e": None, "f": "x=y:z", "g": 0.5}


def test_a_network_is_built_with_the_arguments_in_its_name() -> None:
    network = build("datafree/unet?width=4", 3)
    assert [p.shape for p in network.parameters()] == [p.shape for p in build("datafree/unet", 3, width=4).parameters()]


@pytest.mark.parametrize(
    ("network", "path"),
    [
        ("./df_nets.py:make_net", "df_nets:make_net"),
        ("df_nets.py:make_net", "df_nets:make_net"),
        ("pkg/nets.py:make", "pkg.nets:make"),
        ("/somewhere/nets.py:make", "nets:make"),
    ],
)
def test_a_python_file_is_answered_with_the_import_path_to_write(network: str, path: str) -> None:
    assert f"is no import path: write {path}, for a module" in refusal(lambda: NetworkSpec(network=network))


def test_own_code_that_nobody_trained_is_noticed_and_random_numbers_go_on_as_before(own_code: Path) -> None:
    (own_code / "df_trained.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def loaded():\n    net = nn.Conv2d(3, 2, 1)\n    net.load_state_dict(torch.load('kept.pt'))\n    return net\n"
        "def headless():\n    return nn.Sequential(loaded(), nn.Conv2d(2, 4, 1, bias=False))\n"
        "def once(left=[1]):\n    left.pop()\n    return loaded()\n"
    )
    torch.save(nn.Conv2d(3, 2, 1).state_dict(), own_code / "kept.pt")
    save_weights(nn.Conv2d(3, 2, 1), own_code / "kept.safetensors")

    def said(network: str, **more: Any) -> str:
        spec = NetworkSpec(network=network, **more)
        wrapped = spec.wrap(build_network(spec, num_classes=2))
        state = torch.get_rng_state()
        found = untrained(spec, wrapped)
        assert torch.equal(torch.get_rng_state(), state)
        return found

    assert said("df_nets:make_net").startswith("each call of it makes other values (2 of 2 tensors, such as 'weight')")
    assert said("df_trained:headless").startswith("each call of it makes other values (1 of 3 tensors, such as '1.")
    assert said("df_trained:loaded") == said("df_trained:once") == ""
    assert said("df_nets:make_net", weights=own_code / "kept.safetensors") == ""


@pytest.mark.parametrize(
    ("network", "named"),
    [
        ("smp/unet?", "'' is no argument"),
        ("smp/unet?encoder", "'encoder' is no argument"),
        ("smp/unet?encoder=", "'encoder=' is no argument"),
        ("smp/unet?=8", "'=8' is no argument"),
        ("smp/unet?a=1&", "'' is no argument"),
        ("smp/unet?a=1&a=2", "a is given twice"),
        ("smp/unet?a=[1, 2]", "no plain value"),
        ("smp/unet?a=b: c", "no plain value"),
        ("smp/unet?a='b", "line 1"),
        ("smp/unet?a=!!python/none", "tags"),
        ("smp/unet?width=4", "width is given in the network's name"),
    ],
)
def test_arguments_in_the_name_that_cannot_be_read_are_one_line(network: str, named: str) -> None:
    assert named in refusal(lambda: NetworkSpec(network=network, args={"width": 8}))


@pytest.mark.parametrize("licence", ["", "  ", "MIT\nBSD", "x" * 201])
def test_a_licence_is_a_name_on_one_line(licence: str) -> None:
    assert NetworkSpec(network="datafree/unet", licence="Apache-2.0").licence == "Apache-2.0"
    assert "such as Apache-2.0" in refusal(lambda: NetworkSpec(network="datafree/unet", licence=licence))


def test_a_name_that_is_not_the_users_downloads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*args: object, **kwargs: object) -> None:
        raise AssertionError("asked for a download")

    monkeypatch.setattr("datafree.networks.pretrained._place", lambda *given: None)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    spec = NetworkSpec(network="torchvision/resnet18?weights=DEFAULT")
    build_network(spec, num_classes=1000, allow_import=False)
    assert "asked for a download" in refusal(lambda: build_network(spec, num_classes=1000))  # the witness works


# --- the user's own code ---


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with modules in it."""
    (tmp_path / "df_nets.py").write_text(
        "from pathlib import Path\nfrom torch import nn\nPath('imported').touch()\n"
        "def make_net(channels=2):\n    return nn.Conv2d(3, channels, 1)\n"
        "def make_text():\n    return 'text'\ndef fail():\n    raise RuntimeError('first\\nsecond')\n"
        "ready = nn.Identity()\n"
    )
    (tmp_path / "df_broken.py").write_text("import df_does_not_exist\n")
    (tmp_path / "df_exits.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    for name in ("df_nets", "df_broken", "df_exits"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_own_code_in_the_current_directory_is_given_its_args_only(own_code: Path) -> None:
    before = list(sys.path)
    network = build("df_nets:make_net", num_classes=9, channels=5)
    assert isinstance(network, nn.Conv2d)
    assert network.out_channels == 5
    assert sys.path == before


def test_own_code_is_not_imported_where_names_are_not_the_users(own_code: Path) -> None:
    spec = NetworkSpec(network="df_nets:make_net")
    line = refusal(lambda: build_network(spec, num_classes=2, allow_import=False))
    assert "--student df_nets:make_net" in line
    assert not (own_code / "imported").exists()
    build_network(spec, num_classes=2)
    assert (own_code / "imported").exists()  # the witness works


@pytest.mark.parametrize(
    ("network", "named"),
    [
        ("df_nowhere:make_net", "No module named 'df_nowhere'"),
        ("df_broken:make_net", "No module named 'df_does_not_exist'"),
        ("df_exits:make_net", "SystemExit: 3"),
        ("df_nets:make_nets", "did you mean make_net"),
        ("df_nets:make_text", "makes a str"),
        ("df_nets:fail", "RuntimeError: first second"),
        ("df_nets:ready", "is a Identity"),
        ("df_nets:Path.__doc__", "is a "),
        ("df_nets:", "package.module:callable"),
        (":make_net", "package.module:callable"),
        ("..df_nets:make_net", "package.module:callable"),
    ],
)
def test_own_code_that_gives_no_network_is_one_line(own_code: Path, network: str, named: str) -> None:
    assert named in refusal(lambda: build(network))


def test_own_code_that_makes_a_torchvision_detector_is_adapted(own_code: Path) -> None:
    (own_code / "df_detects.py").write_text(
        "import torch\nfrom torchvision.models.detection import RetinaNet\n"
        "from torchvision.models.detection.anchor_utils import AnchorGenerator\n"
        "def make():\n    body = torch.nn.Conv2d(3, 8, 3, 8)\n    body.out_channels = 8\n"
        "    return RetinaNet(body, 4, anchor_generator=AnchorGenerator(((16,),), ((1.0,),)))\n"
    )
    network = build("df_detects:make", 3)
    assert isinstance(network, Detector)
    with torch.no_grad():
        assert network(torch.rand(1, 3, 64, 64)).scores.shape == (1, 64, 3)
