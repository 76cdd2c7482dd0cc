"""A folder for each class: read in the order of the teacher's outputs, or refused with one line."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from unicodedata import normalize

import numpy as np
import pytest
import torch
from PIL import Image

from datafree.data.classification_folder import LabelFolder
from datafree.errors import DataError
from datafree.tasks.classification import Classification


def put(root: Path, name: str, value: int = 0, size: tuple[int, int] = (8, 8)) -> None:
    """An image of one grey value at root/name."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(root / name)


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """Grey 10 and 11 are cats, 20 a dog, 30 to 32 owls."""
    root = tmp_path / "animals"
    for name, value in (("cat/a", 10), ("cat/b", 11), ("dog/a", 20), ("owl/a", 30), ("owl/deep/b", 31), ("owl/c", 32)):
        put(root, f"{name}.png", value)
    return root


def opened(root: Path, classes: int = 3, size: tuple[int, int] = (8, 8)) -> LabelFolder:
    return LabelFolder(root, image_size=size, num_classes=classes)


def seen(folder: LabelFolder, batch_size: int = 4) -> dict[int, int]:
    """Grey value -> class id of every image."""
    pairs: dict[int, int] = {}
    for images, labels in folder.batches(batch_size):
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        pairs |= dict(zip((images[:, 0, 0, 0] * 255).round().int().tolist(), labels.tolist(), strict=True))
    return pairs


def refusal(root: Path, classes: int = 3) -> str:
    with pytest.raises(DataError) as caught:
        opened(root, classes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folders_are_classes_in_the_order_of_their_names(animals: Path) -> None:
    folder = opened(animals)
    assert folder.class_names == ["cat", "dog", "owl"]
    assert len(folder) == 6
    assert seen(folder) == {10: 0, 11: 0, 20: 1, 30: 2, 31: 2, 32: 2}
    assert folder.skipped == []


def test_batches_stream_and_the_last_may_be_smaller(animals: Path) -> None:
    assert [images.shape for images, _ in opened(animals).batches(4)] == [(4, 3, 8, 8), (2, 3, 8, 8)]
    first = next(iter(opened(animals).batches(1)))
    assert first[1].tolist() == [0]


def test_the_task_opens_it(animals: Path) -> None:
    task = Classification(num_classes=3, image_size=(16, 24))
    images, labels = next(task.open_dataset(animals).batches(2))
    assert images.shape == (2, 3, 16, 24)
    assert labels.tolist() == [0, 0]


def test_images_are_scaled_to_cover_and_cropped_to_the_middle(animals: Path) -> None:
    picture = np.zeros((16, 48, 3), np.uint8)
    picture[:, 16:32] = 200  # the middle third
    Image.fromarray(picture).save(animals / "cat" / "a.png")
    image, _ = opened(animals)[0]
    assert image.shape == (3, 8, 8)
    assert (image[:, :, 1:-1] * 255).round().eq(200).all()  # the seams are smoothed


@pytest.mark.parametrize("beside", [False, True])
def test_classes_txt_gives_another_order_in_the_folder_or_its_parent(animals: Path, beside: bool) -> None:
    (animals.parent if beside else animals).joinpath("classes.txt").write_text("owl\ncat\n\ndog\n", encoding="utf-8")
    folder = opened(animals)
    assert folder.class_names == ["owl", "cat", "dog"]
    assert seen(folder) == {10: 1, 11: 1, 20: 2, 30: 0, 31: 0, 32: 0}


def test_classes_txt_may_name_classes_of_which_no_image_is_there(animals: Path) -> None:
    (animals / "classes.txt").write_text("ant\ncat\nbee\ndog\nowl\n")
    folder = opened(animals, classes=5)
    assert folder.class_names == ["ant", "cat", "bee", "dog", "owl"]
    assert set(seen(folder).values()) == {1, 3, 4}


def test_missing_folders_without_classes_txt_are_refused(animals: Path) -> None:
    line = refusal(animals, classes=5)
    assert "has 3 folders (cat, dog, owl), but the task has num_classes 5" in line
    assert "classes.txt" in line


def test_classes_txt_of_another_length_is_refused(animals: Path) -> None:
    (animals / "classes.txt").write_text("cat\ndog\n")
    assert "names 2 classes (cat, dog), but the task has num_classes 3" in refusal(animals)


def test_a_stray_folder_is_refused(animals: Path) -> None:
    put(animals, "thumbnails/a.png")
    assert "has 4 folders" in refusal(animals)
    (animals / "classes.txt").write_text("cat\ndog\nowl\n")
    assert "a folder 'thumbnails' that" in refusal(animals)


def test_files_and_hidden_folders_beside_the_classes_are_left_out(animals: Path) -> None:
    put(animals, ".cache/a.png", 99)
    put(animals, "overview.png", 98)
    put(animals, "cat/.hidden.png", 97)
    (animals / "cat" / "notes.txt").write_text("no image")
    assert set(seen(opened(animals))) == {10, 11, 20, 30, 31, 32}


def test_an_unreadable_image_is_skipped_and_named(animals: Path) -> None:
    (animals / "owl" / "deep" / "b.png").write_bytes(b"no image")
    (animals / "dog" / "a.png").write_bytes(b"")
    folder = opened(animals)
    assert seen(folder) == {10: 0, 11: 0, 30: 2, 32: 2}
    assert folder.skipped == ["dog/a.png: the file is empty", "owl/deep/b.png: not an image of a known kind"]
    seen(folder)
    assert len(folder.skipped) == 2  # named once, however often they are read


def test_nothing_readable_is_an_error(animals: Path) -> None:
    for file in animals.rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"none of the 6 labelled images can be read; the first: cat/a\.png"):
        list(opened(animals).batches(2))


