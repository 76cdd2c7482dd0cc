"""Shards on disk: whole or not there, and what is about all of them written in constant memory."""

from __future__ import annotations

import json
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from datafree.data.coco_yolo import coco_json, coco_text
from datafree.errors import DataError, RunError
from datafree.ops.boxes import pack
from datafree.sources.base import Batch
from datafree.storage import made_set
from datafree.storage.atomic import write_pieces
from datafree.storage.made_set import records
from datafree.synthesis.shard_index import listings
from datafree.synthesis.shards import Shards
from datafree.tasks.classification import Classification
from datafree.tasks.segmentation import Segmentation
from small_shards import DETECTION, RECIPE, SIZE, batch_of


def begun(path: Path, names: tuple[str, ...] = ("cat", "dog")) -> Shards:
    shards = Shards(path, RECIPE)
    shards.begin(list(names))
    return shards


def boxes_of(path: Path, shards: int, images: int) -> Path:
    """Records of as many shards, with one box in every other image; no image."""
    (path / "shards").mkdir(parents=True)
    for number in range(shards):
        entries = [
            {
                "file_name": f"{number:05}/{index:05}.png",
                "width": 12,
                "height": 8,
                "boxes": [[index % 2, 1.0, 2.0, 3.5, 4.25]] * (index % 3),
            }
            for index in range(images)
        ]
        record = {"shard": number, "images": images, "carries": False, "files": {}, "entries": entries}
        (path / "shards" / f"{number:05}.json").write_text(json.dumps(record))
    return path


def test_a_streamed_coco_file_is_the_one_of_all_images_together(tmp_path: Path) -> None:
    path = boxes_of(tmp_path, shards=3, images=4)
    entries = [entry for record in records(path) for entry in record["entries"]]
    sizes = [(entry["file_name"], entry["width"], entry["height"]) for entry in entries]
    expected = coco_json(sizes, [entry["boxes"] for entry in entries], ["cat", "dog"])
    assert json.loads("".join(coco_text(partial(listings, path, DETECTION), ["cat", "dog"]))) == expected
    assert len(expected["images"]) == 12 and len(expected["annotations"]) == 9


def test_memory_for_the_coco_file_and_the_hashes_does_not_grow_with_the_shards(tmp_path: Path) -> None:
    peaks = []
    for shards in (4, 16):
        # Shards large enough that the one in hand is most of what is held, not what Python itself keeps of any call.
        path = boxes_of(tmp_path / str(shards), shards, images=100)
        tracemalloc.start()
        write_pieces(path / "annotations.json", coco_text(partial(listings, path, DETECTION), ["cat", "dog"]))
        assert list(made_set.damages(path)) == []
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_a_shard_without_any_box_is_listed_and_labelled(tmp_path: Path) -> None:
    shards = begun(tmp_path)
    nothing = (torch.empty(0, dtype=torch.int64), torch.empty(0, 4))
    one = (torch.tensor([1]), torch.tensor([[1.0, 2.0, 5.0, 6.0]]))
    for number, found in enumerate(([nothing, nothing], [one, nothing])):
        shards.write(number, DETECTION, Batch(images=torch.rand(2, 3, *SIZE), targets=pack(found, 3)))
    shards.finish(DETECTION)
    labelled = DETECTION.open_dataset(tmp_path / "data")
    assert len(labelled) == 4
    _, targets = next(labelled.batches(4))
    assert (targets[..., 0] >= 0).sum(1).tolist() == [0, 0, 1, 0]
    assert (tmp_path / "data" / "labels" / "00000" / "00000.txt").read_text() == ""


def test_masks_of_many_classes_are_read_back(tmp_path: Path) -> None:
    task = Segmentation(num_classes=300, image_size=SIZE, ignore_index=65535)
    shards = begun(tmp_path, tuple(f"class {label:03}" for label in range(300)))
    batch = batch_of(task, 2)
    assert batch.targets is not None and batch.targets.max() > 255
    batch.targets[0, 0, 0] = 65535
    shards.write(0, task, batch)
    _, masks = next(task.open_dataset(tmp_path / "data").batches(2))
    assert torch.equal(masks, batch.targets)


@pytest.mark.parametrize("name", ["../cat", "a/b", "..", ".", ".hidden", "/cat"])
def test_a_class_whose_name_is_no_folders_is_refused(name: str, tmp_path: Path) -> None:
    shards = begun(tmp_path / "out", (name, f"{name}2"))
    with pytest.raises(DataError, match="cannot name a folder"):
        task = Classification(num_classes=2, image_size=SIZE)
        shards.write(0, task, batch_of(task, 2))
    assert not list(tmp_path.rglob("*.png")) and not list((tmp_path / "out").glob(".*.part"))


