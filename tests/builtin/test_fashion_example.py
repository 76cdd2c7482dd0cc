"""The built-in classification example's files, the script that makes them, and the loop that trains classifiers."""

import gzip
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import datafree
from datafree.config import yaml
from datafree.engine.build_networks import prepare
from datafree.errors import Interrupted, RunError
from datafree.evaluation.scoring import evaluate
from datafree.networks.resnet import resnet
from datafree.recipe.recipe import load_recipe
from datafree.tasks.classification import Classification

PACKAGE = Path(datafree.__file__).parent
EXAMPLE = PACKAGE / "builtin" / "data" / "fashion"
ROOT = Path(__file__).resolve().parents[2]
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
# In the order of the labels 0 to 9.
NAMES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot"]

needs_originals = pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="dataset-fashion-mnist is not installed")


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """scripts/make_fashion_example.py as a module; the search path and module table are put back."""
    path = ROOT / "scripts" / "make_fashion_example.py"
    if not path.exists():
        pytest.skip("the script is only in the repository, not in the installed package")
    search_path, modules = list(sys.path), set(sys.modules)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = search_path
    for name in {"supervised"} - modules:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def supervised(script: ModuleType) -> ModuleType:
    return sys.modules["supervised"]


# What is shipped.


def test_shipped_files_are_complete_and_small() -> None:
    files = [path for path in EXAMPLE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_500_000
    assert (EXAMPLE / "eval" / "classes.txt").read_text(encoding="utf-8").split() == NAMES
    assert sorted(path.name for path in (EXAMPLE / "eval").iterdir() if path.is_dir()) == sorted(NAMES)
    for name in NAMES:
        images = list((EXAMPLE / "eval" / name).iterdir())
        assert len(images) == 100
        for path in images:
            with Image.open(path) as image:
                assert (image.format, image.size, image.mode) == ("PNG", (28, 28), "L"), path
    readme = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    assert "Zalando" in readme and "MIT License" in readme and "make_fashion_example.py" in readme


def test_shipped_teacher_reaches_its_stated_accuracy_through_the_packaged_recipe() -> None:
    stated = re.search(r"([\d.]+) % of the 1,000", (EXAMPLE / "README.md").read_text(encoding="utf-8"))
    assert stated is not None
    recipe = load_recipe("fashion-demo")
    assert recipe.data is not None
    teacher = prepare(recipe.teacher, recipe.task, "teacher", torch.device("cpu"), torch.float32)
    labelled = recipe.task.open_dataset(recipe.data)
    scores = evaluate(teacher, recipe.task, labelled, device=torch.device("cpu"), batch_size=250)
    assert len(labelled) == 1000
    assert scores.values["top1"] == pytest.approx(float(stated[1]) / 100, abs=0.002)


def test_recipes_differ_in_the_source_and_what_needs_it() -> None:
    demo, cgdd, noise = (
        yaml.parse((PACKAGE / "builtin" / "recipes" / f"fashion-{name}.yaml").read_text(encoding="utf-8"), name)
        for name in ("demo", "cgdd", "noise")
    )
    assert (demo["source"]["method"], cgdd["source"]["method"]) == ("fast", "cgdd")
    assert noise["source"] == {"method": "noise"}
    for key in ("task", "teacher", "student", "data"):
        assert demo[key] == noise[key]
    assert demo["student"] == {**cgdd["student"], "init": "teacher"}  # the paper's starts from random weights
    for key in ("task", "teacher", "data"):
        assert demo[key] == cgdd[key]
    assert demo["training"] == noise["training"]  # the baseline has as many steps
    of_cgdd = {"steps", "label_weight", "attention_weight"}
    same = {key: value for key, value in noise["training"].items() if key != "steps"}
    assert {key: value for key, value in cgdd["training"].items() if key not in of_cgdd} == same


# The script.


@needs_originals
def test_the_script_makes_the_shipped_images(script: ModuleType) -> None:
    test = script.load_fashion(FASHION_MNIST, "t10k")
    assert test.images.shape == (10_000, 1, 28, 28)
    for name, places in zip(test.class_names, script.first_of_each(test), strict=True):
        folder = EXAMPLE / "eval" / name
        assert sorted(path.name for path in folder.iterdir()) == [f"{place:05d}.png" for place in places]
        for place in places[::20]:
            with Image.open(folder / f"{place:05d}.png") as image:
                assert np.array_equal(np.asarray(image), test.images[place, 0].numpy())


def write_idx(folder: Path, part: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """A small data set in Fashion-MNIST's form: each label's images have a brightness of their own."""
    labels = (np.arange(count) * 7 % 10).astype(np.uint8)
    images = np.random.default_rng(0).integers(0, 20, (count, 28, 28), dtype=np.uint8) + 23 * labels[:, None, None]
    for kind, header, values in (("images-idx3", 16, images), ("labels-idx1", 8, labels)):
        content = gzip.compress(bytes(header) + values.tobytes())
        (folder / f"{part}-{kind}-ubyte.gz").write_bytes(content)
    return images, labels


def test_the_script_writes_readable_images_and_ships_half_precision(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = write_idx(tmp_path, "t10k", 30)
    write_idx(tmp_path, "train", 40)
    monkeypatch.setattr(script, "EPOCHS", 2)
    monkeypatch.setattr(script, "BATCH", 10)
    monkeypatch.setattr(sys, "argv", ["script", "all", "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    script.main()
    assert "step 8/8" in capsys.readouterr().out

    task = Classification(num_classes=10, image_size=(28, 28))
    folder = task.open_dataset(tmp_path / "out" / "eval")
    for label, name in enumerate(NAMES):
        assert [path.stem for path in sorted((tmp_path / "out" / "eval" / name).iterdir())] == [
            f"{place:05d}" for place in np.flatnonzero(labels == label)
        ]
    image, label = folder[3]  # the first of the second class: three of each
    assert int(label) == 1
    expected = torch.from_numpy(images[labels == 1][0]).float() / 255
    assert torch.allclose(image, expected.expand(3, 28, 28))

    shipped = load_file(tmp_path / "out" / "teacher.safetensors")
    assert {value.dtype for value in shipped.values()} == {torch.float16, torch.int64}
    assert shipped.keys() == script.new_teacher().network.state_dict().keys()


# Training with labels.

TASK = Classification(num_classes=2, image_size=(12, 12))
OPTIONS = {"steps": 30, "batch_size": 6, "lr": 0.1, "weight_decay": 1e-4, "seed": 3}


def bright_and_dark(supervised: ModuleType, count: int = 20) -> object:
    """Noise of one channel, (N, 1, 12, 12): dark images are class 0, bright ones class 1."""
    torch.manual_seed(0)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 100, (count, 1, 12, 12), dtype=torch.uint8) + 150 * labels[:, None, None, None].byte()
    return supervised.LabelledImages(images=images, labels=labels, class_names=["dark", "bright"])


def tiny() -> nn.Module:
    torch.manual_seed(1)
    return resnet(2, depth=8, width=4)


def test_a_classifier_learns(supervised: ModuleType) -> None:
    data, network = bright_and_dark(supervised), tiny()
    supervised.train_classifier(network, TASK, data, **OPTIONS, log=lambda line: None)
    assert not network.training
    assert evaluate(network, TASK, data, device=torch.device("cpu"), batch_size=7).values["top1"] == 1.0


def test_a_stopped_classifier_goes_on_exactly(supervised: ModuleType, tmp_path: Path) -> None:
    data, state = bright_and_dark(supervised), tmp_path / "state.pt"
    options = {**OPTIONS, "steps": 8, "log": lambda line: None}
    whole, stopped, resumed = tiny(), tiny(), tiny()
    supervised.train_classifier(whole, TASK, data, **options)
    answers = iter([False] * 5 + [True])
    with pytest.raises(Interrupted, match="step 5 of 8"):
        supervised.train_classifier(stopped, TASK, data, **options, stop=lambda: next(answers), state_path=state)
    supervised.train_classifier(resumed, TASK, data, **options, state_path=state)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    with pytest.raises(RunError, match="shift was 2, is 1"):
        supervised.train_classifier(tiny(), TASK, data, **options, shift=1, state_path=state)


def test_each_image_comes_once_an_epoch_in_an_order_of_its_own(supervised: ModuleType) -> None:
    drawn = torch.cat([supervised.in_epochs(first, 6, size=10, seed=4) for first in range(0, 30, 6)])
    epochs = drawn.view(3, 10)
    assert torch.equal(epochs.sort(1).values, torch.arange(10).expand(3, 10))
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(supervised.in_epochs(7, 19, size=10, seed=4), drawn[7:26])  # longer than an epoch
    assert not torch.equal(supervised.in_epochs(0, 10, size=10, seed=5), drawn[:10])


def test_a_shift_moves_all_images_alike_and_black_moves_in(supervised: ModuleType) -> None:
    torch.manual_seed(0)
    images = torch.rand(3, 3, 8, 9) + 1  # nothing is black
    moves = set()
    for _ in range(40):
        moved = supervised.random_shift(images, 2)
        assert moved.shape == images.shape
        kept = moved[0, 0] > 0
        rows, columns = kept.any(1).nonzero().flatten(), kept.any(0).nonzero().flatten()
        down = int(rows[0]) or int(rows[-1]) - 7  # black above: moved down; black below: up
        right = int(columns[0]) or int(columns[-1]) - 8
        moves.add((down, right))
        part = images[:, :, max(-down, 0) : 8 - max(down, 0), max(-right, 0) : 9 - max(right, 0)]
        assert torch.equal(moved[:, :, kept.any(1)][..., kept.any(0)], part)
    assert {down for down, _ in moves} == {right for _, right in moves} == {-2, -1, 0, 1, 2}
