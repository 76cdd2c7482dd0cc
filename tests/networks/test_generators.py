import pytest
import torch

from datafree.errors import NetworkError
from datafree.networks.generators import Discriminator, Generator, coarse_grid


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


@pytest.mark.parametrize("size", [(100, 100), (30, 30), (8, 8), (127, 128), (2048, 2048)])
def test_impossible_size_is_refused_with_one_that_works(size: tuple[int, int]) -> None:
    with pytest.raises(NetworkError, match=f"{size[0]} x {size[1]}") as caught:
        coarse_grid(size)
    nearest = str(caught.value).rsplit("nearest is ", 1)[1].split(" x ")
    coarse_grid((int(nearest[0]), int(nearest[1])))


def test_latents_from_a_generator_leave_the_global_state_alone() -> None:
    generator = Generator((32, 32), latent=4, width=2)
    before = torch.get_rng_state()
    first = generator.draw_latents(3, torch.device("cpu"), torch.Generator().manual_seed(5))
    again = generator.draw_latents(3, torch.device("cpu"), torch.Generator().manual_seed(5))
    assert torch.equal(first, again)
    assert torch.equal(before, torch.get_rng_state())
