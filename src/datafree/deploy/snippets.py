"""Code that loads an exported student, as its model card shows it: in the student's own library, without datafree.

Whatever is put into it is a literal of plain values or a name that the library was found to have.
"""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from typing import Any

import torch

from datafree.engine.artifacts import without_place
from datafree.errors import NetworkError
from datafree.evaluation.finished_run import Student
from datafree.networks.detectors import Detector
from datafree.networks.instances import class_of, is_live
from datafree.networks.load import NetworkSpec
from datafree.networks.normalized import device_of, name_of_answer
from datafree.networks.pretrained import PRETRAINED
from datafree.ops import modes
from datafree.tasks.base import synthetic_batch


def load_snippet(student: Student) -> str:
    """Python that loads student.safetensors and answers `images` with `logits`, or finds boxes in them."""
    spec, task = student.spec, student.task
    library, _, name = spec.network.partition("/")
    detector = isinstance(student.network.network, Detector)
    if library == "datafree" or spec.is_directory or (detector and library != "torchvision"):
        return _with_datafree(student, detector)
    outputs = task.num_classes if student.network.one_output is None else 1
    build, imports = _build(library, name, spec, outputs + detector)
    lines = [
        *sorted([*imports, "import torch"]),
        *(["import torch.nn.functional as F"] if spec.input_size or spec.upsample else []),
        "from safetensors.torch import load_file",
        "",
        f"network = {build}",
        'network.load_state_dict(load_file("student.safetensors"))',
        "network.eval()",
        "",
        *_images(task.image_size),
        *_prepared(spec),
    ]
    if detector:
        lines += [
            "transform = network.transform  # its part is done: it may resize and normalise no more",
            "transform.image_mean, transform.image_std = [0.0] * 3, [1.0] * 3",
            "transform.min_size, transform.max_size = x.shape[-2:], max(x.shape[-2:])",
            "transform.fixed_size = (x.shape[-1], x.shape[-2])",
            "with torch.no_grad():",
            "    found = network(list(x))  # for each image: boxes in pixels of x, scores, labels (class 0 is label 1)",
        ]
    else:
        lines += ["with torch.no_grad():", f"    logits = network(x){_part_of_answer(student)}"]
        if student.network.one_output is not None:
            z = "logits" if student.network.one_output == "logit" else "torch.logit(logits, eps=1e-6)"
            lines.append(f"    logits = torch.cat((torch.zeros_like(logits), {z}), 1)  # of no and yes")
        if (spec.input_size is not None or spec.upsample) and task.dense:
            lines.append('    logits = F.interpolate(logits, size=images.shape[-2:], mode="bilinear")')
    return "\n".join(lines) + "\n"


def onnx_snippet(student: Student) -> str:
    """Python that answers `images` with student.onnx in onnxruntime; for a detector with its post-process."""
    opened = ["import onnxruntime", "", 'session = onnxruntime.InferenceSession("student.onnx")']
    return _in_numpy(student, opened, 'session.run(None, {"images": images})')


def openvino_snippet(student: Student) -> str:
    """The same with student.xml in OpenVINO."""
    settings = '{"INFERENCE_PRECISION_HINT": "f32"}'  # else bfloat16 where the processor computes it
    compiled = f'network = openvino.Core().compile_model("student.xml", "CPU", {settings})'
    opened = ["import openvino", "", compiled]
    return _in_numpy(student, opened, 'network({"images": images}).values()')


def _in_numpy(student: Student, opened: list[str], answers: str) -> str:
    task = student.task
    height, width = task.image_size
    lines = [
        "import numpy as np",
        *opened,
        f"images = np.random.rand(1, 3, {height}, {width}).astype(np.float32)  # yours: RGB in [0, 1]",
    ]
    if not isinstance(student.network.network, Detector):
        return "\n".join([*lines, f"(logits,) = {answers}"]) + "\n"
    lines.append(f"boxes, scores = {answers}  # (B, L, 4), (B, L, C)")
    decoding = task.numpy_decoding()
    return "\n".join(lines) + "\n" + (f"\n\n{decoding}" if decoding else "")


def _images(size: tuple[int, int]) -> list[str]:
    return [f"images = torch.rand(1, 3, {size[0]}, {size[1]})  # yours: RGB, float32 in [0, 1]"]


def _prepared(spec: NetworkSpec) -> list[str]:
    """Lines that make `x`, what the bare network takes, of `images`: as `Normalized` does."""
    lines = ["x = images"]
    if any(spec.mean) or any(value != 1 for value in spec.std):
        lines = [
            f"mean = torch.tensor({list(spec.mean)}).view(1, 3, 1, 1)",
            f"std = torch.tensor({list(spec.std)}).view(1, 3, 1, 1)",
            "x = (images - mean) / std",
        ]
    if spec.input_size is not None:
        size = tuple(spec.input_size)
        lines.append(f'x = F.interpolate(x, size={size}, mode="bilinear", antialias=True)')
    if spec.channel_order == "bgr":
        lines.append("x = x.flip(1)  # it takes B, G, R")
    if spec.channels == 1:
        lines.append("x = x.mean(1, keepdim=True)  # it takes grey images")
    return lines


