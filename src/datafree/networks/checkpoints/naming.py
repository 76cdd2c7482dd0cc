"""How the names in a weights file correspond to a network's: prefixes on either side, and what is left over."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile

from datafree.text import show

WRAPPED = r"module|_orig_mod|ema|ema_model|model_ema"  # what wraps networks names them so
_HELD = rf"{WRAPPED}|model|network|net"  # and so do training scripts, as do some networks their only part
_MOST_PREFIXES = 16


@dataclass(frozen=True, kw_only=True)
class Naming:
    """A name in the file -> the network's name for it, and what was done for that."""

    into: dict[str, str]
    left_over: list[str]  # names in the file of tensors that belong to something else
    remark: str  # on one line, for people; "" where all is as one would expect


def shared_prefix(names: Iterable[str], words: str) -> str:
    """What all `names` begin with and is made of `words`, for instance "_orig_mod.module."."""
    leads = [match[0].split(".") for name in names if (match := re.match(rf"(?:(?:{words})\.)*", name))]
    least, most = min(leads, default=[]), max(leads, default=[])  # what these two share, all do
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(least[:-1], most[:-1], strict=False))
    return "".join(f"{word}." for word, _ in shared)


def held_prefix(names: Iterable[str]) -> str:
    """What all names of a file begin with because a wrapper or a training script held the network, perhaps ""."""
    return shared_prefix(names, _HELD)


def correspondence(given: list[str], own: list[str]) -> Naming:
    """Which name in a file is which of the network's.

    Names correspond as they are, or without the prefixes of wrappers that all names of one side share; or, where every
    name that is wanted occurs under one prefix of any kind ("backbone."), under that. What is left over then belongs
    to something else, unless it looks like a part of the network itself, and so of a larger one of its family.
    """
    cut, lead = len(held_prefix(given)), held_prefix(own)
    known, wanted = set(own), [name for name in own if not is_counter(name)]
    ways = [{name: name for name in given}, {name: lead + name[cut:] for name in given}]
    into = max(ways, key=lambda way: sum(target in known for target in way.values()))
    prefixes: list[str] = []
    if not set(wanted) <= set(into.values()):
        prefixes = _complete_prefixes(given, [name[len(lead) :] for name in wanted])
    if prefixes:
        first = prefixes[0]
        into = {name: lead + name[len(first) :] for name in given if name.startswith(first)}
    elif not set(wanted) <= set(into.values()):
        return Naming(into=into, left_over=[], remark="")  # a refusal lists all that is unexpected
    parts = {_part(name) for name in own}
    strange = [name for name, target in into.items() if target not in known and _part(target) not in parts]
    others = [name for name in given if name not in into]
    left = [name for name in [*strange, *others] if not is_counter(name)]
    kept = {name: target for name, target in into.items() if name not in set(strange)}
    return Naming(into=kept, left_over=left, remark=_remark(prefixes, left))


def is_counter(name: str) -> bool:
    """Whether it is a BatchNorm's counter: absent from old files, and no answer depends on it."""
    return name.endswith("num_batches_tracked")


def _complete_prefixes(given: list[str], wanted: list[str]) -> list[str]:
    """The prefixes under which all `wanted` names occur, in the file's order."""
    if not wanted:
        return []
    held, found = set(given), []
    first = wanted[0]
    ends = (name[: -len(first)] for name in given if name.endswith(f".{first}"))
    for _, prefix in zip(range(_MOST_PREFIXES), dict.fromkeys(ends), strict=False):
        if all(prefix + name in held for name in wanted):
            found.append(prefix)
    return found


def _part(name: str) -> str:
    """The outermost module that a name lies in, without a number: layer4.0.conv1.weight is of "layer"."""
    return re.sub(r"\d+", "", name.partition(".")[0])


def _remark(prefixes: list[str], left: list[str]) -> str:
    said = []
    if prefixes:
        others = f" (complete under {', '.join(map(show, prefixes[1:4]))} too)" if prefixes[1:] else ""
        said.append(f"its tensors are those under {show(prefixes[0])}{others}")
    if left:
        said.append(f"left out as parts of something else: {len(left)} (first: {show(left[0])})")
    return "; ".join(said)
