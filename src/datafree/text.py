"""How values are shown: outside text anywhere, numbers and sizes in a terminal, values and near names in an error.

Outside text is whatever this package did not write: names of files and classes, values of recipes and JSON, other
libraries' messages. `shown` is the one function by which it reaches a terminal, a page or a model card.
"""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections.abc import Iterable

_KNOWN = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "iou": "IoU", "miou": "mIoU", "top1": "top-1", "top5": "top-5"}


# Categories of characters that are not shown: control (escape sequences begin with one), format (they turn the
# direction of what follows, or are invisible), surrogates (a file's name that is not UTF-8), separators of lines.
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
_NOT_ON_A_LINE, _NOT_PLAIN = re.compile(r"[^ -~]"), re.compile(r"[^ -~\n\t]")  # those of which it is to be seen


def shown(text: str, *, lines: bool = False) -> str:
    r"""Outside text as it is safe to show: on one line, what is not shown escaped as Python does (`\x1b`, `\u202e`).

    `lines`: for places where lines and tabs do no harm, which keep theirs.
    """
    if text.isprintable():
        return text
    return (_NOT_PLAIN if lines else _NOT_ON_A_LINE).sub(_escaped, text)


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: halves of characters, and names of files that are not UTF-8, cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    return repr(character)[1:-1] if unicodedata.category(character) in _HIDDEN else character


def table(rows: list[list[str]]) -> str:
    """Aligned columns: the first to the left, the others to the right."""
    rows = [[shown(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    )


def readable(name: str) -> str:
    """A figure's name as people write it."""
    return _KNOWN.get(name, shown(name.replace("_", " ")))


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


def counted(count: int, what: str) -> str:
    """A number of things, `what` being a single one: "1 image", "2,000 images"."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def show(value: object) -> str:
    """A value as an error shows it: short, on one line."""
    text = shown(repr(value))
    return text if len(text) <= 80 else f"{text[:77]}..."


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """A hint to append, or nothing."""
    close = difflib.get_close_matches(str(name)[:64], list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def first_line(error: BaseException) -> str:
    """An exception of anyone's code: its class and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {shown(lines[0][:300])}" if lines else type(error).__name__


def one_line(error: BaseException) -> str:
    text = shown(" ".join(str(error)[:2000].split()))
    return f"{type(error).__name__}: {text[:200]}{'...' if len(text) > 200 else ''}".removesuffix(": ")
