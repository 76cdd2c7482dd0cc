"""Ultralytics' networks, built by the user's own installation of `ultralytics` (AGPL-3.0) and never by a file's code.

    teacher: {network: best.pt}                       # tensors and architecture are read out of the pickle
    student: {network: ultralytics/yolov8n}           # its class count is the task's

The package is imported if it is there and an Ultralytics network is named; it is no dependency and nothing of it is
shipped. A .pt file describes its architecture by a table of layers (`yaml`), which is checked before it is built:
only layers of the package's own list, plain arguments, no expressions.

B images, C classes, L locations, R bins of a side's distance, H x W pixels.
"""

from __future__ import annotations

import importlib
import os
import re
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datafree.errors import NetworkError, WeightsError
from datafree.networks.checkpoints.whole_modules import WholeModule
from datafree.networks.foreign.ultralytics_detector import UltralyticsDetector
from datafree.text import one_line, show

_MOST = {"layers": 300, "repeats": 100, "number": 8192}  # of a description; those of the largest networks are a tenth
_MODULE = "ultralytics.nn.tasks"
_LOADERS = ("TorchVision", "load_checkpoint")  # layers that would fetch or read something
_SCALES = "ntsmblx"
_NAME = re.compile(r"yolov?\d{1,2}[a-z]6?u?(?:-cls)?", re.ASCII)


def open_ultralytics(path: Path, module: WholeModule) -> nn.Module:
    """The network whose pickle was taken apart, with its tensors. Raises NetworkError, WeightsError."""
    kind = module.kind.removeprefix(f"{_MODULE}.")
    described = _description(module, path)
    told = f"{path} is an Ultralytics {kind} ({described['nc']} classes, {len(module.tensors)} tensors)"
    export = f"convert it where it is installed: yolo export model={path.name} format=onnx"
    if module.kind.partition(".")[0] != "ultralytics" or kind not in ("DetectionModel", "ClassificationModel"):
        raise NetworkError(f"{told}, which is not built here; {export}, and name an output of that file")
    if find_spec("ultralytics") is None:
        raise NetworkError(
            f"{told}; to build it here install Ultralytics' package (AGPL-3.0): pip install ultralytics; or {export}"
        )
    _check(described, path)
    network = _built(kind, described, str(path))
    _take(network, module.tensors, path)
    for name, layer in network.named_modules():  # not in the table, and not always what the package builds
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = module.eps.get(name, layer.eps)
    return adapted(network)


def size_of_training(module: WholeModule) -> int | None:
    """Pixels of a side of the images that a file's network was trained on, as its options say."""
    options = module.attributes.get("args")
    side = options.get("imgsz") if isinstance(options, dict) else None
    return side if isinstance(side, int) and 0 < side <= _MOST["number"] else None


def architecture_of(module: WholeModule) -> str | None:
    """The name of a file's architecture, such as yolov8s; None where it is none of the package's own."""
    described = module.attributes.get("yaml")
    name = Path(str(described.get("yaml_file", ""))).stem if isinstance(described, dict) else ""
    return name if module.kind.startswith("ultralytics.") and _NAME.fullmatch(name) else None


def scales_of(name: str) -> list[str]:
    """The same architecture at the other scales: yolov8n and others for yolov8s. Not each of them need be there."""
    match = re.fullmatch(r"(yolov?\d{1,2})([a-z])(.*)", name, re.ASCII)
    return [] if match is None else [f"{match[1]}{scale}{match[3]}" for scale in _SCALES if scale != match[2]]


def build_ultralytics(name: str, args: dict[str, Any], num_classes: int) -> nn.Module:
    """A network of Ultralytics' by name, such as yolov8n, without weights. Raises NetworkError."""
    if args:
        raise NetworkError(f"ultralytics/{name} does not take {show(min(args))}; it takes no arguments")
    if find_spec("ultralytics") is None:
        raise NetworkError(f"ultralytics/{name} needs Ultralytics' package (AGPL-3.0): pip install ultralytics")
    if _NAME.fullmatch(name) is None:
        raise NetworkError(f"there is no network ultralytics/{name}; such are yolov8n, yolo11s, yolov5nu")
    kind = "ClassificationModel" if name.endswith("-cls") else "DetectionModel"
    # Names of weights end in u where YOLOv5's have the newer head; the architecture's do not.
    architecture = name.removesuffix("u") if name.startswith("yolov5") else name
    return adapted(_built(kind, f"{architecture}.yaml", name, num_classes))


def adapted(network: nn.Module) -> nn.Module:
    """A detector as `Detector`, a classifier as one that answers its logits in eval mode as well."""
    return UltralyticsDetector(network) if type(network).__name__ == "DetectionModel" else _Logits(network)


