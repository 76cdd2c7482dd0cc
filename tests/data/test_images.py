"""Images in: every file is read right or refused with one line."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from datafree.data import images
from datafree.data.images import UnreadableImage, fit, list_images, read_image, read_stored, to_image, to_tensor
from datafree.errors import DataError

RAMP = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5  # every pixel different


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has damaged pixels: whoever decodes it says so."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"damaged") + chunk(b"IEND", b"")


def test_listing_is_recursive_sorted_and_without_hidden_or_other_files(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpeg", "sub/c.webp", ".hidden.png", ".cache/d.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.relative_to(tmp_path).as_posix() for p in list_images(tmp_path)] == [
        "a.jpeg",
        "b.PNG",
        "sub/c.webp",
    ]


def test_a_jfif_is_listed_and_read_as_the_jpeg_it_is(tmp_path: Path) -> None:
    path = save(tmp_path / "a.JFIF", RAMP, format="JPEG")
    assert list_images(tmp_path) == [path]
    np.testing.assert_array_equal(read_image(path), Image.open(path))


def test_listing_visits_each_real_directory_once_despite_link_loops(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").touch()
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "sub")
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    assert [p.name for p in list_images(tmp_path)] == ["self.png", "a.png"]
    with pytest.raises(UnreadableImage):
        read_image(tmp_path / "self.png")


def test_listing_refuses_missing_and_empty_folders_and_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone does not exist"):
        list_images(tmp_path / "gone")
    with pytest.raises(DataError, match=r"holds no images \(\.png, \.jpg.*give"):
        list_images(tmp_path)
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match=r"a\.png is a file, not a folder"):
        list_images(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "tif", "ppm"])
def test_lossless_kinds_are_read_exactly(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", RAMP, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(read_image(path), RAMP)


def test_a_gif_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (5, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    grey = np.array([[0, 257, 1000, 32768, 65535]], np.uint16)
    pixels = np.asarray(read_image(save(tmp_path / f"a.{suffix}", grey)))
    np.testing.assert_array_equal(pixels[0, :, 0], [0, 1, 4, 128, 255])  # v / 257, rounded
    assert (pixels == pixels[:, :, :1]).all()


@pytest.mark.parametrize(
    ("grey", "white"),
    [
        (np.array([[0, 51, 255]], np.int32), 255),
        (np.array([[0, 13107, 65535]], np.int32), 65535),
        (np.array([[-7, 0, 2**30, 2**31 - 1]], np.int32), 2**31 - 1),
        (np.array([[0.0, 0.2, 1.0]], np.float32), 1),
        (np.array([[0.0, 51.0, 200.0]], np.float32), 255),
        (np.array([[-3.0, 10_000.0, 250_000.0]], np.float32), 250_000),
    ],
)
def test_32_bit_grey_is_scaled_to_the_white_of_its_range(tmp_path: Path, grey: np.ndarray, white: int) -> None:
    expected = np.round(np.clip(grey.astype(np.float64), 0, white) * 255 / white)
    pixels = np.asarray(read_image(save(tmp_path / "a.tif", grey)))
    np.testing.assert_array_equal(pixels[..., 1], expected)


def test_nan_and_infinite_floats_do_not_escape(tmp_path: Path) -> None:
    grey = np.array([[np.nan, 0.0, -np.inf, 0.5]], np.float32)
    np.testing.assert_array_equal(np.asarray(read_image(save(tmp_path / "a.tif", grey)))[0, :, 0], [0, 0, 0, 128])


def test_unsigned_32_bit_values_are_not_read_as_negative(tmp_path: Path) -> None:
    values = struct.pack("<2I", 2**31, 2**32 - 1)
    tags = [
        (256, 4, 2),
        (257, 4, 1),
        (258, 3, 32),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (278, 4, 1),
        (279, 4, 8),
    ]
    ifd = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", t, k, 1, v) for t, k, v in tags)
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 16) + values + ifd + bytes(4))
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.tif"))[0, :, 0], [128, 255])


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)  # no cyan: red
    red, green, blue = read_image(tmp_path / "a.jpg").getpixel((4, 4))
    assert red > 250 and green < 5 and blue < 5


def test_palettes_become_their_colours(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([0, 0, 0, 10, 20, 30])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "a.png")
    assert [read_image(tmp_path / "a.png").getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), (10, 20, 30)]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_over_black(tmp_path: Path, mode: str) -> None:
    colour = (200, 200, 200, 128) if mode == "RGBA" else (200, 128)
    Image.new(mode, (1, 1), colour).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == (100,) * 3  # 200 * 128 / 255


def test_transparent_palette_entries_and_colour_keys_are_black(tmp_path: Path) -> None:
    picture = Image.new("P", (1, 1))
    picture.putpalette([90, 90, 90])
    picture.save(tmp_path / "palette.png", transparency=bytes([0]))
    Image.new("RGB", (1, 1), (9, 8, 7)).save(tmp_path / "key.png", transparency=(9, 8, 7))
    for name in ("palette.png", "key.png"):
        assert read_image(tmp_path / name).getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_exif_orientation_is_applied_once(tmp_path: Path, orientation: int, suffix: str) -> None:
    # the EXIF standard: where the stored row 0 and column 0 are to be seen, as an array operation
    upright = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    path = save(tmp_path / f"a.{suffix}", RAMP[:3], exif=exif)
    np.testing.assert_array_equal(read_image(path), upright(RAMP[:3]))
    np.testing.assert_array_equal(read_stored(path)[0], upright(RAMP[:3]))
    assert read_stored(path)[1] == orientation


def test_damaged_exif_does_not_spoil_the_pixels(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", RAMP, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12" * 30)
    assert read_image(path).size == (4, 4)


def test_damaged_files_are_refused_with_path_and_reason(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for suffix in ("png", "jpg", "webp", "bmp", "tif", "gif", "ppm"):
        path = save(tmp_path / f"a.{suffix}", noise)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(UnreadableImage) as caught:
            read_image(path)
        assert caught.value.path == path and str(path) in str(caught.value)
        assert 0 < len(caught.value.reason) < 120 and "\n" not in str(caught.value)


def test_each_kind_of_trouble_has_its_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    for name, reason in {
        "empty.png": "empty",
        "text.png": "not an image",
        "folder.png": "not a file",
        "pipe.png": "not a file",
        "gone.png": "no such file",
        "script.png": "not an image",
    }.items():
        with pytest.raises(UnreadableImage, match=reason):
            read_image(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_without_permission_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", RAMP)
    path.chmod(0)
    with pytest.raises(UnreadableImage, match="permission"):
        read_image(path)


@pytest.mark.parametrize("size", [(9500, 9500), (20_000, 20_000)])  # below and above Pillow's own error
def test_bombs_are_refused_before_they_are_decoded_and_without_a_warning(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(*size))
    (tmp_path / "small.png").write_bytes(png_header(10, 10))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(UnreadableImage, match="pixels"):
            read_image(tmp_path / "bomb.png")
        with pytest.raises(UnreadableImage, match="damaged"):  # decoding would have said this
            read_image(tmp_path / "small.png")
    assert not seen


def test_warnings_of_pillow_stay_inside(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 2))
    picture.putpalette([1, 2, 3] * 4)
    picture.save(tmp_path / "a.png", transparency=bytes([10, 20, 30, 40]))  # convert("RGB") of it warns
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        (tmp_path / "b.jpg").write_bytes(save(tmp_path / "c.jpg", RAMP, exif=b"Exif\0\0II*\0\x09").read_bytes())
        read_image(tmp_path / "a.png")
        read_image(tmp_path / "b.jpg")
    assert not seen


def _sound_files() -> list[bytes]:
    files = []
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM"):
        buffer = io.BytesIO()
        Image.fromarray(RAMP).save(buffer, kind)
        files.append(buffer.getvalue())
    return files


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.sampled_from([b"", *(f[:40] for f in _sound_files())]),
    rest=st.binary(max_size=200),
)
def test_random_bytes_raise_nothing_but_unreadable_image(tmp_path: Path, start: bytes, rest: bytes) -> None:
    (tmp_path / "a.png").write_bytes(start + rest)
    try:
        image = read_image(tmp_path / "a.png")
    except UnreadableImage:
        return
    assert image.mode == "RGB" and min(image.size) > 0


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sound=st.sampled_from(_sound_files()),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_flipped_bytes_raise_nothing_but_unreadable_image(
    tmp_path: Path, sound: bytes, changes: list[tuple[float, int]]
) -> None:
    damaged = bytearray(sound)
    for where, value in changes:
        damaged[int(where * len(damaged))] = value
    (tmp_path / "a.png").write_bytes(damaged)
    try:
        image = read_image(tmp_path / "a.png")
    except UnreadableImage:
        return
    assert image.mode == "RGB" and min(image.size) > 0


def test_fit_is_resize_then_centre_crop() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (360, 480, 3), np.uint8)
    whole = Image.fromarray(noise).resize((171, 128), Image.Resampling.BILINEAR)  # 480 * 128 / 360 = 170.7
    np.testing.assert_array_equal(fit(Image.fromarray(noise), (128, 128)), np.asarray(whole)[:, 21:149])


def test_fit_of_an_image_that_covers_exactly_is_a_pure_crop() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 170, 3), np.uint8)
    np.testing.assert_array_equal(fit(Image.fromarray(noise), (128, 128)), noise[:, 21:149])
    np.testing.assert_array_equal(fit(Image.fromarray(noise[:, :128]), (128, 128)), noise[:, :128])


def test_fit_with_nearest_invents_no_class_ids() -> None:
    ids = np.random.default_rng(0).choice([0, 7, 255], (100, 60)).astype(np.uint8)
    fitted = np.asarray(fit(Image.fromarray(ids), (32, 48), Image.Resampling.NEAREST))
    assert fitted.shape == (32, 48) and set(np.unique(fitted)) == {0, 7, 255}


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_fit_gives_the_size_asked_for(height: int, width: int, size: tuple[int, int]) -> None:
    fitted = fit(Image.new("RGB", (width, height), (10, 20, 30)), size)
    assert fitted.size == (size[1], size[0])
    assert (np.asarray(fitted) == (10, 20, 30)).all()


def test_fit_of_a_long_strip_keeps_memory_bounded_and_shows_its_middle() -> None:
    strip = np.zeros((1, 200_001, 3), np.uint8)
    strip[:, 100_000] = 255
    scaled = images.cover(Image.fromarray(strip), (64, 64))
    assert scaled.height == 64 and scaled.width <= 64 * 17
    middle = np.asarray(fit(Image.fromarray(strip), (64, 64)))
    assert middle[32, 32, 0] > 250  # without the cut, 64 x 12.8 million pixels would have been made


def test_tensors_keep_all_256_values_both_ways() -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    tensor = to_tensor(Image.fromarray(pixels))
    assert tensor.shape == (3, 16, 16) and tensor.dtype == torch.float32
    assert tensor.min() == 0 and tensor.max() == 1
    np.testing.assert_array_equal(to_image(tensor), pixels)


def test_to_image_rounds_and_clamps() -> None:
    values = torch.tensor([-1.0, 0.5, 2.0, float("nan"), 100.6 / 255]).expand(3, 1, 5)
    np.testing.assert_array_equal(np.asarray(to_image(values))[0, :, 0], [0, 128, 255, 0, 101])
