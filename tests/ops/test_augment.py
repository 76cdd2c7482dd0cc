"""Images move as they should and say how; masks move with them; gradients come back to the pixels."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from datafree.ops import augment, modes
from datafree.ops.augment import Move
from datafree.tasks.segmentation import Segmentation

H, W = 12, 20
TASK = Segmentation(num_classes=H * W + 1, image_size=(H, W))


def numbered(count: int, channels: int = 1) -> Tensor:
    """(B, 1, H, W): each pixel has a value of its own, above 0."""
    values = torch.arange(1.0, H * W + 1) / (H * W)
    return values.reshape(1, 1, H, W).repeat(count, channels, 1, 1)


def masks_of(images: Tensor) -> Tensor:
    """The class of each pixel, read off its value."""
    return (images[:, 0] * H * W).round().long()


def places(size: tuple[int, int]) -> Tensor:
    """(1, 2, H, W): each pixel's centre, x and y, -1 to 1 from edge to edge."""
    x, y = ((torch.arange(float(length)) * 2 + 1) / length - 1 for length in size[::-1])
    return torch.stack([x.expand(size), y[:, None].expand(size)])[None]


# Moves.


def test_roll_and_flip_moves_the_batch_and_its_masks_alike() -> None:
    modes.seed_everything(0)
    images = numbered(3)
    seen = set()
    for _ in range(40):
        moved, move = augment.roll_and_flip(images, 2)
        masks = TASK.move_targets(masks_of(images), move)
        assert torch.equal(masks, masks_of(moved))
        assert torch.equal(moved[0], moved[2])
        assert torch.equal(moved.flatten().sort()[0], images.flatten().sort()[0])
        seen.add(int(masks[0, 0, 0]))
    assert len(seen) > 20  # of 5 x 5 places, mirrored or not
    assert all(torch.equal(augment.roll_and_flip(images, 0, 0.0)[0], images) for _ in range(20))
    assert all(torch.equal(augment.roll_and_flip(images, 0, 1.0)[0], images.flip(-1)) for _ in range(20))
    still = [augment.roll_and_flip(images, 0)[0] for _ in range(20)]
    assert all(torch.equal(s, images) or torch.equal(s, images.flip(-1)) for s in still)


def test_a_roll_is_given_in_pixels_right_and_down() -> None:
    modes.seed_everything(0)
    images = numbered(1)
    for _ in range(20):
        moved, move = augment.roll_and_flip(images, 5)
        y, x = divmod(int(moved.argmin()), W)  # of the pixel that was top left
        assert (x, y) == ((move.right % W if move.scale is None else W - 1 - move.right % W), move.down % H)


def test_shift_and_flip_is_a_crop_of_the_padded_image() -> None:
    modes.seed_everything(0)
    images = numbered(64)
    moved, _ = augment.shift_and_flip(images, 4)
    padded = torch.nn.functional.pad(images[:1], (4, 4, 4, 4))
    crops = [padded[0, :, y : y + H, x : x + W] for y in range(9) for x in range(9)]
    possible = torch.stack([c for crop in crops for c in (crop, crop.flip(-1))])
    distance = (moved[:, None] - possible[None]).abs().amax((2, 3, 4))
    assert distance.min(1).values.max() < 1e-4
    assert len(set(distance.argmin(1).tolist())) > 20


def test_a_shift_of_0_mirrors_nothing_and_draws_nothing() -> None:
    images, before = numbered(16), torch.get_rng_state()
    moved, move = augment.shift_and_flip(images, 0)
    assert torch.equal(moved, images) and move == Move()
    assert torch.equal(TASK.move_targets(masks_of(images), move), masks_of(images))
    assert torch.equal(torch.get_rng_state(), before)


def test_shift_and_flip_moves_masks_with_the_pixels_and_goes_on_at_the_edge() -> None:
    modes.seed_everything(0)
    images = numbered(16)
    moved, move = augment.shift_and_flip(images, 3, "border")
    masks = TASK.move_targets(masks_of(images), move)
    assert masks.dtype == torch.int64
    assert torch.equal(masks, masks_of(moved))
    assert masks.min() >= 1  # nothing but classes that were there


