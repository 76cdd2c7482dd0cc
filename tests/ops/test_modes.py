import copy
import gc
import random

import numpy as np
import pytest
import torch
from torch import nn

from datafree.errors import DatafreeError
from datafree.ops import modes


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 2, 1))


def snapshot(network: nn.Module) -> tuple[dict[str, torch.Tensor], list[bool], list[bool]]:
    return (
        {k: v.clone() for k, v in network.state_dict().items()},
        [m.training for m in network.modules()],
        [p.requires_grad for p in network.parameters()],
    )


def assert_as_before(network: nn.Module, before: tuple[dict[str, torch.Tensor], list[bool], list[bool]]) -> None:
    after = snapshot(network)
    assert all(torch.equal(after[0][k], v) for k, v in before[0].items())
    assert after[1:] == before[1:]


def test_frozen_passes_gradients_to_the_input_only_and_restores_even_after_an_error() -> None:
    network = small_network().train()
    network[1].eval()  # a mixed state has to come back as it was
    before = snapshot(network)
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    with pytest.raises(ZeroDivisionError), modes.frozen(network):
        network(images).sum().backward()
        assert not any(m.training for m in network.modules())
        raise ZeroDivisionError
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert all(p.grad is None for p in network.parameters())
    assert_as_before(network, before)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_looked_through_network_keeps_its_statistics(mode: str) -> None:
    network = small_network().train()
    before = snapshot(network)
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    with modes.looked_through(network, mode):  # type: ignore[arg-type]
        network(images).sum().backward()
    assert images.grad is not None
    assert all(p.grad is None for p in network.parameters())
    assert_as_before(network, before)
    assert network[1].momentum == 0.1


def test_looked_through_in_train_mode_answers_with_batch_statistics() -> None:
    network = nn.BatchNorm2d(3).train()
    images = torch.rand(4, 3, 5, 5) * 7
    with modes.looked_through(network, "train"):
        seen = network(images)
    assert torch.equal(seen, copy.deepcopy(network)(images))
    with modes.looked_through(network, "eval"):
        assert not torch.allclose(seen, network(images))


@pytest.mark.parametrize("name", ["cuda:99", "toaster", "cpu:x"])
def test_device_that_is_not_there_is_one_line(name: str) -> None:
    with pytest.raises(DatafreeError, match=f"no device '{name}'; use auto"):
        modes.choose_device(name)
    assert modes.choose_device("cpu") == torch.device("cpu")


def test_random_state_puts_back_every_generator() -> None:
    modes.seed_everything(3)
    state = modes.random_state()
    drawn = random.random(), float(np.random.rand()), torch.rand(2)
    modes.set_random_state(state)
    again = random.random(), float(np.random.rand()), torch.rand(2)
    assert drawn[:2] == again[:2]
    assert torch.equal(drawn[2], again[2])


def test_seeding_gives_torchs_own_numbers_and_keeps_nothing() -> None:
    torch.manual_seed(5)
    own = torch.rand(3)
    modes.seed_everything(5)
    assert torch.equal(torch.rand(3), own)
    gc.collect()
    before = len(gc.get_objects())
    for seed in range(50):
        modes.seed_everything(seed)
    assert len(gc.get_objects()) < before + 50
