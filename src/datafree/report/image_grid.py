"""The image grids of a run, read as untrusted files and shrunk to stand inside a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

GAP = 2  # pixels between the pictures of a grid, and around it; as `datafree.data.visualize.grid` lays them out
MAX_BYTES = 20_000_000  # of a file
MAX_SIDE = 8000  # pixels of a picture that is opened
PIXELATED = 500  # pixels: a picture that is not wider is enlarged with its pixels as squares
WIDEST = 1200  # pixels of a picture in the page
BUDGET = 520_000  # bytes of all pictures of a page, before base64
MOST = 6  # pictures from early to late
MEANING = {"wanted": "what it was to show", "teacher": "the teacher's answer", "student": "the student's"}  # of rows


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture inside a page."""

    uri: str
    width: int  # pixels
    height: int
    alt: str
    caption: str = ""

    @property
    def pixelated(self) -> bool:
        """Whether it is to be enlarged."""
        return self.width <= PIXELATED


def read_picture(file: Path) -> Image.Image | None:
    """A PNG as RGB, or None where it cannot be read, is none or is too large."""
    try:
        if file.stat().st_size > MAX_BYTES:
            return None
        with Image.open(file, formats=["PNG"]) as image:
            if max(image.size) > MAX_SIDE or min(image.size) < 1:
                return None
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def inline(image: Image.Image, alt: str, caption: str = "", *, room: int = BUDGET) -> Picture | None:
    """A picture as a data URI of at most `room` bytes: a small one lossless where that fits, else with losses, then
    smaller; None if nothing fits."""
    width = min(image.width, WIDEST)
    lossless: list[dict[str, Any]] = [{"lossless": True}] if width <= PIXELATED else []
    while width:
        if width < image.width:
            height = max(1, round(image.height * width / image.width))
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        for options in (*lossless, {"quality": 85}, {"quality": 50}):
            content = io.BytesIO()
            image.save(content, "WEBP", method=2, **options)
            if content.tell() <= room:
                text = base64.b64encode(content.getvalue()).decode("ascii")
                uri = f"data:image/webp;base64,{text}"
                return Picture(uri=uri, width=image.width, height=image.height, alt=alt, caption=caption)
        lossless, width = [], width // 2
    return None


def chosen(files: Sequence[Path], most: int = MOST) -> list[Path]:
    """Up to `most` files, evenly from the first to the last."""
    if len(files) <= most:
        return list(files)
    return [files[round(index * (len(files) - 1) / (most - 1))] for index in range(most)]


def rows_in(image: Image.Image, size: tuple[int, int]) -> int | None:
    """How many rows of pictures of `size` (height, width) a grid has, in one band; None if it is no such grid."""
    height, width = size
    rows, rest = divmod(image.height - 2 * GAP, height + GAP)
    fits = rest == 0 and (image.width - GAP) % (width + GAP) == 0
    return rows if fits and rows in (2, 3, 4) else None


def titles(rows: int | None, *, trained: bool) -> tuple[str, ...]:
    """What the rows of a picture by `datafree.engine.validation.picture` show; `trained`: is there a student?"""
    if rows == 4 or (rows == 3 and not trained):
        return ("image", "wanted", "teacher", "student")[:rows]
    return ("image", "teacher", "student")[:rows]


def cells(image: Image.Image, size: tuple[int, int]) -> list[list[Image.Image]]:
    """The columns of a grid, each from top to bottom; empty if it is none of `size` (height, width)."""
    height, width = size
    rows = rows_in(image, size)
    if rows is None:
        return []

    def cell(column: int, row: int) -> Image.Image:
        left, top = GAP + column * (width + GAP), GAP + row * (height + GAP)
        return image.crop((left, top, left + width, top + height))

    count = (image.width - GAP) // (width + GAP)
    return [[cell(column, row) for row in range(rows)] for column in range(count)]
