"""Photos that EXIF turns, with labels: of the picture upright, as sizes confirm, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datafree.data.images import read_turned
from datafree.errors import DataError
from datafree.tasks.classification import Classification
from datafree.tasks.detection import Detection
from datafree.tasks.segmentation import Segmentation

UPRIGHT = (12, 8)  # (height, width) of the picture as it is seen
SQUARE = (8, 8)
SIDEWAYS = (5, 6, 7, 8)


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels whose turning by the EXIF standard gives `upright`."""
    return {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: np.swapaxes(a, 0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.swapaxes(a[::-1, ::-1], 0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation](upright)


def save(file: Path, pixels: np.ndarray, orientation: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, **({"exif": exif} if orientation != 1 else {}))


def picture(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A white rectangle at the upper left, and its mask."""
    mask = np.zeros(size, np.uint8)
    mask[1:4, 1:6] = 1
    return np.repeat(mask[..., None] * 255, 3, 2).astype(np.uint8), mask


def photo(
    folder: Path, size: tuple[int, int], orientation: int, masks_own: int = 1, *, as_stored: bool = False
) -> Path:
    image, mask = picture(size)
    save(folder / "images" / "1.png", stored(image, orientation), orientation)
    pixels = stored(mask, orientation) if as_stored else stored(mask, masks_own)
    save(folder / "masks" / "1.png", pixels, masks_own)
    return folder


def masks_task(size: tuple[int, int]) -> Segmentation:
    return Segmentation(num_classes=2, image_size=size)


def fits(image: object, mask: object) -> bool:
    return bool(np.array_equal(np.asarray(image)[0] > 0.5, np.asarray(mask) == 1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [UPRIGHT, SQUARE])
def test_a_mask_without_orientation_is_of_the_picture_upright_or_refused(
    tmp_path: Path, size: tuple[int, int], orientation: int
) -> None:
    data = photo(tmp_path / "d", size, orientation)
    if orientation == 1 or (orientation in SIDEWAYS and size == UPRIGHT):
        assert fits(*masks_task(size).open_dataset(data)[0])
    else:
        with pytest.raises(DataError, match=rf"1.png is turned by its EXIF orientation {orientation}, .*does not tell"):
            masks_task(size).open_dataset(data)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("size", [UPRIGHT, SQUARE])
def test_a_mask_of_the_stored_pixels_is_never_taken_for_an_upright_one(
    tmp_path: Path, size: tuple[int, int], orientation: int
) -> None:
    data = photo(tmp_path / "d", size, orientation, as_stored=True)
    with pytest.raises(DataError, match=r"does not tell|make them equal"):
        _ = masks_task(size).open_dataset(data)[0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [UPRIGHT, SQUARE])
def test_a_mask_with_its_images_orientation_is_turned_with_it(
    tmp_path: Path, size: tuple[int, int], orientation: int
) -> None:
    data = photo(tmp_path / "d", size, orientation, orientation)
    assert fits(*masks_task(size).open_dataset(data)[0])


@pytest.mark.parametrize(("orientation", "masks_own"), [(1, 3), (3, 4), (1, 6), (6, 8), (2, 5)])
def test_a_mask_with_another_orientation_than_its_image_is_refused(
    tmp_path: Path, orientation: int, masks_own: int
) -> None:
    data = photo(tmp_path / "d", SQUARE, orientation, masks_own)
    with pytest.raises(DataError, match=r"does not tell|has the EXIF orientation"):
        _ = masks_task(SQUARE).open_dataset(data)[0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [UPRIGHT, SQUARE])
def test_coco_boxes_are_of_the_picture_upright_or_refused(
    tmp_path: Path, size: tuple[int, int], orientation: int
) -> None:
    image, _ = picture(size)
    save(tmp_path / "1.png", stored(image, orientation), orientation)
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": size[1], "height": size[0]}],
        "categories": [{"id": 1, "name": "white"}, {"id": 2, "name": "other"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 3]}],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    task = Detection(num_classes=2, image_size=size)
    if orientation == 1 or (orientation in SIDEWAYS and size == UPRIGHT):
        shown, targets = task.open_dataset(tmp_path)[0]
        x1, y1, x2, y2 = targets[0, 1:].int().tolist()
        assert shown[:, y1:y2, x1:x2].min() == 1 and shown.sum() == 3 * (y2 - y1) * (x2 - x1)
    else:
        with pytest.raises(DataError, match="does not tell whether its labels are of the picture upright"):
            task.open_dataset(tmp_path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_yolo_boxes_are_of_the_picture_upright_and_that_is_said(tmp_path: Path, orientation: int) -> None:
    image, _ = picture(UPRIGHT)
    save(tmp_path / "images" / "1.png", stored(image, orientation), orientation)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "1.txt").write_text(f"0 {3.5 / 8} {2.5 / 12} {5 / 8} {3 / 12}\n")
    data = Detection(num_classes=2, image_size=UPRIGHT).open_dataset(tmp_path)
    shown, targets = data[0]
    x1, y1, x2, y2 = targets[0, 1:].round().int().tolist()
    assert shown[:, y1:y2, x1:x2].min() == 1 and shown.sum() == 3 * (y2 - y1) * (x2 - x1)
    assert [("turned by EXIF" in line) for line in data.remarks] == ([True] if orientation != 1 else [])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_class_has_no_place_so_that_any_photo_is_taken_upright(tmp_path: Path, orientation: int) -> None:
    image, _ = picture(UPRIGHT)
    for name in ("a", "b"):
        save(tmp_path / name / "1.png", stored(image, orientation), orientation)
    shown, _ = Classification(num_classes=2, image_size=UPRIGHT).open_dataset(tmp_path)[0]
    assert np.array_equal(shown.permute(1, 2, 0).numpy() * 255, image)
    assert read_turned(tmp_path / "a" / "1.png")[1] == orientation
