"""What every source owes the engine, for every source x every task in the registries.

A new source or task is tested here without a line of its own: its required options are filled in from their types,
the costly ones (widths, batches) made small.
"""

import copy
import dataclasses
import io
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datafree.errors import NetworkError
from datafree.networks.darknet.yolov3 import yolov3
from datafree.networks.generators import Discriminator, Generator, ResizeGenerator
from datafree.networks.normalized import Normalized
from datafree.networks.resnet import resnet
from datafree.networks.unet import unet
from datafree.ops import modes
from datafree.ops.predictions import Predictions
from datafree.sources import SOURCES, Dataset, Degan, Folder, ImageSource
from datafree.sources.base import Batch, SourceContext, UpdateSize
from datafree.sources.diode.stages import Stage
from datafree.synthesis.shards import Shards
from datafree.tasks import TASKS, Task
from datafree.tasks.base import synthetic_batch
from thorough import some

SMALL = {"width": 4, "latent": 6, "batch_size": 4, "warmup": 3, "iterations": 2}
STAGES = [Stage(iterations=2, jitter=2), Stage(iterations=2, jitter=2)]
SIZE, CLASSES = (32, 64), 5
NETWORKS: list[Callable[[], nn.Module]] = [  # one for each form of answer
    lambda: unet(CLASSES, width=4, depth=2),
    lambda: resnet(CLASSES, depth=8, width=4),
    lambda: yolov3(CLASSES, variant="tiny", width=1 / 32),
]

KINDS = {m: [k for k in TASKS if issubclass(TASKS[k], SOURCES[m].serves)] for m in SOURCES}
# By default one task of each method that makes images itself, in turn;
# detection costs most: for mixtures, and where there is no other.
QUICK = {m: [k for k in KINDS[m] if k != "detection"] if m != "mixed" else ["detection"] for m in KINDS}
USUAL = [(m, (QUICK[m] or KINDS[m])[turn % len(QUICK[m] or KINDS[m])]) for turn, m in enumerate(KINDS) if m != "auto"]
pytestmark = pytest.mark.parametrize(("method", "kind"), some([(m, k) for m in SOURCES for k in KINDS[m]], *USUAL))


SETS: dict[object, dict[Path, bytes]] = {}  # of each task, the files of its set


