import pytest
import torch
from torch import Tensor

from datafree.errors import NetworkError
from datafree.networks.generators import Discriminator, Generator, ResizeGenerator, coarse_grid


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (128, 128), (256, 256), (64, 128), (96, 128), (352, 480)])
def test_generator_and_discriminator_fit_the_size(size: tuple[int, int]) -> None:
    generator, discriminator = Generator(size, latent=8, width=2), Discriminator(size, width=2)
    images = generator(generator.draw_latents(2, torch.device("cpu")))
    assert images.shape == (2, 3, *size)
    assert images.min() >= 0
    assert images.max() <= 1
    assert discriminator(images).shape == (2,)


@pytest.mark.slow
def test_generator_makes_512_pixels() -> None:
    generator = Generator((512, 512), latent=8, width=2)
    assert generator(torch.zeros(2, 8)).shape == (2, 3, 512, 512)


def test_square_powers_of_two_start_at_four_by_four_as_dcgan() -> None:
    for doublings, side in enumerate((32, 64, 128, 256, 512), start=3):
        assert coarse_grid((side, side)) == (4, 4, doublings)


def test_128_pixels_take_six_transposed_convolutions_ending_in_64_channels() -> None:
    layers = [m for m in Generator((128, 128)).layers if isinstance(m, torch.nn.ConvTranspose2d)]
    assert [layer.out_channels for layer in layers] == [1024, 512, 256, 128, 64, 3]


@pytest.mark.parametrize("least", [4, 7])
@pytest.mark.parametrize("size", [(100, 100), (30, 30), (8, 8), (127, 128), (2048, 2048)])
def test_impossible_size_is_refused_with_one_that_works(size: tuple[int, int], least: int) -> None:
    with pytest.raises(NetworkError, match=f"{size[0]} x {size[1]}") as caught:
        coarse_grid(size, least)
    nearest = str(caught.value).rsplit("nearest is ", 1)[1].split(" x ")
    coarse_grid((int(nearest[0]), int(nearest[1])), least)


@pytest.mark.parametrize(
    ("size", "nearest"), [((2000, 2000), "1024 x 1024"), ((29, 29), "28 x 28"), ((130, 128), "128 x 128")]
)
def test_the_size_that_is_named_is_the_nearest(size: tuple[int, int], nearest: str) -> None:
    with pytest.raises(NetworkError, match=f"the nearest is {nearest}$"):
        coarse_grid(size, 7)


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((28, 28), (7, 7, 2)),
        ((32, 32), (8, 8, 2)),
        ((64, 64), (8, 8, 3)),
        ((128, 128), (8, 8, 4)),
        ((224, 224), (7, 7, 5)),
        ((96, 128), (12, 16, 3)),
        ((480, 352), (15, 11, 5)),
    ],
)
def test_the_coarsest_grid_keeps_as_many_cells_as_asked_for(size: tuple[int, int], grid: tuple[int, int, int]) -> None:
    assert coarse_grid(size, least=7) == grid
    h, w, doublings = grid
    assert (h * 2**doublings, w * 2**doublings) == size


@pytest.mark.parametrize("make", [Generator, ResizeGenerator])
def test_latents_from_a_generator_leave_the_global_state_alone(make: type[Generator] | type[ResizeGenerator]) -> None:
    generator = make((32, 32), latent=4, width=2)
    before = torch.get_rng_state()
    first = generator.draw_latents(3, torch.device("cpu"), torch.Generator().manual_seed(5))
    again = generator.draw_latents(3, torch.device("cpu"), torch.Generator().manual_seed(5))
    assert torch.equal(first, again)
    assert torch.equal(before, torch.get_rng_state())


def conditional(size: tuple[int, int] = (32, 32), classes: int = 3) -> ResizeGenerator:
    """In eval mode, so that the images of a batch do not touch each other, and with statistics of its own."""
    torch.manual_seed(0)
    generator = ResizeGenerator(size, latent=8, width=4, num_classes=classes)
    for _ in range(20):
        generator(torch.randn(8, 8), whole([n % classes for n in range(8)], classes))
    return generator.eval()