# Whole or not there.


def test_a_move_that_was_broken_off_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = begun(tmp_path / "whole")
    whole.write(0, DETECTION, batch_of(DETECTION, 4))
    replace = Path.replace
    moved = 0

    def dies(file: Path, target: Path) -> Path:
        nonlocal moved
        moved += ".00000.part/data" in str(file)
        if moved == 4:
            raise KeyboardInterrupt
        return replace(file, target)

    broken = begun(tmp_path / "broken")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "replace", dies)
        broken.write(0, DETECTION, batch_of(DETECTION, 4))
    broken.close()
    again = Shards(tmp_path / "broken", RECIPE)
    assert again.images == 0
    again.begin(["cat", "dog"])
    assert (again.images, again.claim(5)) == (4, 1)
    for shards in (whole, again):
        shards.finish(DETECTION)
        shards.close()
        assert list(made_set.damages(shards.path)) == []
    files = {
        shards.path.name: {
            str(file.relative_to(shards.path)): file.read_bytes()
            for file in shards.path.rglob("*")
            if file.is_file() and file.name not in ("environment.json", ".lock")
        }
        for shards in (whole, again)
    }
    assert files["whole"] == files["broken"]


def test_what_is_not_whole_is_thrown_away(tmp_path: Path) -> None:
    begun(tmp_path).close()
    for name in (".00000.part/data/images/00000", "state"):
        (tmp_path / name).mkdir(parents=True)
    for name in (".00000.part/data/images/00000/00000.png", "data/.annotations.json.part", "state/.x.pt.7.part"):
        (tmp_path / name).write_bytes(b"torn")
    assert begun(tmp_path).count == 0
    assert sorted(file.name for file in tmp_path.rglob("*") if file.is_file()) == [
        ".lock",
        "classes.txt",
        "environment.json",
        "recipe.yaml",
    ]


def test_numbers_are_counted_and_the_first_gap_comes_next(tmp_path: Path) -> None:
    shards = begun(tmp_path)
    for number in (0, 1, 3):
        shards.write(number, DETECTION, batch_of(DETECTION, number + 1, seed=number))
    again = Shards(tmp_path, RECIPE)
    assert (again.count, again.images, again.class_names) == (3, 7, ["cat", "dog"])
    assert again.claim(8) == 2


def test_what_a_source_goes_on_from_is_kept_for_the_next_shard_only(tmp_path: Path) -> None:
    shards = begun(tmp_path)
    shards.write(0, DETECTION, batch_of(DETECTION, 2))
    assert not shards.carries and shards.state_before(1) is None
    for number in (1, 2):
        shards.write(number, DETECTION, batch_of(DETECTION, 2), {"position": 7})
    assert [file.name for file in (tmp_path / "state").iterdir()] == ["before-00003.pt"]
    again = Shards(tmp_path, RECIPE)
    assert again.carries and again.state_before(3) == {"position": 7}
    with pytest.raises(RunError, match="shard 00002"):
        again.state_before(2)


def test_a_state_after_the_99999th_shard_is_kept(tmp_path: Path) -> None:
    """Its name sorts before those of earlier ones."""
    shards = begun(tmp_path)
    for number in (99_998, 99_999, 100_000):
        shards.write(number, DETECTION, batch_of(DETECTION, 2), {"position": number})
        assert shards.state_before(number + 1) == {"position": number}
    assert [file.name for file in (tmp_path / "state").iterdir()] == ["before-100001.pt"]
    assert Shards(tmp_path, RECIPE).count == 3


