"""Paths as users write them: `~`, `$NAME`, and `builtin:NAME` for the example in the package.

Relative paths are relative to the current directory, in recipes and on the command line alike.
"""

from __future__ import annotations

import os
import re
from importlib import resources
from pathlib import Path

from datafree.errors import DatafreeError
from datafree.text import show

BUILTIN = "builtin:"

URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_LOCAL = ("file", "local")  # protocols of this machine's files
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_HINTS = {"DATAFREE_DATA": "; set it to the folder that holds your data sets: export DATAFREE_DATA=/path/to/data"}


def expand(given: object) -> Path:
    """The absolute path that `given` writes. Raises ValueError, also for a variable that is not set."""
    if not isinstance(given, str) or not given.strip() or "\0" in given:
        raise ValueError(f"{show(given)} is not a path")
    if is_url(given):
        protocol = given.partition("://")[0]
        raise ValueError(f"a {protocol}:// URL is no path: copy what is there to a disk, and give its path")
    if given.startswith(BUILTIN):
        return _expand_builtin(given)
    missing = [name for name in map(_name, _VARIABLE.finditer(given)) if not os.environ.get(name)]
    if missing:
        raise ValueError(f"{show(given)}: the variable {missing[0]} is not set{_HINTS.get(missing[0], '')}")
    text = _VARIABLE.sub(lambda match: os.environ[_name(match)], given)
    return Path(os.path.abspath(os.path.expanduser(text)))  # noqa: PTH100, PTH111  (folds "..", lets "~nobody" pass)


def as_written(given: str | Path) -> Path:
    """The path that a user has written on a command line or in a call: as it stands, so that messages show it so, and
    what `expand` makes of it where it holds `~`, `$NAME` or `builtin:`. Raises DatafreeError.
    """
    text = str(given)
    if not (text.startswith(("~", BUILTIN)) or _VARIABLE.search(text)):
        return Path(text)
    try:
        return expand(text)
    except ValueError as error:
        raise DatafreeError(str(error)) from error


def shorten(path: Path) -> str:
    """How a resolved recipe writes `path`: `builtin:NAME` inside the package, with no machine's folders."""
    folder = builtin_folder()
    if path.is_relative_to(folder) and path != folder:
        return BUILTIN + path.relative_to(folder).as_posix()
    return str(path)


def builtin_folder() -> Path:
    """The folder of the example that comes with the package."""
    return Path(str(resources.files("datafree") / "builtin" / "data"))


def _expand_builtin(given: str) -> Path:
    folder = builtin_folder()
    parts = Path(given.removeprefix(BUILTIN)).parts
    path = folder.joinpath(*parts)
    if not parts or ".." in parts or Path(*parts).is_absolute() or not path.exists():
        known = sorted(item.name for item in folder.iterdir() if item.name[0] not in "._") if folder.is_dir() else []
        raise ValueError(f"{show(given)} is not in the package; known: {', '.join(BUILTIN + n for n in known)}")
    return path


def _name(match: re.Match[str]) -> str:
    return match[1] or match[2]


def is_url(text: str) -> bool:
    """Whether a place is written as a URL, and so not as a path."""
    return URL.fullmatch(text) is not None


def placed(text: str) -> Path | str:
    """The place that a user has written: a path, also of a `file://` URL, or a URL."""
    found = URL.fullmatch(text)
    if found is None:
        return as_written(text)
    return Path(found[2]) if found[1].lower() in _LOCAL else text