def whole(labels: list[int], classes: int = 3) -> Tensor:
    """Class maps (B, C, 1, 1): a class for the whole image."""
    return torch.eye(classes)[labels][:, :, None, None]


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (64, 64), (128, 128), (224, 224), (96, 128)])
@pytest.mark.parametrize("classes", [0, 3])
def test_resize_generator_makes_the_size_with_and_without_classes(size: tuple[int, int], classes: int) -> None:
    torch.manual_seed(0)
    generator = ResizeGenerator(size, latent=8, width=2, num_classes=classes)
    z = generator.draw_latents(2, torch.device("cpu"))
    assert z.shape == (2, 8)
    images = generator(z, whole([0, 2]) if classes else None)
    assert images.shape == (2, 3, *size)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert not torch.equal(images[0], images[1])


def test_resize_generator_is_dafls_at_32_pixels() -> None:
    generator = ResizeGenerator((32, 32))
    assert generator.grid == (128, 8, 8)
    assert generator.project.in_features == 256
    assert [(c.in_channels, c.out_channels) for c in (*generator.convs, generator.to_image)] == [  # type: ignore[union-attr]
        (128, 128),
        (128, 64),
        (64, 3),
    ]


def test_channels_stop_growing_at_four_times_the_width() -> None:
    generator = ResizeGenerator((224, 224), latent=4, width=2)
    assert [norm.norm.num_features for norm in generator.norms] == [8, 8, 8, 4, 4, 2]  # type: ignore[union-attr]


def test_another_class_makes_another_image_of_the_same_latent() -> None:
    generator, z = conditional(), torch.randn(1, 8).expand(3, -1)
    images = generator(z, whole([0, 1, 2]))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (images[one] - images[other]).abs().mean() > 0.02
    assert torch.equal(generator(z, whole([0, 1, 2])), images)
    assert torch.allclose(generator(z[:1], whole([1])), images[1:2], atol=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (96, 128)])
def test_a_class_everywhere_is_the_class_of_the_whole_image(size: tuple[int, int]) -> None:
    generator, z = conditional(size), torch.randn(3, 8)
    everywhere = whole([2, 0, 1]).expand(-1, -1, *size)
    torch.testing.assert_close(generator(z, everywhere), generator(z, whole([2, 0, 1])), rtol=0, atol=1e-5)


def test_a_class_changed_in_one_half_changes_that_half_and_leaves_the_other() -> None:
    """Influence ends 4 pixels into the other half: a cell at 16 x 16 (2 pixels), one at 32 x 32, one of `to_image`."""
    generator, z = conditional(), torch.randn(1, 8)
    layout = whole([0]).expand(-1, -1, 32, 32)
    changed = layout.clone()
    changed[:, :, :, 16:] = whole([2])
    first, second, other = generator(z, layout), generator(z, changed), generator(z, whole([2]))
    assert torch.equal(first[..., :12], second[..., :12])
    assert (first[..., 16:] - second[..., 16:]).abs().mean() > 0.02
    torch.testing.assert_close(second[..., 20:], other[..., 20:], rtol=0, atol=1e-5)  # and shows the other class


def test_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    for classes in (0, 3):
        generator = ResizeGenerator((32, 32), latent=8, width=4, num_classes=classes)
        images = generator(torch.randn(4, 8), whole([0, 1, 2, 0]) if classes else None)
        (images * torch.randn_like(images)).sum().backward()
        for name, parameter in generator.named_parameters():
            assert parameter.grad is not None, name
            # A bias before BatchNorm has a gradient of rounding errors only.
            assert parameter.grad.norm() > 0, name


def test_channels_last_and_bf16_make_nearly_the_same_images() -> None:
    generator, z = conditional(), torch.randn(2, 8)
    expected = generator(z, whole([0, 1]))
    torch.testing.assert_close(
        generator.to(memory_format=torch.channels_last)(z, whole([0, 1])), expected, rtol=0, atol=1e-5
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        images = generator(z, whole([0, 1]))
    assert images.dtype == torch.float32
    assert (images - expected).abs().mean() < 0.02


def test_a_conditional_generator_without_class_maps_is_a_fault_of_the_caller() -> None:
    with pytest.raises(AssertionError, match="class maps"):
        conditional()(torch.randn(2, 8))
