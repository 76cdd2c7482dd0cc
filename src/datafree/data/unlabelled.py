"""Labelled folders that hold nothing to score by."""

from __future__ import annotations

from datafree.errors import DataError
from datafree.tasks.base import LabelledData


class NothingToScore(DataError):
    """Data that is sound, but in which nothing is labelled. `data` is it, opened, for who wants its images."""

    def __init__(self, text: str, data: LabelledData) -> None:
        self.data = data
        super().__init__(text)
