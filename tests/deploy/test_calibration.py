"""Calibration folders: what is written, whether its figures are those that torch and onnxruntime give by hand."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module, reload
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import Tensor, nn

import datafree
from datafree.cli import main
from datafree.data.images import to_image
from datafree.deploy.calibration import int8, judgement, readers
from datafree.deploy.calibration.layers import Activations, activations, distance, kept_range
from datafree.deploy.calibration.measures import Measured
from datafree.deploy.written_names import CALIBRATED, FOLDERS
from datafree.errors import DatafreeError, NetworkError, RunError
from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.normalized import Normalized
from datafree.networks.resnet import resnet
from run_directories import forge

pytest.importorskip("onnx")
onnxruntime: Any = pytest.importorskip("onnxruntime")

ARGS = {"depth": 8, "width": 8, "stride": 2}
COLOURS = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9]])
MEAN, STD = (0.4, 0.5, 0.3), (0.2, 0.25, 0.3)
QUICK: dict[str, Any] = {
    "images": 16,
    "task": {"kind": "classification", "num_classes": 3, "image_size": (32, 32)},
    "overrides": ["source.warmup=1"],
    "time": "1h",
}
TEACHER: dict[str, Any] = {
    "network": "datafree/resnet",
    "args": ARGS,
    "mean": MEAN,
    "std": STD,
    "channel_order": "bgr",
}


def coloured(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy images of a colour (count, 3, 32, 32), and which of COLOURS it is."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(COLOURS)
    noise = torch.rand(count, 3, 32, 32, generator=draw)
    return 0.6 * noise + 0.4 * COLOURS[labels][:, :, None, None], labels


def trained() -> nn.Module:
    """A network that tells the colours apart, fed as MEAN, STD and "bgr" say."""
    torch.manual_seed(0)
    network = resnet(3, **ARGS)
    wrapped = Normalized(network, MEAN, STD, channel_order="bgr")
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for step in range(20):
        images, labels = coloured(24, step)
        optimizer.zero_grad()
        answers = wrapped(images)
        assert isinstance(answers, Tensor)
        torch.autograd.backward(F.cross_entropy(answers, labels))
        optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the network's weights and labelled images of the colours."""
    folder = tmp_path_factory.mktemp("colours")
    save_weights(trained(), folder / "teacher.safetensors")
    for index, (image, label) in enumerate(zip(*coloured(24, 200), strict=True)):
        file = folder / "data" / ["red", "green", "blue"][int(label)] / f"{index:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        to_image(image).save(file)
    (folder / "data" / "classes.txt").write_text("red\ngreen\nblue\n")
    return folder


@pytest.fixture(scope="module")
def made(place: Path) -> datafree.Calibration:
    teacher = {**TEACHER, "weights": str(place / "teacher.safetensors")}
    return datafree.calibrate(teacher, place / "calib", data=place / "data", **QUICK)


def content(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "calibration.json").read_text())
    return found


# --- what is written ---


