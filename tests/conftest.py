"""What several tests share: small images on disk, real pretrained data where it is at hand."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

# Several processes with several threads each stand in one another's way.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")))

# torch refuses gradients in what is forked after its engine of gradients has started threads for devices, and takes a
# FakeTensorMode (torch.export) for a device. Tests fork: the engine starts here, where it finds none.
torch.zeros(1, requires_grad=True).sum().backward()

MEMORY, ROOM = Path("/dev/shm"), 2 * 2**30  # a file system in memory, and the free bytes that it needs to have


def pytest_configure() -> None:
    """Temporary files lie in memory where there is room: a run waits for the disk at each save."""
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


@pytest.fixture(scope="session", autouse=True)
def few_images_compared() -> None:
    """A run compares its networks on 16 images, not 64: tests make hundreds; those of metrics give their own.

    So it is with the images that tell shares of procedural ones.
    """
    from datafree.engine import validation  # not in the process that hands out the tests
    from datafree.sources.procedural import shares

    validation.COMPARED = shares.MOST = 16


@pytest.fixture(autouse=True)
def short_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's networks are timed by a single pass: tests make hundreds of runs, and none looks at the seconds."""
    monkeypatch.setattr("datafree.report.profile.TIMED", 0.0)


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything in float64, also what networks answer: where rounding has no time to grow."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def photos(tmp_path: Path) -> Callable[..., Path]:
    """A maker of folders of small random photos."""

    def make(count: int = 24, size: tuple[int, int] = (32, 40), name: str = "photos") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        rng = np.random.default_rng(0)
        for index in range(count):
            coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC).save(folder / f"{index:03d}.png")
        return folder

    return make


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data sets named by DATAFREE_DATA; the test is skipped without it."""
    folder = os.environ.get("DATAFREE_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("DATAFREE_DATA names no folder of real data")
    return Path(folder)
