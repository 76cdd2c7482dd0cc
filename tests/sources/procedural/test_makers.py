"""Images drawn by formulas: each maker against what its formula promises."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from datafree.sources.procedural import dead_leaves as leaves
from datafree.sources.procedural import figures, mask_cutmix, mixture, warps
from datafree.sources.procedural import hierarchical_noise as noise
from datafree.sources.procedural import sine_networks as sines
from datafree.sources.procedural import spectrum_noise as spectrum
from datafree.sources.procedural.mixture import MAKERS, Mixture

CPU = torch.device("cpu")
MIXED = Mixture(shares=(1, 1, 1, 1, 1), gain=0.5, rotation=45.0, elastic=0.1, dark=0.25, cutmix=0.5, plain=0.5)


def made(name: str, count: int, size: tuple[int, int]) -> Tensor:
    return MIXED.draw(count, size, CPU) if name == "mixture" else mixture._made(name, count, size, CPU, 0.5)


@pytest.mark.parametrize("size", [(8, 8), (9, 31), (33, 12)])
@pytest.mark.parametrize("name", [*MAKERS, "mixture"])
def test_images_have_the_size_asked_for_lie_in_0_1_and_follow_the_seed(name: str, size: tuple[int, int]) -> None:
    torch.manual_seed(3)
    images = made(name, 9, size)
    assert images.shape == (9, 3, *size) and images.dtype == torch.float32
    assert torch.isfinite(images).all() and images.min() >= 0 and images.max() <= 1
    assert len({image.numpy().tobytes() for image in images}) == 9
    torch.manual_seed(3)
    assert torch.equal(made(name, 9, size), images)
    torch.manual_seed(4)
    assert not torch.equal(made(name, 9, size), images)
    assert made(name, 1, size).shape == (1, 3, *size)


def test_a_mixture_of_many_images_is_made_in_parts_and_of_none_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mixture._PIXELS, "cpu", 10 * 64)
    assert MIXED.draw(33, (8, 8), CPU).shape == (33, 3, 8, 8)
    assert MIXED.draw(0, (8, 8), CPU).shape == (0, 3, 8, 8)


def test_every_maker_has_its_share_of_the_mixture_on_average() -> None:
    shares = Mixture(shares=(1, 0, 2, 3, 0), gain=0, rotation=0, elastic=0, dark=0, cutmix=0, plain=0)
    counts = torch.tensor([[n for _, n in shares._counts(7, start / 600)] for start in range(600)]).float()
    assert (counts.sum(1) == 7).all()
    assert torch.allclose(counts.mean(0), 7 * torch.tensor([1, 0, 2, 3, 0]) / 6, atol=0.02)
    assert (counts - counts.mean(0)).abs().max() < 2  # at most one more than an even division


# Figures.


def test_a_superellipse_covers_what_lames_formula_has_within_and_its_area(monkeypatch: pytest.MonkeyPatch) -> None:
    places = (torch.arange(400) + 0.5) / 200 - 1
    x, y = places.view(1, 1, 1, -1), places.view(1, 1, -1, 1)
    for power, area in ((2.0, math.pi), (1.0, 2.0)):  # of half-axes a, b in units of a b
        monkeypatch.setattr(figures, "_POWERS", (power, power))
        cover = figures._superellipse(x, y, torch.tensor(0.5), torch.tensor(0.3))[0, 0]
        inside = (x[0, 0] / 0.5).abs() ** power + (y[0, 0] / 0.3).abs() ** power < 1
        assert ((cover > 0.5) == inside).float().mean() > 0.999
        assert ((cover > 0) & (cover < 1)).float().mean() < 0.02  # an edge of a pixel
        assert float(cover.sum()) * (2 / 400) ** 2 == pytest.approx(area * 0.5 * 0.3, rel=0.02)


def test_figures_are_symmetric_in_their_share_and_stand_before_a_background() -> None:
    torch.manual_seed(0)
    grey = torch.full((400, 3, 33, 32), 0.5)
    images = figures.figures(400, (33, 32), grey)
    alike = (images - images.flip(-1)).abs().amax((1, 2, 3)) < 1e-5
    assert figures._SYMMETRIC <= float(alike.float().mean()) < figures._SYMMETRIC + 0.1  # others by a lone trunk
    corner = images[:, :, :1, :1]
    plain = ((images - corner).abs() < 1e-5).all(1).float().mean((1, 2))
    assert (plain < 1).all() or float((plain == 1).float().mean()) < 0.01
    assert 0.4 < float(plain.mean()) < 0.8


def test_figures_are_neither_warped_nor_joined_when_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def varied(self: Mixture, images: Tensor) -> Tensor:
        return torch.full_like(images, 2.0)

    monkeypatch.setattr(Mixture, "varied", varied)
    images = MIXED.draw(50, (16, 16), CPU)
    assert (images.amax((1, 2, 3)) <= 1).sum() == 10


# Hierarchical noise.


def test_level_weights_are_convex_and_levels_reach_a_cell_a_pixel() -> None:
    weights = noise.level_weights(50, 6, CPU)
    assert weights.shape == (50, 6) and (weights > 0).all()
    assert torch.allclose(weights.sum(1), torch.ones(50), atol=1e-6)
    for size, depth in (((8, 8), 4), (((9, 5)), 5), ((28, 28), 6), ((32, 64), 7)):
        assert noise.levels(size) == depth


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_noise_of_one_level_has_that_levels_cells(mode: str) -> None:
    for level, cells in enumerate((1, 2, 4, 8)):
        torch.manual_seed(level)
        images = noise._mixed(F.one_hot(torch.tensor([level]), 4).float(), mode)  # (1, 3, 8, 8)
        torch.manual_seed(level)
        coarse = [torch.rand(1, 3, 2**d, 2**d) for d in range(4)][level]
        upscaled = coarse
        while upscaled.shape[-1] < 8:
            upscaled = F.interpolate(upscaled, scale_factor=2, mode=mode)
        assert coarse.shape[-1] == cells
        assert torch.allclose(images, upscaled, atol=1e-6)


def test_noise_is_the_weighted_sum_of_its_levels() -> None:
    weights = noise.level_weights(2, 4, CPU)
    torch.manual_seed(0)
    mixed = noise._mixed(weights, "nearest")
    torch.manual_seed(0)
    levels = [torch.rand(2, 3, 2**d, 2**d) for d in range(4)]
    blocks = [level.repeat_interleave(8 // 2**d, 2).repeat_interleave(8 // 2**d, 3) for d, level in enumerate(levels)]
    expected = sum(weights[:, d, None, None, None] * block for d, block in enumerate(blocks))
    assert torch.allclose(mixed, expected, atol=1e-6)


def test_stretching_raises_contrast() -> None:
    torch.manual_seed(0)
    images = noise.hierarchical_noise(64, (16, 16), CPU)
    more = noise.stretched(images)
    assert more.min() >= 0 and more.max() <= 1
    assert more.std((2, 3)).mean() > 1.5 * images.std((2, 3)).mean()


# Noise with a falling spectrum.


@pytest.mark.parametrize("slope", [0.5, 1.5, 3.0])
def test_the_spectrum_falls_with_the_slope_asked_for(slope: float) -> None:
    torch.manual_seed(0)
    fields = spectrum.power_law_fields(torch.full((64,), slope), 3, (64, 64))
    power = torch.fft.fft2(fields).abs().square().mean((0, 1))
    frequency = (torch.fft.fftfreq(64)[:, None] ** 2 + torch.fft.fftfreq(64)[None] ** 2).sqrt()
    inner = (frequency > 2 / 64) & (frequency < 0.4)
    x, y = frequency[inner].log(), power[inner].log()
    x = x - x.mean()
    fitted = (x * (y - y.mean())).sum() / x.square().sum()  # least squares; power is amplitude squared
    assert float(fitted) == pytest.approx(-2 * slope, abs=0.1)
    assert torch.allclose(fields.mean((2, 3)), torch.zeros(64, 3), atol=1e-5)
    assert torch.allclose(fields.std((2, 3), correction=0), torch.ones(64, 3), atol=1e-4)


def test_a_palette_has_3_to_22_colours() -> None:
    torch.manual_seed(0)
    fields = torch.randn(40, 24, 24)  # values of which every colour has its share
    images = spectrum._in_palette(fields)
    counts = [len(image.flatten(1).unique(dim=1)[0]) for image in images]
    assert 2 <= min(counts) <= 5 and 15 <= max(counts) <= 22  # two colours may be clamped to the same one


# Sine networks.


def test_a_sine_network_is_three_layers_of_sines_of_a_pixels_place() -> None:
    count, size = 2, (6, 10)
    torch.manual_seed(0)
    images = sines.sine_networks(count, size, CPU)
    torch.manual_seed(0)
    centre = torch.rand(count, 2, 1) * 2 - 1
    low, high = sines._FREQUENCY
    first = low * (high / low) ** torch.rand(count, 1, 1), 3, sines.UNITS
    shape: list[tuple[Tensor, Tensor]] = []
    low, high = sines._GAIN
    for index, (inputs, units) in enumerate([(3, sines.UNITS), (sines.UNITS, sines.UNITS), (sines.UNITS, 3)]):
        gain = first[0] if index == 0 else low * (high / low) ** torch.rand(count, 1, 1) * math.sqrt(2 / sines.UNITS)
        shape.append((gain * torch.randn(count, units, inputs), 2 * math.pi * torch.rand(count, units, 1)))
    for row, column in ((0, 0), (5, 9), (2, 7)):
        x, y = (2 * column + 1 - 10) / 10, (2 * row + 1 - 6) / 10
        for image in range(count):
            distance = math.hypot(x - float(centre[image, 0]), y - float(centre[image, 1]))
            value = torch.tensor([x, y, distance])
            for weights, phases in shape:
                value = torch.sin(weights[image] @ value + phases[image, :, 0])
            assert torch.allclose(images[image, :, row, column], 0.5 + 0.5 * value, atol=1e-4)


# Dead leaves.


def test_radii_follow_the_power_law() -> None:
    torch.manual_seed(0)
    shares = torch.randint(leaves.LEAVES - 1, (20_000,))
    drawn = leaves.radii(shares).sort().values
    low, high = leaves.RADII
    assert low <= float(drawn[0]) * (1 + 1e-5) and float(drawn[-1]) <= high * (1 + 1e-5)
    expected = (low**-2 - drawn**-2) / (low**-2 - high**-2)  # the distribution with density r^-3
    found = torch.arange(1, 20_001) / 20_000
    assert float((found - expected).abs().max()) < 1.63 / math.sqrt(20_000)  # Kolmogorov-Smirnov, 1 %
    assert (leaves.radii(shares) <= leaves.radii(shares, 1.0)).all()
    assert (leaves.radii(shares) >= leaves.radii(shares, 0.0)).all()


@pytest.mark.parametrize("size", [(32, 32), (24, 70)])
def test_leaves_found_in_windows_are_those_found_in_the_whole_image(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    windows = leaves.topmost(5, size, CPU)
    monkeypatch.setattr(leaves, "_EXTENT", 1e3)  # no window is small
    torch.manual_seed(0)
    assert torch.equal(leaves.topmost(5, size, CPU), windows)


def test_an_ellipse_holds_the_places_that_its_equation_does() -> None:
    down, right = (torch.arange(40) + 0.5) / 40, (torch.arange(50) + 0.5) / 50
    radius, aspect, angle, middle = 0.3, 0.5, 0.7, (0.4, 0.6)
    x, y = (right - middle[0])[None], (down - middle[1])[None]
    one = torch.ones(1, 1)
    found = leaves._ellipse(x, y, radius * one, aspect * one, angle * one)[0]
    for row in range(0, 40, 3):
        for column in range(0, 50, 3):
            dx, dy = float(x[0, column]), float(y[0, row])
            along = dx * math.cos(angle) + dy * math.sin(angle)
            across = dy * math.cos(angle) - dx * math.sin(angle)
            assert bool(found[row, column]) == ((along / radius) ** 2 + (across / (radius * aspect)) ** 2 < 1)


def test_a_polygon_of_four_quarter_turns_is_a_rectangle() -> None:
    side = (torch.arange(40) + 0.5) / 40 - 0.5
    angle = math.pi / 2 * torch.arange(4.0)[None]
    reach = torch.tensor([[0.5, 1.0, 0.5, 1.0]])
    found = leaves._polygon(side[None], side[None], torch.full((1, 1), 0.3), angle, reach)[0]
    assert torch.equal(found, (side.abs() < 0.3)[:, None] & (side.abs() < 0.15))


def test_later_leaves_lie_over_earlier_ones_and_each_has_one_colour_without_texture() -> None:
    torch.manual_seed(0)
    grey = torch.full((6, 3, 32, 32), 0.5)  # adds nothing
    images = leaves.dead_leaves(6, (32, 32), grey)
    torch.manual_seed(0)
    owner = leaves.topmost(6, (32, 32), CPU)
    assert owner.min() >= 0 and owner.max() == leaves.LEAVES - 1
    for image, owners in zip(images, owner, strict=True):
        shown = owners.unique()
        assert 10 < len(shown) <= leaves.LEAVES
        for leaf in shown:
            assert len(image[:, owners == leaf].unique(dim=1)[0]) == 1
        assert len(image.flatten(1).unique(dim=1)[0]) == len(shown)


def test_textures_show_through_leaves() -> None:
    textures = torch.rand(4, 3, 32, 32)
    torch.manual_seed(0)
    images = leaves.dead_leaves(4, (32, 32), textures)
    torch.manual_seed(0)
    owner = leaves.topmost(4, (32, 32), CPU)
    patterned = [
        len(image[:, owners == leaf].unique(dim=1)[0]) > 1
        for image, owners in zip(images, owner, strict=True)
        for leaf in owners.unique()
        if (owners == leaf).sum() > 20
    ]
    assert 0.4 < sum(patterned) / len(patterned) < 0.95  # two of three are


# Warps.


def test_nothing_moves_without_rotation_crop_and_elastic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warps, "_LEAST_SEEN", 1.0)
    images = torch.rand(3, 3, 9, 14)
    assert torch.allclose(warps.warped(images, 0.0, 0.0), images, atol=1e-5)
    assert not torch.allclose(warps.warped(images, 0.0, 0.1), images, atol=1e-2)


@pytest.mark.parametrize("size", [(9, 15), (12, 12)])
def test_a_half_turn_turns_pixels_about_the_middle_and_a_quarter_turn_keeps_their_shape(size: tuple[int, int]) -> None:
    images = torch.rand(1, 3, *size)
    tall, one, middle = size[0] / size[1], torch.ones(1), torch.zeros(1, 2)

    def by(angle: float) -> Tensor:
        theta = warps.turned(torch.tensor([angle]), one, middle, tall)
        grid = F.affine_grid(theta, [1, 3, *size], align_corners=False)
        return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)

    assert torch.allclose(by(math.pi), images.flip((-2, -1)), atol=1e-4)
    least = min(size)
    top, left = (size[0] - least) // 2, (size[1] - least) // 2
    window = (..., slice(top, top + least), slice(left, left + least))
    assert torch.allclose(by(math.pi / 2)[window], images[window].rot90(1, (-2, -1)), atol=1e-4)


# Mask CutMix.


@pytest.mark.parametrize("middle", [0.3, 0.5, 0.8])
def test_diverging_keeps_0_1_and_the_middle_is_monotonous_and_drives_away(middle: float) -> None:
    fixed = torch.tensor([0.0, middle, 1.0])
    assert torch.allclose(mask_cutmix.diverge(fixed, middle), fixed, atol=1e-6)
    values = torch.linspace(0, 1, 401)
    driven = mask_cutmix.diverge(values, middle)
    assert (driven.diff() >= -1e-6).all() and driven.min() >= 0 and driven.max() <= 1 + 1e-6
    below, above = values < middle - 0.01, values > middle + 0.01
    assert (driven[below] <= values[below]).all() and (driven[above] >= values[above] - 1e-6).all()


def test_diverging_at_one_half_is_the_two_parabolas() -> None:
    low, high = torch.linspace(0, 0.49, 20), torch.linspace(0.5, 1, 20)
    assert torch.allclose(mask_cutmix.diverge(low), 2 * low**2, atol=1e-6)
    assert torch.allclose(mask_cutmix.diverge(high), 1 - 2 * (1 - high) ** 2, atol=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (28, 44)])
def test_masks_are_mostly_0_or_1_half_of_each_in_parts_of_many_sizes(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    masks = mask_cutmix.masks(256, size, CPU)
    assert masks.shape == (256, 1, *size) and masks.min() >= 0 and masks.max() <= 1
    assert float(masks.mean()) == pytest.approx(0.5, abs=0.05)
    assert ((masks < 0.1) | (masks > 0.9)).float().mean() > 0.6
    share = masks.mean((1, 2, 3))
    assert ((share > 0.1) & (share < 0.9)).float().mean() > 0.6  # of both images something is seen
    changes = (masks[..., 1:] - masks[..., :-1]).abs().mean((1, 2, 3)) * size[1]  # borders along a row
    assert changes.quantile(0.95) > 2.5 * changes.quantile(0.05)


def test_cutmix_blends_the_share_asked_for_and_leaves_the_others() -> None:
    torch.manual_seed(0)
    images = torch.rand(40, 3, 16, 16)
    mixed = mask_cutmix.cutmixed(images, 0.5, 0.0)
    same = (mixed == images).flatten(1).all(1)
    assert int(same.sum()) == 20
    assert torch.equal(mask_cutmix.cutmixed(images, 0.0, 0.5), images)
    levels = torch.arange(40.0)[:, None, None, None].expand_as(images) / 40  # an image's value is its name
    blended = mask_cutmix.cutmixed(levels, 1.0, 0.0)
    inner = (blended - levels).abs().amax((1, 2, 3))
    assert (inner > 1e-3).all() and blended.min() >= 0 and blended.max() <= levels.max()


def test_a_plain_partner_is_black_white_or_any_colour() -> None:
    torch.manual_seed(0)
    grey = torch.full((300, 3, 16, 16), 0.5)
    joined = mask_cutmix.cutmixed(grey, 1.0, 1.0)
    farthest = (joined - 0.5).abs().flatten(2).max(2)
    colour = joined.flatten(2).gather(2, farthest.indices[..., None])[..., 0]  # (300, 3)
    black, white = (colour < 0.05).all(1), (colour > 0.95).all(1)
    assert 0.2 < float(black.float().mean()) < 0.45 and 0.2 < float(white.float().mean()) < 0.45
    coloured = (colour.amax(1) - colour.amin(1)) > 0.1
    assert 0.2 < float(coloured.float().mean()) < 0.45
