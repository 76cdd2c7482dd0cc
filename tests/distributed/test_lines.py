"""Sums of processes on one machine, over their own sockets and memory, against torch's collectives."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from datafree.distributed import collectives, divided, lines
from thorough import some

SHORT = timedelta(seconds=2)


def on(count: int, folder: Path, act: Callable[[int], Tensor]) -> list[Tensor]:
    """What `act` returns on each of so many processes that know one another."""
    mp.start_processes(_process, (count, folder, act), nprocs=count, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def _process(rank: int, count: int, folder: Path, act: Callable[[int], Tensor]) -> None:
    torch.set_num_threads(1)
    with collectives.process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=count):
        torch.save(act(rank), folder / f"{rank}.pt")


def drawn(rank: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(rank))


@pytest.mark.parametrize("count", some([(2,), (3,)], (3,)))
def test_sums_are_those_of_the_parts_in_order_on_all_processes(count: int, tmp_path: Path) -> None:
    """Of a few numbers, and of more than a socket holds, and of a few again."""

    def act(rank: int) -> Tensor:
        found = []
        with collectives.over_lines(SHORT):
            for number, size in enumerate((5, 100_000, 5)):
                total = drawn(10 * number + rank, size)
                collectives.add_up(total)
                found.append(total)
        return torch.cat(found)

    every = on(count, tmp_path, act)
    wanted = []
    for number, size in enumerate((5, 100_000, 5)):
        total = drawn(10 * number, size)
        for rank in range(1, count):
            total = total + drawn(10 * number + rank, size)
        wanted.append(total)
    assert all(torch.equal(mine, torch.cat(wanted)) for mine in every)


@pytest.mark.parametrize("count", some([(2,), (3,)], (2,)))
def test_gradients_in_shared_memory_are_averaged_like_gloos(count: int, tmp_path: Path) -> None:
    """In any memory format, again, and after a larger network; one has a gradient on the last process only."""

    def averaged(rank: int) -> Tensor:
        found = []
        for number, width in enumerate((4, 4, 8, 4)):
            weights = [torch.zeros(width, 3, 2, 2).contiguous(memory_format=torch.channels_last), torch.zeros(width)]
            for index, weight in enumerate(weights):
                if index == 0 or rank == count - 1:
                    weight.grad = drawn(10 * number + rank, *weight.shape)
                weight.requires_grad_()
            unused = torch.zeros(2, requires_grad=True)
            divided.average_gradients([*weights, unused])
            assert unused.grad is None
            found += [weight.grad.flatten() for weight in weights if weight.grad is not None]
        return torch.cat(found)

    def act(rank: int) -> Tensor:
        with divided.sharing(True):
            by_gloo = averaged(rank)
            with collectives.over_lines(SHORT):
                return torch.stack([by_gloo, averaged(rank)])

    every = on(count, tmp_path, act)
    assert all(torch.equal(mine[1], every[0][1]) for mine in every)
    torch.testing.assert_close(every[0][1], every[0][0], rtol=1e-6, atol=1e-7)
    assert every[0].count_nonzero() == every[0].numel()


def test_processes_that_cannot_reach_one_another_fall_back_on_gloo(tmp_path: Path) -> None:
    """One of them has no place for its socket: its temporary folder's name is too long."""

    def act(rank: int) -> Tensor:
        with pytest.MonkeyPatch.context() as patch:
            if rank:
                (tmp_path / ("long" * 40)).mkdir()
                patch.setattr(lines.tempfile, "mkdtemp", lambda prefix: str(tmp_path / ("long" * 40)))
            with collectives.over_lines(SHORT):
                assert not collectives._lines
                total = drawn(rank, 3)
                collectives.add_up(total)
                return total

    first, second = on(2, tmp_path, act)
    assert torch.equal(first, second) and torch.equal(first, drawn(0, 3) + drawn(1, 3))


@contextmanager
def line_to_another() -> Iterator[tuple[lines.Lines, socket.socket]]:
    mine, other = socket.socketpair()
    line = lines.Lines(0, {1: mine}, timedelta(seconds=1))
    try:
        yield line, other
    finally:
        line.close()
        other.close()


def test_the_end_and_the_silence_of_another_process_are_errors_that_a_run_understands() -> None:
    """By the words that `replicas.joined` looks for."""
    with line_to_another() as (line, other):
        with pytest.raises(RuntimeError, match="timed out after 0:00:01"):
            line.add_up(torch.zeros(2))
        other.sendall(bytes(4))  # half of what it owes
        other.shutdown(socket.SHUT_WR)
        with pytest.raises(RuntimeError, match="connection closed by peer"):
            line.add_up(torch.zeros(2))
        other.close()
        with pytest.raises(RuntimeError, match="connection reset"):
            line.add_up(torch.zeros(2))
    with line_to_another() as (line, other):
        other.shutdown(socket.SHUT_WR)
        with pytest.raises(RuntimeError, match="connection closed by peer"):
            line.average_all([torch.zeros(2)], torch.zeros(1))
