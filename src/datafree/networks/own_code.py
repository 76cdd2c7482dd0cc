"""The user's own networks by import path, "package.module:callable": the only code that is imported."""

from __future__ import annotations

import contextlib
import importlib
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from torch import nn

from datafree.errors import NetworkError
from datafree.networks.libraries import one_line_errors, unknown
from datafree.text import shown


def name_it_yourself(network: str) -> str:
    """How a user names the network of a finished run that may not name itself."""
    return f"give it with --student {shlex.quote(shown(network))} (to evaluate, export, bench, push or calibrate)"


def import_network(network: str, args: Mapping[str, Any], allow_import: bool = True) -> nn.Module:
    """What "package.module:callable" makes of `args`. Raises NetworkError."""
    if not allow_import:
        raise NetworkError(
            f"{network!r} names code to import, which is never done for a name found in a file; "
            f"if you trust that code, {name_it_yourself(network)}"
        )
    dotted = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
    if not re.fullmatch(f"{dotted}:{dotted}", network):
        raise NetworkError(f"{network!r} is no import path: write package.module:callable")
    module_name, _, attribute = network.partition(":")
    with _current_directory_importable():
        importlib.invalidate_caches()
        with one_line_errors(f"{module_name!r} cannot be imported (current directory, installed packages)"):
            module = importlib.import_module(module_name)
        try:
            make = reduce(getattr, attribute.split("."), module)
        except AttributeError:
            raise unknown(attribute, vars(module), what=f"name in {module_name}") from None
        if not callable(make) or isinstance(make, nn.Module):
            raise NetworkError(f"{network} is a {type(make).__name__}: name what makes a network")
        with one_line_errors(f"{network} cannot be built with args {dict(args)}"):
            made = make(**args)
    if not isinstance(made, nn.Module):
        raise NetworkError(f"{network} makes a {type(made).__name__}: a torch.nn.Module is needed")
    return made


@contextlib.contextmanager
def _current_directory_importable() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)
