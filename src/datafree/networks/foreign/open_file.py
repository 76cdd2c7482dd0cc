"""Networks that are files: which kind of file it is, and the teacher in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from datafree.errors import NetworkError, WeightsError
from datafree.networks.checkpoints.whole_modules import read_module
from datafree.networks.exported.program import SUFFIX as PT2
from datafree.networks.exported.program import Program
from datafree.networks.foreign import onnx_file, torchscript
from datafree.networks.foreign.open_onnx import open_onnx
from datafree.networks.foreign.torchscript import is_torchscript, open_torchscript
from datafree.networks.foreign.ultralytics_model import open_ultralytics
from datafree.text import one_line, show

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
    return _open_pickle(path, args)


def _open_pickle(path: Path, args: Mapping[str, Any]) -> nn.Module:
    """The network of Ultralytics' that a file holds; any other file is told where it belongs."""
    module = read_module(path)
    if module is None:
        raise NetworkError(
            f"{path} holds weights, not a network: name the architecture as `network` (timm/resnet34, "
            f"package.module:callable) and give this file as `weights`"
        )
    if args:
        raise NetworkError(f"{path} does not take {show(min(args))} in args: it holds its weights and its architecture")
    if module.kind.partition(".")[0] == "ultralytics":
        return open_ultralytics(path, module)
    place, _, name = module.kind.rpartition(".")
    raise NetworkError(
        f"{path} is a whole {show(module.kind)}, and a pickle is never run: take its tensors out with datafree convert "
        f"{path.name} {path.stem}.safetensors, and give what makes the network as `network` ({place}:{name}, or a "
        "library's name) and that file as `weights`"
    )
