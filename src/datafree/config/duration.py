"""Durations as people write them: 90s, 9m, 1h30m, to seconds and back."""

from __future__ import annotations

import math
import re

_UNITS = (("h", 3600), ("m", 60), ("s", 1))


def seconds_of(text: str) -> float | None:
    """Seconds of a duration such as 90s, 9m or 1h30m; None for another text, and for one of no length."""
    match = re.fullmatch(r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9})s)?", text, re.ASCII)
    if match is None:
        return None
    return float(sum(int(part or 0) * unit for part, (_, unit) in zip(match.groups(), _UNITS, strict=True))) or None


def duration_of(seconds: float) -> str:
    """The duration of so many seconds, rounded up: what `seconds_of` reads."""
    left, parts = max(1, math.ceil(seconds)), ""
    for name, unit in _UNITS:
        count, left = divmod(left, unit)
        parts += f"{count}{name}" if count else ""
    return parts
