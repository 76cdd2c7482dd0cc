"""Sums over CPU processes of one machine: of few numbers by sockets, of gradients by shared memory.

BatchNorm asks for two sums a layer and step, of a few hundred numbers. For such a sum gloo takes 600 microseconds of
the processor, in three threads that wake one another, and 2 milliseconds by the clock; a message through a socket to
each other process takes 16 and 70. Gradients are written where the others read them, which leaves out a piece that
holds them all, new in each step, and the system's network. All add the parts in the same order, so that they come to
the same bits.

P processes.
"""

from __future__ import annotations

import mmap
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

MOST = 8  # processes: each sends its part to every other
LARGEST = 1 << 20  # bytes of a sum by sockets: above it gloo's ring is as fast
PIECE = 1 << 16  # bytes sent before the others' are read: two of them lie unread at most, which a socket has room for
_CLOSED = "connection closed by peer"
KINDS = (torch.float32, torch.float64, torch.int64)


class Lines:
    """Connected sockets to all other processes."""

    def __init__(self, rank: int, peers: dict[int, socket.socket], patience: timedelta) -> None:
        self._rank, self._peers = rank, dict(sorted(peers.items()))
        self._patience = patience
        limit = struct.pack("ll", int(patience.total_seconds()), 0)
        for peer in self._peers.values():
            for what in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                peer.setsockopt(socket.SOL_SOCKET, what, limit)
        self._boards: list[mmap.mmap] = []  # each process's memory, which all of them can read
        self._read = False  # whether the boards were read, and there was no word of the others since

    def take(self, total: Tensor) -> bool:
        """Whether `add_up` is for such a sum; the same on all processes."""
        return total.device.type == "cpu" and total.dtype in KINDS and total.nbytes <= LARGEST

    def take_all(self, parts: Sequence[Tensor]) -> bool:
        """Whether `average_all` is for such tensors, which lie in one piece of memory each."""
        first = parts[0]
        return first.device.type == "cpu" and first.dtype in KINDS and first.dtype.is_floating_point

    def add_up(self, total: Tensor) -> None:
        """Put the sum over all processes in place of a contiguous tensor. Raises RuntimeError if one is lost."""
        mine = total.view(-1)
        count = PIECE // total.element_size()
        for piece in torch.split(mine, count):
            self._exchange(piece)

    def average_all(self, parts: Sequence[Tensor], flags: Tensor) -> None:
        """Put the means over all processes in place of tensors of one dtype, and of `flags` (F,) of the same dtype.

        They have the same shapes and strides on all processes. Raises RuntimeError if one of these is lost.
        """
        size = sum(part.nbytes for part in parts)
        if not self._boards or len(self._boards[0]) < size:
            self._hang_boards(size)
        elif self._read:
            self._exchange(torch.zeros(1))  # all have read what is there
        boards = [_places_on(board, parts) for board in self._boards]
        share = 1 / len(boards)
        for part, place in zip(parts, boards[self._rank], strict=True):
            torch.mul(part, share, out=place)
        self._exchange(flags)  # all have written
        flags.mul_(share)
        for part, first, second, *others in zip(parts, *boards, strict=True):
            torch.add(first, second, out=part)
            for other in others:
                part.add_(other)
        self._read = True

    def _hang_boards(self, size: int) -> None:
        """Give each process memory of `size` bytes that all others see: no file, so that it ends with them."""
        held = os.memfd_create("datafree")
        try:
            os.ftruncate(held, size)
            boards = {self._rank: mmap.mmap(held, size)}
            with self._in_touch():
                for peer in self._peers.values():
                    socket.send_fds(peer, [b"b"], [held])
        finally:
            os.close(held)
        for rank, peer in self._peers.items():
            with self._in_touch():
                _, theirs, _, _ = socket.recv_fds(peer, 1, 1)
            if not theirs:
                raise RuntimeError(_CLOSED)
            boards[rank] = mmap.mmap(theirs[0], size)
            os.close(theirs[0])
        self._boards = [boards[rank] for rank in sorted(boards)]

    @contextmanager
    def _in_touch(self) -> Iterator[None]:
        """Within it, the end of another process is a RuntimeError, as it is of torch's own exchanges."""
        try:
            yield
        except BlockingIOError as error:
            raise RuntimeError(f"timed out after {self._patience}") from error
        except OSError as error:
            raise RuntimeError(f"connection reset: {error}") from error

    def _exchange(self, mine: Tensor) -> None:
        self._read = False
        sent = _bytes_of(mine)
        with self._in_touch():
            for peer in self._peers.values():
                peer.sendall(sent)
            theirs = {rank: self._received(peer, mine) for rank, peer in self._peers.items()}
        if len(theirs) == 1:  # of two the order does not matter
            mine.add_(theirs.popitem()[1])
            return
        theirs[self._rank] = mine.clone()
        mine.copy_(theirs[0])
        for rank in range(1, len(theirs)):
            mine.add_(theirs[rank])

    def _received(self, peer: socket.socket, like: Tensor) -> Tensor:
        part = torch.empty_like(like)
        there = _bytes_of(part)
        got = 0
        while got < len(there):
            more = peer.recv_into(there[got:], 0, socket.MSG_WAITALL)
            if not more:
                raise RuntimeError(_CLOSED)
            got += more
        return part

    def close(self) -> None:
        """Hang up."""
        for peer in self._peers.values():
            peer.close()