def test_an_empty_folder_of_a_class_is_refused_by_name(animals: Path) -> None:
    (animals / "dog" / "a.png").unlink()
    line = refusal(animals)
    assert str(animals / "dog") in line
    assert "holds no images" in line


def test_an_empty_folder_that_classes_txt_names_is_a_class_without_images(animals: Path) -> None:
    (animals / "dog" / "a.png").unlink()
    (animals / "classes.txt").write_text("owl\ndog\ncat\n")
    assert seen(opened(animals)) == {10: 2, 11: 2, 30: 0, 31: 0, 32: 0}
    for file in animals.rglob("*.png"):
        file.unlink()
    assert "no folder of a class holds an image" in refusal(animals)


@pytest.mark.parametrize(("folder", "line"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_are_the_same_however_their_accents_are_encoded(
    animals: Path, folder: Literal["NFC", "NFD"], line: Literal["NFC", "NFD"]
) -> None:
    put(animals, f"{normalize(folder, 'bébé')}/a.png", 40)
    name = normalize(line, "bébé")
    (animals / "classes.txt").write_text(f"cat\n{name}\ndog\nowl\n", encoding="utf-8")
    found = opened(animals, classes=4)
    assert found.class_names[1] == name
    assert seen(found)[40] == 1


def test_two_names_that_look_the_same_are_refused(animals: Path) -> None:
    names = [normalize("NFC", "bébé"), normalize("NFD", "bébé")]
    for name in names:
        put(animals, f"{name}/a.png")
    assert "two folders 'bébé', whose accents are encoded in two ways" in refusal(animals, classes=5)
    (animals / "classes.txt").write_text("\n".join(["cat", "dog", "owl", *names]), encoding="utf-8")
    (animals / names[1] / "a.png").unlink()
    (animals / names[1]).rmdir()
    assert "names the class 'bébé' twice" in refusal(animals, classes=5)


def test_a_class_named_twice_is_refused(animals: Path) -> None:
    (animals / "classes.txt").write_text("cat\ndog\ncat\n")
    assert "names the class 'cat' twice" in refusal(animals)


def test_what_is_no_folder_of_folders_is_refused(animals: Path, tmp_path: Path) -> None:
    assert "is not a folder" in refusal(tmp_path / "nowhere")
    assert "is not a folder" in refusal(animals / "cat" / "a.png")
    assert "holds no folders" in refusal(animals / "cat")


def test_a_folder_that_cannot_be_listed_is_one_line(animals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", closed)
    assert "Permission denied; make it readable" in refusal(animals)
