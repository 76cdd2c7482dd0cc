"""examples/: each program runs, on tiny sizes, and does what it says."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

import datafree
from datafree.config import yaml
from datafree.networks.checkpoints.weights import read_tensors, save_weights
from datafree.networks.load import NetworkSpec, build_network
from datafree.recipe.recipe import load_recipe
from datafree.sources.base import SourceContext
from datafree.tasks import Classification
from recipes import changed, write

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TINY = {"steps": 2, "batch_size": 4, "log_every": 1, "save_every": 2}

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are only in the repository")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports an example as its directory's own programs would."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


def weights_of(network: nn.Module, file: Path, size: int) -> Path:
    """A file of a network whose BatchNorm has seen something."""
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(2):
            network(torch.rand(4, 3, size, size))
    save_weights(network, file)
    return file


def check(result: datafree.Result, classes: int, size: tuple[int, int]) -> None:
    """The run is complete, and its student answers."""
    assert {"student.safetensors", "student.json", "recipe.yaml", "result.json"} <= set(result.paths)
    stored = load_file(result.paths["student.safetensors"])
    assert all(torch.equal(value, stored[name]) for name, value in result.student.state_dict().items())
    with torch.no_grad():
        answer: Any = result.network(torch.rand(2, 3, *size))
    assert answer.shape[:2] == (2, classes)


@pytest.mark.thorough
def test_torchvision(example: Callable[[str], ModuleType], tmp_path: Path) -> None:
    weights = weights_of(torchvision.models.shufflenet_v2_x1_5(num_classes=4), tmp_path / "t.safetensors", 32)
    result = example("torchvision_classifier").main(
        tmp_path / "run",
        weights,
        "torchvision/shufflenet_v2_x1_5",
        {"kind": "classification", "num_classes": 4, "image_size": (32, 32)},
        **TINY,
    )
    check(result, 4, (32, 32))
    assert "torchvision/shufflenet_v2_x1_0" in result.paths["student.json"].read_text()  # a smaller one of the family


@pytest.mark.thorough
def test_timm(example: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = weights_of(timm.create_model("test_resnet", num_classes=4), tmp_path / "t.safetensors", 32)
    monkeypatch.setattr(timm.data, "resolve_model_data_config", lambda network: {**LOOK, "input_size": (3, 32, 32)})
    result = example("timm_classifier").main(weights, tmp_path / "run", "test_resnet", 4, **TINY)
    check(result, 4, (32, 32))
    assert result.network.mean.flatten().tolist() == pytest.approx(LOOK["mean"])


LOOK = {"mean": (0.25, 0.5, 0.75), "std": (0.5, 0.25, 0.125)}


@pytest.mark.thorough
def test_smp(example: Callable[[str], ModuleType], tmp_path: Path, photos: Callable[..., Path]) -> None:
    import segmentation_models_pytorch as smp

    encoder = "tu-test_resnet"
    weights = weights_of(smp.Unet(encoder, encoder_weights=None, classes=3), tmp_path / "t.safetensors", 32)
    result = example("smp_segmenter").main(
        weights, photos(8), tmp_path / "run", (encoder, encoder), 3, (32, 32), 2, **TINY
    )
    check(result, 3, (32, 32))


@pytest.mark.thorough
def test_own_method_is_a_source_like_any_other(example: Callable[[str], ModuleType], tmp_path: Path) -> None:
    result = example("own_method").main(tmp_path / "run", **TINY)
    check(result, 10, (28, 28) if result.network.channels == 1 else (32, 32))
    assert set(result.scores) == {"teacher", "student"}
    loaded = load_recipe(write(tmp_path, changed(source={"method": "own_method:Clouds", "slope": 1.5})))
    assert (type(loaded.source).__name__, loaded.source.slope) == ("Clouds", 1.5)  # type: ignore[attr-defined]


def test_own_methods_images_fall_in_contrast_with_the_frequency(example: Callable[[str], ModuleType]) -> None:
    task = Classification(num_classes=2, image_size=(64, 64))
    source = example("own_method").Clouds(slope=1.0, contrast=0.1)
    source.attach(SourceContext(task=task, teacher=nn.Identity(), steps=1, batch_size=4))
    images = source.sample(16).images
    assert images.shape == (16, 3, 64, 64)
    amplitude = torch.fft.rfft2(images - images.mean((2, 3), keepdim=True)).abs().mean((0, 1))[0, 1:33]
    log = torch.log(torch.arange(1.0, 33.0))
    centred = log - log.mean()
    slope = (centred * (amplitude.log() - amplitude.log().mean())).sum() / centred.square().sum()
    assert float(slope) == pytest.approx(-1.0, abs=0.1)
    assert torch.equal(source.validation_images(3), source.validation_images(3))


# --- ESPNet ---


def espnet_section(text: str) -> dict[str, Any]:
    """The teacher's section in the example's own words."""
    block = text[text.index("    teacher:\n") :].partition("\n\n")[0]
    section: dict[str, Any] = yaml.parse(re.sub("^    ", "", block, flags=re.MULTILINE), "espnet.py")["teacher"]
    return section


def test_own_module_is_built_by_its_import_path(example: Callable[[str], ModuleType]) -> None:
    section = espnet_section(example("espnet").__doc__ or "")
    network = build_network(NetworkSpec(network=section["network"]), num_classes=12).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 3, 40, 48)).shape == (1, 12, 40, 48)


def test_own_modules_public_weights_load_as_they_are(example: Callable[[str], ModuleType], shared_data: Path) -> None:
    file = shared_data / "weights" / "espnet-p2q8-camvid.safetensors"
    network = build_network(NetworkSpec(network="espnet:make", weights=file), num_classes=12)
    stored, own = read_tensors(file), network.state_dict()
    assert stored.keys() == {name for name in own if not name.endswith("num_batches_tracked")}
    assert all(torch.equal(value, own[name]) for name, value in stored.items())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_espnets_scores_are_right_in_its_own_order_of_channels_only(
    example: Callable[[str], ModuleType], shared_data: Path
) -> None:
    section = espnet_section(example("espnet").__doc__ or "")
    section["weights"] = shared_data / "weights" / "espnet-p2q8-camvid.safetensors"
    task = {"kind": "segmentation", "num_classes": 12, "image_size": (128, 170), "ignore_index": 11}
    found = {
        order: datafree.evaluate({**section, "channel_order": order}, shared_data / "camvid" / "val", task=task).values[
            "miou"
        ]
        for order in ("bgr", "rgb")
    }
    assert found["bgr"] == pytest.approx(0.659, abs=0.005)
    assert found["rgb"] < 0.3


def test_every_example_is_run_here_and_named_in_the_readme() -> None:
    here, page = Path(__file__).read_text(encoding="utf-8"), (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for file in EXAMPLES.glob("*.py"):
        assert f"`{file.name}`" in page, file.name
        assert f'"{file.stem}"' in here or (Path(__file__).parent / f"test_{file.stem}_example.py").is_file(), file.name
    assert str(EXAMPLES) not in sys.path
