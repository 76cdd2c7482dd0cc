"""The built-in example's files, the script that makes them, and the benchmarks' supervised loop."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import datafree
from datafree.errors import DataError, Interrupted, RunError, TrainingError
from datafree.evaluation.scoring import evaluate
from datafree.networks.checkpoints.weights import load_weights
from datafree.networks.load import build_network
from datafree.networks.normalized import Normalized
from datafree.networks.unet import unet
from datafree.recipe.recipe import load_recipe
from datafree.tasks.detection import Detection
from datafree.tasks.segmentation import Segmentation

EXAMPLE = Path(datafree.__file__).parent / "builtin" / "data" / "garments"
ROOT = Path(__file__).resolve().parents[2]
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
STATED_MIOU = 0.846  # in the example's README.md
TASK = Segmentation(num_classes=6, image_size=(64, 64))


def load_module(path: Path) -> Iterator[ModuleType]:
    """A module of a file outside the package; the search path and module table are put back."""
    if not path.exists():
        pytest.skip(f"{path.name} is only in the repository, not in the installed package")
    search_path, modules = list(sys.path), set(sys.modules)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = search_path
    for name in {path.stem, "supervised"} - modules:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def make_example() -> Iterator[ModuleType]:
    yield from load_module(ROOT / "scripts" / "make_example.py")


@pytest.fixture(scope="module")
def supervised() -> Iterator[ModuleType]:
    yield from load_module(ROOT / "benchmarks" / "supervised.py")


def test_shipped_files_are_complete_and_small() -> None:
    files = [path for path in EXAMPLE.rglob("*") if path.is_file()]
    boxes = {EXAMPLE / "detector.safetensors", EXAMPLE / "eval" / "annotations.json"}  # what detection adds
    assert boxes < set(files)
    assert sum(path.stat().st_size for path in files if path not in boxes) < 2_500_000
    assert sum(path.stat().st_size for path in boxes) < 1_200_000
    assert len(list((EXAMPLE / "eval" / "images").glob("*.png"))) == 120
    assert len(list((EXAMPLE / "proxy").glob("*.png"))) == 300
    for path in [*(EXAMPLE / "eval" / "images").iterdir(), *(EXAMPLE / "proxy").iterdir()]:
        with Image.open(path) as image:
            assert (image.size, image.mode) == ((64, 64), "RGB"), path
    assert "Zalando" in (EXAMPLE / "README.md").read_text(encoding="utf-8")


def test_shipped_masks_hold_every_class_and_nothing_else() -> None:
    names = (EXAMPLE / "eval" / "classes.txt").read_text(encoding="utf-8").split("\n")[:-1]
    pixels = np.zeros(256, np.int64)
    for path in (EXAMPLE / "eval" / "masks").glob("*.png"):
        with Image.open(path) as mask:
            assert (mask.size, mask.mode) == ((64, 64), "P")
            pixels += np.bincount(np.asarray(mask).ravel(), minlength=256)
    assert np.flatnonzero(pixels).tolist() == list(range(len(names))) == list(range(6))


def test_shipped_teacher_reaches_its_stated_miou() -> None:
    network = unet(num_classes=6, width=16, depth=4, stride=2)
    load_weights(network, EXAMPLE / "teacher.safetensors")
    teacher = Normalized(network, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    scores = evaluate(teacher, TASK, TASK.open_dataset(EXAMPLE / "eval"), device=torch.device("cpu"))
    assert scores.values["miou"] > STATED_MIOU - 0.01


needs_originals = pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="dataset-fashion-mnist is not installed")


@needs_originals
def test_a_scene_depends_on_its_style_and_number_only(make_example: ModuleType) -> None:
    garments = make_example.read_garments(FASHION_MNIST, "t10k")
    image, mask, _ = make_example.scene(garments, make_example.EVALUATION, 5)
    make_example.scene(garments, make_example.PROXY, 1)
    again, mask_again, _ = make_example.scene(garments, make_example.EVALUATION, 5)
    assert np.array_equal(image, again) and np.array_equal(mask, mask_again)
    assert not np.array_equal(image, make_example.scene(garments, make_example.EVALUATION, 6)[0])
    assert not np.array_equal(image, make_example.scene(garments, make_example.TRAINING, 5)[0])


@needs_originals
def test_the_script_makes_the_shipped_scenes(make_example: ModuleType) -> None:
    garments = make_example.read_garments(FASHION_MNIST, "t10k")
    image, mask, _ = make_example.scene(garments, make_example.EVALUATION, 7)
    with Image.open(EXAMPLE / "eval" / "masks" / "007.png") as shipped:
        assert (np.asarray(shipped) != mask).mean() < 0.01  # another Pillow may resample a hair differently
    with Image.open(EXAMPLE / "eval" / "images" / "007.png") as shipped:
        assert np.abs(np.asarray(shipped).astype(int) - image).mean() < 2


@needs_originals
def test_fashion_mnist_is_read_as_its_labels_say(make_example: ModuleType) -> None:
    garments = make_example.read_garments(FASHION_MNIST, "t10k")
    assert garments.pictures.shape == (10_000, 28, 28)
    assert [len(garments.of_label[label]) for label in range(10)] == [1000] * 10  # as its authors state
    trousers = garments.pictures[garments.of_label[1]].mean(0)
    assert trousers[24, 14] < min(trousers[24, 9], trousers[24, 18])  # a gap between the legs


def two_halves(count: int = 8, size: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose left part is dark, class 0, and right part bright, class 1; the border moves."""
    images = torch.full((count, 3, size, size), 30, dtype=torch.uint8)
    masks = torch.zeros(count, size, size, dtype=torch.uint8)
    for index in range(count):
        images[index, :, :, 3 + index % 6 :] = 220
        masks[index, :, 3 + index % 6 :] = 1
    return images, masks