def make_set(folder: Path, task: Task) -> Path:
    """A made data set of the task, always the same: made once in a session, and copied."""
    key = str(task), torch.get_default_dtype()
    if key not in SETS:
        write_set(folder, task)
        SETS[key] = {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    for name, content in SETS[key].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_set(folder: Path, task: Task) -> None:
    shards = Shards(folder, {})
    shards.begin([f"class {label}" for label in range(task.num_classes)])
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(24, 3, *task.image_size, generator=generator)
    shards.write(0, task, Batch(images=images, targets=task.sample_targets(24, torch.device("cpu"), generator)))
    shards.finish(task)


def make_source(method: str, photos: Path, task: Task) -> ImageSource:
    cls = SOURCES[method]
    if cls is Dataset:
        return Dataset(path=make_set(photos / "made", task))
    hints = typing.get_type_hints(cls)
    made: dict[type[Any] | Any, Any] = {
        Path: photos,
        Folder: Folder(path=photos),
        list[ImageSource]: [
            Folder(path=photos),
            Degan(proxy=Folder(path=photos), width=4, latent=6, warmup=3),
        ],
    }
    options = {}
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required:
            options[field.name] = made[hints[field.name]]
        elif field.name == "stages":
            options[field.name] = STAGES
        elif field.name in SMALL and field.default:
            options[field.name] = SMALL[field.name]
    return cls(**options)


def make_task(kind: str) -> Task:
    return TASKS[kind](num_classes=CLASSES, image_size=SIZE)


BUILT: dict[object, nn.Module] = {}


def make_network(task: Task, seed: int) -> nn.Module:
    """A network that answers as the task needs, always the same of a seed: built once in a session, and copied."""
    key = str(task), seed, torch.get_default_dtype()
    if key not in BUILT:
        torch.manual_seed(seed)
        BUILT[key] = build_network(task)
    torch.manual_seed(seed)
    return copy.deepcopy(BUILT[key])


def build_network(task: Task) -> nn.Module:
    for make in NETWORKS:
        network = Normalized(make())
        for _ in range(3):  # BatchNorm that has seen something: untouched statistics make dead gradients
            network(torch.rand(8, 3, *SIZE))
        try:
            task.check(network.eval()(synthetic_batch(SIZE, torch.device("cpu"))), "network")
        except NetworkError:
            continue
        return network.train()
    raise AssertionError(f"NETWORKS has none that answers as {task} needs")


class Rig:
    """A source attached to a frozen teacher, with a student beside it."""

    def __init__(self, method: str, kind: str, photos: Path) -> None:
        self.task = make_task(kind)
        self.teacher = make_network(self.task, 1).eval().requires_grad_(False)
        self.student = make_network(self.task, 2)
        self.source = make_source(method, photos, self.task)
        modes.seed_everything(0)
        self.source.attach(SourceContext(task=self.task, teacher=self.teacher, steps=20, batch_size=4))

    def work(self, steps: range) -> list[Tensor]:
        images = []
        for step in steps:
            if self.source.due(step):
                self.source.update(self.student, step)
            images.append(self.source.sample(5).images)
        return images


@pytest.fixture
def rig(method: str, kind: str, photos: Callable[..., Path]) -> Rig:
    return Rig(method, kind, photos())


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_options_are_keyword_only_and_the_class_is_final(method: str, kind: str) -> None:
    for cls in (SOURCES[method], TASKS[kind]):
        assert all(field.kw_only for field in dataclasses.fields(cls))
        assert getattr(cls, "__final__", False)
        assert cls.__doc__


def test_samples_are_images_in_0_1_without_gradients(rig: Rig) -> None:
    for n in (1, 7):
        batch = rig.source.sample(n)
        assert batch.images.shape == (n, 3, *SIZE)
        assert batch.images.dtype == torch.float32
        assert not batch.images.requires_grad
        assert batch.images.min() >= 0
        assert batch.images.max() <= 1
    assert not torch.equal(rig.source.sample(4).images, rig.source.sample(4).images)


def test_update_leaves_teacher_and_student_as_they_were(rig: Rig) -> None:
    teacher, student = tensors_of(rig.teacher), tensors_of(rig.student)
    grads = [p.requires_grad for p in rig.student.parameters()]
    rig.work(range(-rig.source.warmup, 6))
    assert_same(teacher, tensors_of(rig.teacher))
    assert_same(student, tensors_of(rig.student))
    assert not any(m.training for m in rig.teacher.modules())
    assert all(m.training for m in rig.student.modules())
    assert [p.requires_grad for p in rig.student.parameters()] == grads
    assert all(p.grad is None for p in [*rig.teacher.parameters(), *rig.student.parameters()])


def test_update_logs_detached_scalars(rig: Rig) -> None:
    logs = rig.source.update(rig.student, -1 if rig.source.warmup else 0)
    for value in logs.values():
        assert value.shape == ()
        assert not value.requires_grad
        assert torch.isfinite(value)


def test_an_update_makes_the_passes_that_are_declared_on_as_many_images_as_it_is_told(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those with gradients, through each network; others are to be had for a fraction, and counted nowhere."""
    made: dict[str, list[int]] = {}  # images of each pass

    def count(name: str, answers: object, images: int) -> None:
        first = answers.heads[0] if isinstance(answers, Predictions) else answers
        assert isinstance(first, Tensor)
        if first.requires_grad:
            made.setdefault(name, []).append(images)

    for name, network in (("teacher", rig.teacher), ("student", rig.student)):
        network.register_forward_hook(lambda m, args, answers, name=name: count(name, answers, len(args[0])))
    for name, kind in (("generator", Generator), ("generator", ResizeGenerator), ("discriminator", Discriminator)):

        def forward(self: nn.Module, x: Tensor, *more: Any, name: str = name, plain: Any = kind.forward) -> Any:
            answers = plain(self, x, *more)
            count(name, answers, len(x))
            return answers

        monkeypatch.setattr(kind, "forward", forward)
    source, step = rig.source, 0 if rig.source.update_every else -1
    size = source.update_size()
    if size is not None:  # another size, after `attach`
        size = UpdateSize(images=3, iterations=tuple(range(2, 2 + len(size.iterations))))
        source.resize_updates(size)
        assert source.update_size() == size
    source.update(rig.student, step)
    if source.forwards_updates:
        assert not source.passes
        return
    iterations = sum(size.iterations or (1,)) if size is not None else 0
    images = 0 if size is None else size.images
    assert made == {name: [images] * (passes * iterations) for name, passes in source.passes.items()}


def test_held_out_images_are_fixed_and_looking_changes_nothing(rig: Rig) -> None:
    rig.work(range(-rig.source.warmup, 2))
    random, state = modes.random_state(), copy.deepcopy(rig.source.state_dict())
    first, again = rig.source.validation_images(4), rig.source.validation_images(4)
    assert torch.equal(first, again)
    assert first.shape[1:] == (3, *SIZE)
    assert 1 <= len(first) <= 4
    assert torch.equal(random["torch"], modes.random_state()["torch"])
    assert random["python"] == modes.random_state()["python"]
    after = io.BytesIO(), io.BytesIO()
    torch.save(state, after[0])
    torch.save(copy.deepcopy(rig.source.state_dict()), after[1])
    assert after[0].getvalue() == after[1].getvalue()


def test_saved_state_goes_on_to_the_same_bits(rig: Rig, method: str, kind: str, photos: Callable[..., Path]) -> None:
    first = -rig.source.warmup
    rig.work(range(first, first + 4))
    file = io.BytesIO()
    torch.save({"source": rig.source.state_dict(), "random": modes.random_state()}, file)
    expected = rig.work(range(first + 4, first + 12))

    other = Rig(method, kind, photos(name="again"))  # the same photos under another path
    other.work(range(first, first + 2))  # a different past
    file.seek(0)
    saved = torch.load(file, weights_only=True)  # tensors and plain values only
    other.source.load_state_dict(saved["source"])
    modes.set_random_state(saved["random"])
    for ours, theirs in zip(expected, other.work(range(first + 4, first + 12)), strict=True):
        assert torch.equal(ours, theirs)


def test_pseudo_targets_agree_with_class_probs_and_cost_little(rig: Rig) -> None:
    outputs = rig.teacher(rig.source.sample(2).images)
    targets = rig.task.pseudo_targets(outputs)
    probs = rig.task.class_probs(outputs)
    assert torch.allclose(probs.sum(1), torch.ones(len(probs)), atol=1e-5)
    agreed = rig.task.agreement(outputs, outputs)  # None: an untrained detector sees no box
    assert agreed == 1.0 or (agreed is None and not isinstance(outputs, Tensor))
    assert rig.task.distill_loss(outputs, outputs).item() == pytest.approx(0, abs=1e-6)
    if isinstance(outputs, Tensor):
        assert torch.equal(targets.flatten(), probs.argmax(1))
        assert rig.task.target_loss(outputs, targets) < rig.task.target_loss(-outputs, targets)
