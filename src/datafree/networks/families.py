"""A student chosen by size: a narrower or shallower member of its teacher's family.

    student: {network: auto, args: {compress: 4x}}            # a fourth of the teacher's parameters
    student: {network: auto, args: {compress: 4x, by: macs}}  # of its multiplications

Families are what libraries name alike: `resnet50` and `resnet18`, `vit_base_patch16_224` and `vit_small_patch16_224`;
for smp those of the encoder. Our own networks and some of torchvision's have a width instead; plain ResNets have both.
A file of Ultralytics' names its architecture; a directory of transformers' has a config, here of fewer layers or
narrower ones.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from datafree.config.overrides import times_fewer
from datafree.errors import NetworkError
from datafree.networks.checkpoints.whole_modules import read_module
from datafree.networks.foreign.open_file import PICKLES
from datafree.networks.foreign.ultralytics_model import architecture_of, scales_of
from datafree.networks.huggingface.directory import open_directory
from datafree.networks.huggingface.smaller import smaller
from datafree.networks.imagenet_resnet import BLOCKS
from datafree.networks.instances import is_live
from datafree.networks.load import NetworkSpec, build_network
from datafree.networks.normalized import bare
from datafree.networks.pretrained import PRETRAINED
from datafree.ops import modes
from datafree.tasks.base import Task
from datafree.text import show

AUTO = "auto"
_COMPRESS = 4.0
_SHOWN = 4  # of the other members, in what is said
_SHARES = [share / 16 for share in range(15, 0, -1)]  # of a width
_SIZES = (
    *("atto", "femto", "pico", "nano", "micro", "mini", "tiny", "small", "base", "large", "huge", "giant"),
    *("xx_small", "x_small", "xxs", "xs"),
)
_WIDE = ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "ssdlite320_mobilenet_v3_large")  # by width_mult

_SMALL = {  # students to begin with, by the Hub's names of tasks, where the teacher's family is not known
    "image-classification": "datafree/resnet?depth=20 for small images, timm/mobilenetv3_small_100 for others",
    "image-segmentation": "datafree/unet?width=16",
    "object-detection": "torchvision/ssdlite320_mobilenet_v3_large",
}


@dataclass(frozen=True, kw_only=True)
class Member:
    """A network of the family and what it costs: parameters, or multiplications for an image of the task's size."""

    spec: NetworkSpec
    parameters: int
    cost: int


def choose_student(
    auto: NetworkSpec, teacher: NetworkSpec, task: Task, given: nn.Module | None
) -> tuple[NetworkSpec, str]:
    """The student that "auto" stands for, and a line that says what was chosen and why.

    It is the member of the teacher's family that comes nearest to the wanted size, of those that are smaller than the
    teacher and take the task's images. `given`: the teacher, where it was given as an object. Raises NetworkError where
    the wish is none, or the family has no smaller member.
    """
    wanted, by = wish(auto)
    teacher = _by_name(teacher)
    where = "; name a student (student.network)"
    if given is not None or teacher.is_own_code or teacher.is_program or is_live(teacher.network):
        if task.hub_name in _SMALL:
            where = f"; name a student (student.network), such as {_SMALL[task.hub_name]}"
        raise NetworkError(f"student: auto knows the families of libraries' networks, not of {teacher.network}{where}")
    untrained = {key: value for key, value in teacher.args.items() if key not in PRETRAINED}
    if teacher.is_directory:
        untrained["pretrained"] = False
    plain = replace(teacher, args=untrained, weights=None, licence=None, input_size=auto.input_size)
    reference = member(plain, task, by)
    if reference is None:
        raise NetworkError(f"student: auto cannot tell the size of {teacher.network}{where}")
    found = [member(spec, task, by) for spec in _family(plain)]
    fewer = [one for one in found if one is not None and one.cost < reference.cost]
    if not fewer:
        raise NetworkError(f"student: auto finds nothing smaller in the family of {teacher.network}{where}")
    goal = reference.cost / wanted
    fewer.sort(key=lambda one: (abs(math.log(one.cost / goal)), -one.cost))
    best = fewer[0]
    others = [f"{_called(one.spec)} {reference.cost / one.cost:.3g}x" for one in fewer[1 : 1 + _SHOWN]]
    counted = "parameters" if by == "parameters" else "MACs"
    line = (
        f"student: auto chose {_called(best.spec)}, {best.parameters:,} parameters: {reference.cost / best.cost:.3g} "
        f"times fewer {counted} than the teacher, the nearest to {wanted:g} of {len(fewer)} smaller in its family"
    )
    line += f" (also {', '.join(others)})" if others else ""
    kept = {name: getattr(auto, name) for name in ("mean", "std", "channels", "channel_order", "init")}
    spec = replace(best.spec, **kept)
    return spec, line


def wish(auto: NetworkSpec) -> tuple[float, str]:
    unknown = auto.args.keys() - {"compress", "by"}
    if unknown:
        raise NetworkError(
            f"student: auto does not take {show(min(unknown))}; it takes compress (4x) and by (parameters, macs)"
        )
    text, by = str(auto.args.get("compress", _COMPRESS)), auto.args.get("by", "parameters")
    times = times_fewer(text)
    if times is None:
        raise NetworkError(f"compress is {show(auto.args['compress'])}: say how many times smaller, such as 4x")
    if by not in ("parameters", "macs"):
        raise NetworkError(f"by is {show(by)}: give parameters or macs")
    if auto.weights is not None:
        raise NetworkError("student: auto begins without weights: leave student.weights out")
    return times, by


