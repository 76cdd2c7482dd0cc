"""How errors word values and guesses: short, on one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def show(value: object) -> str:
    """A value as an error shows it: short, on one line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """A hint to append, or nothing."""
    close = difflib.get_close_matches(str(name)[:64], list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def one_line(error: BaseException) -> str:
    printable = "".join(c if c.isprintable() else " " for c in str(error)[:2000])  # no terminal codes
    text = " ".join(printable.split())
    return f"{type(error).__name__}: {text[:200]}{'...' if len(text) > 200 else ''}".removesuffix(": ")
