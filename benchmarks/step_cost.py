"""What updates of image sources and steps of the student cost over the bare passes of their networks, as ratios.

    python benchmarks/step_cost.py                             # every group; DeepLabV3 is for a GPU
    python benchmarks/step_cost.py --only unet resnet bnstats  # groups, by either part of their names

The floor of a step is the forward and backward passes that its formula needs: run alone, one after another, on batches
of the same sizes, by copies of the networks in the same modes. What is over it is losses, optimisers, data and the
loop. Both are timed in turns in one run; the student's steps in the training loop itself, with the row's own training.
Methods, batches and options are those of classification_rows.py on the CPU, the networks of a pair the same for all.

Metrics: `over_floor`, the median over rounds of the ratios; `images_per_second`, those that an update puts out or the
student learns from. Updates of many iterations are timed with `ITERATIONS` of them; their images per second are scaled
to all. CMI remembers as many images as it does at the end of the row's run.

bnstats/PAIR/TYPE: the teacher's passes to the pixels with the statistics of all BatchNorm inputs, in plain operations
and fused, over those without; `none` is those without once more, which shows how exact the ratios are.

Results: benchmarks/results/step_cost-DEVICE.json, and the table in docs/results.md.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import resource
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from classification_rows import CIFAR, CPU, SIZES, Pair
from datafree import bnstats, modes
from datafree.errors import Interrupted
from datafree.loop import distill
from datafree.networks.generators import Discriminator, Generator, ResizeGenerator
from datafree.networks.load import NetworkSpec
from datafree.prepare import prepare
from datafree.runs import Run
from datafree.sources import SOURCES, Degan, Folder
from datafree.sources.base import Setting
from datafree.tasks.base import Task
from datafree.tasks.classification import Classification
from datafree.tasks.segmentation import Segmentation
from datafree.training import Training
from results import write_results, write_table

ITERATIONS = 10  # at most, of an update that is timed
ENDLESS = 10**6  # steps: none that is timed is the last
METHODS = ("cgdd", "dafl", "dfad", "zskt", "inversion", "cmi", "fast")
FROM_A_BANK = ("inversion", "cmi", "fast")  # the student's step asks nothing of the source's networks
CLASSIFICATION = {"resnet": CPU, "resnet20": replace(CIFAR, rows=CPU.rows)}


@dataclass(frozen=True, kw_only=True)
class Segmenters:
    """A pair of networks for DeGAN."""

    teacher: NetworkSpec
    student: NetworkSpec
    side: int  # pixels, square
    width: int  # of generator and discriminator
    batch_size: int = 16  # of the student and of an update
    num_classes: int = 11


UNET = Segmenters(
    teacher=NetworkSpec(network="datafree/unet", args={"width": 24}),
    student=NetworkSpec(network="datafree/unet", args={"width": 12}),
    side=64,
    width=32,
)
SEGMENTATION = {
    "unet": UNET,
    "deeplabv3": Segmenters(
        teacher=NetworkSpec(network="smp/deeplabv3", args={"encoder": "resnet50", "output_stride": 8}),
        student=NetworkSpec(network="smp/deeplabv3", args={"encoder": "mobilenet_v2", "output_stride": 16}),
        side=128,
        width=64,
    ),
}
GROUPS = (
    *(f"{pair}/degan" for pair in SEGMENTATION),
    *(f"{pair}/{method}" for pair in CLASSIFICATION for method in METHODS),
    *(f"bnstats/{pair}" for pair in CLASSIFICATION),
)
# For the tests: everything small.
SMALL_CLASSIFICATION = SIZES["smoke"].pairs["example"]
SMALL_SEGMENTATION = replace(
    UNET,
    teacher=replace(UNET.teacher, args={"width": 4, "depth": 2}),
    student=replace(UNET.student, args={"width": 2, "depth": 2}),
    side=32,
    width=4,
    batch_size=4,
)


# What a step is made of.


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A forward pass of a network in a mode, and the backward pass from its answer to what is named."""

    network: Literal["teacher", "student", "generator", "discriminator"]
    images: int
    to: Literal["nothing", "input", "parameters", "both"]
    mode: Literal["train", "eval"] = "train"