class _Logits(nn.Module):
    """A classifier of Ultralytics', which answers probabilities and logits in eval mode: the logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        answer = self.network(images)
        logits: Tensor = answer[1] if isinstance(answer, tuple | list) else answer
        return logits


def _built(kind: str, description: Any, what: str, num_classes: int | None = None) -> nn.Module:
    tasks = _tasks()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network: nn.Module = getattr(tasks, kind)(description, nc=num_classes, verbose=False)
    except (Exception, SystemExit) as error:  # whatever the package raises
        raise NetworkError(f"{what}: ultralytics cannot build it ({one_line(error)}); is it recent enough?") from error
    return network


def _tasks() -> Any:
    """The package's module of networks, imported without a question to the internet."""
    asked = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}
    before = {name: os.environ.get(name) for name in asked}
    os.environ.update(asked)
    try:
        return importlib.import_module(_MODULE)
    except Exception as error:  # of its own dependencies
        raise NetworkError(f"ultralytics cannot be imported ({one_line(error)}); install it again") from error
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# --- a file's description ---


def _description(module: WholeModule, path: Path) -> dict[str, Any]:
    found = module.attributes.get("yaml")
    if not isinstance(found, dict) or not {"backbone", "head"} <= found.keys():
        raise NetworkError(
            f"{path} is a {show(module.kind)} without a table of its layers; convert it where it was made: "
            f"yolo export model={path.name} format=onnx"
        )
    names = module.attributes.get("names")
    count = found.get("nc") or (len(names) if isinstance(names, dict | list) else None)
    kept = {key: found[key] for key in ("nc", "scales", "scale", "backbone", "head", "ch", "channels", "reg_max",
            "end2end", "depth_multiple", "width_multiple", "kpt_shape") if key in found}  # fmt: skip
    return {**kept, "nc": count}


def _check(described: dict[str, Any], path: Path) -> None:
    """Raise WeightsError for a description that is more than a table of known layers.

    ultralytics looks layers up among all names of its module, and evaluates an `activation`, which is left out here.
    """
    modules = importlib.import_module("ultralytics.nn.modules") if _tasks() else None
    layers = [*described["backbone"], *described["head"]]
    if len(layers) > _MOST["layers"]:
        raise WeightsError(f"network {path}: describes {len(layers)} layers; {_MOST['layers']} are built at most")
    for layer in layers:
        if not isinstance(layer, list | tuple) or len(layer) != 4 or not isinstance(layer[2], str):
            raise WeightsError(f"network {path}: describes a layer by {show(layer)}")
        _, repeats, name, _ = layer
        place, short = (nn, name[3:]) if name.startswith("nn.") else (modules, name)
        kind = getattr(place, short, None) if short.isidentifier() and short not in _LOADERS else None
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise WeightsError(f"network {path}: describes the layer {show(name)}, which is none of ultralytics'")
        if not isinstance(repeats, int) or not 0 < repeats <= _MOST["repeats"]:
            raise WeightsError(f"network {path}: describes a layer {show(repeats)} times over")
    if bad := _odd([described[key] for key in described], 0):
        raise WeightsError(f"network {path}: describes its layers by {show(bad[0])}, which is no plain argument")


def _odd(value: Any, deep: int) -> list[Any]:
    """What of a description is no number of a usual size, word or list of such."""
    if isinstance(value, dict):
        return _odd([*value.keys(), *value.values()], deep)
    if isinstance(value, list | tuple):
        return [value] if deep > 8 else [odd for each in value for odd in _odd(each, deep + 1)]
    if isinstance(value, str):
        return [] if re.fullmatch(r"[A-Za-z][\w.]{0,60}", value, re.ASCII) else [value]
    if isinstance(value, int | float):
        return [] if abs(value) <= _MOST["number"] else [value]
    return [] if value is None else [value]


def _take(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy the file's tensors into the network, all of them. Raises WeightsError."""
    own = network.state_dict()
    for name, value in own.items():
        if name not in tensors:
            raise WeightsError(f"network {path}: lacks {name!r} of the network it describes; train or export it again")
        given = tensors[name]
        if given.shape != value.shape:
            raise WeightsError(
                f"network {path}: {name!r} is {tuple(given.shape)}, but {tuple(value.shape)} as described"
            )
        if given.is_floating_point() and not torch.isfinite(given).all():
            raise WeightsError(f"network {path}: {name!r} has values that are not finite; use another file")
    network.load_state_dict({name: tensors[name].to(value.dtype) for name, value in own.items()})
