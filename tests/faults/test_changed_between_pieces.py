"""What changes between two pieces of a run or of a data set, or while it runs: said, or refused, never passed over."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from injected import at_step, in_student
from PIL import Image
from torch import nn

from datafree.data.images import UnreadableImage
from datafree.engine import origin
from datafree.errors import Interrupted, RunError
from datafree.networks.checkpoints.weights import read_tensors, save_weights
from datafree.networks.unet import unet
from datafree.recipe.recipe import Recipe
from datafree.run import run_recipe
from datafree.sources.base import SourceContext
from datafree.sources.dataset import Dataset
from datafree.sources.folder import Folder
from datafree.sources.parts.seen_files import SeenFiles, content_of
from datafree.synthesis.synthesize import synthesize
from datafree.tasks.classification import Classification
from datafree.tasks.segmentation import Segmentation
from set_recipes import INVERSION
from set_recipes import recipe_for as set_recipe
from small_runs import recipe_for, stop_after
from thorough import some

TASK = Segmentation(num_classes=3, image_size=(32, 32))


def masks(folder: Path, count: int = 20, seed: int = 0) -> Path:
    """`count` images and masks of random pixels."""
    draw = np.random.default_rng(seed)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index:02}.png")
        Image.fromarray(pixels[..., 0] % 3).save(folder / "masks" / f"{index:02}.png")
    return folder


def begun(recipe: Recipe, out: Path) -> None:
    with pytest.raises(Interrupted):
        run_recipe(recipe, out, stop=stop_after(8))


def rewrite(folder: Path) -> None:
    masks(folder, seed=1)


def swap_masks(folder: Path) -> None:
    for index in range(20):
        file = folder / "masks" / f"{index:02}.png"
        Image.fromarray(2 - np.asarray(Image.open(file))).save(file)


@pytest.mark.parametrize("change", [rewrite, pytest.param(swap_masks, marks=pytest.mark.thorough)])
def test_a_data_set_replaced_by_as_many_other_files_is_said(tmp_path: Path, change: Callable[[Path], None]) -> None:
    data = masks(tmp_path / "photos")
    recipe = recipe_for(tmp_path, {"method": "dataset", "path": str(data)}, label_weight=1.0)
    begun(recipe, tmp_path / "run")
    change(data)
    lines: list[str] = []
    outcome = run_recipe(recipe, tmp_path / "run", say=lines.append)
    told = [line for line in lines if "images are others than before the run was stopped: images/" in line]
    assert len(told) == 1 and told[0].startswith(f"warning: {data}: ")
    assert any("cannot be repeated exactly" in note and "others than before" in note for note in outcome.notes)


def test_a_data_set_that_was_copied_or_touched_is_the_same(tmp_path: Path) -> None:
    data = masks(tmp_path / "photos")
    recipe = recipe_for(tmp_path, {"method": "dataset", "path": str(data)}, steps=20)
    with pytest.raises(Interrupted):
        run_recipe(recipe, tmp_path / "run", stop=stop_after(15))  # each image was read
    for file in data.rglob("*.png"):
        os.utime(file, ns=(1, 1))
    lines: list[str] = []
    outcome = run_recipe(recipe, tmp_path / "run", say=lines.append)
    held = 2  # kept back, and so handed out by nobody
    text = f"{held} of 20 images have another size or time and had not been read by then"
    assert [text in line for line in lines if "warning" in line] == [True]
    assert not [note for note in outcome.notes if "others than before" in note]


def attached(source: Dataset | Folder, seed: int = 0) -> Dataset | Folder:
    task = TASK if isinstance(source, Dataset) else Classification(num_classes=2, image_size=(32, 32))
    source.attach(SourceContext(task=task, teacher=nn.Identity(), steps=10, batch_size=4, seed=seed))
    return source


@pytest.mark.parametrize("kind", [Dataset, Folder])
def test_the_changed_images_are_named_and_no_others(tmp_path: Path, kind: type[Dataset] | type[Folder]) -> None:
    path = masks(tmp_path / "photos")
    place = path if kind is Dataset else path / "images"
    source = attached(kind(path=place))
    source.sample(18)
    state = source.state_dict()
    taken = sorted(path.glob("images/*.png"))[3:6]
    for file in taken:
        Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
    again = attached(kind(path=place))
    again.load_state_dict(state)
    notes = "\n".join(again.notes())
    named = [file for file in sorted(path.glob("images/*.png")) if file.name in notes]
    assert named == taken and "images are others than before" in notes
    assert again.state_dict()["files"]["contents"] == state["files"]["contents"]


def test_a_file_changed_while_a_data_set_is_learnt_from_is_said(tmp_path: Path) -> None:
    path = masks(tmp_path / "photos")
    source = attached(Dataset(path=path))
    source.sample(18)
    assert not source.notes()
    rewrite(path)
    source.sample(36)
    assert [note for note in source.notes() if " were changed during the run, which cannot be repeated exactly" in note]


def test_states_that_know_of_no_files_are_gone_on_with(tmp_path: Path) -> None:
    source = attached(Dataset(path=masks(tmp_path / "photos")))
    state = {key: value for key, value in source.state_dict().items() if key != "files"}
    source.load_state_dict(state)
    assert not source.notes()


def test_what_cannot_be_read_any_more_is_another(tmp_path: Path) -> None:
    files = [tmp_path / str(index) for index in range(3)]
    for file in files:
        file.write_bytes(b"1")

    def read(index: int) -> bytes:
        try:
            return content_of(np.frombuffer(files[index].read_bytes(), np.uint8))
        except OSError as error:
            raise UnreadableImage(files[index], "no such file") from error

    seen = SeenFiles([(file,) for file in files])
    for index in range(3):
        seen.note(index, read(index))
    state = seen.state_dict()
    files[0].unlink()
    files[1].write_bytes(b"12")
    os.utime(files[2], ns=(1, 1))
    assert SeenFiles([(file,) for file in files]).load_state_dict(state, read) == ([0, 1], [])
    assert SeenFiles([(file,) for file in files[:2]]).load_state_dict(state, read) == (
        [],
        [],
    )  # another count: of names


def test_another_teacher_is_refused_and_the_run_is_left_as_it_was(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, {"method": "noise"})
    begun(recipe, tmp_path / "run")
    weights = recipe.teacher.weights
    assert weights is not None
    sound = weights.read_bytes()
    torch.manual_seed(5)
    save_weights(unet(3, width=2, depth=2), weights)
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    with pytest.raises(RunError, match=r"the teacher's weights are not those that the run was begun with .*put them"):
        run_recipe(recipe, tmp_path / "run")
    pages = {"report.html"}
    assert all(file.read_bytes() == content for file, content in before.items() if file.name not in pages)
    weights.write_bytes(sound)
    assert run_recipe(recipe, tmp_path / "run").chosen.step == 12


def test_a_teachers_digest_is_of_its_values_wherever_they_come_from(tmp_path: Path) -> None:
    network = unet(3, width=2, depth=2)
    save_weights(network, tmp_path / "w.safetensors")
    other = unet(3, width=2, depth=2)
    assert origin.values_of(network) != origin.values_of(other)
    other.load_state_dict(read_tensors(tmp_path / "w.safetensors"))
    assert origin.values_of(network) == origin.values_of(other)


def changed_origin(monkeypatch: pytest.MonkeyPatch, **values: object) -> None:
    real = origin.hardware
    monkeypatch.setattr(origin, "hardware", lambda: {**real(), **values})


@pytest.mark.parametrize(
    ("name", "value"),
    some([("threads", 17), ("processor", "Another 9000"), ("accelerator", "H200")], ("threads", 17)),
)
def test_another_machine_or_number_of_threads_is_said_when_a_run_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    recipe = recipe_for(tmp_path, {"method": "noise"})
    begun(recipe, tmp_path / "run")
    with monkeypatch.context() as patched:
        changed_origin(patched, **{name: value})
        lines: list[str] = []
        with pytest.raises(Interrupted):
            run_recipe(recipe, tmp_path / "run", say=lines.append, stop=stop_after(2))
    told = [line for line in lines if line.startswith("warning: the run goes on under other conditions")]
    assert len(told) == 1 and f"{name} {value!r}, " in told[0]
    outcome = run_recipe(recipe, tmp_path / "run")
    assert sum("goes on under other conditions" in note for note in outcome.notes) == 2  # there, and back again


def test_the_same_machine_is_not_remarked_upon(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, {"method": "noise"})
    begun(recipe, tmp_path / "run")
    lines: list[str] = []
    outcome = run_recipe(recipe, tmp_path / "run", say=lines.append)
    assert not [line for line in [*lines, *outcome.notes] if "conditions" in line]


def test_a_set_is_not_gone_on_with_by_another_teacher_and_other_threads_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = set_recipe(tmp_path, INVERSION), tmp_path / "out"
    synthesize(recipe, out, 5)
    with monkeypatch.context() as patched:
        changed_origin(patched, threads=17)
        assert any(
            "the data set goes on under other conditions (threads 17" in n for n in synthesize(recipe, out, 10).notes
        )
    weights = recipe.teacher.weights
    assert weights is not None
    kept = shutil.copy(weights, tmp_path / "kept")
    save_weights(unet(3, width=2, depth=2), weights)
    with pytest.raises(RunError, match="not those that the data set was begun with"):
        synthesize(recipe, out, 15)
    shutil.copy(kept, weights)
    assert synthesize(recipe, out, 15).images == 15


def test_what_changed_is_not_forgotten_when_the_run_then_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for(tmp_path, {"method": "noise"}, save_every=50)
    begun(recipe, tmp_path / "run")
    changed_origin(monkeypatch, threads=77)
    at_step(monkeypatch, recipe.source, 10, in_student, times=1)  # before anything is saved again
    notes = run_recipe(recipe, tmp_path / "run").notes
    assert [sum(what in note for note in notes) for what in ("rolled back to step 8", "threads 77, ")] == [1, 1]
