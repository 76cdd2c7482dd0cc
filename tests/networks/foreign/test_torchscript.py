"""networks/foreign/torchscript.py: TorchScript is code, and runs only where the user says that it is trusted."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import datafree
from datafree.errors import NetworkError, WeightsError
from datafree.networks.batchnorm import require_batchnorm
from datafree.networks.load import NetworkSpec, build_network
from datafree.networks.pruning.start import start_from_teacher
from datafree.preflight.inspection import inspect_teacher

IMAGES = torch.rand(3, 3, 8, 8)


@pytest.fixture(scope="module", params=["net.torchscript", "net.pt"])
def script(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    file = tmp_path_factory.mktemp("script") / request.param
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(network), file)
    return network, file


def test_a_program_that_nobody_trusts_is_not_opened(
    script: tuple[nn.Module, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.jit, "load", lambda *args, **more: pytest.fail("it was loaded"))
    for args in ({}, {"trusted": False}, {"trusted": "yes"}):
        with pytest.raises(NetworkError, match=r"which is code: if you trust .* args: \{trusted: true\}") as caught:
            build_network(NetworkSpec(network=str(script[1]), args=args), num_classes=5)
        assert "\n" not in str(caught.value)


def test_a_trusted_program_answers_as_its_network_with_gradients_and_no_layers(
    script: tuple[nn.Module, Path],
) -> None:
    network, file = script
    teacher = build_network(NetworkSpec(network=str(file), args={"trusted": True}), num_classes=5)
    torch.testing.assert_close(teacher(IMAGES), network(IMAGES))
    images = IMAGES.clone().requires_grad_()
    teacher(images).sum().backward()
    assert images.grad is not None
    with pytest.raises(NetworkError, match="no BatchNorm statistics"):
        require_batchnorm(teacher, "cmi")
    found = inspect_teacher(str(file), args=["trusted=true"], size="8x8")
    assert (found.task.value, found.classes.value) == ("classification", 5)
    assert found.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert found.sources["dafl"].applies
    assert not found.sources["inversion"].applies


def test_a_student_cannot_start_from_it_and_is_told_why(script: tuple[nn.Module, Path]) -> None:
    teacher = build_network(NetworkSpec(network=str(script[1]), args={"trusted": True}), num_classes=5)
    student = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2 * 36, 5))
    with pytest.raises(NetworkError, match="a TorchScript program, whose layers cannot be watched"):
        start_from_teacher(teacher, student, IMAGES)


def test_it_teaches_a_student_to_the_end(script: tuple[nn.Module, Path], tmp_path: Path) -> None:
    made = datafree.distill(
        {"network": str(script[1]), "args": {"trusted": True}},
        {"network": "datafree/resnet?depth=8&width=4"},
        task={"kind": "classification", "num_classes": 5, "image_size": (8, 8)},
        source={"method": "procedural", "batch_size": 4, "warmup": 1},
        training={"steps": 2, "batch_size": 4, "device": "cpu", "precision": "fp32"},
        out=tmp_path / "run",
    )
    assert made.network(IMAGES).shape == (3, 5)


def test_what_is_no_program_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.torchscript").write_bytes(b"no program")
    with pytest.raises(WeightsError, match=r"torch\.jit\.load does not take it") as caught:
        build_network(NetworkSpec(network=str(tmp_path / "a.torchscript"), args={"trusted": True}), num_classes=5)
    assert "\n" not in str(caught.value)
    torch.save({"weight": torch.ones(3)}, tmp_path / "a.pt")
    with pytest.raises(NetworkError, match="holds weights, not a network"):
        build_network(NetworkSpec(network=str(tmp_path / "a.pt")), num_classes=5)
    with pytest.raises(WeightsError, match="no such file"):
        build_network(NetworkSpec(network=str(tmp_path / "b.pt")), num_classes=5)