def update_passes(method: str, source: Any) -> list[Pass]:
    """The passes of an update of an attached `source`, once the student learns."""
    n = source.batch_size
    teacher = Pass(network="teacher", images=n, to="input", mode="eval")
    student = Pass(network="student", images=n, to="input", mode=getattr(source, "student_mode", "eval"))
    generator = Pass(network="generator", images=n, to="parameters")
    adapted = replace(generator, to="both")  # with its latents
    judged = Pass(network="discriminator", images=n, to="parameters")
    once = {
        "degan": [generator, judged, judged, replace(judged, to="input"), teacher],  # real and made; then deceived
        "cgdd": [generator, teacher, student],
        "dafl": [generator, teacher],
        "dfad": [generator, teacher, student],
        "zskt": [generator, teacher, student, replace(generator, to="nothing")],  # the student's images, anew
        "inversion": [teacher],
        "cmi": [adapted, teacher, teacher, student],  # the image and a part of it
        "fast": [adapted, teacher, student],
    }
    return once[method] * getattr(source, "iterations", 1)


def step_passes(method: str, source: Any, n: int) -> list[Pass]:
    """The passes of a student's step on n images, those of an update aside."""
    old = {"cgdd": lambda: round(n * source.replay), "zskt": lambda: min(n, source.batch_size)}
    fresh = n - old.get(method, lambda: 0)()
    mode: Literal["train", "eval"] = "eval" if method == "degan" else "train"
    made = [Pass(network="generator", images=fresh, to="nothing", mode=mode)] if fresh else []
    taught = Pass(network="teacher", images=n, to="nothing", mode="eval")
    return [*made, taught, Pass(network="student", images=n, to="parameters")]


@dataclass(kw_only=True)
class Rig:
    """A source, a teacher and a student as a run has them, and copies of all networks for their bare passes."""

    method: str
    task: Task
    source: Any
    training: Training
    networks: dict[str, nn.Module]  # by the names of passes; teacher and student are the run's own
    device: torch.device
    dtype: torch.dtype
    share: float = 1.0  # iterations of the update that is timed, of those in the row

    def __post_init__(self) -> None:
        self._held: dict[Pass, tuple[nn.Module, list[Tensor]]] = {}

    @cached_property
    def update_floor(self) -> list[Pass]:
        return update_passes(self.method, self.source)

    @cached_property
    def step_floor(self) -> list[Pass]:
        return step_passes(self.method, self.source, self.training.batch_size)

    def attach(self) -> None:
        """Attach the source without a loop, in which it would be."""
        training, teacher = self.training, self.networks["teacher"]
        setting = Setting(
            task=self.task,
            teacher=teacher,
            steps=training.steps,
            batch_size=training.batch_size,
            device=self.device,
            dtype=self.dtype,
        )
        with modes.frozen(teacher):
            self.source.attach(setting)
        state = self.source.state_dict()
        if "remembered" in state:  # CMI's, which an update's time depends on
            state["remembered"] = torch.rand(self.source.memory, state["remembered"].shape[1])
            self.source.load_state_dict(state)

    def update(self) -> None:
        """An update of the attached source, as in the student's second step. The teacher is to be frozen."""
        self.source.update(self.networks["student"], 1)

    def loop(self, before: Callable[[], str | None]) -> None:
        """Attach the source and train the student until `before`, asked before each step, gives a reason to stop."""
        with tempfile.TemporaryDirectory() as folder:
            run = Run(Path(folder), {"method": self.method})
            with contextlib.closing(run), contextlib.suppress(Interrupted):
                distill(
                    task=self.task,
                    teacher=self.networks["teacher"],
                    student=self.networks["student"],
                    source=self.source,
                    training=self.training,
                    run=run,
                    stop=before,
                )

    def floor(self, passes: Sequence[Pass]) -> None:
        """Run bare passes, one after another."""
        for one in passes:
            if one not in self._held:
                self._held[one] = self._copy(one), self._inputs(one)
            network, held = self._held[one]
            first, *rest = (tensor.detach() for tensor in held)
            first.requires_grad_(one.to in ("input", "both"))
            with torch.set_grad_enabled(one.to != "nothing"), modes.autocast(self.device, self.dtype):
                outputs = network(first, *rest)
            if one.to != "nothing":
                torch.autograd.backward(outputs, torch.ones_like(outputs))
                for parameter in network.parameters():
                    parameter.grad = None

    def _copy(self, one: Pass) -> nn.Module:
        network = copy.deepcopy(self.networks[one.network]).train(one.mode == "train")
        return network.requires_grad_(one.to in ("parameters", "both"))

    def _inputs(self, one: Pass) -> list[Tensor]:
        if one.network != "generator":
            images = torch.rand(one.images, 3, *self.task.image_size, device=self.device)
            return [images.to(memory_format=torch.channels_last)]
        latents = torch.randn(one.images, self.source.latent, device=self.device)
        if self.method != "cgdd":
            return [latents]
        return [latents, self.task.layout(self.task.sample_targets(one.images, self.device))]


