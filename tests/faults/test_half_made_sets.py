"""A made data set that is not finished, or holds other files than were written: refused, not learnt from."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from datafree.deploy.made_images import calibration_images
from datafree.errors import DataError, DatafreeError, RunError
from datafree.evaluation.scoring import agreement
from datafree.networks.normalized import Normalized
from datafree.networks.unet import unet
from datafree.sources.base import SourceContext
from datafree.sources.dataset import Dataset
from datafree.sources.folder import Folder
from datafree.storage import made_set
from datafree.storage.whole_folder import made_whole
from datafree.synthesis.shards import Shards
from datafree.tasks.base import Task
from datafree.tasks.classification import Classification
from datafree.tasks.labelled import open_labelled
from datafree.tasks.segmentation import Segmentation
from small_shards import DETECTION, RECIPE, SIZE, batch_of

TASKS: dict[str, Task] = {
    "classification": Classification(num_classes=2, image_size=SIZE),
    "segmentation": Segmentation(num_classes=2, image_size=SIZE),
    "detection": DETECTION,
}


def made(path: Path, task: Task, shards: int = 2, *, finish: bool = True) -> Path:
    with closing(Shards(path, RECIPE)) as opened:
        opened.begin(["cat", "dog"])
        for number in range(opened.count, shards):
            opened.write(number, task, batch_of(task, 4, number))
        if finish:
            opened.finish(task)
    return path


def learns(task: Task, path: Path) -> Dataset:
    source = Dataset(path=path)
    source.attach(SourceContext(task=task, teacher=nn.Identity(), steps=4, batch_size=2))
    return source


def uses(task: Task, path: Path) -> list[Callable[[], object]]:
    """The ways in: as a source and as labelled data, by the set's folder and by its data/."""
    return [
        lambda: learns(task, path),
        lambda: learns(task, path / "data"),
        lambda: open_labelled(task, path),
        lambda: open_labelled(task, path / "data"),
    ]


@pytest.mark.parametrize("kind", TASKS)
def test_a_set_that_is_not_finished_is_refused_and_a_finished_one_is_learnt_from(tmp_path: Path, kind: str) -> None:
    task = TASKS[kind]
    path = made(tmp_path / "set", task, finish=False)
    for use in uses(task, path):
        with pytest.raises(RunError, match=r"not finished: it holds 8 images; run the same `datafree synthesize`"):
            use()
    made(path, task)
    assert len(open_labelled(task, path)) == 8
    learns(task, path).sample(3)
    made(path, task, shards=3, finish=False)  # more is being made, and the lists of all images are those of before
    for use in uses(task, path):
        with pytest.raises(RunError, match="not finished: it holds 12 images and lists 8; run the same"):
            use()


def test_a_set_that_is_not_finished_is_not_taken_for_photos_either(tmp_path: Path) -> None:
    task = TASKS["segmentation"]
    path = made(tmp_path / "set", task, finish=False)
    context = SourceContext(task=task, teacher=nn.Identity(), steps=4, batch_size=2)
    network = Normalized(unet(2, width=2, depth=2))
    for place in (path, path / "data"):
        for use in (
            lambda place=place: Folder(path=place).attach(context),
            lambda place=place: agreement(network, network, task, place, device=torch.device("cpu")),
            lambda place=place: calibration_images(tmp_path, place, task, []),
        ):
            with pytest.raises(RunError, match="is a data set that is not finished"):
                use()
    made(path, task)
    Folder(path=path / "data").attach(context)
    assert len(calibration_images(tmp_path, path, task, [])[0]) == 8


def add(data: Path) -> None:
    first = next(file for file in sorted(data.rglob("*.png")))
    shutil.copy(first, first.with_name("more.png"))


def remove(data: Path) -> None:
    next(file for file in sorted(data.rglob("*.png"))).unlink()


def rename(data: Path) -> None:
    first = next(file for file in sorted(data.rglob("*.png")))
    first.rename(first.with_name("other.png"))


def repaint(data: Path) -> None:
    """A sound picture of the same size, by another hand."""
    first = next(file for file in sorted(data.rglob("*.png")))
    written = (data.parent / "index.json").stat().st_mtime_ns
    Image.eval(Image.open(first), lambda value: value ^ 1).save(first)
    os.utime(first, ns=(written + 1, written + 1))


