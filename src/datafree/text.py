"""How values are shown: numbers and sizes in a terminal, values and near names in an error."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

_KNOWN = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "miou": "mIoU", "top1": "top-1", "top5": "top-5"}


def table(rows: list[list[str]]) -> str:
    """Aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    )


def readable(name: str) -> str:
    """A figure's name as people write it."""
    return _KNOWN.get(name, name.replace("_", " "))


def percent(fraction: float) -> str:
    """A fraction in percent, one decimal; "-" where it is not a number."""
    return "-" if math.isnan(fraction) else f"{100 * fraction:.1f} %"


def size(count: float) -> str:
    """Bytes with a unit, two figures or more."""
    number, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while number >= 1000 and len(units) > 1:
        number, units = number / 1000, units[1:]
    return f"{number:.1f} {units[0]}" if number < 10 and units[0] != "B" else f"{number:.0f} {units[0]}"


def time(seconds: float) -> str:
    """Seconds as people say them, two figures or so."""
    if seconds < 1:
        return f"{1000 * seconds:.2g} ms" if seconds < 0.0995 else f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 100 * 3600 else f"{seconds / 86400:.0f} days"


def show(value: object) -> str:
    """A value as an error shows it: short, on one line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """A hint to append, or nothing."""
    close = difflib.get_close_matches(str(name)[:64], list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def first_line(error: BaseException) -> str:
    """An exception of anyone's code: its class and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def one_line(error: BaseException) -> str:
    printable = "".join(c if c.isprintable() else " " for c in str(error)[:2000])  # no terminal codes
    text = " ".join(printable.split())
    return f"{type(error).__name__}: {text[:200]}{'...' if len(text) > 200 else ''}".removesuffix(": ")
