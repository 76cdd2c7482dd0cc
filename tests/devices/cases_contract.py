"""What every source owes the engine, on a device that is not the CPU.

The device is pretended (`pretended_device`), but refuses what CUDA refuses and notes where the host would wait.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datafree.ops import modes
from datafree.sources import SOURCES
from datafree.sources.base import SourceContext
from datafree.storage import checkpoint
from pretended_device import pretended
from pretended_log import LOG, Faulty, waited
from test_contract import KINDS, make_network, make_source, make_task
from thorough import some

# Where an update or a sample may wait for the device, and why it has to. All else is a fault.
DETECTION = "the boxes of an image are counted before they are assigned to anchors"
MAY_WAIT = {
    "ops/boxes.py:unpack": DETECTION,
    "networks/darknet/yolov3.py:YoloDetector.loss": "which anchors fit which box decides how many terms the loss has",
    "ops/detections.py:detect": "how many boxes are seen, and stay, is known when they are",
    "tasks/detection.py:Detection.distill_loss": "how many of the teacher's boxes are drawn",
    "tasks/detection.py:Detection._class_loss": "how many of the student's boxes fit",
    "sources/procedural/balance.py:BalancedBank._put": "how many images of a class stay; every twentieth step",
    "sources/procedural/balance.py:weights_of": "a histogram of classes of unknown number, for the same",
    "sources/procedural/balance.py:entropy": "a histogram of classes, for the same",
    "sources/diode/source.py:Diode.update": "whether any box is left; once in a batch of thousands of iterations",
    "sources/diode/verifier.py:still_noise": "whether the first batch is still noise, for a note",
    "networks/batchnorm.py:StatisticsMatch.clipped": "which layers exploded, for a note at the end of a batch",
    "tasks/average_precision.py:AveragePrecision.update": "the batch's own AP50, which is computed on the host",
    "health/guard.py:Guard._look": "a collapse has to be known before the student sees its images; every tenth update",
    "health/signals.py:_signals": "a histogram of classes, for the guard's look",
}

PAIRS = [(method, kind) for method in SOURCES for kind in KINDS[method]]
USUAL = [("cgdd", "classification"), ("fast", "segmentation"), ("noise", "detection")]


MADE_IN = ("sources/", "networks/generators.py")


def small_source(method: str, photos: Path, kind: str) -> Any:
    source = make_source(method, photos, make_task(kind))
    if method == "auto":  # what it chooses has the size that it is for
        source.warmup = 1
    return source


class Rig:
    """A source attached on the device, a frozen teacher and a student there too."""

    def __init__(self, method: str, kind: str, photos: Path, device: torch.device) -> None:
        self.task, self.device = make_task(kind), device
        self.teacher = make_network(self.task, 1).eval().requires_grad_(False).to(device)
        self.student = make_network(self.task, 2).to(device)
        self.source = small_source(method, photos, kind)
        modes.seed_everything(0)
        self.source.attach(SourceContext(task=self.task, teacher=self.teacher, steps=20, batch_size=4, device=device))

    def here(self, *tensors: Tensor | None) -> None:
        assert all(tensor is None or tensor.device == self.device for tensor in tensors)

    def work(self, *steps: int) -> list[Tensor]:
        """By default an update alone and one beside the student, if it has any; each followed by a sample."""
        images = []
        for step in steps or (-1, 0):
            if self.source.due(step):
                self.source.update(self.student, step)
            batch = self.source.sample(5)
            self.here(batch.images, batch.targets)
            images.append(batch.images)
        return images


@pytest.mark.parametrize(("method", "kind"), some(PAIRS, *USUAL))
def test_a_source_works_on_the_device_alone_and_makes_the_host_wait_only_where_it_is_said(
    method: str, kind: str, photos: Callable[..., Path], tmp_path: Path
) -> None:
    with pretended() as device:
        rig = Rig(method, kind, photos(), device)
        LOG.clear()
        rig.work()
        assert waited(MAY_WAIT) == []

        # The images that are held out, and their targets; looking draws nothing.
        before = modes.random_state()
        held = rig.source.validation_images(4)
        rig.here(held, rig.source.validation_targets(4))
        assert torch.equal(before["cuda"][0], modes.random_state()["cuda"][0])

        # From the saved state, which is read on the host, it goes on to the same bits.
        file = tmp_path / "state.pt"
        checkpoint.write(file, {"source": rig.source.state_dict(), "random": modes.random_state()})
        expected = rig.work()
        saved = checkpoint.read(file)
        assert all(type(value) is Tensor for value in tensors_of(saved))
        rig.source.load_state_dict(saved["source"])
        modes.set_random_state(saved["random"])
        for ours, theirs in zip(expected, rig.work(), strict=True):
            assert torch.equal(ours, theirs)
        rig.here(rig.source.validation_images(4))


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for each in value for tensor in tensors_of(each)]
    return [value] if isinstance(value, Tensor) else []


@pytest.mark.timeout(900)  # some have forty such lines
@pytest.mark.parametrize("method", some(SOURCES, "noise", "zskt"))
def test_a_tensor_that_a_source_makes_on_the_cpu_is_noticed(
    method: str, photos: Callable[..., Path], tmp_path: Path
) -> None:
    """Each line that makes a tensor on the device, or brings it there, leaves it on the host, one line at a time."""
    kind = "classification" if "classification" in KINDS[method] else KINDS[method][0]
    folder = photos()
    with pretended() as device, Faulty(None, *MADE_IN) as seen:
        used(Rig(method, kind, folder, device), tmp_path)
    assert seen.lines
    for line in sorted(seen.lines - EQUAL.keys()):
        with pretended() as device, Faulty(line, *MADE_IN):
            noticed = is_noticed(method, kind, folder, device, tmp_path)
            assert noticed, f"{line} makes its tensor on the CPU, which goes unseen"


# Lines whose tensor may as well be made on the host, and why.
EQUAL: dict[str, str] = {}


def used(rig: Rig, folder: Path) -> None:
    """All that a run asks of an attached source, a return to a saved state too."""
    LOG.clear()
    rig.work()
    waits = list(LOG.waits)
    checkpoint.write(folder / "state.pt", {"source": rig.source.state_dict()})
    rig.source.load_state_dict(checkpoint.read(folder / "state.pt")["source"])
    rig.here(rig.source.sample(5).images)
    LOG.waits = waits  # of the work: a state may be waited for
    rig.work(0)
    rig.here(rig.source.validation_images(4))


def is_noticed(method: str, kind: str, folder: Path, device: torch.device, home: Path) -> bool:
    """Whether a source fails on the device, or makes the host wait where it may not."""
    try:
        used(Rig(method, kind, folder, device), home)
    except (RuntimeError, AssertionError, TypeError) as error:
        assert not isinstance(error, RecursionError)
        return True
    return bool(waited(MAY_WAIT))


def test_a_state_that_stays_on_the_host_is_noticed(photos: Callable[..., Path]) -> None:
    """A source that forgets to bring its state onto the device fails at the next thing it does with it."""
    with pretended() as device:
        rig = Rig("zskt", "classification", photos(), device)
        rig.work()
        file = io.BytesIO()
        torch.save(rig.source.state_dict(), file)
        file.seek(0)
        rig.source._images = torch.load(file, map_location="cpu", weights_only=True)["images"]  # type: ignore[attr-defined]
        with pytest.raises(AssertionError):
            rig.here(rig.source.sample(4).images)
