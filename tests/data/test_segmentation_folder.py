"""Folders of images and masks: read exactly, or refused with one line that says what is wrong."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datafree.data.segmentation_folder import MaskFolder
from datafree.errors import DataError

RNG = np.random.default_rng(0)


def put(root: Path, name: str, ids: np.ndarray, pixels: np.ndarray | None = None) -> None:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    if pixels is None:
        pixels = RNG.integers(0, 256, (*ids.shape[:2], 3), np.uint8)
    Image.fromarray(pixels).save(root / "images" / f"{name}.png")
    Image.fromarray(ids).save(root / "masks" / f"{name}.png")


def some_ids(height: int = 8, width: int = 8) -> np.ndarray:
    return RNG.integers(0, 3, (height, width), np.uint8)


def opened(root: Path, *, size: tuple[int, int] = (8, 8), classes: int = 3, ignore_index: int = 255) -> MaskFolder:
    return MaskFolder(root, image_size=size, num_classes=classes, ignore_index=ignore_index)


def test_images_and_masks_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    masks = {name: some_ids() for name in ("c", "a", "b")}
    for name, ids in masks.items():
        put(tmp_path, name, ids)
    batches = list(opened(tmp_path).batches(2))
    assert [images.shape for images, _ in batches] == [(2, 3, 8, 8), (1, 3, 8, 8)]
    assert all(targets.dtype == torch.int64 for _, targets in batches)
    found = torch.cat([targets for _, targets in batches]).numpy()
    np.testing.assert_array_equal(found, np.stack([masks["a"], masks["b"], masks["c"]]))
    picture = np.asarray(Image.open(tmp_path / "images" / "a.png"))
    np.testing.assert_array_equal((batches[0][0][0] * 255).round().permute(1, 2, 0), picture)
    assert len(opened(tmp_path)) == 3


def test_masks_are_cropped_where_their_images_are(tmp_path: Path) -> None:
    ids = some_ids(8, 21)
    put(tmp_path, "a", ids, pixels=np.repeat(ids[..., None], 3, axis=2))  # the image shows its mask
    image, mask = opened(tmp_path)[0]
    np.testing.assert_array_equal(mask, ids[:, 6:14])
    assert torch.equal((image[0] * 255).round().long(), mask)


def test_masks_are_scaled_to_the_nearest_pixel(tmp_path: Path) -> None:
    ids = np.repeat(np.repeat(np.array([[0, 255], [2, 1]], np.uint8), 16, 0), 16, 1)
    put(tmp_path, "a", ids)
    _, mask = opened(tmp_path)[0]
    np.testing.assert_array_equal(mask, ids[2::4, 2::4])


def test_the_ignored_class_is_kept(tmp_path: Path) -> None:
    ids = some_ids()
    ids[2] = 255
    put(tmp_path, "a", ids)
    assert (opened(tmp_path)[0][1][2] == 255).all()


def test_palette_and_16_bit_masks_are_read_as_ids(tmp_path: Path) -> None:
    ids = some_ids()
    put(tmp_path, "a", ids)
    picture = Image.fromarray(ids)
    picture.putpalette([9, 200, 30, 40, 50, 60, 1, 2, 3])
    assert picture.mode == "P"
    picture.save(tmp_path / "masks" / "a.png")
    np.testing.assert_array_equal(opened(tmp_path)[0][1], ids)
    wide = ids.astype(np.uint16) * 300
    Image.fromarray(wide).save(tmp_path / "masks" / "a.png")
    np.testing.assert_array_equal(opened(tmp_path, classes=601)[0][1], wide)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_masks_of_few_bits_keep_their_ids(tmp_path: Path, bits: int) -> None:
    ids = RNG.integers(0, 2**bits, (8, 8), np.uint8)
    put(tmp_path, "a", ids)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    planes = np.unpackbits(ids[..., None], axis=2)[..., 8 - bits :].reshape(8, -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in planes)
    head = struct.pack(">IIBBBBB", 8, 8, bits, 0, 0, 0, 0)  # colour type 0: grey
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "masks" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    np.testing.assert_array_equal(opened(tmp_path, classes=2**bits)[0][1], ids)


def test_a_value_out_of_range_is_named_with_file_and_range(tmp_path: Path) -> None:
    ids = some_ids(8, 30)
    ids[0, 0] = 7  # outside the crop, and still a fault
    put(tmp_path, "a", ids)
    with pytest.raises(DataError, match=r"a\.png holds the value 7; allowed are 0 to 2 and 255 \(ignore_index\)"):
        list(opened(tmp_path).batches(1))


def test_masks_of_another_size_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "a", some_ids(8, 9), pixels=np.zeros((8, 10, 3), np.uint8))
    with pytest.raises(DataError, match=r"a\.png has 9 x 8 pixels, but its image a\.png has 10 x 8"):
        list(opened(tmp_path).batches(1))


@pytest.mark.parametrize("channels", [3, 4])
def test_colour_masks_are_refused(tmp_path: Path, channels: int) -> None:
    put(tmp_path, "a", np.zeros((8, 8, channels), np.uint8), pixels=np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(DataError, match=r"colour picture \(RGBA?\), not class ids"):
        list(opened(tmp_path).batches(1))


def test_missing_folders_are_refused_with_the_expected_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone is not a folder.*images/NAME.*masks/NAME\.png"):
        opened(tmp_path / "gone")
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"masks is not a folder.*expected"):
        opened(tmp_path)
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match=r"images holds no images"):
        opened(tmp_path)


def test_images_and_masks_without_a_partner_are_named_and_counted(tmp_path: Path) -> None:
    for name in "abcd":
        put(tmp_path, name, some_ids())
    for name in "bc":
        (tmp_path / "masks" / f"{name}.png").unlink()
    with pytest.raises(DataError, match=r"2 of 4 images in .* have no mask, the first b\.png"):
        opened(tmp_path)
    for name in "abc":
        (tmp_path / "images" / f"{name}.png").unlink()
    with pytest.raises(DataError, match=r"1 of 2 masks in .* have no image, the first a\.png"):
        opened(tmp_path)


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "a", some_ids())
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg and .*a\.png have the same name a"):
        opened(tmp_path)


def test_lossy_masks_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "a", some_ids())
    (tmp_path / "masks" / "a.png").rename(tmp_path / "masks" / "a.jpg")
    with pytest.raises(DataError, match=r"holds no \.png masks"):
        opened(tmp_path)


def test_a_jpeg_that_is_called_png_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "a", some_ids())
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "masks" / "a.png", format="JPEG")
    with pytest.raises(DataError, match=r"masks/a\.png is a JPEG, whatever its name says.*as PNG$"):
        opened(tmp_path)


def test_unreadable_files_are_skipped_and_recorded_once(tmp_path: Path) -> None:
    for name in "abcd":
        put(tmp_path, name, some_ids())
    (tmp_path / "images" / "b.png").write_text("not an image")
    (tmp_path / "masks" / "c.png").write_bytes(b"")
    data = opened(tmp_path)
    for _ in range(2):
        assert [len(images) for images, _ in data.batches(4)] == [2]
    assert data.skipped == ["images/b.png: not an image of a known kind", "masks/c.png: the file is empty"]


def test_a_folder_without_one_readable_image_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        put(tmp_path, name, some_ids())
        (tmp_path / "images" / f"{name}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 2 labelled images can be read.*images/a\.png"):
        list(opened(tmp_path).batches(1))


def test_class_names_come_from_the_folder_or_its_parent_or_are_numbers(tmp_path: Path) -> None:
    put(tmp_path / "val", "a", some_ids())
    assert opened(tmp_path / "val").class_names == ["class 0", "class 1", "class 2"]
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n", encoding="utf-8")
    assert opened(tmp_path / "val").class_names == ["sky", "road", "car"]
    (tmp_path / "val" / "classes.txt").write_text("\ufeffa\r\nb\r\nc\r\n\r\n", encoding="utf-8")
    assert opened(tmp_path / "val").class_names == ["a", "b", "c"]


def test_the_last_line_may_name_the_ignored_class(tmp_path: Path) -> None:
    put(tmp_path, "a", some_ids())
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\nunlabelled\n")
    assert opened(tmp_path, ignore_index=3).class_names == ["sky", "road", "car"]
    with pytest.raises(DataError, match=r"names 4 classes, but the task has num_classes 3 and ignore_index 255"):
        opened(tmp_path, ignore_index=255)
    with pytest.raises(DataError, match=r"names 4 classes, but the task has num_classes 2"):
        opened(tmp_path, classes=2)


def test_class_names_must_differ_and_be_text(tmp_path: Path) -> None:
    put(tmp_path, "a", some_ids())
    (tmp_path / "classes.txt").write_text("sky\ncar\nsky\n")
    with pytest.raises(DataError, match="'sky' twice"):
        opened(tmp_path)
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe\x00sky")
    with pytest.raises(DataError, match="UTF-8"):
        opened(tmp_path)


CAMVID = Path(os.environ.get("DATAFREE_DATA", "")) / "camvid"


@pytest.mark.skipif(not CAMVID.is_dir(), reason="set DATAFREE_DATA to a folder that holds camvid")
def test_camvid_is_read_as_it_is(tmp_path: Path) -> None:
    data = MaskFolder(CAMVID / "val", image_size=(128, 128), num_classes=11, ignore_index=11)
    assert len(data) == 101 and data.class_names[0] == "sky" and data.class_names[10] == "bicyclist"
    counts = np.zeros(12, np.int64)
    for index, (images, masks) in enumerate(data.batches(16)):
        assert images.shape[1:] == (3, 128, 128) and masks.shape == (len(images), 128, 128)
        counts += np.bincount(masks.flatten().numpy(), minlength=12)
        if index == 0:
            stored = np.asarray(Image.open(sorted((CAMVID / "val" / "masks").iterdir())[0]))  # 128 x 170
            np.testing.assert_array_equal(masks[0], stored[:, 21:149])
    assert counts.sum() == 101 * 128 * 128 and (counts > 0).all() and data.skipped == []