def segmentation_rig(pair: Segmenters, photos: Path, device: torch.device) -> Rig:
    """DeGAN between two segmenters, with the photos in a folder as its proxy."""
    size = (pair.side, pair.side)
    task = Segmentation(num_classes=pair.num_classes, image_size=size)
    dtype = modes.choose_precision("auto", device)
    source = Degan(proxy=Folder(path=photos), width=pair.width, batch_size=pair.batch_size, warmup=0)
    networks: dict[str, nn.Module] = {
        "teacher": prepare(pair.teacher, task, "teacher", device, dtype),
        "student": prepare(pair.student, task, "student", device, dtype),
        "generator": Generator(size, source.latent, source.width),
        "discriminator": Discriminator(size, source.width),
    }
    return Rig(
        method="degan",
        task=task,
        source=source,
        training=Training(steps=ENDLESS, batch_size=pair.batch_size),
        networks=_placed(networks, device),
        device=device,
        dtype=dtype,
    )


def classification_rig(pair: Pair, method: str, device: torch.device) -> Rig:
    """A row of the classification benchmark, its teacher untrained."""
    row, size = pair.rows[method], (pair.side, pair.side)
    task = Classification(num_classes=10, image_size=size, **{**pair.task, **row.task})
    training = Training(**{**pair.training, **row.training})
    dtype = modes.choose_precision("auto", device)
    source: Any = SOURCES[method](**row.source)
    updates = sum(source.due(step) for step in range(-source.warmup, training.steps))
    changes: dict[str, Any] = {"warmup": 0, "update_every": ENDLESS}  # in the loop, one update before all steps
    if method in FROM_A_BANK:
        changes["iterations"] = min(source.iterations, ITERATIONS)
    if method == "cmi":
        changes["memory"] = min(source.memory, updates * source.batch_size)
    networks: dict[str, nn.Module] = {
        "teacher": prepare(replace(pair.teacher, weights=None), task, "teacher", device, dtype),
        "student": prepare(pair.student, task, "student", device, dtype),
    }
    if method != "inversion":
        conditions = task.num_classes if method == "cgdd" else 0
        networks["generator"] = ResizeGenerator(size, source.latent, source.width, conditions)
    return Rig(
        method=method,
        task=task,
        source=dataclasses.replace(source, **changes),
        training=replace(training, steps=ENDLESS),
        networks=_placed(networks, device),
        device=device,
        dtype=dtype,
        share=changes["iterations"] / source.iterations if method in FROM_A_BANK else 1.0,
    )