OPTIONS = {"steps": 40, "batch_size": 4, "lr": 0.02, "weight_decay": 0.0, "seed": 3, "image_size": (8, 8)}
HALVES = Segmentation(num_classes=2, image_size=(8, 8))


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return unet(2, width=4, depth=1, stride=1)


def test_supervised_training_learns_and_ignores_the_ignored(supervised: ModuleType) -> None:
    images, masks = two_halves()
    masks[:, 0] = 255  # a row without labels: learning it would be an error, class 255 does not exist
    network = tiny()
    supervised.train_supervised(network, HALVES, images, masks, **OPTIONS, log=lambda line: None)
    assert not network.training
    with torch.no_grad():
        found = network(images.float() / 255).argmax(1)
    assert (found[:, 1:] == masks[:, 1:]).float().mean() > 0.95


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_stopped_training_goes_on_exactly(supervised: ModuleType, tmp_path: Path, optimizer: str) -> None:
    images, masks = two_halves()
    options = {**OPTIONS, "optimizer": optimizer, "scale": (1.0, 1.4), "log": lambda line: None}
    whole, parts = tiny(), tiny()
    supervised.train_supervised(whole, HALVES, images, masks, **options)

    answers = iter([False] * 17 + [True])
    state = tmp_path / "state.pt"
    with pytest.raises(Interrupted, match="step 17 of 40"):
        supervised.train_supervised(
            parts, HALVES, images, masks, **options, stop=lambda: next(answers), state_path=state
        )
    resumed = tiny()
    supervised.train_supervised(resumed, HALVES, images, masks, **options, state_path=state)
    finished = tiny()
    supervised.train_supervised(finished, HALVES, images, masks, **options, state_path=state, stop=lambda: True)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
        assert torch.equal(finished.state_dict()[name], value), name
        assert not name.endswith("num_batches_tracked") or int(value) == 40

    with pytest.raises(RunError, match=r"lr was 0\.02, is 0\.5"):
        supervised.train_supervised(tiny(), HALVES, images, masks, **{**options, "lr": 0.5}, state_path=state)


def test_training_that_diverges_is_one_clear_line(supervised: ModuleType) -> None:
    images, masks = two_halves()
    network = tiny()
    nn.init.constant_(network.head.weight, float("nan"))
    with pytest.raises(TrainingError, match="the loss is nan at step"):
        supervised.train_supervised(network, HALVES, images, masks, **OPTIONS)


