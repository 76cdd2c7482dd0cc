"""What a user's word for a teacher names, told by a file's first bytes, before torch is imported."""

from __future__ import annotations

import gzip
import pickle
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from datafree.errors import NetworkError, WeightsError
from datafree.networks.checkpoints.weights import read_tensors, save_weights
from datafree.preflight.teacher_file import kind_of


def zipped(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("deep/model.pth", b"0" * 10)


def sparse(file: Path) -> None:
    with file.open("wb") as zeros:
        zeros.truncate(2**30)


def program(file: Path) -> None:
    torch.export.save(torch.export.export(nn.ReLU(), (torch.rand(1, 3, 4, 4),)), file)


def script(file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit
        torch.jit.script(nn.ReLU()).save(file)


def table(file: Path) -> None:
    """As TensorFlow's tables end: two places in it, filled up to 40 bytes, and a number."""
    file.write_bytes(b"\0\0\x05entry" * 99 + bytes(40) + 0xDB4775248B80FB57.to_bytes(8, "little"))


TEACHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a.safetensors": (lambda file: save_weights(nn.Linear(2, 2), file), "weights"),
    "a.pth": (lambda file: torch.save(nn.Linear(2, 2).state_dict(), file), "weights"),
    "old.pth": (lambda file: torch.save({}, file, _use_new_zipfile_serialization=False), "weights"),
    "model.safetensors.index.json": (lambda file: file.write_text('{"weight_map": {}}'), "weights"),
    "yolo.weights": (lambda file: file.write_bytes(b"\0\0\0\0\2\0\0\0"), "weights"),
    "a.pt2": (program, "program"),
    "script.pt": (script, "program"),
    "a.onnx": (lambda file: file.write_bytes(b"\x08\x08\x12\x07pytorch"), "onnx"),
    "any.txt": (lambda file: file.write_text("task: {kind: detection}\n"), "recipe"),
    "broken.yaml": (lambda file: file.write_text(": : :"), "recipe"),  # whoever reads it says what is wrong
}


@pytest.mark.parametrize("name", TEACHERS)
def test_a_file_is_told_by_how_it_begins(name: str, tmp_path: Path) -> None:
    write, kind = TEACHERS[name]
    write(tmp_path / name)
    assert kind_of(str(tmp_path / name)) == kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("timm/resnet18", "name"),
        ("torchvision/resnet18?progress=false", "name"),
        ("my_nets:teacher", "name"),
        ("fashion-demo", "recipe"),
        ("nowhere/street.yaml", "recipe"),
    ],
)
def test_what_is_no_file_is_a_name_or_a_recipe(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def cut(file: Path, end: int) -> None:
    """Tensors of safetensors, up to a byte."""
    file.write_bytes(safetensors.torch.save({"w": torch.ones(3)})[:end])


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder": (lambda path: path.mkdir(), "is an empty folder"),
    "notes.txt": (lambda file: file.write_text("buy milk\n"), "is a text, and no recipe"),
    "cat.png": (lambda file: Image.new("RGB", (4, 4)).save(file), "is an image"),
    "cat.jpg": (lambda file: Image.new("RGB", (4, 4)).save(file), "is an image"),
    "all.zip": (zipped, "is a zip archive, and none of torch's: unpack it and give deep/model.pth"),
    "cut.pt": (lambda file: file.write_bytes(b"PK\3\4" + bytes(60)), "is a damaged zip archive"),
    "cut.safetensors": (lambda file: cut(file, -1), "is cut short, its last 1 bytes are missing: fetch it again"),
    "head.safetensors": (lambda file: cut(file, 60), "is cut short, its last "),
    "zeros.bin": (sparse, "begins with nothing but zeros"),
    "nothing.pt": (lambda file: file.touch(), "is empty"),
    "page.pth": (lambda file: file.write_text("<!DOCTYPE html><html>404"), "is a web page"),
    "a.pth.gz": (lambda file: file.write_bytes(gzip.compress(b"x")), "is compressed by gzip"),
    "net.tflite": (lambda file: file.write_bytes(b"\x1c\0\0\0TFL3" + bytes(60)), r"is TFLite's; .*tf2onnx.*--tflite"),
    "net.rknn": (lambda file: file.write_bytes(b"RKNN" + bytes(60)), "is compiled for a Rockchip NPU"),
    "net.h5": (lambda file: file.write_bytes(b"\x89HDF\r\n\x1a\n"), r"is Keras's; .*tf2onnx"),
    "net.keras": (zipped, r"is Keras's; .*tf2onnx"),
    "net.pb": (lambda file: file.write_bytes(b"\x08\x01\x12\x97\x01"), r"is TensorFlow's; .*--graphdef"),  # as ONNX's
    "model.ckpt-100.index": (table, r"is a checkpoint of TensorFlow's, .*--checkpoint FILE.meta"),
    "old.ckpt": (table, "is a checkpoint of TensorFlow's"),
    "model.ckpt.data-00000-of-00001": (lambda file: file.write_bytes(bytes(99)), "is a checkpoint of TensorFlow's"),
    "model.ckpt.meta": (lambda file: file.write_bytes(b"\n\x0b"), "is a checkpoint of TensorFlow's"),
    "checkpoint": (
        lambda file: file.write_text('model_checkpoint_path: "a.ckpt"\n'),
        "is a checkpoint of TensorFlow's",
    ),
    "net.mlpackage": (lambda path: path.mkdir(), "is Core ML's"),
    "net.npz": (zipped, "holds arrays of NumPy"),
    "script.bin": (script, "is a TorchScript program: name it script.torchscript"),
    "noise": (lambda file: file.write_bytes(b"\xde\xad\xbe\xef" * 200), "is no file of a kind that is known"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_teacher_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    write, words = REFUSED[name]
    write(tmp_path / name)
    with pytest.raises(NetworkError, match=words) as caught:
        kind_of(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_folders_are_told_by_what_is_in_them(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert kind_of(str(tmp_path)) == "directory"
    (tmp_path / "config.json").rename(tmp_path / "recipe.yaml")
    with pytest.raises(NetworkError, match=r"is a run; .* give .*recipe.yaml"):
        kind_of(str(tmp_path))
    (tmp_path / "recipe.yaml").rename(tmp_path / "a.png")
    with pytest.raises(NetworkError, match="--photos"):
        kind_of(str(tmp_path))
    (tmp_path / "a.png").rename(tmp_path / "a.pth")
    with pytest.raises(NetworkError, match=r"give a file in it, such as .*a.pth"):
        kind_of(str(tmp_path))


def test_a_saved_model_of_tensorflow_is_told_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(NetworkError, match=r"is TensorFlow's; .*--saved-model"):
        kind_of(str(tmp_path))


def test_a_checkpoint_of_tensorflow_is_told_by_its_folder_its_prefix_and_as_weights(tmp_path: Path) -> None:
    table(tmp_path / "model.ckpt.index")
    (tmp_path / "model.ckpt.data-00000-of-00001").write_bytes(bytes(99))
    for named in (tmp_path, tmp_path / "model.ckpt"):
        with pytest.raises(NetworkError, match="is a checkpoint of TensorFlow's"):
            kind_of(str(named))
    with pytest.raises(WeightsError, match=r"model\.ckpt\.index: is a checkpoint of TensorFlow's"):
        read_tensors(tmp_path / "model.ckpt.index")


@pytest.mark.parametrize("name", ["mine.tflite", "net.torchscript"])
def test_a_missing_file_of_another_kind_is_said_to_be_missing(name: str) -> None:
    with pytest.raises(NetworkError, match=f"there is no file {name}"):
        kind_of(name)


def test_a_missing_file_is_not_taken_for_a_name() -> None:
    with pytest.raises(NetworkError, match=r"there is no file weights/mine\.pth"):
        kind_of("weights/mine.pth")


def test_a_pickle_is_not_opened_to_tell_what_it_is(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
            return Path.touch, (tmp_path / "sprung",)  # type: ignore[return-value]

    file = tmp_path / "trap.pt"
    file.write_bytes(pickle.dumps(Trap()))
    assert kind_of(str(file)) == "weights"
    assert not (tmp_path / "sprung").exists()


def test_the_command_refuses_without_importing_torch(tmp_path: Path) -> None:
    sparse(tmp_path / "zeros.bin")
    code = (
        "import sys; sys.argv = ['datafree', 'distill', 'zeros.bin']\n"
        "from datafree.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as left: print(left.code, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\n"
    assert done.stderr.startswith("error: zeros.bin begins with nothing but zeros")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("content", [b"PK\x05\x06abc", b"PK\x05\x06" + bytes(17)])
def test_the_beginning_of_an_archives_end_is_refused_in_a_line(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "short.pt"
    file.write_bytes(content)
    with pytest.raises(NetworkError, match="damaged zip archive"):
        kind_of(str(file))
