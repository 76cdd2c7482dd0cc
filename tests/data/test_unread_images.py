"""data/labelled.py and data/unlabelled.py: what of many images cannot be read is recorded, and told in a line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from datafree.data.images import UnreadableImage
from datafree.data.labelled import stream
from datafree.data.unlabelled import unread, unscored


class Listed(list[str]):
    """A list through which nobody may search: that takes longer the more it holds."""

    def __contains__(self, line: object) -> bool:
        pytest.fail(f"the list was searched for {line}")


def test_each_file_is_recorded_once_without_searching_those_before(tmp_path: Path) -> None:
    def read(index: int) -> tuple[Tensor, Tensor]:
        if index % 2:
            raise UnreadableImage(tmp_path / f"{index // 4}.png", "damaged")  # two of each name
        return torch.zeros(3, 2, 2), torch.tensor(index)

    skipped = Listed()
    for _ in range(2):
        assert sum(len(images) for images, _ in stream(read, 12, 4, skipped, tmp_path)) == 6
    assert list(skipped) == ["0.png: damaged", "1.png: damaged", "2.png: damaged"]


def test_a_line_names_a_few_of_many_files() -> None:
    lines = [f"{index}.png: damaged" for index in range(2000)]
    assert unscored(lines[:2] * 2) == "not scored: 0.png: damaged; 1.png: damaged"
    assert unscored(lines) == f"not scored: {'; '.join(lines[:5])} and 1,995 more"
    assert unread(lines[:6]).endswith("4.png: damaged and 1 more")