def _bytes_of(tensor: Tensor) -> memoryview:
    whole: Any = tensor.numpy()
    return memoryview(whole).cast("B")


def _places_on(board: mmap.mmap, parts: Sequence[Tensor]) -> list[Tensor]:
    """Tensors in a board's memory, one after another, each as its part lies in its own."""
    sizes = [part.numel() for part in parts]
    flat = torch.split(torch.frombuffer(board, dtype=parts[0].dtype, count=sum(sizes)), sizes)
    return [torch.as_strided(place, part.shape, part.stride()) for place, part in zip(flat, parts, strict=True)]


def connected(patience: timedelta) -> Lines | None:
    """Lines to all other processes, each of which calls this too; None where they are many, or not on one machine.

    `patience`: how long one is waited for.
    """
    rank, count = dist.get_rank(), dist.get_world_size()
    on_hosts = "gloo" in dist.get_backend()  # beside NCCL too
    if count > MOST or not on_hosts or not hasattr(os, "memfd_create"):  # Linux has all that is used
        return None
    peers: dict[int, socket.socket] = {}
    with ExitStack() as held:
        server = held.enter_context(socket.socket(socket.AF_UNIX))
        path = None
        with suppress(OSError):  # no room, or too long a name for a socket: said by None
            folder = tempfile.mkdtemp(prefix="datafree-")  # of this user alone
            held.callback(shutil.rmtree, folder, ignore_errors=True)
            server.bind(str(Path(folder) / "line"))
            server.listen(count)
            path = str(Path(folder) / "line")
        paths = _told(path)
        with suppress(OSError):  # of another machine: there is no such file here
            for other in range(rank) if all(paths) else ():
                peers[other] = socket.socket(socket.AF_UNIX)
                peers[other].connect(paths[other])
                peers[other].sendall(bytes([rank]))
        if not all(_told(all(paths) and len(peers) == rank and all(map(_reaches, peers.values())))):
            for peer in peers.values():
                peer.close()
            return None
        for _ in range(count - 1 - rank):
            peer, _ = server.accept()
            peers[peer.recv(1)[0]] = peer
    return Lines(rank, peers, patience)


def _reaches(peer: socket.socket) -> bool:
    try:
        peer.getpeername()
    except OSError:
        return False
    return True


def _told(mine: object) -> list[Any]:
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, mine)
    return every
