"""`benchmarks/gpu.py` on the pretended device: it finds no difference where there is none."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmark_modules import importable
from pretended_device import pretended

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def benchmarks() -> Iterator[None]:
    with importable():
        yield


def test_random_numbers_are_the_cpus_on_any_device() -> None:
    import gpu_correct

    def drawn(device: torch.device) -> list[Tensor]:
        torch.manual_seed(0)
        start = torch.ones(3, device=device)
        with gpu_correct.HostRandom():
            made = [
                torch.rand(2, device=device),
                torch.randn(2, device=device),
                torch.randint(9, (4,), device=device),
                torch.randperm(5, device=device),
                torch.rand_like(start),
                torch.randn_like(start),
                start.clone().normal_(2, 3),
                start.clone().uniform_(4, 5),
                torch.multinomial(start, 8, replacement=True),
            ]
        assert all(each.device == device for each in made)
        return [each.cpu() for each in made]

    wanted = drawn(CPU)
    with pretended() as device:
        found = drawn(device)
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize(
    "group",
    [f"small/{method}" for method in ("cgdd", "cmi", "fast", "inversion", "zskt", "procedural", "folder")]
    + ["unet/degan", "yolov3-tiny/diode", "yolov3-tiny/cgdd"],
)
def test_a_device_that_computes_what_the_cpu_does_is_at_no_distance_from_it(group: str, tmp_path: Path) -> None:
    import gpu_correct
    import speed

    def photos(name: str) -> Path:
        (tmp_path / name).mkdir(parents=True)
        return Path(speed.make_photos(tmp_path / name / "photos"))

    with pretended() as device:
        found = gpu_correct.compare(group, photos, device, "fp32")
    assert found == {"terms": 0, "images": 0, "loss": 0, "gradients": 0, "within": 1}