def test_learning_rate_follows_its_formula(supervised: ModuleType) -> None:
    assert [supervised.rate(s, 90, "step") for s in (0, 29, 30, 59, 60, 89)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    assert [supervised.rate(s, 90, "cosine") for s in (0, 30, 45, 90)] == pytest.approx([1, 0.75, 0.5, 0])


def test_crops_and_flips_move_masks_with_pixels(supervised: ModuleType) -> None:
    torch.manual_seed(1)
    masks = torch.randint(0, 200, (6, 20, 26), dtype=torch.uint8)
    images = masks[:, None].expand(6, 3, 20, 26).contiguous()  # an image shows its mask
    crops = [supervised.random_crop(i, m, (10, 12), (1.0, 1.0)) for i, m in zip(images, masks, strict=True)]
    pixels, ids = torch.stack([p for p, _ in crops]), torch.stack([m for _, m in crops])
    flipped, flipped_ids = supervised.random_flip(pixels, ids)
    assert flipped.shape == (6, 3, 10, 12) and flipped_ids.dtype == torch.int64
    assert torch.equal((flipped * 255).round().long()[:, 1], flipped_ids)
    mirrored = (flipped_ids == ids.flip(-1)).all((1, 2))
    assert mirrored.any() and not mirrored.all()


def test_enlarged_crops_show_a_smaller_part(supervised: ModuleType) -> None:
    torch.manual_seed(0)
    columns = torch.arange(24).expand(24, 24).byte()
    _, ids = supervised.random_crop(columns.expand(3, 24, 24), columns, (12, 12), (2.0, 2.0))
    assert ids.shape == (12, 12)
    assert ids[0].unique().numel() == 6 and int(ids.max() - ids.min()) == 5  # 12 / 2 columns of the image


def test_colour_jitter_keeps_unit_range_and_changes_each_image_on_its_own(supervised: ModuleType) -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 3, 6, 6).expand(4, 3, 6, 6)
    jittered = supervised.colour_jitter(image)
    assert jittered.min() >= 0 and jittered.max() <= 1
    assert all((jittered[i] - jittered[j]).abs().max() > 0.01 for i in range(4) for j in range(i))
    assert torch.allclose(supervised.colour_jitter(image, strength=0.0), image, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": (8, 13)}, "image_size .8, 13. is larger than the images, .12, 12."),
        ({"scale": (0.0, 1.0)}, "scale is .0.0, 1.0."),
    ],
)
def test_supervised_training_refuses_what_does_not_fit(
    supervised: ModuleType, change: dict[str, object], message: str
) -> None:
    images, masks = two_halves()
    with pytest.raises(DataError, match=message):
        supervised.train_supervised(tiny(), HALVES, images, masks, **{**OPTIONS, **change})
    with pytest.raises(DataError, match=r"torch\.float32: give"):
        supervised.train_supervised(tiny(), HALVES, images / 255, masks, **OPTIONS)


def test_load_folder_reads_the_shipped_scenes(supervised: ModuleType) -> None:
    images, masks = supervised.load_folder(EXAMPLE / "eval", image_size=(64, 64), num_classes=6)
    assert images.shape == (120, 3, 64, 64) and images.dtype == torch.uint8 and masks.shape == (120, 64, 64)
    with Image.open(EXAMPLE / "eval" / "images" / "003.png") as image:
        assert torch.equal(images[3], torch.from_numpy(np.array(image)).movedim(-1, 0))


def test_the_boxes_hold_the_masks_of_the_shipped_scenes() -> None:
    """A box reaches as far as its garment, of which a later one may cover a part: no pixel of a class is outside."""
    folder = EXAMPLE / "eval"
    task = Detection(num_classes=5, image_size=(64, 64))
    labelled = task.open_dataset(folder / "annotations.json")
    assert len(labelled) == 120
    assert labelled.class_names == ["pullover", "trouser", "dress", "sneaker", "bag"]
    for number, (_, targets) in enumerate(labelled[index] for index in range(0, 120, 10)):
        mask = np.asarray(Image.open(folder / f"masks/{10 * number:03d}.png"))
        inside = np.zeros_like(mask, dtype=bool)
        for label, left, top, right, bottom in targets[targets[:, 0] >= 0].int().tolist():
            part = mask[top:bottom, left:right]
            assert (part == label + 1).any()
            inside[top:bottom, left:right] |= part == label + 1
        assert np.array_equal(inside, mask > 0)


def test_the_detector_finds_what_its_readme_states() -> None:
    recipe = load_recipe("boxes-demo")
    network = recipe.teacher.wrap(build_network(recipe.teacher, num_classes=5))
    assert recipe.data is not None
    scores = evaluate(network, recipe.task, recipe.task.open_dataset(recipe.data), device=torch.device("cpu"))
    assert scores.values["ap50"] == pytest.approx(0.922, abs=0.01)