def _placed(networks: dict[str, nn.Module], device: torch.device) -> dict[str, nn.Module]:
    """The networks as sources hold theirs."""
    for network in networks.values():
        network.to(device).to(memory_format=torch.channels_last)
    return networks


# Timing.


def now(device: torch.device) -> float:
    """Seconds of a clock, once the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of `work`."""
    began = now(device)
    work()
    return now(device) - began


def in_turns(parts: Mapping[str, Callable[[], object]], device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Seconds of each part in each round; the parts take turns, so that what slows the machine slows all of them."""
    for work in parts.values():
        work()  # warm up
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, work in parts.items():
            seconds[name].append(timed(work, device))
    return seconds


def metrics(whole: Sequence[float], floor: Sequence[float], images: float) -> dict[str, float]:
    """Of seconds in rounds, each ratio that of the same moment; `images`: of one step."""
    return {
        "over_floor": statistics.median(a / b for a, b in zip(whole, floor, strict=True)),
        "images_per_second": images / statistics.median(whole),
    }


def measure_step(rig: Rig, rounds: int) -> dict[str, float]:
    """The student's step in the loop, its bare passes before each. The loop's first step warms up, and makes images."""
    began, whole, floor = 0.0, list[float](), list[float]()

    def before() -> str | None:
        nonlocal began
        if floor:
            whole.append(now(rig.device) - began)
        if len(whole) > rounds:
            return "measured"
        floor.append(timed(lambda: rig.floor(rig.step_floor), rig.device))
        began = now(rig.device)
        return None

    rig.loop(before)
    return metrics(whole[1:], floor[1:], rig.training.batch_size)


def measure_update(rig: Rig, rounds: int) -> dict[str, float]:
    """An update of the attached source and its bare passes."""
    with modes.frozen(rig.networks["teacher"]):
        seconds = in_turns({"whole": rig.update, "floor": lambda: rig.floor(rig.update_floor)}, rig.device, rounds)
    return metrics(seconds["whole"], seconds["floor"], rig.source.batch_size * rig.share)


def measure_statistics(pair: Pair, rounds: int, device: torch.device) -> dict[str, dict[str, float]]:
    """TYPE/FORM -> what the statistics of BatchNorm inputs cost, in each type that the hardware computes."""
    task = Classification(num_classes=10, image_size=(pair.side, pair.side))
    batch: int = pair.rows["inversion"].source["batch_size"]
    forms = {"bare": None, "none": None, "plain": bnstats.plain_moments, "fused": bnstats.moments}
    images = torch.rand(batch, 3, *task.image_size, device=device).to(memory_format=torch.channels_last)
    found = {}
    for dtype in dict.fromkeys((torch.float32, modes.choose_precision("auto", device))):
        teacher = prepare(replace(pair.teacher, weights=None), task, "teacher", device, dtype)
        parts = {name: statistics_pass(teacher, images, moments) for name, moments in forms.items()}
        with modes.frozen(teacher):
            seconds = in_turns(parts, device, rounds)
        kind = "fp32" if dtype == torch.float32 else "bf16"
        for name in ("none", "plain", "fused"):
            found[f"{kind}/{name}"] = metrics(seconds[name], seconds["bare"], batch)
    return found


Moments = Callable[[Tensor], tuple[Tensor, Tensor]]


def statistics_pass(teacher: nn.Module, images: Tensor, moments: Moments | None) -> Callable[[], Tensor]:
    """A pass through the frozen teacher and back to the pixels, with the distance of its statistics if by `moments`.

    Returns what runs it, whose answer is the pixels' gradient.
    """
    match = bnstats.StatisticsMatch(network=teacher)

    def work() -> Tensor:
        pixels = images.detach().requires_grad_()
        watching = match.watching() if moments else contextlib.nullcontext()
        with mock.patch.object(bnstats, "moments", moments), watching:
            roots = [teacher(pixels)]
        if moments:
            roots.append(match.distance())
        torch.autograd.backward(roots, [torch.ones_like(root) for root in roots])
        assert pixels.grad is not None
        return pixels.grad

    return work


# Groups.


def make_rig(group: str, photos: Path, device: torch.device, quick: bool) -> Rig:
    """The rig of PAIR/METHOD; `quick`: of small networks and batches."""
    pair, method = group.split("/")
    modes.seed_everything(0)
    if pair in SEGMENTATION:
        return segmentation_rig(SMALL_SEGMENTATION if quick else SEGMENTATION[pair], photos, device)
    return classification_rig(SMALL_CLASSIFICATION if quick else CLASSIFICATION[pair], method, device)


def measure(group: str, photos: Path, rounds: int, device: torch.device, quick: bool) -> dict[str, dict[str, float]]:
    """Row -> metrics of a group."""
    first, second = group.split("/")
    if first == "bnstats":
        pair = SMALL_CLASSIFICATION if quick else CLASSIFICATION[second]
        return {f"{group}/{name}": found for name, found in measure_statistics(pair, rounds, device).items()}
    rig = make_rig(group, photos, device, quick)
    if second in FROM_A_BANK:
        rig.attach()
        return {f"{group}/update": measure_update(rig, rounds)}
    step = measure_step(rig, rounds)  # first, for the loop attaches the source
    return {f"{group}/update": measure_update(rig, rounds), f"{group}/student_step": step}


def chosen_groups(asked: Sequence[str]) -> list[str]:
    """The groups asked for by name or either part of it, in order; all if none is. Raises ValueError for another."""
    wrong = [word for word in asked if not any(word in (group, *group.split("/")) for group in GROUPS)]
    if wrong:
        raise ValueError(f"there is no group {wrong[0]!r}; known: {', '.join(GROUPS)}")
    return [group for group in GROUPS if not asked or {group, *group.split("/")} & set(asked)]


def make_photos(folder: Path) -> None:
    """Photos to read, as a user's are."""
    rng = np.random.default_rng(0)
    for index in range(64):
        pixels = rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((170, 128), Image.Resampling.BICUBIC).save(folder / f"{index}.jpg")


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: a line for each row."""
    lines = ["| networks / step | over the bare passes | images per second |", "|---|---|---|"]
    for name, cells in rows.items():
        over = [cell["metrics"]["over_floor"] for cell in cells]
        rate = statistics.mean(cell["metrics"]["images_per_second"] for cell in cells)
        spread = f" ± {statistics.stdev(over):.2f}" if len(over) > 1 else ""
        lines.append(f"| {name} | {statistics.mean(over):.2f}{spread} | {rate:.0f} |")
    return "\n".join(lines) + "\n"


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", nargs="+", default=[], metavar="GROUP", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=3, help="whole measurements, for the spread")
    parser.add_argument("--quick", action="store_true", help="small networks, once; writes nothing")
    given = parser.parse_args(words)
    try:
        groups = chosen_groups(given.only)
    except ValueError as error:
        parser.error(str(error))
    rounds, repeats = (1, 1) if given.quick else (given.rounds, given.repeats)
    device = modes.choose_device(given.device)
    rows: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        make_photos(Path(folder))
        for _ in range(repeats):
            for group in groups:
                began = time.perf_counter()
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                found = measure(group, Path(folder), rounds, device, given.quick)
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
                if device.type == "cuda":
                    memory = torch.cuda.max_memory_allocated() / 2**20
                for name, values in found.items():
                    cell = {"metrics": values, "seconds": time.perf_counter() - began, "peak_memory_mib": memory}
                    rows.setdefault(name, []).append(cell)
                    print(name, {k: round(v, 3) for k, v in values.items()}, flush=True)
    if given.quick:
        return
    command = shlex.join(["python", "benchmarks/step_cost.py", *words])
    write_results("step_cost", device.type, rows, command=command)
    write_table("results.md", f"step_cost-{device.type}", table(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
