"""The pretended device computes what the CPU does, and refuses and notes what CUDA does."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datafree.ops import modes
from pretended_device import OnDevice, pretended
from pretended_log import LOG


def trained(network: nn.Module, images: Tensor) -> list[Tensor]:
    optimizer = torch.optim.Adam(network.parameters(), 1e-2, fused=True)
    for _ in range(3):
        optimizer.zero_grad()
        network(images).square().mean().backward()
        optimizer.step()
    return list(network.state_dict().values())


def test_a_network_learns_on_it_what_it_learns_on_the_cpu_to_the_bit() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    images, other = torch.rand(4, 3, 6, 6), copy.deepcopy(network)
    wanted = trained(network.to(memory_format=torch.channels_last), images)
    with pretended() as device:
        found = trained(other.to(device).to(memory_format=torch.channels_last), images.to(device))
        assert all(isinstance(value, OnDevice) and value.device == device for value in found)
        assert isinstance(other[0].weight, nn.Parameter)
        assert all(torch.equal(ours.cpu(), theirs) for ours, theirs in zip(found, wanted, strict=True))


def test_tied_weights_stay_tied_and_copies_are_apart() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    with pretended() as device:
        network.to(device)
        assert network[0].weight is network[1].weight
        other = copy.deepcopy(network)
        assert other[0].weight is other[1].weight
        with torch.no_grad():
            other[0].weight.zero_()
            network[1].weight.data = torch.ones(3, 3, device=device)
        assert not other[1].weight.any()


REFUSED: dict[str, Callable[[Tensor, Tensor, Any], object]] = {
    "a sum": lambda here, there, device: here + there,
    "a join": lambda here, there, device: torch.cat([here, there]),
    "a join with a number": lambda here, there, device: torch.stack([here.sum(), there.sum()]),
    "in place on the host": lambda here, there, device: there.add_(here.sum()),
    "the host's, at the device's places": lambda here, there, device: there[here.long()],
    "values of the host at the device's places": lambda here, there, device: here.index_put_((here.long(),), there),
    "a CPU generator": lambda here, there, device: torch.rand(2, device=device, generator=torch.Generator()),
    "a generator of the device": lambda here, there, device: torch.rand(2, generator=torch.Generator(device)),
    "numpy": lambda here, there, device: here.numpy(),
}
ALLOWED: dict[str, Callable[[Tensor, Tensor, Any], object]] = {
    "a number of the host": lambda here, there, device: here + there.sum(),
    "a number to fill with": lambda here, there, device: here.masked_fill(here > 0, there.sum()),
    "the host's numbers as places": lambda here, there, device: here[there.long()],
    "a copy": lambda here, there, device: here.copy_(there),
    "a copy to the host": lambda here, there, device: there.copy_(here),
    "a generator of its own side": lambda here, there, device: torch.rand(
        2, device=device, generator=torch.Generator(device)
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_refuses_what_cuda_refuses(what: str) -> None:
    with pretended() as device, pytest.raises((RuntimeError, TypeError)):
        REFUSED[what](torch.zeros(3, device=device), torch.zeros(3), device)


@pytest.mark.parametrize("what", ALLOWED)
def test_it_takes_what_cuda_takes(what: str) -> None:
    with pretended() as device:
        ALLOWED[what](torch.zeros(3, device=device), torch.zeros(3), device)


WAITS: dict[str, tuple[str | None, Callable[[Tensor], object]]] = {
    "item": ("item", lambda x: x.sum().item()),
    "float": ("item", lambda x: float(x.sum())),
    "bool": ("item", lambda x: bool((x > 0).any())),
    "if": ("item", lambda x: 1 if x.sum() > 0 else 2),
    "tolist": ("tolist", lambda x: x.tolist()),
    "cpu": ("to the CPU", lambda x: x.cpu()),
    "cpu, not waited for": (None, lambda x: x.to("cpu", non_blocking=True)),
    "upload": ("upload", lambda x: torch.zeros(3).to(x.device)),
    "upload of numbers": ("upload", lambda x: torch.tensor([1.0, 2.0], device=x.device)),
    "upload, not waited for": (None, lambda x: torch.zeros(3).to(x.device, non_blocking=True)),
    "made there": (None, lambda x: torch.full((3,), 2.0, device=x.device)),
    "nonzero": ("nonzero", lambda x: x.nonzero()),
    "a mask": ("boolean index", lambda x: x[x > 0]),
    "a mask, to set a number": (None, lambda x: x.masked_fill_(x > 0, 1.0)),
    "a mask, set to a number": (None, lambda x: x.__setitem__(x > 0, 1.0)),
    "a mask, to set rows": ("boolean index", lambda x: x.__setitem__(x > 0, x[:0])),
    "places": (None, lambda x: x[torch.arange(2, device=x.device)]),
    "places of the host": ("upload of an index", lambda x: x[torch.arange(2)]),
    "masked_select": ("masked_select", lambda x: x.masked_select(x > 0)),
    "unique": ("unique", lambda x: x.unique()),
    "bincount": ("bincount", lambda x: x.long().bincount()),
    "repeats": ("repeat_interleave", lambda x: x.repeat_interleave(x.long())),
    "equal": ("equal", lambda x: torch.equal(x, x)),
    "sum": (None, lambda x: x.sum() + 1),
}


@pytest.mark.parametrize("what", WAITS)
def test_it_notes_where_the_host_waits(what: str) -> None:
    why, act = WAITS[what]
    with pretended() as device:
        x = torch.zeros(3, device=device)
        LOG.clear()
        act(x)
        assert [wait.why for wait in LOG.waits][:1] == ([] if why is None else [why])
        assert all(Path(wait.file) == Path(__file__) for wait in LOG.waits)


def test_its_random_numbers_come_from_a_state_of_their_own_which_is_seeded_saved_and_put_back() -> None:
    with pretended() as device:
        modes.seed_everything(3)
        host = torch.get_rng_state()
        saved = modes.random_state()
        first = torch.rand(3, device=device).cpu()
        assert torch.equal(torch.get_rng_state(), host)
        assert not torch.equal(torch.rand(3, device=device).cpu(), first)
        modes.set_random_state(saved)
        assert torch.equal(torch.rand(3, device=device).cpu(), first)
        modes.seed_everything(3)
        assert torch.equal(torch.rand(3, device=device).cpu(), first)


def test_there_is_none_outside() -> None:
    with pretended():
        assert torch.accelerator.is_available()
    assert not torch.accelerator.is_available()