def _part_of_answer(student: Student) -> str:
    """What of the bare network's answer is the logits, as Python writes it: "" where it is all."""
    images = synthetic_batch(student.task.image_size, device_of(student.network))
    with torch.no_grad(), modes.frozen(student.network):
        outputs = student.network.network(student.network.prepared(images))
    name = name_of_answer(outputs)
    return "" if name is None else f'["{name}"]' if isinstance(outputs, Mapping) else f".{name}"


def _build(library: str, name: str, spec: NetworkSpec, num_classes: int) -> tuple[str, list[str]]:
    """The call that builds a library's or the user's network without weights, and its imports."""
    args = {key: value for key, value in spec.args.items() if key not in (*PRETRAINED, "classes", "num_classes")}
    grey = spec.channels == 1
    if library == "timm":
        args = {"pretrained": False, **args, "num_classes": num_classes, **({"in_chans": 1} if grey else {})}
        return f"timm.create_model({_call(repr(name), args)})", ["import timm"]
    if library == "torchvision":
        import torchvision

        parts = torchvision.models.get_model_builder(name).__module__.split(".")
        offline = {"weights_backbone": None} if {"segmentation", "detection"}.intersection(parts) else {}
        args = {"weights": None, **offline, **args, "num_classes": num_classes}
        return f"torchvision.models.get_model({_call(repr(name), args)})", ["import torchvision"]
    if library == "smp":
        import segmentation_models_pytorch as smp

        for short, full in (("encoder", "encoder_name"), ("output_stride", "encoder_output_stride")):
            if short in args:
                args[full] = args.pop(short)
        args = {**args, "encoder_weights": None, "classes": num_classes, **({"in_channels": 1} if grey else {})}
        kind = smp.MODEL_ARCHITECTURES_MAPPING[name].__name__
        return f"smp.{kind}({_call('', args)})", ["import segmentation_models_pytorch as smp"]
    if is_live(spec.network):
        module, kind = class_of(spec.network)
        imports = [f"from {module} import {kind}"] if module else []
        return f"{kind or 'make_network'}()  # yours, made as it was for the run", imports
    module, _, attribute = spec.network.partition(":")
    return f"{module}.{attribute}({_call('', spec.args)})", [f"import {module}"]


def _with_datafree(student: Student, detector: bool) -> str:
    spec, task, one_output = student.spec, student.task, student.network.one_output
    given = {
        "network": without_place(spec),
        "args": dict(spec.args),
        "mean": tuple(spec.mean),
        "std": tuple(spec.std),
        "channels": spec.channels,
        "channel_order": spec.channel_order,
        "input_size": None if spec.input_size is None else tuple(spec.input_size),
        "upsample": spec.upsample,
    }
    defaults = {
        "args": {},
        "mean": (0.0,) * 3,
        "std": (1.0,) * 3,
        "channels": 3,
        "channel_order": "rgb",
        "input_size": None,
        "upsample": False,
    }
    given = {key: value for key, value in given.items() if key not in defaults or value != defaults[key]}
    lines = [
        "from pathlib import Path",
        "",
        "import torch",
        "from datafree.networks.load import NetworkSpec, build_network",
        "",
        *(["# hf/ and the place of the directory whose config.json it was built from:"] if spec.is_directory else []),
        f'spec = NetworkSpec({_call("", given)}, weights=Path("student.safetensors"))',
        f"network = spec.wrap(build_network(spec, num_classes={1 if one_output else task.num_classes})).eval()",
        *([f"network.one_output = {one_output!r}  # of no and yes"] if one_output else []),
        "",
        *_images(task.image_size),
        "with torch.no_grad():",
    ]
    answer = "found = network(images)  # .boxes (B, L, 4) in pixels, .scores (B, L, C)"
    lines.append(f"    {answer if detector else 'logits = network(images)'}")
    return "\n".join(lines) + "\n"


def _call(first: str, args: Mapping[str, Any]) -> str:
    """Arguments as a call has them. Raises NetworkError for what is no literal."""
    written = [first] if first else []
    for key, value in args.items():
        if not key.isidentifier() or keyword.iskeyword(key):
            raise NetworkError(f"the argument {key[:80]!r} of the student is no name; correct student.json")
        written.append(f"{key}={_literal(value)}")
    return ", ".join(written)


def _literal(value: Any) -> str:
    """A plain value as Python writes it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(str(key))}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        inner = ", ".join(map(_literal, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' if len(value) == 1 else ''})"
    if value is None or isinstance(value, (bool, int, float, str)):
        return ascii(value)
    raise NetworkError(f"an argument of the student is a {type(value).__name__}; only plain values can be exported")
