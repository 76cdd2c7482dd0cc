"""Networks that are files: which kind of file it is, and the teacher in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from datafree.errors import NetworkError, WeightsError
from datafree.networks.exported.program import SUFFIX as PT2
from datafree.networks.exported.program import Program
from datafree.networks.foreign import onnx_file, torchscript
from datafree.networks.foreign.open_onnx import open_onnx
from datafree.networks.foreign.torchscript import is_torchscript, open_torchscript
from datafree.text import one_line

PICKLES = (".pt", ".pth")
SUFFIXES = (PT2, onnx_file.SUFFIX, *torchscript.SUFFIXES, *PICKLES)


def open_file(path: Path, args: Mapping[str, Any], std: tuple[float, ...]) -> nn.Module:
    """The network in a file, by its options `args`; `std`: what images in [0, 1] are divided by.

    Raises WeightsError for a file that cannot be used, NetworkError for options that do not suit it.
    """
    if path.suffix == PT2:
        return Program(path)
    if path.suffix == onnx_file.SUFFIX:
        return open_onnx(path, args, std)
    try:
        if path.suffix in torchscript.SUFFIXES or (path.is_file() and is_torchscript(path)):
            return open_torchscript(path, args)
    except OSError as error:
        raise WeightsError(f"network {path}: cannot be read ({one_line(error)})") from error
    if not path.is_file():
        raise WeightsError(f"network {path}: {'not a file' if path.exists() else 'no such file'}")
    raise NetworkError(
        f"{path} holds weights, not a network: name the architecture as `network` (timm/resnet34, "
        f"package.module:callable) and give this file as `weights`"
    )
