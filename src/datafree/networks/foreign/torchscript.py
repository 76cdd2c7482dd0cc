"""Teachers in TorchScript archives, which are code: opened only where the user says that the file is trusted.

    teacher: {network: old.torchscript, args: {trusted: true}}

B images.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datafree.errors import NetworkError, WeightsError
from datafree.networks.checkpoints.torch_files import check_directory
from datafree.networks.foreign.file_teacher import FileTeacher
from datafree.text import one_line, show

SUFFIXES = (".torchscript", ".ts")


class ScriptTeacher(FileTeacher):
    """The network in a TorchScript archive: images (B, channels, H, W) -> its answer, with gradients to the images.

    It is one layer to whoever looks: the program's own layers take no hooks.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's own deprecations
                self.program = torch.jit.load(path, map_location="cpu").eval()  # type: ignore[no-untyped-call]
        except Exception as error:  # of torch's classes, for damaged archives and operators that it lacks
            raise WeightsError(f"network {path}: torch.jit.load does not take it ({one_line(error)})") from error
        for parameter in self.program.parameters():
            parameter.requires_grad_(False)
            self.parameter_count += parameter.numel()

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Itself alone."""
        yield from ((prefix, self) for _ in range(memo is None or self not in memo))

    def forward(self, images: Tensor) -> Any:
        """Raises whatever the program does."""
        return self.program(images)


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive of TorchScript, by its members' names. Raises WeightsError for a damaged archive."""
    try:
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":  # how torch's archives begin, and those that are read as weights
                return False
            check_directory("network", path, file)
            names = zipfile.ZipFile(file).namelist()
    except WeightsError:
        raise
    except OSError as error:
        raise WeightsError(f"network {path}: cannot be read ({one_line(error)})") from error
    except Exception as error:  # zipfile raises anything from BadZipFile to struct.error for damaged archives
        raise WeightsError(f"network {path}: a damaged archive ({one_line(error)}): fetch it again") from error
    return any(name.endswith("/constants.pkl") or "/code/" in name for name in names)


def open_torchscript(path: Path, args: Mapping[str, Any]) -> ScriptTeacher:
    """The teacher in an archive, if `args` says that it is trusted. Raises NetworkError, WeightsError."""
    for key in args.keys() - {"trusted"}:
        raise NetworkError(f"{path} does not take {show(key)} in args; a TorchScript archive takes trusted: true")
    if not path.is_file():
        raise WeightsError(f"network {path}: {'not a file' if path.exists() else 'no such file'}")
    if args.get("trusted") is not True:
        raise NetworkError(
            f"{path} is a TorchScript program, which is code: if you trust its maker, give args: {{trusted: true}} "
            "(--args trusted=true); else have it exported by torch.export (.pt2) or to ONNX"
        )
    return ScriptTeacher(path)
