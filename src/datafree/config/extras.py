"""Packages of datafree's extras: whether they are there, and the command that installs them."""

from __future__ import annotations

from importlib.util import find_spec

from datafree.errors import DatafreeError


def require(what: str, *packages: str, extra: str = "onnx") -> None:
    """Raise DatafreeError, saying that `what` needs it, if one of the extra's packages is not installed."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise DatafreeError(f"{what} needs the package {missing[0]}; install it: pip install 'datafree[{extra}]'")
