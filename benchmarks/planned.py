"""Is `datafree plan` true? Examples, shortened, are planned and then made, in turn; the ratios are written.

    python benchmarks/planned.py                  # three rounds, a quarter of an hour of one thread
    python benchmarks/planned.py --rounds 1 --only boxes      # the other rows stay as they were measured

Writes benchmarks/results/planned-cpu.json and the table in docs/scale.md. Ratios: planned by real, of time (opening the
networks to the last file; the libraries' own start left out) and of bytes on the disk. Time is that of the processor
with one thread, so that what else is running on a machine does not count.

The examples are the demos of the three tasks with fewer steps, but with every stage of theirs (the student's start from
its teacher, warm-up, updates, steps, scores); the recipe that `datafree distill torchvision/resnet18` chooses for 224
pixels, with random weights, since time does not depend on them; a generator; and sets of images.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # torchvision and every optimiser import it: some seconds that are no run's own
import torchvision

from datafree.networks.checkpoints.weights import save_weights
from datafree.preflight.draft import draft
from datafree.preflight.plan import Plan, plan
from datafree.preflight.wishes import Wishes
from datafree.recipe.recipe import load_recipe
from datafree.run import run_recipe
from datafree.synthesis.synthesize import synthesize
from measured import with_earlier
from results import commit, write_results, write_table


@dataclass(frozen=True, kw_only=True)
class Example:
    recipe: str  # a packaged one's name, or the name of a network of torchvision's
    overrides: tuple[str, ...] = ()  # what shortens it
    images: int | None = None  # of a data set; None: a run


EXAMPLES = {
    "garments-demo": Example(recipe="garments-demo", overrides=("training.steps=300",)),
    "fashion-demo": Example(recipe="fashion-demo", overrides=("training.steps=600",)),
    "boxes-demo": Example(recipe="boxes-demo", overrides=("source.warmup=20", "training.steps=200")),
    "resnet18, 224 pixels": Example(
        recipe="torchvision/resnet18",
        overrides=("training.time=null", "training.steps=30", "source.warmup=1"),
    ),
    "fashion-cgdd": Example(recipe="fashion-cgdd", overrides=("source.warmup=60", "training.steps=200")),
    "fashion-cgdd, set": Example(recipe="fashion-cgdd", overrides=("source.warmup=60",), images=2048),
    "boxes-demo, set": Example(recipe="boxes-demo", images=640),
}


def compare(name: str, folder: Path, number: int) -> dict[str, Any]:
    """A round: planned, then made in `folder`, which is empty."""
    example, out = EXAMPLES[name], folder / "out"
    file = _recipe_file(example, folder)
    with mock.patch.object(time, "perf_counter", time.process_time):  # what everything is timed by
        planned = plan(load_recipe(file, example.overrides), example.images)
    began = time.process_time()
    if example.images is None:
        run_recipe(load_recipe(file, example.overrides), out)
    else:
        synthesize(load_recipe(file, example.overrides), out, example.images)
    taken = time.process_time() - began
    there = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return {
        "seed": number,  # by which rounds are told apart; the recipes' own is the same in all
        "commit": commit(),
        "metrics": {
            "planned_seconds": planned.on[0].seconds,
            "real_seconds": taken,
            "time_ratio": planned.on[0].seconds / taken,
            "planned_bytes": float(on_disk(planned)),
            "real_bytes": float(there),
            "disk_ratio": on_disk(planned) / there,
            "calibration_seconds": planned.calibrated,
        },
        "seconds": taken,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _recipe_file(example: Example, folder: Path) -> str:
    """A packaged recipe's name, or a file with what the one line chooses for torchvision's network."""
    library, _, network = example.recipe.partition("/")
    if not network:
        return library
    torch.manual_seed(0)
    model = torchvision.models.get_model(network)
    with torch.no_grad():  # BatchNorm layers as new would say nothing of images, and another source be chosen
        model.train()(torch.rand(4, 3, 224, 224))
    save_weights(model, folder / "teacher.safetensors")
    wishes = Wishes(weights=folder / "teacher.safetensors", mean="0.485,0.456,0.406", std="0.229,0.224,0.225")
    (folder / "one-line.yaml").write_text(draft(example.recipe, wishes).text)
    return str(folder / "one-line.yaml")


def on_disk(planned: Plan) -> int:
    """What a plan says that lies there at the end: two of the three states that it counts while one is written."""
    return sum(size - size // 3 if what.startswith("states") else size for what, size in planned.disk.items())


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Means over the rounds, and the ratios of each round."""
    lines = ["| example | planned | real | planned / real, each round | disk, planned / real | calibration |"]
    lines.append("|---|--:|--:|---|--:|--:|")
    for name, cells in rows.items():

        def of(metric: str, cells: list[dict[str, Any]] = cells) -> list[float]:
            return [cell["metrics"][metric] for cell in cells]

        each = ", ".join(f"{ratio:.2f}" for ratio in of("time_ratio"))
        lines.append(
            f"| {name} | {mean(of('planned_seconds')):.0f} s | {mean(of('real_seconds')):.0f} s | {each} "
            f"| {mean(of('disk_ratio')):.2f} | {mean(of('calibration_seconds')):.0f} s |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Is `datafree plan` true?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="of the examples whose name begins so")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in EXAMPLES if name.startswith(chosen.only)}
    for number in range(chosen.rounds):
        for name, cells in rows.items():
            with tempfile.TemporaryDirectory() as folder:
                cells.append(compare(name, Path(folder), number))
            figures = {key: round(value, 2) for key, value in cells[-1]["metrics"].items()}
            print(f"round {number}: {name} {figures}", flush=True)
    known = with_earlier("planned", "cpu", rows)
    rows = {name: known[name] for name in EXAMPLES if name in known}
    write_results("planned", "cpu", rows, command=" ".join(["python benchmarks/planned.py", *arguments]))
    write_table("scale.md", "planned", table(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
