"""What a DeGAN update and a student's step cost over the bare passes of their networks. Ratios, measured side by side.

    python benchmarks/step_cost.py            # benchmarks/results/step_cost-DEVICE.json, table in docs/results.md

The floor of a step is the sum of the forward and backward passes that its formula needs, each run alone on the same
batch; what is over it is losses, optimisers, data and the loop. Both are timed in turns in one run.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from datafree import modes
from datafree.distill import Training
from datafree.networks.generators import Discriminator, Generator
from datafree.networks.load import NetworkSpec, build_network
from datafree.networks.normalized import Normalized
from datafree.sources import Degan, Folder
from datafree.sources.base import Setting
from datafree.tasks.segmentation import Segmentation
from results import write_results, write_table

# teacher, student, side in pixels, generator width
PAIRS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], int, int]] = {
    "unet": ("datafree/unet", {"width": 24}, "datafree/unet", {"width": 12}, 64, 32),
    "deeplabv3": ("smp/deeplabv3", {"encoder": "resnet50", "output_stride": 8},
                  "smp/deeplabv3", {"encoder": "mobilenet_v2", "output_stride": 16}, 128, 64),
}  # fmt: skip
CLASSES = 11


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of `work`."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def in_turns(parts: dict[str, Callable[[], object]], device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Seconds of each part in each round; the parts take turns, so that what slows the machine slows all of them."""
    for work in parts.values():
        work()  # warm up
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, work in parts.items():
            seconds[name].append(timed(work, device))
    return seconds


def measure(pair: str, folder: Path, batch_size: int, rounds: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Over-the-floor ratio and images a second of a DeGAN update and of a student's step."""
    teacher_name, teacher_args, student_name, student_args, side, width = PAIRS[pair]
    dtype = modes.choose_precision("auto", device)
    modes.seed_everything(0)

    def network(name: str, args: dict[str, Any]) -> nn.Module:
        bare = build_network(NetworkSpec(network=name, args=dict(args)), num_classes=CLASSES)
        wrapped = Normalized(bare, dtype=dtype).to(device)
        return wrapped.to(memory_format=torch.channels_last)

    teacher, student = network(teacher_name, teacher_args), network(student_name, student_args)
    task = Segmentation(num_classes=CLASSES, image_size=(side, side))
    training = Training(batch_size=batch_size)
    optimizer = training.make_optimizer(student.train())
    source = Degan(proxy=Folder(path=folder), width=width, batch_size=batch_size)
    generator, discriminator = (
        Generator((side, side), 100, width).to(device),
        Discriminator((side, side), width).to(device),
    )
    for made in (generator, discriminator):
        made.to(memory_format=torch.channels_last)
    images = torch.rand(batch_size, 3, side, side, device=device)
    z = torch.randn(batch_size, 100, device=device)

    def forward_backward(module: nn.Module, inputs: torch.Tensor, to_input: bool) -> None:
        """The bare passes: to the parameters, or to the input alone."""
        inputs = inputs.detach().requires_grad_(to_input)
        with modes.autocast(device, dtype):
            outputs = module(inputs)
        torch.autograd.backward(outputs, torch.ones_like(outputs))
        for parameter in module.parameters():
            parameter.grad = None

    def d_to_input() -> None:
        with modes.parameters_fixed(discriminator):
            forward_backward(discriminator, images, to_input=True)

    def teacher_forward() -> None:
        with torch.no_grad():
            teacher(images)

    def student_step() -> None:
        batch = source.sample(batch_size)
        with torch.no_grad():
            answers = teacher(batch.images)
        loss = task.distill_loss(student(batch.images), answers)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    with modes.frozen(teacher):
        source.attach(Setting(task=task, teacher=teacher, steps=1, batch_size=batch_size, device=device, dtype=dtype))
        floor_of_update: dict[str, Callable[[], object]] = {
            "generator": lambda: forward_backward(generator, z, to_input=False),
            "discriminator, real": lambda: forward_backward(discriminator, images, to_input=False),
            "discriminator, fake": lambda: forward_backward(discriminator, images, to_input=False),
            "discriminator to its input": d_to_input,
            "teacher to its input": lambda: forward_backward(teacher, images, to_input=True),
        }
        floor_of_step: dict[str, Callable[[], object]] = {
            "generator, forward": lambda: source.sample(batch_size),
            "teacher, forward": teacher_forward,
            "student": lambda: forward_backward(student, images, to_input=False),
        }
        rows = {}
        for name, whole, floor in (
            ("degan/update", lambda: source.update(student, -1), floor_of_update),
            ("degan/student_step", student_step, floor_of_step),
        ):
            seconds = in_turns({name: whole, **floor}, device, rounds)
            ratios = [
                seconds[name][i] / sum(seconds[part][i] for part in floor) for i in range(rounds)
            ]  # of the same moment
            rows[f"{pair}/{name}"] = {
                "over_floor": statistics.median(ratios),
                "images_per_second": batch_size / statistics.median(seconds[name]),
            }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=3, help="whole measurements, for the spread")
    arguments = parser.parse_args()
    device = modes.choose_device(arguments.device)
    rows: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        for index in range(64):  # photos to read, as a user's are
            pixels = rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((170, 128), Image.Resampling.BICUBIC).save(Path(folder) / f"{index}.jpg")
        for _ in range(arguments.repeats):
            for pair in arguments.pairs:
                began = time.perf_counter()
                found = measure(pair, Path(folder), arguments.batch_size, arguments.rounds, device)
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
                if device.type == "cuda":
                    memory = torch.cuda.max_memory_allocated() / 2**20
                for name, metrics in found.items():
                    cell = {"metrics": metrics, "seconds": time.perf_counter() - began, "peak_memory_mib": memory}
                    rows.setdefault(name, []).append(cell)
                    print(name, {k: round(v, 3) for k, v in metrics.items()}, flush=True)
    pairs = " ".join(arguments.pairs)
    write_results("step_cost", device.type, rows, command=f"python benchmarks/step_cost.py --pairs {pairs}")
    lines = ["| networks / step | over the bare passes | images per second |", "|---|---|---|"]
    for name, cells in rows.items():
        over = [cell["metrics"]["over_floor"] for cell in cells]
        rate = statistics.mean(cell["metrics"]["images_per_second"] for cell in cells)
        spread = f" ± {statistics.stdev(over):.2f}" if len(over) > 1 else ""
        lines.append(f"| {name} | {statistics.mean(over):.2f}{spread} | {rate:.0f} |")
    write_table("results.md", f"step_cost-{device.type}", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