# Damage.


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"images": "many", "files": {}}', '{"images": 1, "files": 7}'])
def test_a_damaged_record_is_one_line_that_says_what_to_do(content: str, tmp_path: Path) -> None:
    begun(tmp_path).write(0, DETECTION, batch_of(DETECTION, 2))
    (tmp_path / "shards" / "00000.json").write_text(content)
    with pytest.raises(RunError, match=r"00000.json is damaged .*; remove it") as caught:
        Shards(tmp_path, RECIPE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spoilt",
    [
        {"width": 0},
        {"height": 8.0},
        {"file_name": 7},
        {"boxes": [[2, 1.0, 2.0, 3.5, 4.25]]},  # of a class that there is not
        {"boxes": [[0, 1.0, 2.0, 3.5]]},
        {"boxes": [[0, 1.0, 2.0, 3.5, float("nan")]]},
        {"boxes": [[0, 1.0, 2.0, 3.5, 10**400]]},
        {"boxes": None},
    ],
)
def test_a_record_that_lists_what_is_no_image_is_named_and_no_index_is_written(
    spoilt: dict[str, Any], tmp_path: Path
) -> None:
    shards = begun(tmp_path)
    shards.write(0, DETECTION, batch_of(DETECTION, 2))
    file = tmp_path / "shards" / "00000.json"
    record = json.loads(file.read_text())
    record["entries"][1] |= spoilt
    file.write_text(json.dumps({key: value for key, value in record.items() if key != "seal"}))
    with pytest.raises(RunError, match=r"00000.json is damaged \(it lists what is no image\); remove it"):
        shards.finish(DETECTION)
    assert not (tmp_path / "index.json").exists() and not (tmp_path / "data" / "annotations.json").exists()


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd"])
def test_a_record_names_no_file_outside_the_set(name: str, tmp_path: Path) -> None:
    record: dict[str, Any] = {"shard": 0, "images": 1, "carries": False, "files": {name: "0"}, "entries": []}
    boxes_of(tmp_path, 1, 1)
    (tmp_path / "shards" / "00000.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match="it does not say what such a file says"):
        list(made_set.hashes(tmp_path))


@pytest.mark.parametrize("file", ["recipe.yaml", "state/before-00001.pt"])
def test_other_damage_is_one_line(file: str, tmp_path: Path) -> None:
    begun(tmp_path).write(0, DETECTION, batch_of(DETECTION, 2), b"state")
    (tmp_path / file).write_bytes(b"\xff\xfe: [")
    with pytest.raises(RunError, match=rf"{file} is damaged \(\w+\); choose another --out"):
        Shards(tmp_path, RECIPE).state_before(1)


def test_what_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(image: Image.Image, file: Path) -> None:
        raise PermissionError(13, "Permission denied")

    shards = begun(tmp_path)
    monkeypatch.setattr(Image.Image, "save", refused)
    with pytest.raises(RunError, match=r"cannot write into .*: Permission denied; its complete shards are intact"):
        shards.write(0, DETECTION, batch_of(DETECTION, 2))
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot write into .*/file/out"):
        Shards(tmp_path / "file" / "out", RECIPE).begin(["cat"])


# Several processes. Here two objects stand for them: a lock is an open file's, not a process's.


def test_each_claims_what_no_other_is_at_and_takes_over_from_the_dead(tmp_path: Path) -> None:
    first, second = begun(tmp_path), begun(tmp_path)
    first.write(0, DETECTION, batch_of(DETECTION, 2))  # so that the size of shards is known
    assert (first.claim(5), second.claim(5)) == (1, 2)
    assert second.claim(3) is None  # one shard is missing, and the other is at it
    first.write(1, DETECTION, batch_of(DETECTION, 2))
    assert second.images == 2 and second.claim(4) is None
    assert second.images == 4  # made by the other, noticed
    assert first.claim(8) == 3
    first.close()  # as the system does for the dead
    assert second.claim(8) == 3
    second.close()
    assert not (tmp_path / ".claims").exists()


def test_shards_that_carry_something_on_are_made_one_after_the_other(tmp_path: Path) -> None:
    first, second = begun(tmp_path), begun(tmp_path)
    first.write(0, DETECTION, batch_of(DETECTION, 2), {"position": 1})
    assert first.claim(9) == 1
    assert second.claim(9) is None
    first.leave(1)
    assert second.claim(9) == 1


def test_one_that_joins_does_not_touch_what_another_is_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = begun(tmp_path)
    assert first.claim(4) == 0
    settle = Shards._settle
    seen: list[int] = []

    def joined(shards: Shards, part: Path) -> None:
        if shards is first:  # its shard is whole, but not yet in its place
            (tmp_path / "data" / ".x.png.7.part").write_bytes(b"half")
            other = begun(tmp_path)
            seen.append(other.count)
            other.close()
            assert (tmp_path / "data" / ".x.png.7.part").exists()
        settle(shards, part)

    monkeypatch.setattr(Shards, "_settle", joined)
    first.write(0, DETECTION, batch_of(DETECTION, 4))
    assert seen == [0] and first.count == 1 and list(made_set.damages(tmp_path)) == []


def test_a_set_of_another_recipe_begun_meanwhile_is_noticed(tmp_path: Path) -> None:
    late = Shards(tmp_path, {**RECIPE, "name": "other"})
    begun(tmp_path).close()
    with pytest.raises(RunError, match="holds the data set of another recipe"):
        late.begin(["cat", "dog"])
