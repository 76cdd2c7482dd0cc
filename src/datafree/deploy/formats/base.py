"""A format: what another runtime takes, written by its package's own converter and opened again by its runtime.

B images, N images to calibrate with, H x W pixels. Files take `images` (B, 3, H, W), RGB in [0, 1], and answer
`logits`, or a detector's `boxes` and `scores`, as an ONNX file does.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from datafree.deploy.format_facts import Facts
from datafree.errors import DatafreeError, NetworkError
from datafree.networks.normalized import Normalized
from datafree.networks.onnx import answer_of, names_of, noise, silence, why
from datafree.ops import modes
from datafree.storage.scratch import Scratch
from datafree.tasks.base import Task
from datafree.text import one_line


@dataclass(frozen=True, kw_only=True)
class Given:
    """What there is to convert."""

    network: Normalized
    task: Task
    description: Mapping[str, Any]  # plain values, for files that hold a text
    folder: Path  # of the export: what other formats have written is there
    opset: int | None = None  # of ONNX; None: torch's choice
    calibration: Tensor | None = None  # (N, 3, H, W) uint8; None: nothing is quantised
    trained: Normalized | None = None  # for INT8, whose files are made of it; None: of `network`

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.task.image_size

    def calibration_images(self, at_once: int = 1) -> Iterator[Tensor]:
        """Batches (B, 3, H, W) in [0, 1] to calibrate with."""
        assert self.calibration is not None
        for part in torch.split(self.calibration, at_once):
            yield part.float() / 255


class Format(ABC):
    """A format. Subclasses are final, and import their package where they use it; `facts` are of `format_facts`."""

    facts: ClassVar[Facts]

    @property
    def name(self) -> str:
        """As `--to` has it."""
        return self.facts.name

    @property
    def runtime(self) -> str:
        """As its makers write it."""
        return self.facts.runtime

    @property
    def no_int8(self) -> str:
        """Why it has no INT8; "": it has."""
        return self.facts.no_int8

    @property
    def unverified(self) -> str:
        """Why a file cannot be computed here; "": it can."""
        return self.facts.unverified

    @abstractmethod
    def write(self, given: Given, file: Path) -> None:
        """Write the float network. Raises whatever the converter raises."""

    def write_int8(self, given: Given, file: Path) -> None:
        """Write the network in 8-bit integers, calibrated on `given.calibration`. Raises as `write`."""
        raise NetworkError(f"{self.runtime} has no INT8 here: {self.no_int8}")

    @abstractmethod
    def open(self, file: Path) -> nn.Module:
        """The network in a file: images in [0, 1] -> the task's outputs, with torch's number of threads, on the CPU."""

    def files(self, int8: bool) -> list[str]:
        """The names of its files in an export; the first is the one that is opened."""
        return self.facts.files(int8)

    def require(self) -> None:
        """Raise DatafreeError, with the command that installs it, if a package is missing."""
        self.facts.require()


class Runtime(nn.Module):
    """A file that a runtime has opened: images in [0, 1] -> the task's outputs, without gradients or parameters."""

    def __init__(self, file: Path, compute: Callable[[Tensor], Sequence[Tensor]], at_once: int | None = None) -> None:
        """`compute`: images (B, 3, H, W) on the CPU -> the file's tensors; `at_once`: the only B that it takes."""
        super().__init__()
        self.file = file
        self._compute, self._at_once = compute, at_once

    def forward(self, images: Tensor) -> Any:
        """Raises NetworkError for images that the file does not take."""
        values = images.detach().to("cpu", torch.float32).contiguous()
        parts = [values] if self._at_once is None else torch.split(values, self._at_once)
        try:
            answers = [self._compute(part) for part in parts]
        except Exception as error:  # of classes that runtimes do not export
            raise NetworkError(f"{self.file} cannot be computed ({one_line(error)})") from error
        joined = [torch.cat(tensors).to(images.device) for tensors in zip(*answers, strict=True)]
        return answer_of(joined)


def output_names(given: Given) -> list[str]:
    """What the file's answers are called."""
    with torch.no_grad(), modes.frozen(given.network):
        return names_of(given.network(noise(1, given.size)))


def convert(kind: Format, given: Given, *, int8: bool = False) -> None:
    """Write a format's files into `given.folder`. Raises NetworkError, which names the operator that it cannot take."""
    file = given.folder / kind.files(int8)[0]
    try:
        with silence():
            if int8 and given.trained is not None:
                with Scratch() as scratch:
                    aside = replace(given, network=given.trained, trained=None, folder=scratch.path)
                    kind.write(aside, aside.folder / kind.files(int8=False)[0])
                    kind.write_int8(aside, file)
            else:
                (kind.write_int8 if int8 else kind.write)(given, file)
    except (OSError, DatafreeError):
        raise
    except Exception as error:  # tracing runs the network's own code, converters raise anything
        if shutil.disk_usage(given.folder).free < 2**20:  # converters have many words for it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        operator = operator_in(error)
        what = f"the operator {operator}" if operator else "the network"
        raise NetworkError(f"{kind.runtime} cannot take {what} ({why(error)})") from error


def operator_in(error: BaseException) -> str:
    """The first of torch's operators that a converter's error, or what caused it, names; "" if none."""
    seen: BaseException | None = error
    while seen is not None:
        if found := re.search(r"\baten(?:::|\.)\w+(?:\.\w+)?", str(seen)):
            return found[0].replace("::", ".")
        seen = seen.__cause__ or seen.__context__
    return ""
