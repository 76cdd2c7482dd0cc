"""Teachers that are files: what all of them have, and those that only answer.

One that only answers is computed by another runtime, without gradients and without layers. It serves the image sources
that learn nothing through a teacher: procedural, folder, dataset, noise and mixtures of them.

B images, H x W pixels.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datafree.errors import NetworkError
from datafree.networks.normalized import bare, size_of
from datafree.text import one_line


class FileTeacher(nn.Module):
    """A whole network in a file, which can teach but not learn.

    `files` holds the file and what lies beside it, `size` the (height, width) it is made for, None where it takes
    several; `parameter_count` the values of its parameters; `notes` what a user should know of it, a line each.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.files: tuple[Path, ...] = (path,)
        self.size: tuple[int, int] | None = None
        self.parameter_count = 0
        self.notes: list[str] = []

    def digest(self) -> str:
        """SHA-256 of its files, one after the other."""
        made = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                while block := file.read(2**20):
                    made.update(block)
        return made.hexdigest()


def count_parameters(network: nn.Module) -> int:
    """The parameters of a network, those of a file as the file says."""
    inner = bare(network)
    if isinstance(inner, FileTeacher):
        return inner.parameter_count
    return sum(parameter.numel() for parameter in inner.parameters())


def count_bytes(network: nn.Module) -> int:
    """Bytes of a network's parameters and buffers; of a file's where its runtime holds them."""
    inner = bare(network)
    held = size_of(inner)
    return sum(file.stat().st_size for file in inner.files) if isinstance(inner, FileTeacher) and not held else held


def is_opaque(network: nn.Module) -> bool:
    """Whether nobody can look inside: layers and multiplications are not told."""
    return isinstance(bare(network), AnswersOnly)


class AnswersOnly(FileTeacher):
    """A network that is asked for its answers and nothing else."""

    def forward(self, images: Tensor) -> Any:
        """(B, channels, H, W) -> its answer, without gradients. Raises NetworkError."""
        try:
            with torch.no_grad():
                return self.answer(images.detach())
        except NetworkError:
            raise
        except Exception as error:  # of whatever class the runtime has
            raise NetworkError(f"{self.path} cannot be computed ({one_line(error)})") from error

    @abstractmethod
    def answer(self, images: Tensor) -> Any:
        """What it answers about images of any number."""
