"""A made data set: read back as it was made, the same however it was broken off, checked file by file."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import time
import weakref
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from datafree.data.images import to_tensor
from datafree.data.visualize import class_colours
from datafree.engine.progress import Progress
from datafree.errors import DataError, Interrupted, NetworkError, RecipeError, RunError
from datafree.networks.unet import unet
from datafree.ops.boxes import unpack
from datafree.recipe.recipe import Recipe, dump
from datafree.sources.base import Batch
from datafree.sources.inversion import Inversion
from datafree.sources.parts.image_pool import ImagePool
from datafree.storage.made_set import is_finished
from datafree.synthesis import shards as shards_module
from datafree.synthesis import synthesize as synthesize_module
from datafree.synthesis import worker
from datafree.synthesis.shards import Shards
from datafree.synthesis.synthesize import Made, class_names, synthesize, verify
from datafree.tasks.base import Task
from set_recipes import ARGS, CGDD, CMI, DIODE, INVERSION, SIZE, everything, recipe_for, stop_after
from thorough import some


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "SAMPLED", 6)


def save_that_fails(at: str, error: BaseException) -> Callable[..., None]:
    """For `Image.Image.save`: raises at files whose path ends so."""
    save = Image.Image.save

    def saves(image: Image.Image, file: Any, *args: Any, **options: Any) -> None:
        if isinstance(file, Path) and file.as_posix().endswith(at):
            raise error
        save(image, file, *args, **options)

    return saves


def pixels(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)


# What is said of it.


def test_what_each_update_logged_is_in_its_shards_record_and_its_mean_in_the_notes(tmp_path: Path) -> None:
    logged: list[dict[str, float]] = []

    def log(progress: Progress) -> None:
        logged.append(dict(progress.values))

    out, recipe = tmp_path / "out", recipe_for(tmp_path, DIODE, "detection")
    synthesize(recipe, out, 3, log=log)
    made = synthesize(recipe, out, 9, log=log)  # goes on
    records = [json.loads((out / "shards" / f"0000{number}.json").read_text()) for number in range(3)]
    assert [record["figures"] for record in records] == logged
    assert {"teacher_ap50", "bn_worst", "boxes"} <= logged[0].keys()
    noise, note = made.notes
    assert noise.startswith("after the first stage the images are still noise")
    assert note.startswith("means over 3 of 3 shards: teacher_ap50 ")
    for name in logged[0]:
        assert f"{name} {sum(figures[name] for figures in logged) / 3:.3g}" in note
    assert synthesize(recipe, out, 9).notes == [note]  # it is finished: nothing is made


def test_auto_makes_the_images_of_the_source_that_it_stands_for(tmp_path: Path) -> None:
    """The set's recipe names that source, so that a set that was broken off goes on with it."""
    said: list[str] = []
    recipe = recipe_for(tmp_path, {"method": "auto", "warmup": 1})
    made = synthesize(recipe, tmp_path / "made", 6, say=said.append)
    assert made.images >= 6 and said[0].startswith("source.method=auto: ")
    chosen = said[0].partition(": ")[2].partition(",")[0]
    assert f"method: {chosen}" in (tmp_path / "made" / "recipe.yaml").read_text()
    assert synthesize(recipe, tmp_path / "made", made.images).images == made.images


@pytest.mark.parametrize("figures", [None, [], {"bn": "high", "b\nn": 1.0, "boxes": 10**400, "tv_l1": float("nan")}])
def test_records_without_sound_figures_are_left_out_of_the_means(figures: Any, tmp_path: Path) -> None:
    out, recipe = tmp_path / "out", recipe_for(tmp_path, DIODE, "detection")
    synthesize(recipe, out, 6)
    for number, wanted in ((1, "means over 1 of 2 shards: teacher_ap50 "), (0, "")):
        file = out / "shards" / f"0000{number}.json"
        record = json.loads(file.read_text())
        record.pop("seal", None)  # as older versions wrote them
        file.write_text(json.dumps(record | {"figures": figures}))
        assert "".join(synthesize(recipe, out, 6).notes)[: len(wanted) or None] == wanted