@pytest.mark.parametrize("size", [(12, 20), (17, 9)])
@pytest.mark.parametrize(
    "change",
    [
        lambda images: augment.roll_and_flip(images, 3),
        lambda images: augment.shift_and_flip(images, 3),
        lambda images: augment.scale_crop(images, 0.5, 2.0),
        lambda images: augment.area_crop(images, 0.1),
    ],
    ids=["roll_and_flip", "shift_and_flip", "scale_crop", "area_crop"],
)
def test_each_pixel_of_a_result_comes_from_where_the_move_says(
    change: Callable[[Tensor], tuple[Tensor, Move]], size: tuple[int, int]
) -> None:
    modes.seed_everything(0)
    height, width = size
    here = places(size)
    for _ in range(8):
        moved, move = change(here.repeat(6, 1, 1, 1))
        scale = torch.ones(6, 2) if move.scale is None else move.scale
        offset = torch.zeros(6, 2) if move.offset is None else move.offset
        origin = here * scale[:, :, None, None] + offset[:, :, None, None]  # in the rolled image
        inside = (origin.abs() < 1 - 1 / torch.tensor([width, height])[:, None, None]).all(1)  # between pixels' centres
        back = torch.tensor([2 * move.right / width, 2 * move.down / height])[:, None, None]
        origin = torch.remainder(origin - back + 1, 2) - 1  # in the image itself
        apart = (moved - origin).abs().amax(1)
        assert apart[inside].max() < 1e-5
        assert inside.sum() > 20


def test_scale_crop_shows_a_part_of_what_it_enlarges_and_all_of_what_it_shrinks() -> None:
    modes.seed_everything(0)
    white = torch.ones(300, 1, 24, 32)
    moved, move = augment.scale_crop(white, 0.5, 2.0)
    assert move.scale is not None
    assert move.offset is not None
    assert torch.equal(move.scale[:, 0], move.scale[:, 1])  # shapes stay
    zoom = 1 / move.scale[:, 0]
    assert zoom.min() >= 0.5 - 1e-6
    assert zoom.max() <= 2 + 1e-6
    assert 0.4 < (zoom > 1).float().mean() < 0.6
    larger = zoom > 1
    assert moved[larger].min() > 1 - 1e-4  # nothing comes in from outside
    shrunk = moved[~larger, 0]
    for axis, length in ((1, 32), (2, 24)):  # nothing goes out, but for whole pixels
        assert (shrunk.amax(axis).sum(1) - zoom[~larger] * length).abs().max() <= 1 + 1e-3
    free = move.offset / (1 - move.scale)  # -1 to 1 is the room there is
    assert free.abs().max() <= 1 + 1e-4
    assert (free.mean(0).abs() < 0.1).all()
    assert (free.var(0) - 1 / 3).abs().max() < 0.06
    assert torch.corrcoef(free.T)[0, 1].abs() < 0.2


def test_scale_crop_can_go_on_at_the_edge_as_masks_do() -> None:
    modes.seed_everything(0)
    images = torch.rand(16, 1, 8, 8).round().repeat_interleave(3, 2).repeat_interleave(3, 3)  # 24 x 24, large pixels
    task = Segmentation(num_classes=2, image_size=(24, 24))
    moved, move = augment.scale_crop(images, 0.7, 1.5, "border")
    masks = task.move_targets(images[:, 0].long(), move)
    plain = (moved[:, 0] - 0.5).abs() > 0.4  # not at the seam of two classes
    assert plain.float().mean() > 0.5
    assert torch.equal(masks[plain], moved[:, 0].round().long()[plain])


def test_an_enlargement_of_one_changes_nothing() -> None:
    images = torch.rand(3, 3, H, W)
    moved, _ = augment.scale_crop(images, 1.0, 1.0)
    torch.testing.assert_close(moved, images, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(8, 12), (7, 9)])
