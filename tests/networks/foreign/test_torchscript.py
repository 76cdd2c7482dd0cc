"""networks/foreign/torchscript.py: TorchScript is code, and runs only where the user says that it is trusted."""

from __future__ import annotations

import struct
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

import datafree
from datafree.cli.main import main
from datafree.errors import NetworkError, WeightsError
from datafree.networks.batchnorm import require_batchnorm
from datafree.networks.checkpoints import torch_files
from datafree.networks.load import NetworkSpec, build_network
from datafree.networks.preprocessing import known
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


# --- damaged archives ---


def archive(directory: bytes, *, claimed: int = 60) -> bytes:
    """A zip archive with these bytes as its directory, which it says has `claimed` bytes."""
    start = b"PK\x03\x04" + b"x" * 100
    return start + directory + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, claimed, len(start) - 60, 0)


DAMAGED = {
    "no directory": archive(b""),
    "another place": archive(b"", claimed=6000),
    "an entry cut short": archive(b"PK\x01\x02" + b"\0" * 20, claimed=24),
    "a version to come": archive(b"PK\x01\x02" + b"\xff" * 24 + b"\0" * 18, claimed=46),
    "a huge directory": archive(b"", claimed=2**31),
    "no end": b"PK\x03\x04" + b"x" * 200,
    "behind other bytes": b"x" * 50 + archive(b""),
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_a_damaged_archive_as_network_is_one_line(damage: str, suffix: str, tmp_path: Path) -> None:
    file = (tmp_path / "net").with_suffix(suffix)
    file.write_bytes(DAMAGED[damage])
    spec = NetworkSpec(network=str(file))
    for use in (lambda: build_network(spec, num_classes=3), lambda: known(spec)):
        with pytest.raises(WeightsError, match="damaged") as caught:
            use()
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_recipe_that_names_a_damaged_archive_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.pt").write_bytes(DAMAGED["no directory"])
    Path("recipe.yaml").write_text(
        "task: {kind: classification, num_classes: 3, image_size: [32, 32]}\nteacher: {network: net.pt}\n"
        "student: {network: datafree/resnet}\nsource: {method: noise}\ntraining: {steps: 2}\n"
    )
    monkeypatch.setattr(sys, "argv", ["datafree", "distill", "recipe.yaml", "--out", "run"])
    with pytest.raises(SystemExit) as left:
        main()
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert left.value.code == 2
    assert "net.pt: a damaged archive" in line
    assert "fetch it again" in line


def test_a_directory_that_would_take_much_memory_is_refused_unread(
    script: tuple[nn.Module, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "net.pt"
    file.write_bytes(script[1].read_bytes())
    monkeypatch.setattr(torch_files, "_MAX_DIRECTORY", 100)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(WeightsError, match=r"net\.pt: an archive with a directory of"):
        build_network(NetworkSpec(network=str(file)), num_classes=3)