@pytest.mark.parametrize("kind", some(SIZE, "segmentation"))
def test_the_first_images_are_shown_with_their_targets(kind: str, tmp_path: Path) -> None:
    source = DIODE if kind == "detection" else INVERSION
    out, recipe = tmp_path / "out", recipe_for(tmp_path, {**source, "batch_size": 20}, kind)
    made = synthesize(recipe, out, 40)
    (height, width), data = SIZE[kind], recipe.task.open_dataset(Path(made.path))
    shown = to_tensor(Image.open(out / "shards" / "preview.png"))
    assert shown.shape == (3, 4 * (height + 2) + 6, 8 * (width + 2) + 2)  # two bands of images and targets
    images = {pixels(data[index][0]).numpy().tobytes(): data[index][1] for index in range(40)}
    for index in range(16):
        top, left = 2 + index // 8 * (2 * height + 6), 2 + index % 8 * (width + 2)
        image, below = (shown[:, y : y + height, left : left + width] for y in (top, top + height + 2))
        target = images[pixels(image).numpy().tobytes()]
        if kind == "segmentation":
            assert torch.equal(pixels(below), pixels(class_colours(3)[target].movedim(-1, 0)))
        else:
            wanted = recipe.task.draw_targets(image[None], target[None])
            assert wanted is not None and torch.equal(pixels(below), pixels(wanted[0]))
            assert not torch.equal(below, image)


# What is written.


@pytest.mark.parametrize(
    ("kind", "source"), [("classification", INVERSION), ("segmentation", INVERSION), ("detection", DIODE)]
)
def test_every_image_that_was_finished_is_read_back_once_with_its_target(
    kind: str, source: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[Tensor, Tensor]] = []
    keep = ImagePool.add

    def add(stock: ImagePool, images: Tensor, targets: Tensor) -> None:
        made.append((images, targets))
        keep(stock, images, targets)

    monkeypatch.setattr(ImagePool, "add", add)
    recipe = recipe_for(tmp_path, source, kind)
    outcome = synthesize(recipe, tmp_path / "out", 7)
    batch = source["batch_size"]
    assert (outcome.images, outcome.shards) == (len(made) * batch, len(made))
    assert 7 <= outcome.images < 7 + batch

    labelled = recipe.task.open_dataset(outcome.path)
    assert labelled.class_names == ["class 0", "class 1", "class 2"]
    read = [pair for images, targets in labelled.batches(4) for pair in zip(images, targets, strict=True)]
    images, targets = torch.cat([images for images, _ in made]), torch.cat([targets for _, targets in made])
    assert len(read) == len(images) and labelled.skipped == []
    places = {pixels(image).numpy().tobytes(): place for place, image in enumerate(images)}
    assert len(places) == len(images)
    for image, target in read:
        place = places.pop(pixels(image).numpy().tobytes())
        if kind == "detection":
            ((labels, boxes),) = unpack(targets[place][None])
            assert target[:, 0].tolist() == labels.tolist()
            torch.testing.assert_close(target[:, 1:], boxes, atol=2e-3, rtol=0)
        else:
            assert torch.equal(target, targets[place])
    assert places == {}
    assert verify(recipe, tmp_path / "out").images == outcome.images


def test_boxes_are_written_as_yolo_has_them_too(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, DIODE, "detection")
    outcome = synthesize(recipe, tmp_path / "out", 6)
    (outcome.path / "annotations.json").rename(tmp_path / "annotations.json")
    yolo = recipe.task.open_dataset(outcome.path)
    (tmp_path / "annotations.json").rename(outcome.path / "annotations.json")
    coco = recipe.task.open_dataset(outcome.path)
    assert len(yolo) == len(coco) == 6
    for ours, theirs in zip(yolo.batches(6), coco.batches(6), strict=True):
        assert torch.equal(ours[0], theirs[0])
        torch.testing.assert_close(ours[1], theirs[1], atol=2e-3, rtol=0)


