"""The data set source: images with their targets, every one once an epoch, exactly repeatable."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from datafree.errors import DataError, Interrupted
from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.darknet.yolov3 import yolov3
from datafree.networks.resnet import resnet
from datafree.recipe.recipe import Recipe
from datafree.run import run_recipe
from datafree.sources.base import Batch, SourceContext
from datafree.sources.dataset import Dataset
from datafree.synthesis.shards import Shards
from datafree.synthesis.synthesize import synthesize
from datafree.tasks.base import Task
from datafree.tasks.classification import Classification
from datafree.tasks.detection import Detection
from datafree.tasks.segmentation import Segmentation
from recipes import load, write_teacher

LABELS = Classification(num_classes=3, image_size=(8, 8))


def make_folder(path: Path, count: int) -> Path:
    """Images whose every pixel has the value of their number, of the classes 0, 1, 2, 0, ..."""
    for index in range(count):
        folder = path / f"class {index % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (index, index, index)).save(folder / f"{index:03}.png")
    return path


def attached(path: Path, *, seed: int = 0, task: Task = LABELS, **options: Any) -> Dataset:
    source = Dataset(path=path, **options)
    source.attach(SourceContext(task=task, teacher=nn.Identity(), steps=10, batch_size=4, seed=seed))
    return source


def names(batch: Batch) -> list[int]:
    """Which images of `make_folder` these are."""
    found = [round(float(image.mean()) * 255) for image in batch.images]
    assert batch.targets is not None
    assert batch.targets.tolist() == [name % 3 for name in found]
    return found


def draw(source: Dataset, count: int, batch: int = 5) -> list[int]:
    return [name for _ in range(count // batch) for name in names(source.sample(batch))]


def test_an_epoch_holds_each_image_once_with_its_target_and_the_next_has_another_order(tmp_path: Path) -> None:
    source = attached(make_folder(tmp_path, 30), hold_out=0)
    epochs = [draw(source, 30) for _ in range(3)]
    assert all(sorted(epoch) == list(range(30)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert source.warmup == source.update_every == 0 and source.update(nn.Identity(), 0) == {}


def test_the_order_follows_from_the_seed_and_not_from_the_batch_size(tmp_path: Path) -> None:
    make_folder(tmp_path, 20)
    reference = draw(attached(tmp_path, hold_out=0), 60, batch=4)
    assert draw(attached(tmp_path, hold_out=0), 60, batch=15) == reference
    assert draw(attached(tmp_path, hold_out=0, seed=1), 60, batch=4) != reference


def test_no_global_random_state_is_touched_or_used(tmp_path: Path) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    source = attached(make_folder(tmp_path, 10))
    source.sample(8)
    source.validation_images(2)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())


@pytest.mark.parametrize("drawn", [0, 3, 7, 26])
def test_a_resumed_run_goes_on_with_the_very_same_images(tmp_path: Path, drawn: int) -> None:
    make_folder(tmp_path, 11)
    (tmp_path / "class 0" / "bad.png").write_text("not an image")
    straight = attached(tmp_path, hold_out=1)
    straight.sample(drawn)  # the next batch is on its way by now
    state = straight.state_dict()
    torch.save(state, tmp_path / "state.pt")
    expected = [straight.sample(n) for n in (5, 9, 2, 13)]
    resumed = attached(tmp_path, hold_out=1)
    resumed.sample(4)  # whatever it did before
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert resumed.state_dict() == state
    for batch, n in zip(expected, (5, 9, 2, 13), strict=True):
        again = resumed.sample(n)
        assert torch.equal(again.images, batch.images)
        assert again.targets is not None and batch.targets is not None and torch.equal(again.targets, batch.targets)
    assert resumed.state_dict() == straight.state_dict()
    assert resumed.notes() == straight.notes()


def test_a_set_that_has_grown_is_said_and_goes_on_with_a_new_epoch(tmp_path: Path) -> None:
    source = attached(make_folder(tmp_path, 10), hold_out=0)
    source.sample(14)
    state = source.state_dict()
    resumed = attached(make_folder(tmp_path, 12), hold_out=0)
    resumed.load_state_dict(state)
    assert "had 10 images when the run was stopped in epoch 1, and has 12 now" in resumed.notes()[0]
    assert sorted(draw(resumed, 12, batch=4)) == list(range(12))


def test_unreadable_files_are_skipped_once_and_named(tmp_path: Path) -> None:
    make_folder(tmp_path, 12)
    for index in range(8):
        (tmp_path / "class 1" / f"bad{index}.png").write_text("not an image")
    source = attached(tmp_path, hold_out=0)
    assert sorted(draw(source, 24, batch=12)) == sorted([*range(12)] * 2)
    (note,) = source.notes()
    assert note.startswith(f"8 of 20 images of {tmp_path} could not be read: class 1/bad")
    assert note.count("bad") == 5 and "not an image" in note and note.endswith("and 3 more")


def test_a_set_without_one_readable_image_is_refused(tmp_path: Path) -> None:
    for index in range(3):
        (tmp_path / f"class {index}").mkdir()
        (tmp_path / f"class {index}" / "bad.png").write_text("not an image")
    source = attached(tmp_path, hold_out=1)
    assert source.validation_images(2).shape == (0, 3, 8, 8)
    for _ in range(2):  # and again: never an endless loop
        with pytest.raises(DataError, match=r"none of the 2 images .* can be read"):
            source.sample(4)


def test_a_folder_that_is_no_set_of_the_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        attached(tmp_path / "gone")
    with pytest.raises(DataError, match="masks"):
        attached(make_folder(tmp_path, 3), task=Segmentation(num_classes=3, image_size=(8, 8)))
    with pytest.raises(DataError, match="hold_out is -1; it must be 0 or more"):
        Dataset(path=tmp_path, hold_out=-1)


@pytest.mark.parametrize(("count", "hold_out", "kept"), [(3, 64, 1), (40, 64, 4), (40, 2, 2), (40, 0, 0)])
def test_held_out_images_are_never_sampled_and_looking_changes_nothing(
    tmp_path: Path, count: int, hold_out: int, kept: int
) -> None:
    source = attached(make_folder(tmp_path, count), hold_out=hold_out)
    state = source.state_dict()
    held = [round(float(image.mean()) * 255) for image in source.validation_images(100)]
    assert len(held) == kept and torch.equal(
        source.validation_images(100), attached(tmp_path, hold_out=hold_out).validation_images(100)
    )
    assert source.state_dict() == state
    assert set(draw(source, 2 * count, batch=count)) == set(range(count)) - set(held)


def held(source: Dataset) -> list[int]:
    """Which images of `make_folder` are kept back."""
    return [round(float(image.mean()) * 255) for image in source.validation_images(100)]


def spoil(path: Path, index: int) -> Path:
    file = path / f"class {index % 3}" / f"{index:03}.png"
    file.write_text("not an image")
    return file


@pytest.mark.parametrize("drawn", [0, 3, 7])
def test_another_image_is_kept_back_where_none_of_those_drawn_can_be_read(tmp_path: Path, drawn: int) -> None:
    path = make_folder(tmp_path / "set", 8)
    (first,) = held(attached(path))
    spoiled = spoil(path, first)
    straight = attached(path)
    straight.sample(drawn)
    state = straight.state_dict()
    torch.save(state, tmp_path / "state.pt")
    expected, (second,) = [straight.sample(n).images for n in (5, 9)], held(straight)
    assert set(draw(straight, 12, batch=4)) == set(range(8)) - {first, second}
    assert f"{spoiled.relative_to(path).as_posix()} (not an image" in straight.notes()[0]

    Image.new("RGB", (8, 8), (first, first, first)).save(spoiled)  # mended: the resumed run keeps to what it began with
    resumed = attached(path)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert held(resumed) == [second] and resumed.state_dict()["passed"] == state["passed"]
    for images in expected:
        assert torch.equal(resumed.sample(len(images)).images, images)


def test_the_only_readable_image_is_learnt_from(tmp_path: Path) -> None:
    path = make_folder(tmp_path, 3)
    (first,) = held(attached(path))
    (only, other) = (index for index in range(3) if index != first)
    spoil(path, first)
    spoil(path, other)
    source = attached(path)
    assert held(source) == [] and set(draw(source, 4, batch=2)) == {only}


@pytest.mark.parametrize(
    "task",
    [
        Classification(num_classes=2, image_size=(8, 8)),
        Segmentation(num_classes=2, image_size=(8, 8)),
        Detection(num_classes=2, image_size=(8, 8), max_boxes=2),
    ],
    ids=lambda task: type(task).__name__,
)
def test_a_made_set_of_every_task_is_read(task: Task, tmp_path: Path) -> None:
    shards = Shards(tmp_path, {})
    shards.begin(["cat", "dog"])
    torch.manual_seed(0)
    made = Batch(images=torch.rand(6, 3, 8, 8), targets=task.sample_targets(6, torch.device("cpu")))
    shards.write(0, task, made)
    shards.finish(task)
    for path in (tmp_path, tmp_path / "data"):
        batch = attached(path, task=task, hold_out=0).sample(6)
        assert batch.targets is not None and made.targets is not None
        for image, target in zip(batch.images, batch.targets, strict=True):
            (place,) = [i for i, other in enumerate(made.images) if torch.allclose(image, other, atol=0.5 / 255 + 1e-6)]
            wanted = made.targets[place]
            torch.testing.assert_close(
                target, wanted[: len(target)] if isinstance(task, Detection) else wanted, atol=2e-3, rtol=0
            )


def test_a_made_set_without_a_box_is_learnt_from_but_scores_nothing(tmp_path: Path) -> None:
    task = Detection(num_classes=2, image_size=(32, 32), max_boxes=2)
    shards = Shards(tmp_path, {})
    shards.begin(["cat", "dog"])
    empty = torch.tensor([-1.0, 0, 0, 0, 0]).expand(6, 2, 5)
    shards.write(0, task, Batch(images=torch.rand(6, 3, 32, 32), targets=empty))
    shards.finish(task)
    with pytest.raises(DataError, match="has no box in any of its 6 images"):
        task.open_dataset(tmp_path / "data")
    source = attached(tmp_path, task=task)
    batch = source.sample(4)
    assert batch.targets is not None and batch.targets[..., 0].eq(-1).all() and len(source.validation_images(4)) == 1
    detector = yolov3(2, width=0.0625)
    task.target_loss(detector(batch.images), batch.targets).backward()  # that nothing is there can be learnt
    (note,) = source.notes()
    assert "has no box in any of its 6 images" in note and "its images are learnt from all the same" in note


def test_boxes_without_area_are_said_to_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0 0.5\n")
    source = attached(tmp_path, task=Detection(num_classes=2, image_size=(8, 8)), hold_out=0)
    scores_nothing, left_out = source.notes()
    assert scores_nothing.startswith(f"{tmp_path} has no box to score: all 1 boxes are without area")
    assert left_out == f"{tmp_path}: 1 boxes without area, the first in a.png, left out"


NAMED = {"zebra": 250, "mole": 20, "ant": 130}  # what every pixel of a class's images is; in a teacher's order


def named_folders(path: Path, *, ordered: bool = False) -> Path:
    for name, grey in NAMED.items():
        (path / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8), (grey, grey, grey)).save(path / name / f"{number}.png")
    if ordered:
        (path / "classes.txt").write_text("\n".join(NAMED) + "\n")
    return path


def test_targets_have_the_ids_that_the_teacher_gives_classes_of_these_names(tmp_path: Path) -> None:
    path = named_folders(tmp_path)
    wanted = {grey: label for label, grey in enumerate(NAMED.values())}
    source = Dataset(path=path, hold_out=0)
    context = SourceContext(task=LABELS, teacher=nn.Identity(), steps=1, batch_size=4, class_names=list(NAMED))
    source.attach(context)
    batch = source.sample(12)
    assert batch.targets is not None
    assert batch.targets.tolist() == [wanted[round(float(image.mean()) * 255)] for image in batch.images]
    (note,) = source.notes()
    assert note.startswith(f"{path}: classes are in the network's own order ('zebra', 'mole', 'ant'), not the data's")
    (path / "mole" / "0.png").write_bytes((path / "zebra" / "0.png").read_bytes())
    again = Dataset(path=path, hold_out=0)
    again.attach(context)
    again.load_state_dict(source.state_dict())
    assert any("mole/0.png" in line for line in again.notes())  # its files are known under any order


def test_a_run_and_a_made_set_take_the_order_of_the_classes_that_their_recipe_names(tmp_path: Path) -> None:
    learnt, scored = named_folders(tmp_path / "learnt"), named_folders(tmp_path / "scored", ordered=True)
    network = {"network": "datafree/resnet", "args": {"depth": 8, "width": 4}}
    weights = tmp_path / "weights.safetensors"
    save_weights(resnet(3, depth=8, width=4), weights)
    content = {
        "task": {"kind": "classification", "num_classes": 3, "image_size": [8, 8]},
        "teacher": {**network, "weights": str(weights)},
        "student": network,
        "source": {"method": "dataset", "path": str(learnt)},
        "training": {"steps": 1, "batch_size": 4, "device": "cpu", "track": [], "label_weight": 1.0},
        "data": str(scored),
    }
    notes = run_recipe(load(tmp_path, content), tmp_path / "run").notes
    assert sum("classes are in the network's own order" in note for note in notes) == 1
    made = synthesize(load(tmp_path, content), tmp_path / "made", 8)
    for name, grey in NAMED.items():
        files = list((Path(made.path) / name).iterdir())
        assert files and {Image.open(file).getpixel((0, 0)) for file in files} == {(grey, grey, grey)}


def stop_after(calls: int) -> Callable[[], str | None]:
    left = [None] * calls
    return lambda: left.pop() if left else "enough"


def test_a_student_learns_from_it_and_a_broken_run_goes_on_exactly(tmp_path: Path) -> None:
    task = Segmentation(num_classes=3, image_size=(16, 16))
    shards = Shards(tmp_path / "made", {})
    shards.begin(["a", "b", "c"])
    torch.manual_seed(0)
    shards.write(0, task, Batch(images=torch.rand(20, 3, 16, 16), targets=task.sample_targets(20, torch.device("cpu"))))
    shards.finish(task)
    small = {"width": 2, "depth": 2}

    def recipe() -> Recipe:
        content = {
            "task": {"kind": "segmentation", "num_classes": 3, "image_size": [16, 16]},
            "teacher": {"network": "datafree/unet", "args": small, "weights": str(write_teacher(tmp_path, **small))},
            "student": {"network": "datafree/unet", "args": small},
            "source": {"method": "datafree.sources.dataset:Dataset", "path": str(tmp_path / "made")},
            "training": {
                "steps": 8,
                "batch_size": 3,
                "shift": 2,
                "label_weight": 0.5,
                "save_every": 5,
                "device": "cpu",
            },
        }
        return load(tmp_path, content)

    whole = run_recipe(recipe(), tmp_path / "whole")
    for calls in (3, 2):
        with pytest.raises(Interrupted):
            run_recipe(recipe(), tmp_path / "broken", stop=stop_after(calls))
    broken = run_recipe(recipe(), tmp_path / "broken")
    students = [(outcome.run / "student.safetensors").read_bytes() for outcome in (whole, broken)]
    assert students[0] == students[1]
    metrics = [(outcome.run / "metrics.jsonl").read_text() for outcome in (whole, broken)]
    assert metrics[0] == metrics[1]
