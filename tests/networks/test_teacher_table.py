"""The table in docs/teachers.md, "what you have -> what you type": every line of it is run."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from datafree.cli import main
from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.load import NetworkSpec, build_network
from datafree.networks.normalized import Normalized
from datafree.networks.onnx import write_onnx
from datafree.preflight.cost import estimate

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
PAGE = ROOT / "docs" / "teachers.md"
LINES = re.findall(r"^\| .* \| `(datafree .*)` \|$", PAGE.read_text("utf-8"), re.MULTILINE) if PAGE.is_file() else []

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="the pages are only in the repository")

VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def _transformers(model: str, **options: Any) -> Callable[[], None]:
    def make() -> None:
        transformers = pytest.importorskip("transformers")
        kind = getattr(transformers, model)
        config = kind.config_class(
            id2label=dict(enumerate("abcde")), label2id={n: i for i, n in enumerate("abcde")}, **options
        )
        folder = {"ViT": "vit", "Seg": "segformer", "Yol": "yolos"}[model[:3]]
        kind(config).save_pretrained(folder)

    return make


def _timm_directory() -> None:
    Path("timm-resnet").mkdir()
    network = build_network(NetworkSpec(network="timm/test_resnet"), num_classes=4)
    safetensors.torch.save_file(network.state_dict(), "timm-resnet/model.safetensors")
    given = {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 64, 64]}
    config = {"architecture": "test_resnet", "num_classes": 4, "pretrained_cfg": given}
    Path("timm-resnet/config.json").write_text(json.dumps(config))


def _weights(network: str, classes: int, file: str, channels: int = 3) -> Callable[[], None]:
    def make() -> None:
        spec = NetworkSpec(network=network, channels=1 if channels == 1 else 3)
        save_weights(build_network(spec, num_classes=classes), Path(file))

    return make


def _checkpoint() -> None:
    network = build_network(NetworkSpec(network="timm/test_resnet"), num_classes=4)
    state = {f"backbone.{name}": tensor for name, tensor in network.state_dict().items()}
    state["criterion.weight"] = torch.ones(4)
    torch.save({"state_dict": state, "args": Namespace(lr=0.1), "epoch": 3, "out": Path("/data")}, "checkpoint.pt")


def _classifier() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, 4), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 5)
    ).eval()


def _onnx() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    write_onnx(Normalized(_classifier()), Path("net.onnx"), (32, 32), {})


def _pt2() -> None:
    free = ({0: torch.export.Dim("batch")},)
    images = torch.rand(2, 3, 32, 32)
    torch.export.save(torch.export.export(_classifier(), (images,), dynamic_shapes=free), "net.pt2")


def _torchscript() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit
        torch.jit.script(_classifier()).save("net.torchscript")


def _ultralytics() -> None:
    os.environ.setdefault("YOLO_OFFLINE", "true")
    tasks = pytest.importorskip("ultralytics.nn.tasks", exc_type=ImportError)
    network = tasks.DetectionModel("yolov8n.yaml", nc=3, verbose=False).half()
    torch.save({"model": network, "ema": None, "train_args": {"imgsz": 64}}, "best.pt")


def _own() -> None:
    Path("mynets.py").write_text(
        "from torch import nn\n\n\ndef teacher():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))\n"
    )


MAKE: dict[str, Callable[[], None]] = {  # what a line names -> how it comes to be
    "hf/vit": _transformers("ViTForImageClassification", **VIT, image_size=224, patch_size=32),
    "hf/segformer": _transformers(
        "SegformerForSemanticSegmentation",
        hidden_sizes=[8, 8, 16, 16],
        depths=[1] * 4,
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
    ),
    "hf/yolos": _transformers("YolosForObjectDetection", **VIT, image_size=[64, 64], num_detection_tokens=10),
    "hf/timm-resnet": _timm_directory,
    "weights.safetensors": _weights("timm/test_resnet", 4, "weights.safetensors"),
    "checkpoint.pt": _checkpoint,
    "test_resnet.safetensors": _weights("timm/test_resnet", 4, "test_resnet.safetensors"),
    "net.onnx": _onnx,
    "net.pt2": _pt2,
    "net.torchscript": _torchscript,
    "best.pt": _ultralytics,
    "old.pt": lambda: torch.save(_classifier(), "old.pt"),
    "tags.safetensors": _weights("timm/test_resnet", 6, "tags.safetensors"),
    "mask.safetensors": _weights("datafree/unet?width=4", 1, "mask.safetensors"),
    "grey.safetensors": _weights("datafree/resnet?depth=8", 4, "grey.safetensors", channels=1),
    "mynets:teacher": _own,
}
SAID = {  # and what of the answer shows that it was understood
    "hf/vit": "known: its config.json",
    "hf/segformer": "one tensor (B, 5, 224, 224)",
    "hf/yolos": "10 locations of 5 classes",
    "hf/timm-resnet": "known: config.json",
    "weights.safetensors": "the last layers in weights.safetensors",
    "checkpoint.pt": "those under 'backbone.'",
    "test_resnet.safetensors": "timm/test_resnet\n",
    "net.onnx": "one tensor (B, 5)",
    "net.pt2": "one tensor (B, 5)",
    "net.torchscript": "one tensor (B, 5)",
    "best.pt": "of 3 classes",
    "old.pt": "new.safetensors",
    "tags.safetensors": "multilabel",
    "mask.safetensors": "it has one output, a logit",
    "grey.safetensors": "the last layers in grey.safetensors",
    "mynets:teacher": "one tensor (B, 5)",
}


def slowly(line: str) -> Any:
    """The lines that have a large library imported, which takes seconds, are slow tests."""
    slow = any(word in line for word in ("hf/vit", "hf/segformer", "hf/yolos", "net.onnx", "best.pt"))
    return pytest.param(line, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize("line", [slowly(line) for line in LINES])
def test_a_line_of_the_table_does_what_it_says(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(line)
    (named,) = [word for word in words if word in MAKE]
    monkeypatch.setattr(estimate, "PASS", 0.0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.delitem(sys.modules, "mynets", raising=False)
    torch.manual_seed(0)
    MAKE[named]()
    capfd.readouterr()
    with pytest.raises(SystemExit) as left:
        main.main()
    said = capfd.readouterr()
    assert not left.value.code, said.err
    assert SAID[named] in said.out
    assert "take, in this order" in said.out or words[1] != "inspect"


def test_the_table_names_every_kind() -> None:
    assert {word for line in LINES for word in shlex.split(line) if word in MAKE} == set(MAKE)