def test_a_generator_is_trained_first_and_every_sample_shows_its_preset_class(tmp_path: Path) -> None:
    steps: list[tuple[str, int]] = []

    def log(progress: Progress) -> None:
        steps.append((progress.phase, progress.step))

    recipe = recipe_for(tmp_path, CGDD, "classification")
    outcome = synthesize(recipe, tmp_path / "out", 10, log=log)
    assert steps == [("warm-up", step) for step in range(-4, 1)] + [("images", 6), ("images", 10)]
    assert (outcome.images, outcome.shards) == (12, 2)
    _, labels = next(recipe.task.open_dataset(outcome.path).batches(12))
    assert torch.bincount(labels).tolist() == [4, 4, 4]  # rounds of classes: two a shard, of a batch each
    assert (tmp_path / "out" / "generator.safetensors").is_file()
    assert len({digest for name, digest in everything(outcome.path).items() if name.endswith(".png")}) == 12
    assert outcome.notes == []  # no update made a shard: there are no figures


def test_images_without_targets_get_the_teachers_answers(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, {"method": "noise"})
    outcome = synthesize(recipe, tmp_path / "out", 6)
    assert outcome.notes == ["the source's images have no targets: they were written with the teacher's answers"]
    teacher = unet(3, **ARGS["segmentation"]).eval()
    teacher.load_state_dict(load_file(tmp_path / "segmentation.safetensors"))
    for images, masks in recipe.task.open_dataset(outcome.path).batches(3):
        with torch.no_grad():
            mean, std = torch.tensor(recipe.teacher.mean), torch.tensor(recipe.teacher.std)
            answers = teacher((images - mean.view(3, 1, 1)) / std.view(3, 1, 1))
        assert (answers.argmax(1) == masks).float().mean() > 0.99  # another batch size rounds otherwise


