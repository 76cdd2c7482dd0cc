"""Packages of datafree's extras: whether they are there, their versions, and the command that installs them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
from importlib.util import find_spec

from datafree.errors import DatafreeError

_DISTRIBUTIONS = {  # of modules, where their names differ
    "ai_edge_litert": "ai-edge-litert",
    "ai_edge_quantizer": "ai-edge-quantizer",
    "litert_torch": "litert-torch",
}


def versions(modules: Iterable[str]) -> dict[str, str]:
    """The version of each, each once."""
    found = {}
    for name in dict.fromkeys(modules):
        try:
            found[name] = metadata.version(_DISTRIBUTIONS.get(name, name))
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def require(what: str, *packages: str, extra: str = "onnx") -> None:
    """Raise DatafreeError, saying that `what` needs it, if one of the extra's packages is not installed."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise DatafreeError(f"{what} needs the package {missing[0]}; install it: pip install 'datafree[{extra}]'")