def change_names(data: Path) -> None:
    (data / "classes.txt").write_text("dog\ncat\n")


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("change", [add, remove, rename, repaint, change_names])
def test_a_set_with_other_files_than_were_written_is_refused(
    tmp_path: Path, kind: str, change: Callable[[Path], None]
) -> None:
    task = TASKS[kind]
    path = made(tmp_path / "set", task)
    assert list(made_set.damages(path)) == []
    change(path / "data")
    for use in uses(task, path):
        with pytest.raises(
            DatafreeError, match=r"files that (no shard|have changed)|files too few|has changed since it was written"
        ):
            use()
    assert list(made_set.damages(path))
    elsewhere = tmp_path / "mine"  # the way out that is named: as an ordinary folder the user answers for it
    shutil.copytree(path / "data", elsewhere)
    if kind == "classification" or change in (repaint, change_names):
        assert len(open_labelled(task, elsewhere)) in (7, 8, 9)


@pytest.mark.parametrize("more", [0, 1])
def test_a_changed_file_is_refused_also_when_the_set_was_gone_on_with(tmp_path: Path, more: int) -> None:
    task = TASKS["segmentation"]
    path = made(tmp_path / "set", task)
    repaint(path / "data")
    made(path, task, shards=2 + more)
    assert Shards(path, RECIPE).images == 8 + 4 * more
    for use in uses(task, path):
        with pytest.raises(DataError, match="1 files that have changed since they were written"):
            use()


def test_a_set_whose_classes_were_renamed_is_not_gone_on_with(tmp_path: Path) -> None:
    task = TASKS["classification"]
    path = made(tmp_path / "set", task)
    change_names(path / "data")
    assert list(made_set.damages(path)) == [("data/classes.txt", "damaged")]
    with pytest.raises(RunError, match=r"classes\.txt has changed since it was written; put it back"):
        made(path, task, shards=3)
    (path / "data" / "classes.txt").write_text("cat\ndog\n")
    made(path, task, shards=3)
    assert len(open_labelled(task, path)) == 12


@pytest.mark.parametrize("kind", TASKS)
def test_a_set_that_was_copied_or_touched_is_the_same(tmp_path: Path, kind: str) -> None:
    path = made(tmp_path / "set", TASKS[kind])
    shutil.copytree(path, tmp_path / "copy", copy_function=shutil.copyfile)
    for file in path.rglob("*.png"):
        os.utime(file)
    for place in (path, tmp_path / "copy"):
        assert len(open_labelled(TASKS[kind], place)) == 8


def test_verify_names_added_files_and_no_hidden_ones(tmp_path: Path) -> None:
    path = made(tmp_path / "set", DETECTION)
    (path / "data" / "images" / ".DS_Store").touch()
    assert list(made_set.damages(path)) == []
    (path / "data" / "images" / "00000" / "more.png").touch()
    (path / "data" / "more").mkdir()
    (path / "data" / "more" / "1.txt").touch()
    added = "added: no shard has written it"
    assert list(made_set.damages(path)) == [("data/images/00000/more.png", added), ("data/more/1.txt", added)]


def test_the_lists_of_all_images_are_compared_by_content(tmp_path: Path) -> None:
    path = made(tmp_path / "set", DETECTION)
    file = path / "data" / "annotations.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"][0] += 1
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"annotations\.json is missing or has changed since it was written"):
        open_labelled(DETECTION, path)


def test_a_folder_that_only_looks_like_a_set_is_one_of_labelled_images(tmp_path: Path) -> None:
    for name in ("data", "shards"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (12, 8)).save(tmp_path / name / "1.png")
    assert len(open_labelled(TASKS["classification"], tmp_path)) == 2


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o027])
def test_an_exports_folder_is_as_open_as_the_process_has_folders(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with made_whole(tmp_path / "export") as stage:
            (stage / "file").touch()
        assert (tmp_path / "export").stat().st_mode & 0o777 == 0o777 & ~mask
    finally:
        os.umask(before)