def test_classes_are_called_as_in_the_recipes_labelled_data_and_keep_their_names(tmp_path: Path) -> None:
    labelled = tmp_path / "labelled"
    for name in ("cat", "dog", "cow"):
        (labelled / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(labelled / name / "0.png")
    (labelled / "classes.txt").write_text("dog\ncow\ncat\n")
    named = recipe_for(tmp_path, INVERSION, "classification", data=str(labelled))
    outcome = synthesize(named, tmp_path / "out", 5)
    assert {folder.name for folder in outcome.path.iterdir() if folder.is_dir()} <= {"cat", "dog", "cow"}
    assert (outcome.path / "classes.txt").read_text() == "dog\ncow\ncat\n"
    plain = recipe_for(tmp_path, INVERSION, "classification")
    synthesize(plain, tmp_path / "out", 10)
    assert plain.task.open_dataset(outcome.path).class_names == ["dog", "cow", "cat"]


def test_unnamed_classes_sort_as_their_ids_do(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, {"method": "noise"}, task={"num_classes": 12})
    names = synthesize_module.class_names(recipe)
    assert names == sorted(names)
    assert (names[0], names[11]) == ("class 00", "class 11")


# Broken off and gone on with.

METHODS = {
    "inversion": INVERSION,  # starts every batch from noise
    "cmi": CMI,  # remembers earlier batches
    "fast": CMI | {"method": "fast"},  # learns from each batch how to make the next
    "cgdd": CGDD,  # is trained first
    "folder": {"method": "folder"},  # has a position
    "procedural": {"method": "procedural", "batch_size": 4},  # breeds from what it has kept
}


@pytest.mark.parametrize("method", some(METHODS, "cmi"))
def test_a_set_made_in_pieces_equals_one_made_at_once(
    method: str, tmp_path: Path, photos: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = METHODS[method] | ({"path": str(photos(44, (32, 48)))} if method == "folder" else {})
    synthesize(recipe_for(tmp_path, source), tmp_path / "whole", 27)

    # Stopped in the warm-up and between shards, killed in the middle of a shard's files and of their move.
    out = tmp_path / "pieces"
    for calls in (1, 2, 1):
        with pytest.raises(Interrupted, match="run the same command to resume"):
            synthesize(recipe_for(tmp_path, source), out, 27, stop=stop_after(calls))

    def dies(folder: Path) -> None:
        raise KeyboardInterrupt

    for place, name, function in (
        (Image.Image, "save", save_that_fails("/00002.png", KeyboardInterrupt())),
        (shards_module, "sync", dies),
    ):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(place, name, function)
            synthesize(recipe_for(tmp_path, source), out, 27)
    synthesize(recipe_for(tmp_path, source), out, 27)
    assert everything(out) == everything(tmp_path / "whole")


def makes(recipe: Recipe, out: Path, images: int, dies_at: str | None = None) -> None:
    """What a process of several does; `dies_at`: killed when it writes a file whose path ends so."""
    torch.set_num_threads(1)
    if dies_at is not None:
        save = Image.Image.save

        def saves(image: Image.Image, file: Any, *args: Any, **options: Any) -> None:
            if isinstance(file, Path) and file.as_posix().endswith(dies_at):
                os.kill(os.getpid(), signal.SIGKILL)
            save(image, file, *args, **options)

        Image.Image.save = saves  # type: ignore[method-assign]
    synthesize(recipe, out, images)


@pytest.mark.parametrize("method", some(["inversion", "cmi", "cgdd"]))
def test_processes_make_one_set_together_and_take_over_from_one_that_dies(method: str, tmp_path: Path) -> None:
    source, forked = METHODS[method], multiprocessing.get_context("fork")
    images = 300 if method == "cgdd" else 27  # shards of a trained source hold 256 or so
    synthesize(recipe_for(tmp_path, source), tmp_path / "alone", images)
    out = tmp_path / "together"
    dying, *others = [
        forked.Process(target=makes, args=(recipe_for(tmp_path, source), out, images, dies_at))
        for dies_at in ("/00002.png", None, None)  # in the first shard that it makes
    ]
    dying.start()
    while not (out / ".claims" / "00000").exists():
        assert dying.is_alive()
        time.sleep(0.01)
    for process in others:
        process.start()
    for process in (dying, *others):
        process.join()
    assert [process.exitcode for process in (dying, *others)] == [-signal.SIGKILL, 0, 0]
    assert everything(out) == everything(tmp_path / "alone")


@pytest.mark.parametrize("source", [INVERSION, {"method": "noise"}])
def test_a_process_makes_no_shard_more_than_is_asked_for_while_another_makes_the_first(
    source: dict[str, Any], tmp_path: Path
) -> None:
    """A shard has 5 images by the update's size, 6 by `SAMPLED`."""
    recipe, said = recipe_for(tmp_path, source), list[str]()
    with closing(Shards(tmp_path / "out", dump(recipe))) as other:
        other.begin(class_names(recipe))
        assert other.claim(5, 5) == 0
        with pytest.raises(Interrupted, match="stopped at 0 of 5 images"):
            synthesize(recipe, tmp_path / "out", 5, stop=lambda: "enough" if said else None, say=said.append)
    assert "waiting for them" in said[-1] and not list((tmp_path / "out" / "shards").glob("*.json"))
    assert synthesize(recipe, tmp_path / "out", 5).shards == 1


def test_shards_that_are_made_while_another_process_writes_the_index_are_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = recipe_for(tmp_path, INVERSION), tmp_path / "out"
    asked = iter([5, 10])
    write_index, written = shards_module.write_index, list[int]()

    def writes(*args: Any) -> None:
        write_index(*args)
        written.append(1)
        if (images := next(asked, 0)) == 10:  # this one has listed 5; meanwhile
            with pytest.raises(Interrupted, match="stopped while another process is writing the index"):
                synthesize(recipe_for(tmp_path, INVERSION), out, images, stop=lambda: "enough" if ready() else None)

    def ready() -> bool:
        return (out / "shards" / "00001.json").exists()

    monkeypatch.setattr(shards_module, "write_index", writes)
    synthesize(recipe, out, 5)
    synthesize(recipe, out, 5)
    assert not is_finished(out) and written == [1, 1]
    monkeypatch.setattr(synthesize_module, "time", SimpleNamespace(sleep=lambda pause: other.close()))
    other = Shards(out, dump(recipe))
    other.begin([])
    with other.alone_at("index"):
        assert synthesize(recipe, out, 10).images == 10
    assert is_finished(out) and written == [1, 1, 1]


def test_an_index_that_another_process_has_written_about_all_is_not_written_again(tmp_path: Path) -> None:
    recipe, out = recipe_for(tmp_path, INVERSION), tmp_path / "out"
    synthesize(recipe, out, 5)
    with closing(Shards(out, dump(recipe))) as one, closing(Shards(out, dump(recipe))) as other:
        for shards in (one, other):
            shards.begin([])
        with one.alone_at("index"):
            assert not other.finish(recipe.task)
        before = (out / "index.json").stat().st_ino  # a file that is written has a new one
        assert other.finish(recipe.task) and (out / "index.json").stat().st_ino == before
        assert one.finish(recipe.task) and (out / "index.json").stat().st_ino != before


def test_a_process_that_has_nothing_to_do_asks_less_and_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    lines: list[str] = []
    claim, taken = Shards.claim, iter([True] * 6)
    monkeypatch.setattr(
        Shards, "claim", lambda shards, images, each: None if next(taken, False) else claim(shards, images, each)
    )
    clock = SimpleNamespace(sleep=slept.append, perf_counter=time.perf_counter)
    monkeypatch.setattr(worker, "time", clock)
    assert synthesize(recipe_for(tmp_path, INVERSION), tmp_path / "out", 5, say=lines.append).images == 5
    assert slept == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.0, 3.0])
    assert [line for line in lines if "waiting" in line] == [
        "other processes are making all missing shards: waiting for them"
    ]


