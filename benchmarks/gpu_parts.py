"""What a device is asked besides speed: where the host waits for it, the batch that fits, two of them together."""

from __future__ import annotations

import hashlib
import statistics
import tempfile
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor

from datafree.config import yaml
from datafree.distributed import collectives, replicas
from datafree.engine.build_networks import NOTHING_GIVEN
from datafree.networks.checkpoints.weights import save_weights
from datafree.networks.resnet import resnet
from datafree.ops import modes
from datafree.preflight.cost import batch_size
from datafree.recipe.recipe import load_recipe
from speed_passes import Rig
from speed_rigs import PAIRS, QUICK, make_rig
from speed_timing import Metrics, Stopwatch

STEPS = 10  # of the loop, in which waits are counted, after the first
MEASURED = 6  # of the loop, that processes time, after as many

# Waits.


def waits_of(rig: Rig, set_mode: Callable[[str], None]) -> Metrics:
    """How often a step of the loop makes the host wait, between two lines of the log, as torch's debug mode sees it.

    `set_mode`: torch.cuda.set_sync_debug_mode. Updates that come in these steps are among them.
    """
    seen: list[int] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        def before() -> str | None:
            set_mode("default")
            seen.append(sum("called a synchronizing" in str(warning.message) for warning in caught))
            caught.clear()
            if len(seen) > STEPS + 2:
                return "counted"
            set_mode("warn")
            return None

        try:
            rig.loop(before)
        finally:
            set_mode("default")
    steps = seen[3:]  # the first updates, and writes a line
    return {"waits": statistics.mean(steps), "most_waits": float(max(steps))}


# The batch that fits.


def search_batch(device: torch.device, *, quick: bool) -> Metrics:
    """The batch size that `training.batch_size: auto` finds for a ResNet-34 and a ResNet-18, or for small ones."""
    if quick:
        small = {"depth": 8, "width": 2}
        teacher, classes, side = resnet(10, **small), 10, 32
        names: list[dict[str, Any]] = 2 * [{"network": "datafree/resnet", "args": small}]
    else:
        from torchvision.models import resnet34

        teacher, classes, side = resnet34(), 1000, 224
        names = [{"network": f"torchvision/resnet{layers}"} for layers in (34, 18)]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        save_weights(teacher, folder / "teacher.safetensors")
        content: dict[str, Any] = {
            "task": {"kind": "classification", "num_classes": classes, "image_size": [side, side]},
            "teacher": {**names[0], "weights": str(folder / "teacher.safetensors")},
            "student": names[1],
            "source": {"method": "noise"},
            "training": {"steps": 1, "batch_size": "auto", "device": str(device)},
        }
        (folder / "auto.yaml").write_text(yaml.render(content), encoding="utf-8")
        return _found(str(folder / "auto.yaml"), device)


def _found(recipe: str, device: torch.device) -> Metrics:
    dtype = modes.choose_precision("auto", device)
    watch = Stopwatch(device)
    size, lines = batch_size.found(load_recipe(recipe, []), NOTHING_GIVEN, device, dtype)
    print(*lines, sep="\n", flush=True)
    return {"batch_size": float(size), "search_seconds": watch.seconds()}


# Several devices.


def several(kind: str, count: int, *, quick: bool) -> Metrics:
    """Steps of `count` processes, each with its own device of this kind (NCCL on GPUs, gloo on a CPU), and of one.

    speed_up: how many times as many steps; same: 1 if all end with the same student, to the bit; apart: how far that is
    from the student of one process, relative to its length.
    """
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        start = "fork" if kind == "cpu" else "spawn"  # CUDA does not survive a fork
        processes: Any = mp  # whose functions have no types
        for together in (1, count):
            processes.start_processes(_process, (together, kind, quick, folder), nprocs=together, start_method=start)
        one, *parts = (torch.load(folder / f"{n}-{rank}.pt") for n in (1, count) for rank in range(n))
    weights = [part["weights"].double() for part in (one, parts[0])]
    return {
        "speed_up": one["seconds"] / parts[0]["seconds"],
        "same": float(len({part["digest"] for part in parts}) == 1),
        "apart": float((weights[1] - weights[0]).norm() / weights[0].norm()),
    }


def _process(rank: int, together: int, kind: str, quick: bool, folder: Path) -> None:
    """One process of several: some steps, and their seconds and student into a file."""
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    meeting = {"init_method": f"file://{folder / f'meet-{together}'}", "rank": rank, "world_size": together}
    group = collectives.process_group(collectives.backend_for(device), **meeting)
    with group if together > 1 else nullcontext():
        pairs = QUICK if quick else PAIRS
        rig = make_rig(pairs["resnet34-18"], "cgdd", folder, device)
        for network in ("teacher", "student"):
            replicas.share(rig.networks[network])
        seconds: list[float] = []
        watch = Stopwatch(device)

        def before() -> str | None:
            nonlocal watch
            seconds.append(watch.seconds())
            watch = Stopwatch(device)
            return "timed" if len(seconds) > 2 * MEASURED else None

        rig.loop(before)
        weights = torch.cat([value.flatten().float().cpu() for value in rig.networks["student"].state_dict().values()])
        found = {"seconds": sum(seconds[-MEASURED:]), "weights": weights, "digest": _digest(weights)}
        torch.save(found, folder / f"{together}-{rank}.pt")


def _digest(weights: Tensor) -> str:
    return hashlib.sha256(weights.numpy().tobytes()).hexdigest()