def _called(spec: NetworkSpec) -> str:
    query = "&".join(f"{key}={value}" for key, value in spec.args.items() if isinstance(value, (str, int, float)))
    return f"{spec.network}?{query}" if query else spec.network


# --- what a member costs ---


def member(spec: NetworkSpec, task: Task, by: str) -> Member | None:
    """None for one that cannot be built or does not take the task's images."""
    try:
        try:
            with torch.device("meta"):  # no values, no time
                network = build_network(spec, num_classes=task.num_classes)
        except NetworkError:  # some need values while they are built
            network = build_network(spec, num_classes=task.num_classes)
        parameters = sum(parameter.numel() for parameter in bare(network).parameters())
        return Member(
            spec=spec, parameters=parameters, cost=parameters if by == "parameters" else _macs(network, spec, task)
        )
    except Exception:  # of any class, for sizes that do not suit
        return None


def _macs(network: nn.Module, spec: NetworkSpec, task: Task) -> int:
    place = next(bare(network).parameters()).device
    images = torch.zeros(1, spec.channels, *(spec.input_size or task.image_size), device=place)
    with torch.no_grad(), modes.frozen(network), FlopCounterMode(display=False) as counter:
        network(images)
    return int(counter.get_total_flops()) // 2


# --- families ---


def _family(spec: NetworkSpec) -> Iterator[NetworkSpec]:
    """The other members, of whatever size."""
    if spec.is_directory:
        for options in smaller(open_directory(spec.network).config):
            yield replace(spec, args={**spec.args, **options})
        return
    library, _, name = spec.network.partition("/")
    if library == "datafree":
        yield from _widths(spec, "width", {"unet": 16, "resnet": 16, "imagenet_resnet": 64, "yolov3": 1.0}[name])
    elif library == "torchvision":
        import torchvision

        if name in _WIDE:
            yield from _widths(spec, "width_mult", 1.0)
        for other in alike(name, torchvision.models.list_models()):
            yield replace(spec, network=f"torchvision/{other}")
        yield from _narrow_resnets(spec, name)
    elif library == "timm":
        import timm

        name = name.partition(".")[0]  # what stands behind the dot names weights
        for other in alike(name, timm.list_models()):
            yield replace(spec, network=f"timm/{other}")
        yield from _narrow_resnets(spec, name)
    elif library == "smp":
        yield from _encoders(spec)
    elif library == "ultralytics":
        yield from (replace(spec, network=f"ultralytics/{other}") for other in scales_of(name))


def _by_name(teacher: NetworkSpec) -> NetworkSpec:
    """A file of Ultralytics', or a directory of timm's, as the name of its architecture; any other teacher as it is."""
    if teacher.is_directory:
        name = open_directory(teacher.network).timm_name
        return teacher if name is None else replace(teacher, network=f"timm/{name}")
    if not teacher.network.endswith(PICKLES) or not (file := Path(teacher.network)).is_file():
        return teacher
    module = read_module(file)
    name = None if module is None else architecture_of(module)
    return teacher if name is None else replace(teacher, network=f"ultralytics/{name}")


def _widths(spec: NetworkSpec, key: str, default: float) -> Iterator[NetworkSpec]:
    width: Any = spec.args.get(key, default)
    if isinstance(width, bool) or not isinstance(width, (int, float)):
        return
    if isinstance(width, int) and key == "width":
        values: Iterable[float] = range(width - 1, 0, -1)
    else:
        values = [round(width * share, 4) for share in _SHARES]
    for value in values:
        yield replace(spec, args={**spec.args, key: value})


def _narrow_resnets(spec: NetworkSpec, name: str) -> Iterator[NetworkSpec]:
    """Ours with fewer channels, for the plain ResNets of both libraries, which have no width of their own."""
    if (match := re.fullmatch(r"resnet(\d+)", name)) and int(match[1]) in BLOCKS and not spec.args:
        for width in range(60, 0, -4):
            yield replace(spec, network="datafree/imagenet_resnet", args={"depth": int(match[1]), "width": width})


def _encoders(spec: NetworkSpec) -> Iterator[NetworkSpec]:
    import segmentation_models_pytorch as smp

    key = "encoder" if "encoder" in spec.args else "encoder_name"
    encoder = str(spec.args.get(key, "resnet34"))
    known = list(smp.encoders.get_encoder_names())
    if encoder.startswith("tu-"):
        import timm

        known = [f"tu-{name}" for name in timm.list_models()]
    for other in alike(encoder, known):
        yield replace(spec, args={**spec.args, key: other})


def alike(name: str, known: Iterable[str]) -> list[str]:
    """Those of `known` that are called as `name` but for a word of size or for the last number, without it itself."""
    words = "|".join(sorted(_SIZES, key=len, reverse=True))
    patterns = []
    if re.search(rf"(?<![a-z])(?:{words})(?![a-z])", name):
        patterns.append(re.sub(rf"(?<![a-z])(?:{words})(?![a-z])", "\0", name))
    elif re.search(r"_[tsblhg](?=_|$)", name):  # swin_t, vit_b_16
        patterns.append(re.sub(r"_[tsblhg](?=_|$)", "_\1", name, count=1))
    if match := re.search(r"\d+(?:mf|gf)?(?!.*\d)", name):
        patterns.append(f"{name[: match.start()]}\2{name[match.end() :]}")
    marks = {"\0": rf"(?:{words})", "\1": "[tsblhg]", "\2": r"\d+(?:mf|gf)?"}
    forms = [re.escape(pattern) for pattern in patterns]
    for mark, form in marks.items():
        forms = [one.replace(re.escape(mark), form) for one in forms]
    return [other for other in known if other != name and any(re.fullmatch(form, other) for form in forms)]