def test_a_killed_run_leaves_whole_shards_and_redoes_only_the_one_it_was_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates: list[int] = []
    update = Inversion.update

    def counted(source: Inversion, student: nn.Module, step: int) -> dict[str, Tensor]:
        updates.append(step)
        return update(source, student, step)

    monkeypatch.setattr(Inversion, "update", counted)
    out = tmp_path / "out"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Image.Image, "save", save_that_fails("/00002/00001.png", KeyboardInterrupt()))
        synthesize(recipe_for(tmp_path, INVERSION), out, 20)
    assert verify(recipe_for(tmp_path, INVERSION), out).images == 10
    assert sorted(file.name for file in (out / "data" / "images").iterdir()) == ["00000", "00001"]
    assert not list(out.glob(".*.part"))
    assert updates == [-1] * 3
    synthesize(recipe_for(tmp_path, INVERSION), out, 20)
    assert updates == [-1] * 5


def test_more_images_are_added_and_equal_those_of_a_larger_set(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, INVERSION, "classification")
    synthesize(recipe, tmp_path / "grown", 5)
    before = everything(tmp_path / "grown")
    again = synthesize(recipe_for(tmp_path, INVERSION, "classification"), tmp_path / "grown", 3)
    assert again.images == 5 and everything(tmp_path / "grown") == before
    synthesize(recipe_for(tmp_path, INVERSION, "classification"), tmp_path / "grown", 15)
    synthesize(recipe_for(tmp_path, INVERSION, "classification"), tmp_path / "once", 15)
    assert everything(tmp_path / "grown") == everything(tmp_path / "once")