def test_mosaic_is_four_images_of_half_the_size(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    height, width = size
    images = torch.rand(5, 3, height, width)
    order = torch.tensor([[0, 1, 2, 3], [4, 4, 0, 2], [3, 1, 4, 0]])
    made = augment.mosaic(images, order)
    assert made.shape == (3, 3, height, width)
    for result, four in zip(made, order.tolist(), strict=True):
        for y in range(height):
            for x in range(width):
                tile = 2 * (y >= (height + 1) // 2) + (x >= (width + 1) // 2)
                v, u = (2 * (place % ((length + 1) // 2)) for place, length in ((y, height), (x, width)))
                expected = images[four[tile], :, v : v + 2, u : u + 2].mean((1, 2))
                torch.testing.assert_close(result[:, y, x], expected)


# Gradients.


@pytest.mark.parametrize(
    "change",
    [
        lambda images: augment.roll_and_flip(images, 3)[0],
        lambda images: augment.shift_and_flip(images, 3)[0],
        lambda images: augment.scale_crop(images, 0.5, 2.0)[0],
        lambda images: augment.mosaic(images, torch.tensor([[0, 1, 2, 3], [3, 3, 1, 0]])),
        augment.brightness,
        augment.contrast,
        lambda images: augment.erase(images, 1.0),
        lambda images: augment.cutout(images, 0.5),
    ],
    ids=["roll_and_flip", "shift_and_flip", "scale_crop", "mosaic", "brightness", "contrast", "erase", "cutout"],
)
def test_gradient_says_how_a_result_changes_with_the_pixels(change: Callable[[Tensor], Tensor]) -> None:
    def drawn(images: Tensor) -> Tensor:
        torch.manual_seed(3)
        return change(images)

    torch.manual_seed(0)
    images, step = torch.rand(4, 3, H, W).requires_grad_(), torch.randn(4, 3, H, W)
    result = drawn(images)
    weights = torch.randn_like(result)
    (grad,) = torch.autograd.grad((weights * result).sum(), images)
    with torch.no_grad():
        change_seen = (weights * (drawn(images + step) - result)).sum()  # all of them are linear but for a constant
    assert (grad * step).sum().item() == pytest.approx(change_seen.item(), rel=1e-3, abs=1e-2)
    assert (grad != 0).float().mean() > 0.3


def test_gradients_come_back_through_the_moves_to_the_pixels_that_stay() -> None:
    modes.seed_everything(0)
    images = numbered(4).requires_grad_()
    augment.shift_and_flip(images, 2)[0].sum().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    assert torch.allclose(images.grad[:, :, 2:-2, 2:-2], torch.ones(4, 1, H - 4, W - 4), atol=1e-4)


# Colours.


def test_brightness_adds_a_number_of_its_own_to_each_image_and_clamps_nothing() -> None:
    modes.seed_everything(0)
    images = torch.rand(2000, 3, 2, 2)
    added = augment.brightness(images) - images
    assert added.flatten(1).std(1).max() < 1e-6
    number = added.mean((1, 2, 3))
    assert number.mean().abs() < 0.02
    assert number.std().item() == pytest.approx(0.2, rel=0.08)
    assert augment.brightness(images, 1.0).min() < 0


def test_contrast_multiplies_each_image_by_a_number_of_its_own() -> None:
    modes.seed_everything(0)
    images = torch.rand(2000, 3, 2, 2) + 0.5
    factor = augment.contrast(images) / images
    assert factor.flatten(1).std(1).max() < 1e-6
    number = factor.mean((1, 2, 3))
    assert number.mean().item() == pytest.approx(1, abs=0.01)
    assert number.std().item() == pytest.approx(0.1, rel=0.08)
    assert augment.contrast(torch.zeros(2, 3, 2, 2), 0.5).abs().max() == 0  # about black


# Rectangles.


def blackened(before: Tensor, after: Tensor) -> list[tuple[int, int, int, int] | None]:
    """(left, top, right, bottom) of each image's black rectangle, or None; fails where it is no rectangle."""
    found: list[tuple[int, int, int, int] | None] = []
    for old, new in zip(before, after, strict=True):
        black = (new == 0).all(0)
        assert torch.equal((new == 0).any(0), black)  # the same on all channels
        assert torch.equal(new[:, ~black], old[:, ~black])
        if not black.any():
            found.append(None)
            continue
        y, x = black.nonzero(as_tuple=True)
        left, right, top, bottom = int(x.min()), int(x.max()) + 1, int(y.min()), int(y.max()) + 1
        assert black[top:bottom, left:right].all()
        found.append((left, top, right, bottom))
    return found


def test_erase_blackens_a_rectangle_of_the_asked_share_and_shape_in_every_other_image() -> None:
    modes.seed_everything(0)
    images = torch.rand(300, 3, 60, 80) * 0.9 + 0.1
    found = blackened(images, augment.erase(images))
    rectangles = torch.tensor([one for one in found if one is not None]).float()
    assert len(rectangles) / 300 == pytest.approx(0.5, abs=0.08)
    left, top, right, bottom = rectangles.T
    across, down = right - left, bottom - top
    share, tall = across * down / (60 * 80), (down / across).log()
    # U(0.02, 0.2), and even between log 0.3 and log 3.3, but for whole pixels
    assert share.min() > 0.015
    assert share.max() < 0.215
    assert share.mean().item() == pytest.approx(0.11, abs=0.012)
    assert share.std().item() == pytest.approx(0.18 / math.sqrt(12), abs=0.008)
    assert tall.min() > math.log(0.3) - 0.1
    assert tall.max() < math.log(3.3) + 0.1
    assert tall.std().item() == pytest.approx(math.log(3.3 / 0.3) / math.sqrt(12), abs=0.1)
    for near, length, whole in ((left, across, 80), (top, down, 60)):
        place = near / (whole - length)  # 0 to 1
        assert place.mean().item() == pytest.approx(0.5, abs=0.07)
        assert place.std().item() == pytest.approx(1 / math.sqrt(12), abs=0.05)


@pytest.mark.parametrize(("p", "count"), [(0.0, 0), (1.0, 50)])
def test_erase_heeds_its_probability(p: float, count: int) -> None:
    modes.seed_everything(0)
    images = torch.rand(50, 3, 16, 16) * 0.9 + 0.1
    assert sum(one is not None for one in blackened(images, augment.erase(images, p))) == count


def test_a_rectangle_longer_than_the_image_is_cut_to_it() -> None:
    modes.seed_everything(0)
    images = torch.ones(20, 3, 4, 100)
    for one in blackened(images, augment.erase(images, 1.0, area=(0.5, 0.5), aspect=(1.0, 1.0))):
        assert one is not None
        assert (one[1], one[3]) == (0, 4)
        assert one[2] - one[0] == 14  # the square root of 200


def test_cutout_is_a_square_centred_anywhere_that_may_reach_beyond_the_edge() -> None:
    modes.seed_everything(0)
    images = torch.ones(600, 3, 20, 30)
    found = blackened(images, augment.cutout(images, 0.4))
    side, corners = 8, set()
    for one in found:
        assert one is not None
        left, top, right, bottom = one
        # Where it is not cut by an edge it is as long as asked.
        assert right - left == side or left == 0 or right == 30
        assert bottom - top == side or top == 0 or bottom == 20
        assert right - left >= side // 2
        assert bottom - top >= side // 2
        corners.add((right if left == 0 else left + side, bottom if top == 0 else top + side))
    assert {x for x, _ in corners} == set(range(4, 34))  # 30 places for the centre, each met
    assert {y for _, y in corners} == set(range(4, 24))


# Crops.


def test_resized_crop_shows_a_part_of_the_asked_area() -> None:
    modes.seed_everything(0)
    across = torch.linspace(0, 1, 64).expand(200, 1, 64, 64).contiguous()
    for ramp in (across, across.mT.contiguous()):
        shown = augment.resized_crop(ramp)
        part = shown.flatten(1).amax(1) - shown.flatten(1).amin(1)  # of the side along which the ramp goes
        assert part.min() > (0.25 * 3 / 4) ** 0.5 - 0.05
        assert part.min() < 0.55
        assert 0.9 < part.max() <= 1
    mirrored = (augment.resized_crop(across)[:, 0, 0].diff().mean(1) < 0).float().mean()
    assert 0.35 < mirrored < 0.65


def test_area_crop_shows_a_part_of_the_asked_area_in_a_shape_that_fits() -> None:
    modes.seed_everything(0)
    images = torch.rand(4000, 3, 6, 8)
    for least in (0.1, 0.7, 1.0):
        shown, move = augment.area_crop(images, least)
        assert move.scale is not None
        assert move.offset is not None
        width, height = move.scale.unbind(1)  # shares of the image's; none mirrored
        area, shape = width * height, width / height
        assert area.mean().item() == pytest.approx((least + 1) / 2, abs=0.01)  # U(least, 1)
        assert area.min().item() >= least - 1e-5
        assert move.scale.max().item() <= 1 + 1e-5
        assert shape.max().item() <= 4 / 3 + 1e-5
        assert shape.min().item() >= 3 / 4 - 1e-5
        assert shape.log().mean().abs().item() < 0.01
        assert (move.offset.abs() <= 1 - move.scale + 1e-5).all()  # inside
    torch.testing.assert_close(shown, images)
    assert shape.std().item() < 1e-5
    assert augment.area_crop(torch.ones(9, 3, 6, 8), 0.1)[0].min().item() == pytest.approx(1)  # no black at the edge
