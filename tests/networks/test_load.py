"""networks/load.py: networks by name, and files that are not to be trusted."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from datafree.errors import NetworkError
from datafree.networks import load
from datafree.networks.load import NetworkSpec, build_network


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def refusal(call: Callable[[], object], kind: type[NetworkError] = NetworkError) -> str:
    """The line with which `call` is refused."""
    with pytest.raises(kind) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    assert line.isprintable()
    return line


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
    assert {n[12:] for n in names if n.startswith("torchvision/")} <= set(
        torchvision.models.list_models(module=torchvision.models.segmentation)
    )
    assert "datafree/unet" in names


@pytest.mark.parametrize(
    ("network", "hint"),
    [
        ("smp/deeplab3", "did you mean smp/deeplabv3"),
        ("datafree/unett", "did you mean datafree/unet"),
        ("torchvision/deeplabv3_resnet5", "did you mean torchvision/deeplabv3_resnet50"),
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


def test_a_spec_is_checked_by_pydantic() -> None:
    adapter = TypeAdapter(NetworkSpec)
    spec = adapter.validate_python({"network": "datafree/unet", "weights": "a.pt", "mean": [0.5, 0.5, 0.5]})
    assert spec == NetworkSpec(network="datafree/unet", weights=Path("a.pt"), mean=(0.5, 0.5, 0.5))
    with pytest.raises(ValidationError, match="weight\\n"):
        adapter.validate_python({"network": "datafree/unet", "weight": "a.pt"})


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