@pytest.mark.parametrize("method", some(["inversion", "cgdd"], "inversion"))
def test_a_shard_that_is_gone_is_made_again_alone(method: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    synthesize(recipe_for(tmp_path, METHODS[method]), out, 18)
    before = everything(out)
    (out / "shards" / "00001.json").unlink()
    shutil.rmtree(out / "data" / "images" / "00001")
    assert verify(recipe_for(tmp_path, METHODS[method]), out).notes == [
        "the data set is incomplete; run the command without --verify to resume"
    ]
    synthesize(recipe_for(tmp_path, METHODS[method]), out, 18)
    assert everything(out) == before


def test_a_shard_that_needs_those_before_it_is_not_made_again_wrongly(tmp_path: Path) -> None:
    out = tmp_path / "out"
    synthesize(recipe_for(tmp_path, CMI), out, 16)
    (out / "shards" / "00001.json").unlink()
    with pytest.raises(RunError, match=r"shard 00001 of .* is gone.*choose another --out"):
        synthesize(recipe_for(tmp_path, CMI), out, 16)


# What is checked.


def damaged(recipe: Recipe, out: Path) -> list[str]:
    lines: list[str] = []
    with pytest.raises(DataError, match=r"damaged or missing.*run the command without --verify") as caught:
        verify(recipe, out, say=lines.append)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{len(lines)} of ")
    return lines


def test_verify_finds_a_flipped_byte_and_a_missing_file(tmp_path: Path) -> None:
    recipe, out = recipe_for(tmp_path, DIODE, "detection"), tmp_path / "out"
    synthesize(recipe, out, 6)
    before = everything(out)
    assert verify(recipe, out) == Made(path=out / "data", images=6, shards=2, notes=[])
    image, label, about = (
        out / "data" / name for name in ("images/00001/00002.png", "labels/00000/00001.txt", "annotations.json")
    )
    flipped = bytearray(image.read_bytes())
    flipped[-20] ^= 1
    image.write_bytes(flipped)
    label.unlink()
    about.write_text("{}")
    assert damaged(recipe, out) == [f"{label}: missing", f"{image}: damaged", f"{about}: damaged"]

    # What the message says makes it whole again.
    for file in (about, out / "shards" / "00000.json", out / "shards" / "00001.json"):
        file.unlink()
    synthesize(recipe_for(tmp_path, DIODE, "detection"), out, 6)
    assert everything(out) == before


def test_verify_asks_for_no_shard_to_be_removed_that_cannot_be_made_again(tmp_path: Path) -> None:
    recipe, out = recipe_for(tmp_path, CMI), tmp_path / "out"
    synthesize(recipe, out, 8)
    before = everything(out)
    image = next(out.rglob("00001/*.png"))
    content = image.read_bytes()
    image.unlink()
    with pytest.raises(DataError, match=r"cannot be made again alone: put its files back, or make the set anew"):
        verify(recipe, out)
    image.write_bytes(content)
    (out / "index.json").unlink()  # "a file of no shard"
    synthesize(recipe_for(tmp_path, CMI), out, 8)
    assert everything(out) == before and verify(recipe, out).notes == []


def test_a_set_of_another_recipe_is_refused_with_what_differs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    synthesize(recipe_for(tmp_path, INVERSION), out, 5)
    before = everything(out)
    for other, key in (
        (recipe_for(tmp_path, INVERSION, training={"seed": 1}), "training.seed: 1 here, 0"),
        (recipe_for(tmp_path, INVERSION, training={"speed": {"fused_statistics": False}}), "speed.fused_statistics"),
        (recipe_for(tmp_path, INVERSION | {"lr": 0.5}), "source.lr: 0.5 here"),
        (recipe_for(tmp_path, INVERSION, task={"num_classes": 4}), "task.num_classes: 4 here, 3"),
    ):
        with pytest.raises(RunError, match=f"another recipe .*{key}"):
            synthesize(other, out, 10)
        with pytest.raises(RunError, match=f"another recipe .*{key}"):
            verify(other, out)
    assert everything(out) == before


def test_what_only_concerns_a_student_may_differ(tmp_path: Path) -> None:
    out = tmp_path / "out"
    synthesize(recipe_for(tmp_path, INVERSION), out, 5)
    student = {"network": "datafree/unet", "args": {"width": 4, "depth": 2}}
    other = recipe_for(tmp_path, INVERSION, student=student, training={"lr": 0.5, "optimizer": "sgd"}, name="other")
    assert synthesize(other, out, 10).images == 10
    synthesize(recipe_for(tmp_path, INVERSION), tmp_path / "once", 10)
    assert everything(out) == everything(tmp_path / "once")
    synthesize(recipe_for(tmp_path, CGDD), tmp_path / "generator", 6)
    with pytest.raises(RunError, match=r"student.args.width"):  # a generator may have looked at it
        synthesize(recipe_for(tmp_path, CGDD, student=student), tmp_path / "generator", 6)


def test_a_directory_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, INVERSION)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is a file; choose another --out"):
        synthesize(recipe, tmp_path / "file", 5)
    other = tmp_path / "run"
    other.mkdir()
    (other / "recipe.yaml").write_text("name: run\n")
    with pytest.raises(RunError, match="holds no made data set"):
        synthesize(recipe, other, 5)
    for nothing in (tmp_path / "nowhere", other):
        with pytest.raises(RunError, match="holds no made data set"):
            verify(recipe, nothing)
    assert [file.name for file in other.iterdir()] == ["recipe.yaml"]


