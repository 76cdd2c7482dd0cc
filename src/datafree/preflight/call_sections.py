"""A recipe's sections out of what a call from Python gives: networks, tasks, sources as names, mappings or objects;
times as seconds or texts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from torch import nn

from datafree.config.duration import duration_of, seconds_of
from datafree.errors import NetworkError, RecipeError
from datafree.networks.instances import live_name
from datafree.networks.load import NetworkSpec
from datafree.sources.base import ImageSource
from datafree.text import show

Network = str | NetworkSpec | Mapping[str, Any] | nn.Module
"""A network's name as in recipes, a NetworkSpec, its section as a mapping, or the network itself, which may also stand
under "network" in a mapping that says what its images must be."""


def network_section(given: Network, *, values: bool) -> tuple[NetworkSpec | dict[str, Any], nn.Module | None]:
    """A recipe's section for a network, and the network itself where it was given as an object.

    Raises NetworkError for what is none, or cannot be trained.
    """
    if isinstance(given, NetworkSpec):
        return given, None
    section = plain(given) if isinstance(given, Mapping) else {"network": given}
    network = section.get("network")
    if isinstance(network, type):
        raise NetworkError(f"{show(network.__name__)} is a class, not a network: give an instance, with its weights")
    if not isinstance(network, (str, Path, nn.Module)):
        raise NetworkError(
            f"a network is {show(network)}: give its name, a file, a torch.nn.Module, or a mapping or NetworkSpec that "
            "holds one as network"
        )
    if not isinstance(network, nn.Module):
        return section, None
    if not any(True for _ in network.parameters()):
        raise NetworkError(
            f"the network {type(network).__name__} has no parameters: nothing in it was or can be trained"
        )
    for option in ("args", "weights"):
        if section.get(option):
            raise NetworkError(f"{option} is given beside a network that is an object already: leave it out")
    return {**section, "network": live_name(network, values=values)}, network


def plain(value: Any) -> Any:
    """A section as YAML would have it: paths as texts. Objects stay."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def fresh(source: Any) -> Any:
    """A source as new, so that the same object serves several calls: sources are attached once. Its parts too."""
    if isinstance(source, list):
        return [fresh(part) for part in source]
    if not isinstance(source, ImageSource):
        return source
    fields = {field.name: getattr(source, field.name) for field in dataclasses.fields(source) if field.init}
    return dataclasses.replace(source, **{name: fresh(value) for name, value in fields.items()})


def planned_time(time: float | str | None) -> str | None:
    """`training.time` of seconds, or of a text as it has it. Raises RecipeError."""
    return time if time is None or isinstance(time, str) else duration_of(seconds_said(time, "time"))


def seconds_said(time: float | str, what: str) -> float:
    """Seconds, above 0, of a number or of a text such as 9m, which the argument `what` gives. Raises RecipeError."""
    found = seconds_of(time) if isinstance(time, str) else time
    if not isinstance(found, Real) or isinstance(found, bool) or not 0 < found < math.inf:
        raise RecipeError([f"{what} is {show(time)}: give seconds above 0, or a text such as 9m or 1h30m"])
    return float(found)
