"""The sections `teacher`, `student` and `training` of a recipe: plain values to checked objects."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from datafree.config import schema
from datafree.config.schema import Families, Fault, Invalid
from datafree.errors import NetworkError
from datafree.networks.foreign.open_file import SUFFIXES
from datafree.networks.huggingface.directory import PREFIX
from datafree.networks.instances import is_live
from datafree.networks.load import NetworkSpec, has_weights, network_names
from datafree.networks.pretrained import asks_for_all_weights
from datafree.recipe.training import AutoTraining, Training, TrainingOptions
from datafree.text import did_you_mean, show


def read_network(section: object, teacher: NetworkSpec | None, families: Families) -> NetworkSpec:
    """A network's section. A student sees images as its teacher does, a library's own weights as the library says.

    Either only where the section says nothing else. How a student starts is `auto` where it does not say.
    """
    inherited: dict[str, Any] = {}
    if teacher is not None:
        inherited = {name: getattr(teacher, name) for name in ("mean", "std", "channels", "channel_order")}
        inherited["init"] = "auto"
    name = section.get("network") if isinstance(section, Mapping) else None
    said = section if isinstance(section, Mapping) else {}
    if "pixel_range" in said:  # of its own mean and std
        said = {"mean": (0, 0, 0), "std": (1, 1, 1), **said}
        inherited = {key: value for key, value in inherited.items() if key not in ("mean", "std")}
    more = [("network", no_network(name)), ("init", _no_init(said, is_teacher=teacher is None))]
    spec: NetworkSpec = _checked(NetworkSpec, section, more, families, inherited)
    library = spec.network.partition("/")[0]
    try:
        its_own = (
            has_weights(spec) and spec.weights is None
            if spec.is_directory
            else asks_for_all_weights(library, spec.args)
        )
    except NetworkError as error:
        raise Invalid([Fault(("network",), str(error))]) from error
    if not its_own:
        return spec
    from datafree.networks.preprocessing import known  # imports the libraries

    metadata = known(spec)
    if metadata is None:
        return spec
    return dataclasses.replace(
        spec,
        mean=spec.mean if "mean" in said else metadata.mean,
        std=spec.std if "std" in said else metadata.std,
        channel_order=spec.channel_order if "channel_order" in said else metadata.channel_order or "rgb",
    )


def _no_init(said: Mapping[str, Any], *, is_teacher: bool) -> str | None:
    """What is wrong with `init` of a network's section."""
    if said.get("init", "random") in ("random", "auto"):
        return None
    if is_teacher:
        return "is a student's: a teacher comes with its weights; leave it out"
    if said.get("weights") is not None:
        return "and weights both say what the student starts with: leave one out"
    return None


def no_network(name: object) -> str | None:
    """What is wrong with a network's name, as far as can be said without building it."""
    name = name.partition("?")[0] if isinstance(name, str) else name
    if not isinstance(name, str) or ":" in name:  # the user's own by import path: imported when it is built
        return None
    names = network_names()
    if name in names or name.startswith(("timm/", "torchvision/", "ultralytics/")):  # these have more
        return None
    if name.startswith(PREFIX):  # a folder: looked at with the weights it is to have
        return None
    if (
        name.endswith(SUFFIXES) or is_live(name) or name == "auto"
    ):  # a file, an object, a wish: looked at when it is built
        return None
    hint = did_you_mean(name, names) or f"; known: {', '.join(names)}, timm/..., or package.module:callable"
    return f"there is no network {show(name)}{hint}"


def read_training(section: object, families: Families) -> TrainingOptions:
    """Its options; `Training` where they give a batch size."""
    section = {} if section is None else section
    said = section if isinstance(section, Mapping) else {}
    size = said.get("batch_size")
    more = [("device", _no_device(said.get("device")))]
    if isinstance(size, str) and size != "auto":
        more.append(("batch_size", f"{show(size)} is not a whole number or auto"))
        section = {key: value for key, value in said.items() if key != "batch_size"}
    training: TrainingOptions = _checked(AutoTraining if size == "auto" else Training, section, more, families)
    return training


def _no_device(name: object) -> str | None:
    """What is wrong with a device's name; whether this machine has it is seen when it is used."""
    if not isinstance(name, str) or name == "auto":
        return None
    try:
        torch.device(name)
    except RuntimeError:
        return f"{show(name)} is not a device; auto, cpu, cuda or cuda:1, for instance"
    return None


def _checked(
    kind: type[Any],
    section: object,
    more: list[tuple[str, str | None]],
    families: Families,
    inherited: dict[str, Any] | None = None,
) -> Any:
    """`kind` made from `section`, or Invalid with its faults and those in `more`: (key, what is wrong)."""
    faults = [Fault((key,), text) for key, text in more if text is not None]
    try:
        made = schema.build(kind, section, families, inherited)
    except Invalid as error:
        faults += error.faults
    if faults:
        raise Invalid(faults)
    return made