def test_a_full_disk_is_one_line_and_whole_shards_stay_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        error = OSError(28, "No space left on device")
        patched.setattr(Image.Image, "save", save_that_fails("/00001/00003.png", error))
        with pytest.raises(
            RunError, match=r"cannot write into .*: No space left on device; its complete shards are intact"
        ):
            synthesize(recipe_for(tmp_path, INVERSION), out, 15)
    assert verify(recipe_for(tmp_path, INVERSION), out).images == 5
    assert not list(out.glob(".*.part"))
    assert synthesize(recipe_for(tmp_path, INVERSION), out, 15).images == 15


# What is refused before any work.


def test_a_source_that_learns_only_beside_a_student_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for source in (
        {"method": "dfad", "width": 2},
        {"method": "mixed", "parts": [{"method": "noise"}, {"method": "dfad", "width": 2}]},
    ):
        with pytest.raises(RecipeError, match=r"source\.warmup: is 0"):
            synthesize(recipe_for(tmp_path, source), out, 5)
    assert not out.exists()


def test_parts_that_finish_batches_are_not_mixed(tmp_path: Path) -> None:
    mixed = {"method": "mixed", "parts": [INVERSION, {"method": "noise"}]}
    for source in (mixed, {"method": "mixed", "parts": [mixed, {"method": "noise"}]}):
        with pytest.raises(RecipeError, match="make a data set of that part alone"):
            synthesize(recipe_for(tmp_path, source), tmp_path / "out", 5)
    assert not (tmp_path / "out").exists()


def test_a_source_that_gives_the_same_images_again_is_refused(tmp_path: Path) -> None:
    zskt = {"method": "zskt", "warmup": 1, "batch_size": 3, "width": 2, "latent": 4}
    with pytest.raises(DataError, match="images that it has given before"):
        synthesize(recipe_for(tmp_path, zskt), tmp_path / "out", 5)
    assert not list((tmp_path / "out" / "shards").iterdir())