def test_every_form_holds_the_same_images(made: datafree.Calibration) -> None:
    stored = np.load(made.folder / "images.npy")
    assert stored.shape == (16, 32, 32, 3)
    assert stored.dtype == np.uint8
    listed = (made.folder / "images.txt").read_text().splitlines()
    assert listed == [f"images/{index:05}.png" for index in range(16)]
    for name, pixels in zip(listed, stored, strict=True):
        assert np.array_equal(np.asarray(Image.open(made.folder / name)), pixels)
    assert len({image.tobytes() for image in stored}) == 16  # no two alike
    inputs = np.concatenate([np.load(file) for file in sorted((made.folder / "inputs").glob("*.npy"))])
    normalised = (stored / np.float32(255) - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    assert np.allclose(inputs, normalised[..., ::-1].transpose(0, 3, 1, 2), atol=1e-5)  # B, G, R


def test_the_description_is_sealed_and_names_every_file_and_how_it_is_to_be_fed(made: datafree.Calibration) -> None:
    found = content(made.folder)
    seal = found.pop("seal")
    text = json.dumps(found, sort_keys=True, separators=(",", ":"))
    assert seal == hashlib.sha256(text.encode()).hexdigest()
    files = {f.relative_to(made.folder).as_posix(): f for f in made.folder.rglob("*") if f.is_file()}
    assert found["sha256"].keys() == files.keys() - {"calibration.json"}
    assert all(hashlib.sha256(files[name].read_bytes()).hexdigest() == sum_ for name, sum_ in found["sha256"].items())
    assert {entry.name for entry in made.folder.iterdir()} == set({*CALIBRATED, *FOLDERS})
    assert found["input"] == {
        "shape": ["batch", 3, 32, 32],
        "mean": list(MEAN),
        "std": list(STD),
        "channel_order": "bgr",
    }
    assert found["class_names"] == ["red", "green", "blue"]
    assert found["images"]["source"] == "fast"


def test_the_readers_give_each_tool_what_it_takes(
    made: datafree.Calibration, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(made.folder / "readers"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["convert", "teacher.onnx"])  # another of that name
    names = ("calibration_images", "openvino_nncf", "litert_dataset", "tensorrt_calibrator", "hailo_set")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    modules: list[Any] = [import_module(name) for name in names]
    own, openvino, litert, tensorrt, hailo = modules
    inputs = np.concatenate([np.load(file) for file in sorted((made.folder / "inputs").glob("*.npy"))])
    assert np.array_equal(np.concatenate(openvino.calibration_data()), inputs)
    batches = list(litert.representative_dataset())
    assert all(len(batch) == 1 and batch[0].dtype == np.float32 for batch in batches)
    assert np.array_equal(np.concatenate([batch[0] for batch in batches]), inputs.transpose(0, 2, 3, 1))
    assert np.array_equal(np.concatenate([batch["images"] for batch in tensorrt.load_data()]), inputs)
    copied: list[Any] = []

    def to_device(array: Any) -> int:
        copied.append(array)
        return len(copied)

    calibrator = tensorrt.Batches(to_device)
    assert (calibrator.get_batch_size(), calibrator.read_calibration_cache()) == (1, None)
    addresses = []
    while (batch := calibrator.get_batch(["images"])) is not None:
        addresses += batch
    assert addresses == list(range(1, 17))
    assert np.array_equal(np.concatenate(copied), inputs)
    calibrator.write_calibration_cache(b"cache")
    assert calibrator.read_calibration_cache() == b"cache"
    assert np.array_equal(hailo.calibration_set(), inputs.transpose(0, 2, 3, 1))
    monkeypatch.setattr(sys, "argv", ["convert", str(made.folder / "teacher.onnx")])  # which normalises itself
    own = reload(own)
    stored = np.load(made.folder / "images.npy")
    assert np.allclose(np.concatenate(list(own.inputs())), stored.transpose(0, 3, 1, 2) / 255, atol=1e-6)
    for name in names:
        sys.modules.pop(name, None)


def test_data_yaml_describes_the_images_beside_it(made: datafree.Calibration) -> None:
    found = yaml.safe_load((made.folder / "data.yaml").read_text())
    assert found["names"] == {0: "red", 1: "green", 2: "blue"}
    assert len(list((made.folder / found["val"]).glob("*.png"))) == 16
    assert found["train"] == found["val"]


@pytest.mark.parametrize("name", ['a "b"', "c: d", "#e", "né", "- f"])
def test_class_names_of_any_letters_are_read_back(name: str) -> None:
    assert yaml.safe_load(readers.data_yaml([name]))["names"] == {0: name}


# --- figures ---


def test_layer_figures_are_those_of_hooks_by_hand(made: datafree.Calibration, place: Path) -> None:
    network = trained()
    seen: list[Tensor] = []
    norm = network.get_submodule("bn1")
    handle = norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.from_numpy(np.load(made.folder / "images.npy")).permute(0, 3, 1, 2)
    with torch.no_grad():
        Normalized(network, MEAN, STD, channel_order="bgr").eval()(images.float() / 255)
    handle.remove()
    (x,) = seen
    kept: Any = norm
    kept_std = kept.running_var.sqrt()
    mean = ((x.mean((0, 2, 3)) - kept.running_mean) / kept_std).square().mean().sqrt()
    spread = (x.var((0, 2, 3), unbiased=False).sqrt() / kept_std).log().mean().exp()
    row = next(row for row in content(made.folder)["layers"] if row["layer"] == "bn1")
    assert row["made"]["range"] == pytest.approx([float(x.min()), float(x.max())], rel=1e-5)
    assert row["made"]["mean"] == pytest.approx(float(mean), rel=1e-3)
    assert row["made"]["spread"] == pytest.approx(float(spread), rel=1e-3)
    low, high = kept.running_mean - 3 * kept_std, kept.running_mean + 3 * kept_std
    assert row["kept"] == pytest.approx([float(low.min()), float(high.max())], rel=1e-5)


def test_agreement_is_that_of_onnxruntime(made: datafree.Calibration, place: Path) -> None:
    files = sorted((place / "data").glob("*/*.png"))
    ordered = [file for name in ("red", "green", "blue") for file in files if file.parent.name == name]
    images = np.stack([np.asarray(Image.open(file)) for file in ordered[1::2]]).transpose(0, 3, 1, 2)
    answers = [
        onnxruntime.InferenceSession(str(made.folder / name)).run(None, {"images": images.astype(np.float32) / 255})[0]
        for name in ("teacher.onnx", "teacher.int8.onnx")
    ]
    same = (answers[0].argmax(1) == answers[1].argmax(1)).mean()
    assert made.agreement["real"]["made"] == pytest.approx(float(same))
    assert content(made.folder)["int8"]["compared"]["real"] == len(images)
    assert not np.array_equal(*answers)
    scores = content(made.folder)["int8"]["scores"]
    truth = np.array([["red", "green", "blue"].index(file.parent.name) for file in ordered[1::2]])
    assert scores["float"]["top1"] == pytest.approx(float((answers[0].argmax(1) == truth).mean()))


def test_real_images_of_training_lie_within_and_noise_of_another_kind_does_not() -> None:
    network = trained()
    images, _ = coloured(60, 500)
    wrapped = Normalized(network, MEAN, STD, channel_order="bgr")
    device = torch.device("cpu")
    ours = activations(wrapped, (images * 255).round().byte(), device)
    flat = activations(wrapped, torch.full((8, 3, 32, 32), 255, dtype=torch.uint8), device)
    norms = {name: module for name, module in network.named_modules() if name in ours}
    near, far = ([distance(norms[name], seen[name]).badness for name in norms] for seen in (ours, flat))
    assert len(norms) == sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert sum(near) < sum(far)
    assert distance(norms["bn1"], ours["bn1"]).within
    assert not distance(norms["bn1"], flat["bn1"]).within


def test_the_distance_is_nought_at_the_kept_statistics_and_counts_channels_alike() -> None:
    norm = nn.BatchNorm2d(2)
    norm.running_mean, norm.running_var = torch.tensor([1.0, -1.0]), torch.tensor([4.0, 9.0])
    same = Activations(count=1, total=torch.tensor([1.0, -1.0]), squares=torch.tensor([5.0, 10.0]))
    assert (distance(norm, same).mean, distance(norm, same).spread) == pytest.approx((0.0, 1.0))
    # Means off by one and two kept deviations: the root of (1 + 4) / 2. Deviations twice as wide and a half: their
    # geometric mean is 1.
    off = Activations(count=1, total=torch.tensor([3.0, 5.0]), squares=torch.tensor([9.0 + 16, 25.0 + 2.25]))
    assert (distance(norm, off).mean, distance(norm, off).spread) == pytest.approx((2.5**0.5, 1.0))
    assert not distance(norm, off).within
    assert kept_range(norm) == pytest.approx((-10.0, 8.0))


def forged(**agreement: dict[str, float | None]) -> Measured:
    return Measured(rows=[], within={}, agreement=agreement)


def test_what_agrees_badly_is_warned_of_with_its_figure() -> None:
    assert judgement.judge(forged(made={"made": 0.851, "noise": 0.3})) == []
    assert judgement.judge(forged(made={"made": 0.7, "noise": 0.3}, real={"made": 0.951, "noise": 0.3})) == []
    (line,) = judgement.judge(forged(made={"made": 0.712, "noise": 0.3}))
    assert "71.2 % of held-out images of the source" in line
    (line,) = judgement.judge(forged(made={"made": 0.99, "noise": 0.3}, real={"made": 0.8, "noise": 0.3}))
    assert "80.0 % of real images" in line
    (line,) = judgement.judge(forged(made={"made": None, "noise": None}))
    assert "nothing is known" in line
    (line,) = judgement.judge(forged(made={"made": 0.95, "noise": 0.98}))
    assert "noise calibrates better" in line


def test_agreement_on_few_images_is_no_news_and_is_called_so() -> None:
    """Of n trials that all succeed, the share p of which so many would in 5 % of cases is p ** n = 0.05."""
    few = Measured(rows=[], within={}, agreement={"made": {"made": 1.0, "noise": 1.0}}, compared={"made": 2})
    (line,) = judgement.judge(few)
    assert "on 2 held-out images of the source, too few to tell" in line
    assert "may agree on 22.4 % of others; give --images 76 or more" in line
    assert 0.85**18 > 0.05 > 0.85**19 and judgement.enough(0.85) == 19
    assert judgement.judge(replace(few, compared={"made": 19})) == []
    real = {"made": {"made": 1.0, "noise": 1.0}, "real": {"made": 1.0, "noise": 1.0}}
    (line,) = judgement.judge(replace(few, agreement=real, compared={"made": 2, "real": 58}))
    assert "on 58 real images, too few to tell" in line and "more images in --data" in line
    assert judgement.judge(replace(few, agreement=real, compared={"made": 2, "real": 59})) == []


# --- other teachers ---


def onnx_of(network: nn.Module, file: Path, images: Tensor, **options: Any) -> Path:
    torch.onnx.export(network.eval(), (images,), file, dynamo=True, verbose=False, **options)
    return file


class Grey(nn.Module):
    """Answers about images in its own normalisation, without BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.last = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.last(self.layers(images).mean((2, 3)))
        return answer


@pytest.mark.thorough
def test_an_onnx_file_is_quantised_itself_and_takes_what_it_took(tmp_path: Path) -> None:
    network = Grey()
    file = onnx_of(network, tmp_path / "grey.onnx", torch.rand(1, 3, 16, 16))
    teacher = {"network": str(file), "mean": (0.4, 0.5, 0.3), "std": (0.2, 0.25, 0.3), "args": {"gradients": False}}
    done = datafree.calibrate(
        teacher, tmp_path / "out", images=16, source="procedural", overrides=["source.batch_size=8"]
    )
    assert not (done.folder / "teacher.onnx").exists()
    sessions = [onnxruntime.InferenceSession(str(path)) for path in (file, done.int8)]
    forms = [
        [(value.name, value.shape, value.type) for value in (*one.get_inputs(), *one.get_outputs())] for one in sessions
    ]
    assert forms[0] == forms[1]
    x = np.load(done.folder / "inputs" / "0000.npy")[:1]
    float_answer, int8_answer = (one.run(None, {one.get_inputs()[0].name: x})[0] for one in sessions)
    assert not np.array_equal(float_answer, int8_answer)
    assert np.abs(float_answer - int8_answer).max() < 0.2 * np.abs(float_answer).max()
    rows = content(done.folder)["layers"]
    assert len(rows) == 3
    images = np.concatenate([np.load(part) for part in sorted((done.folder / "inputs").glob("*.npy"))])
    with torch.no_grad():
        first = network.layers[0](torch.from_numpy(images))
    assert rows[0]["made"]["range"] == pytest.approx([float(first.min()), float(first.max())], rel=1e-4)
    assert content(done.folder)["layers_within"] == {}
    assert "no statistics of its training data" in (done.folder / "calibration.html").read_text()


def test_the_student_of_a_run_is_calibrated(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(place / "teacher.safetensors", run / "student.safetensors")
    section = {"network": "datafree/resnet", "args": ARGS, "mean": list(MEAN), "std": list(STD)}
    task = {"kind": "classification", "num_classes": 3, "image_size": [32, 32]}
    forge(run / "student.json", {"network": section, "task": task})
    done = datafree.calibrate(str(run), tmp_path / "out", images=8, source="noise", int8=False)
    found = content(done.folder)
    assert found["images"]["source"] == "noise"
    assert found["teacher"]["network"] == "datafree/resnet"
    assert found["int8"] is None
    assert done.int8 is None
    with pytest.raises(DatafreeError, match="--size"):
        datafree.calibrate(str(run), tmp_path / "other", size=32)


def test_photos_are_half_of_the_images(place: Path, tmp_path: Path) -> None:
    teacher = {**TEACHER, "weights": str(place / "teacher.safetensors")}
    options = {**QUICK, "overrides": [], "source": "noise", "int8": False}
    done = datafree.calibrate(teacher, tmp_path / "out", **{**options, "photos": place / "data"})
    stored = np.load(done.folder / "images.npy")
    photos = {np.asarray(Image.open(file)).tobytes() for file in (place / "data").glob("*/*.png")}
    assert sum(image.tobytes() in photos for image in stored) == 8
    assert content(done.folder)["images"]["photos"] == 8


# --- the command ---


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["datafree", "calibrate", *words])
        monkeypatch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as left:
            main.main()
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    return run


Command = Callable[..., tuple[int, str, str]]
GIVEN = ["--size", "32x32", "--mean", "0.4,0.5,0.3", "--std", "0.2,0.25,0.3", "--channel-order", "bgr"]


@pytest.mark.thorough
def test_a_bad_int8_network_is_warned_of_in_output_page_and_description(
    place: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(judgement.AGREES, "made", 1.01)
    words = [*GIVEN, "--images", "8", "--source", "noise", "--out", str(tmp_path / "out")]
    code, out, err = command(
        f"datafree/resnet?{'&'.join(f'{k}={v}' for k, v in ARGS.items())}",
        "--weights",
        str(place / "teacher.safetensors"),
        *words,
    )
    assert code == 0
    warning = next(line for line in err.splitlines() if line.startswith("warning: teacher.int8.onnx agrees"))
    assert " % of held-out images of the source, less than 101.0 %" in warning
    text = warning.removeprefix("warning: ")
    assert text in content(tmp_path / "out")["warnings"]
    assert text in (tmp_path / "out" / "calibration.html").read_text()
    assert "INT8 calibrated with" in out
    assert f"page: {tmp_path / 'out' / 'calibration.html'}" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["teacher.safetensors", "--images", "2"], "--images is 2: give 8 to 10,000"),
        (["teacher.safetensors", "--time", "soon"], "--time 'soon' is not a time"),
        (["teacher.safetensors", "--source", "zskt"], "learns with a student"),
        (["teacher.safetensors", "--source", "folder"], "needs photos"),
        (["teacher.safetensors", "--data", "nowhere"], "nowhere"),
        (["photo.png"], "is an image"),
        (["empty"], "is an empty folder"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    words: list[str], says: str, place: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(place / "teacher.safetensors", tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.png")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.iterdir())
    code, out, err = command(*words, *GIVEN)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(lines) == 1
    assert says in lines[0]
    assert out == ""
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.thorough
def test_onnx_files_of_other_forms_are_one_line(tmp_path: Path, command: Command) -> None:
    sides = {2: torch.export.Dim("height", min=8), 3: torch.export.Dim("width", min=8)}
    free = onnx_of(Grey(), tmp_path / "free.onnx", torch.rand(1, 3, 16, 16), dynamic_shapes=(sides,))
    half = onnx_of(Grey().half(), tmp_path / "half.onnx", torch.rand(1, 3, 16, 16).half())
    fixed = onnx_of(Grey(), tmp_path / "fixed.onnx", torch.rand(1, 3, 16, 16))
    for words, says in (
        ([str(free)], "--size"),  # of any size: it has to be said
        ([str(fixed), "--size", "32x32"], "16"),
        ([str(half), "--size", "16x16"], "float16"),
    ):
        code, _, err = command(*words, "--mean", "0", "--std", "1", "--images", "8", "--out", str(tmp_path / "out"))
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert code == 2, err
        assert says in line
        assert not (tmp_path / "out").exists()


@pytest.mark.thorough
def test_a_network_that_cannot_be_quantised_is_one_line_and_nothing_is_written(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*args: Any, **options: Any) -> None:
        raise NetworkError("grey.onnx cannot be quantised (no kernel for Scan); ship the float file")

    monkeypatch.setattr(int8, "quantize", refuses)
    file = onnx_of(Grey(), tmp_path / "grey.onnx", torch.rand(1, 3, 16, 16))
    words = ["--mean", "0", "--std", "1", "--images", "8", "--source", "noise", "--out", str(tmp_path / "out")]
    code, _, err = command(str(file), *words)
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert line == "error: grey.onnx cannot be quantised (no kernel for Scan): --no-int8 writes the images alone"
    assert not (tmp_path / "out").exists()
    assert command(str(file), *words, "--no-int8")[0] == 0
    assert (tmp_path / "out" / "images.npy").is_file()


def test_no_disk_and_a_folder_of_others_are_one_line_and_an_old_calibration_stays(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = {**TEACHER, "weights": str(place / "teacher.safetensors")}
    options = {**QUICK, "overrides": [], "source": "noise", "int8": False, "images": 8}
    out = tmp_path / "out"
    datafree.calibrate(teacher, out, **options)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
        with pytest.raises(RunError, match="no room"):
            datafree.calibrate(teacher, out, **options)
    with monkeypatch.context() as full:

        def fails(*args: Any, **options: Any) -> None:
            raise OSError(28, "No space left on device")

        full.setattr(np, "save", fails)
        with pytest.raises(RunError, match="No space left"):
            datafree.calibrate(teacher, out, **options)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    (out / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match=r"'mine\.txt'"):
        datafree.calibrate(teacher, out, **options)
    (out / "mine.txt").unlink()
    datafree.calibrate(teacher, out, **{**options, "seed": 1})
    assert np.load(out / "images.npy").tobytes() != before[out / "images.npy"]
