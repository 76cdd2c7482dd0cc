import copy
import gc
import random
from collections.abc import Callable

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


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Pretends a machine with GPUs and, by its environment, who started this process; returns those that are chosen."""
    chosen: list[int] = []

    def machine(count: int, **environment: int) -> list[int]:
        for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(torch.device(device).index))
        monkeypatch.setattr(torch, "ones", lambda *shape, device: torch.zeros(*shape))
        chosen.clear()
        return chosen

    return machine


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_processes_of_one_machine_work_on_a_gpu_each(name: str, gpus: Callable[..., list[int]]) -> None:
    chosen = gpus(4, LOCAL_RANK=3, LOCAL_WORLD_SIZE=4)
    assert modes.choose_device(name) == torch.device("cuda:3")
    assert chosen == [3]  # what names no device works there, too
    assert modes.choose_device("cpu") == torch.device("cpu")
    assert modes.choose_device("cuda:1") == torch.device("cuda:1")
    assert chosen == [3, 1]
    gpus(4)
    assert modes.choose_device(name) == torch.device("cuda") and not chosen


def test_more_processes_than_gpus_are_one_line(gpus: Callable[..., list[int]]) -> None:
    gpus(2, LOCAL_RANK=2, LOCAL_WORLD_SIZE=4)
    said = r"no GPU for process 2 of 4 on this machine \(LOCAL_RANK=2\): it sees 2; start at most 2 on a machine, or "
    with pytest.raises(DatafreeError, match=said):
        modes.choose_device("auto")
    gpus(1, LOCAL_RANK=1)
    with pytest.raises(DatafreeError, match=r"sees 1;.* training\.device=cpu, or, .* set LOCAL_WORLD_SIZE=1$"):
        modes.choose_device("cuda")
    chosen = gpus(1, LOCAL_RANK=1, LOCAL_WORLD_SIZE=1)  # each sees the one that it was given
    assert modes.choose_device("cuda") == torch.device("cuda:0") and chosen == [0]


class Accelerator:
    """The random numbers of a process that sees some GPUs and works on one of them; as torch.cuda."""

    def __init__(self, count: int, current: int) -> None:
        self.generators = [torch.Generator().manual_seed(0) for _ in range(count)]
        self.current = current

    def current_device(self) -> int:
        return self.current

    def get_rng_state(self, device: int | None = None) -> torch.Tensor:
        return self.generators[self.current if device is None else device].get_state()

    def set_rng_state(self, state: torch.Tensor, device: int | None = None) -> None:
        self.generators[self.current if device is None else device].set_state(state)

    def get_rng_state_all(self) -> list[torch.Tensor]:
        return [generator.get_state() for generator in self.generators]

    def set_rng_state_all(self, states: list[torch.Tensor]) -> None:
        for device, state in enumerate(states):
            self.set_rng_state(state, device)

    def drawn(self) -> list[float]:
        return torch.rand(3, generator=self.generators[self.current]).tolist()


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Accelerator], Accelerator]:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)

    def use(one: Accelerator) -> Accelerator:
        monkeypatch.setattr(torch, "get_device_module", lambda device=None: one)
        return one

    return use


def test_random_state_of_a_gpu_is_put_back_on_whichever_this_process_uses(
    on: Callable[[Accelerator], Accelerator],
) -> None:
    first = on(Accelerator(2, 0))
    first.drawn()
    saved = modes.random_state()
    wanted = first.drawn()
    for count, current in ((2, 0), (2, 1), (1, 0), (8, 7)):
        other = on(Accelerator(count, current))
        modes.set_random_state(saved)
        assert other.drawn() == wanted, (count, current)


def test_random_states_of_all_gpus_from_older_checkpoints_are_read(on: Callable[[Accelerator], Accelerator]) -> None:
    old = on(Accelerator(2, 1))
    old.drawn()
    saved = {**modes.random_state(), "cuda": old.get_rng_state_all()}
    wanted = old.drawn()
    same = on(Accelerator(2, 1))
    modes.set_random_state(saved)
    assert same.drawn() == wanted
    on(Accelerator(1, 0))  # no error


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