def test_a_class_whose_name_is_no_folders_is_refused_before_any_work(tmp_path: Path) -> None:
    for name in ("dress", "coat"):
        (tmp_path / "labelled" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "labelled" / name / "a.png")
    (tmp_path / "labelled" / "classes.txt").write_text("dress\ncoat\nT-shirt/top\n")
    recipe = recipe_for(tmp_path, CGDD, "classification", data=str(tmp_path / "labelled"))
    with pytest.raises(DataError, match=r"the class name 'T-shirt/top' cannot name a folder; rename it"):
        synthesize(recipe, tmp_path / "out", 5)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_too_few_photos_for_a_set_is_said(tmp_path: Path) -> None:
    """Of twelve photos one is kept back; shards hold 6."""
    for index in range(12):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (20 * index, 0, 0)).save(tmp_path / "photos" / f"{index:02}.png")
    folder = {"method": "folder", "path": str(tmp_path / "photos")}
    notes = []
    for images, out in ((6, "few"), (12, "many")):
        made = synthesize(recipe_for(tmp_path, folder, "classification"), tmp_path / out, images)
        pictures = [file.read_bytes() for file in sorted(Path(made.path).rglob("*.png"))]
        assert len(pictures) == images
        notes.append(any("more than once" in note for note in made.notes))
        assert notes[-1] == (len(set(pictures)) < images)
    assert notes == [False, True]


@pytest.mark.parametrize("names", ["", "class 0\n", "class 0\nclass 1\nclass 2\nclass 3\n"])
def test_a_set_whose_names_are_no_longer_those_of_its_classes_is_refused(names: str, tmp_path: Path) -> None:
    recipe, out = recipe_for(tmp_path, INVERSION, "classification"), tmp_path / "out"
    with pytest.raises(Interrupted):
        synthesize(recipe, out, 10, stop=stop_after(1))
    (out / "data" / "classes.txt").write_text(names)
    with pytest.raises(
        RunError, match=r"classes\.txt has \d names? where the task has 3 classes; put it back as it was"
    ):
        synthesize(recipe, out, 10)


def test_a_teacher_without_weights_is_refused(tmp_path: Path) -> None:
    network = {"network": "datafree/unet", "args": ARGS["segmentation"]}
    with pytest.raises(NetworkError, match=r"has no weights.*teacher.weights=FILE"):
        synthesize(recipe_for(tmp_path, INVERSION, teacher=network), tmp_path / "out", 5)
    assert not (tmp_path / "out").exists()


# Memory.


def test_no_image_is_held_once_its_shard_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished: list[weakref.ref[Tensor]] = []
    written: list[weakref.ref[Tensor]] = []
    alive: list[tuple[int, int]] = []
    add, write = ImagePool.add, Shards.write

    def noted_add(stock: ImagePool, images: Tensor, targets: Tensor) -> None:
        finished.append(weakref.ref(images))
        add(stock, images, targets)

    def noted_write(shards: Shards, number: int, task: Task, batch: Batch, state: bytes | None = None) -> None:
        written.append(weakref.ref(batch.images))
        write(shards, number, task, batch, state)

    def log(progress: Progress) -> None:
        alive.append((sum(ref() is not None for ref in finished), sum(ref() is not None for ref in written)))

    monkeypatch.setattr(ImagePool, "add", noted_add)
    monkeypatch.setattr(Shards, "write", noted_write)
    recipe = recipe_for(tmp_path, INVERSION, "classification")
    synthesize(recipe, tmp_path / "out", 25, log=log)
    assert alive == [(0, 1)] * 5
    assert isinstance(recipe.source, Inversion)
    assert recipe.source._pool._bank.added == 0


def test_a_record_is_plain_json_and_names_every_file_of_its_shard(tmp_path: Path) -> None:
    out = tmp_path / "out"
    synthesize(recipe_for(tmp_path, INVERSION), out, 5)
    record = json.loads((out / "shards" / "00000.json").read_text())
    assert (record["shard"], record["images"], record["carries"]) == (0, 5, False)
    for name, digest in record["files"].items():
        assert hashlib.sha256((out / "data" / name).read_bytes()).hexdigest() == digest
    written = {file.relative_to(out / "data").as_posix() for file in (out / "data").rglob("*.png")}
    assert set(record["files"]) == written
    masks = np.array(Image.open(out / "data" / "masks" / "00000" / "00000.png"))
    assert masks.dtype == np.uint8
