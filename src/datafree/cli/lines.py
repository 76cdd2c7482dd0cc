"""Lines on a terminal: results on standard output, everything else on standard error; outside text shown safely."""

from __future__ import annotations

import sys

from datafree.text import shown


def result(line: str) -> None:
    """Print a line of a result."""
    print(shown(line))


def result_block(text: str) -> None:
    """Print lines that were put together here, a table or JSON; the values in them are shown safely by `table` and
    the like."""
    print(shown(text, lines=True))


def remark(line: str) -> None:
    """Print a line that is no result."""
    print(shown(line), file=sys.stderr)


def remark_block(text: str) -> None:
    """Print lines that were put together here and are no result."""
    print(shown(text, lines=True), file=sys.stderr)
