"""What processes really send to one another, in bytes: the formulas of docs/scale.md, and what a plan counts."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from test_replicas import P, on_processes
from torch import Tensor, nn

from datafree.distributed import collectives, divided, replicas
from datafree.engine.nonfinite import Watch
from datafree.engine.recovery import Recovery
from datafree.engine.student_step import StudentStep
from datafree.ops import modes
from datafree.preflight.cost.pass_cost import watched_passes
from datafree.recipe.training import Training
from datafree.sources.base import Batch, SourceContext
from test_contract import make_network, make_source, make_task
from thorough import some

CPU = torch.device("cpu")
BATCH = 4


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Within it, bytes of whole batches that this process collects and of sums, and how often they wait."""
    found = {"gathered": 0, "summed": 0, "exchanges": 0}
    patch = pytest.MonkeyPatch()
    gather, add_up, average_all = dist.all_gather, collectives.add_up, collectives.average_all

    def all_gather(parts: list[Tensor], part: Tensor) -> Any:
        found["gathered"] += sum(each.nbytes for each in parts)
        found["exchanges"] += 1
        return gather(parts, part)

    def sums(total: Tensor) -> None:
        found["summed"] += total.nbytes
        found["exchanges"] += 1
        add_up(total)

    def averages(parts: list[Tensor], flags: Tensor) -> None:
        found["summed"] += sum(part.nbytes for part in (flags, *parts))
        found["exchanges"] += 1
        average_all(parts, flags)

    patch.setattr(dist, "all_gather", all_gather)
    patch.setattr(collectives, "add_up", sums)
    patch.setattr(collectives, "average_all", averages)
    try:
        yield found
    finally:
        patch.undo()


class Rig:
    """A source with its networks, shared, and a step of the student."""

    def __init__(self, method: str, kind: str, photos: Path) -> None:
        task = make_task(kind)
        self.teacher = replicas.share(make_network(task, 1).eval().requires_grad_(False))
        self.student = replicas.share(make_network(task, 2))
        self.source = make_source(method, photos, task)
        modes.seed_everything(0)
        self.source.attach(SourceContext(task=task, teacher=self.teacher, steps=20, batch_size=BATCH))
        self.step = StudentStep(
            task=task,
            teacher=self.teacher,
            student=self.student,
            training=Training(steps=20, batch_size=BATCH),
            pairs={},
            optimizer=torch.optim.SGD(self.student.parameters(), 0.1),
            watch=Watch(CPU),
            recovery=Recovery(),
        )

    def learn(self) -> None:
        self.step.learn(Batch(images=torch.rand(BATCH, 3, *self.source._context.task.image_size)), 0)

    def update(self) -> None:
        self.source.update(self.student, 0)


def together(work: Callable[[], object]) -> dict[str, Tensor]:
    work()  # what is made only once
    with counted() as found:
        work()
    return {name: torch.tensor(value) for name, value in found.items()}


def test_a_step_of_the_student_sends_what_the_formula_says(tmp_path: Path) -> None:
    """Two answers of a batch; the gradient of each parameter, once; of a BatchNorm layer four sums of its channels."""
    task = make_task("classification")
    student = make_network(task, 2)
    answers = 4 * BATCH * task.num_classes
    gradients = sum(4 * parameter.numel() for parameter in student.parameters())
    norms = [layer.num_features for layer in student.modules() if isinstance(layer, nn.BatchNorm2d)]
    for found in on_processes(tmp_path, lambda rank: together(Rig("noise", "classification", tmp_path).learn)):
        assert int(found["gathered"]) == 2 * answers
        assert int(found["summed"]) == gradients + sum(16 * channels for channels in norms)
        assert int(found["exchanges"]) == 2 + 1 + 4 * len(norms)
        sent = int(found["gathered"]) * (P - 1) / P + int(found["summed"]) * 2 * (P - 1) / P  # around a ring
        assert sent <= 2.2 * gradients  # of a classifier; a detector's answers are larger than its weights


# --- batches shared out: sums alone ---


def sent(found: dict[str, Tensor]) -> float:
    """Bytes over a link, around a ring."""
    return int(found["gathered"]) * (P - 1) / P + int(found["summed"]) * 2 * (P - 1) / P


def test_a_step_of_a_shared_out_batch_sums_gradients_and_moments(tmp_path: Path) -> None:
    """Each parameter and whether it has a gradient, once; of a BatchNorm layer two moments, forward and back."""
    student = make_network(make_task("segmentation"), 2)
    count, parameters = sum(p.numel() for p in student.parameters()), len(list(student.parameters()))
    channels = [layer.num_features for layer in student.modules() if isinstance(layer, nn.BatchNorm2d)]

    def act(rank: int) -> dict[str, Tensor]:
        with divided.sharing(True):
            return together(Rig("noise", "segmentation", tmp_path).learn)

    for found in on_processes(tmp_path, act):
        flag = 8  # of the look for numbers that are not finite
        assert int(found["gathered"]) == 0
        assert int(found["summed"]) == 4 * (count + parameters) + sum(16 * each for each in channels) + flag
        assert sent(found) <= 2.2 * 4 * count  # however large the answers are


UPDATES = [(method, "segmentation") for method in ("cgdd", "dafl", "dfad", "zskt", "fast", "cmi", "degan", "inversion")]
UPDATES += [("diode", "detection"), ("procedural", "segmentation")]


@pytest.mark.parametrize(("method", "kind"), some(UPDATES, ("cgdd", "segmentation"), ("inversion", "segmentation")))
def test_an_update_of_a_shared_out_batch_sums_and_gathers_nothing(
    method: str, kind: str, tmp_path: Path, photos: Callable[..., Path]
) -> None:
    """Twice as many images are not one byte more."""
    folder = photos()

    def act(rank: int) -> dict[str, Tensor]:
        bytes_of = []
        with divided.sharing(True):
            for images in (2, 4):
                rig = Rig(method, kind, shutil.copytree(folder, tmp_path / f"{rank}-{images}"))
                size = rig.source.update_size()
                assert size is not None
                rig.source.resize_updates(replace(size, images=images))
                found = together(rig.update)
                assert int(found["gathered"]) == 0
                bytes_of.append(int(found["summed"]))
        return {"summed": torch.tensor(bytes_of)}

    for mine in on_processes(tmp_path, act):
        fewer, more = mine["summed"].tolist()
        assert fewer == more and (more > 0) == (method != "procedural")


# --- exact: whole answers ---


CASES = [(method, kind) for method in ("cgdd", "dfad", "fast", "zskt") for kind in ("classification", "segmentation")]


@pytest.mark.parametrize(("method", "kind"), some(CASES, ("cgdd", "classification")))
def test_an_update_sends_what_a_plan_counts_in_one_process(
    method: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Around a ring of two. A layer's statistics, a sum in the plan, are gathered: for two that is the same."""
    if method == "fast":  # measured: 592,256 gathered and 66,104 summed, where the plan counts 393,536 and 960
        why = "a plan does not see the images and gradients of the generator's copies, which are made in the update"
        request.applymarker(pytest.mark.xfail(reason=why, strict=True))
    rig = Rig(method, kind, tmp_path)
    rig.update()
    with watched_passes(CPU) as planned:
        rig.update()
    for found in on_processes(tmp_path, lambda rank: together(Rig(method, kind, tmp_path).update)):
        assert int(found["gathered"]) / P + int(found["summed"]) == planned.gathered / P + planned.summed
        assert int(found["exchanges"]) == planned.exchanges
