"""Every system call by which a save writes, killed at its entry by strace: what was there before stays good."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from datafree.sources.base import Batch
from datafree.storage import made_set
from datafree.storage.run_directory import Run
from datafree.synthesis.shards import Shards
from datafree.tasks.detection import Detection
from reliability_ends import end_of_a_run, end_of_a_set
from reliability_kills import in_child, wait

# Those that change a disk. An open makes an empty file at most, which is what a kill at the next write leaves, too.
CALLS = "write,pwrite64,writev,pwritev,fsync,fdatasync,ftruncate,mkdir,mkdirat,rename,renameat,renameat2,link,linkat"
CALLS += ",unlink,unlinkat,rmdir"
RECIPE: dict[str, Any] = {"name": "saves", "training": {"select": "last"}}
TASK = Detection(num_classes=2, image_size=(16, 16))


def saves(folder: Path) -> dict[str, Any]:
    """Kill saves, the beginning and the end of a run, the writing of a shard and the end of a set at each call."""
    if shutil.which("strace") is None:
        return {"skipped": "strace is not installed"}
    import tensorboard.compat.proto.event_pb2  # here, not in every child
    import tensorboard.summary.writer.record_writer  # noqa: F401
    from torch.utils.tensorboard import summary  # noqa: F401

    shutil.rmtree(folder, ignore_errors=True)
    broken: list[str] = []
    found: dict[str, Any] = {}
    for name, (before, work, check) in {
        "beginning of a run": (lambda out: None, _begin, _check_begun),
        "save of a run": (_begin, _save, _check_saved),
        "writing of a shard": (_begin_set, _shard, _check_set),
        "end of a run": end_of_a_run(folder / "run"),
        "end of a set": end_of_a_set(folder / "set"),
    }.items():
        found[name] = _each_call(folder / name.replace(" ", "-"), name, before, work, check, broken)
    return {"killed_calls": found, "broken": broken}


def _each_call(
    folder: Path,
    name: str,
    before: Callable[[Path], object],
    work: Callable[[Path], object],
    check: Callable[[Path], str | None],
    broken: list[str],
) -> dict[str, int]:
    folder.mkdir(parents=True)
    errors = folder / "error.txt"
    assert wait(in_child(lambda: before(folder / "base"), errors)) == 0, errors.read_text()

    def fresh(number: int | str) -> Path:
        out = folder / f"out-{number}"
        if (folder / "base").exists():
            shutil.copytree(folder / "base", out)
        return out

    listed = folder / "calls.txt"
    out = fresh("counted")
    assert _traced(partial(work, out), ["-o", str(listed)], errors) == 0, errors.read_text()
    calls = Counter(re.findall(r"^(?:\d+ +)?(\w+)\(", listed.read_text(), re.MULTILINE))
    killed = 0
    for call, count in calls.items():
        for number in range(1, count + 1):
            out = fresh(f"{call}-{number}")
            how = ["-o", os.devnull, "-e", f"inject={call}:signal=KILL:when={number}"]
            if _traced(partial(work, out), how, errors) != -signal.SIGKILL:
                continue  # not a call of every time: it had ended before
            killed += 1
            if problem := check(out):
                broken.append(f"{name}, killed at {call} {number}: {problem}")
            shutil.rmtree(out, ignore_errors=True)
    print(f"saves: {name}, {dict(calls)}, {killed} kills, broken {len(broken)}", flush=True)
    return {**calls, "kills": killed}


def _traced(work: Callable[[], object], options: list[str], errors: Path) -> int:
    """Do `work` in a child that strace holds; its exit code."""

    def stopped() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)
        work()

    child = in_child(stopped, errors)
    os.waitpid(child, os.WUNTRACED)
    tracer = subprocess.Popen(
        ["strace", "-q", "-f", "-p", str(child), "-e", f"trace={CALLS}", *options], stderr=subprocess.DEVNULL
    )
    while f"TracerPid:\t{tracer.pid}" not in Path(f"/proc/{child}/status").read_text():
        time.sleep(0.002)
    os.kill(child, signal.SIGCONT)
    code = wait(child)
    tracer.wait()
    return code


def _state(step: int) -> dict[str, Any]:
    recovery = {"rollbacks": 0, "pace": 1.0, "parts": 1, "history": []}
    return {"step": step, "weights": torch.full((40_000,), float(step)), "recovery": recovery}


def _begin(out: Path) -> None:
    run = Run(out, RECIPE)
    run.start(0)
    for step in (1, 2):
        run.log(step, step, {"loss": 0.5})
        run.save_state(_state(step))
    run.close()


def _check_begun(out: Path) -> str | None:
    return _check(out, (None, 1, 2))


def _save(out: Path) -> None:
    run = Run(out, RECIPE)
    run.start(2)
    run.log(3, 3, {"loss": 0.25})
    run.save_picture(3, torch.rand(3, 8, 8))
    run.save_state(_state(3))
    run.close()


def _check_saved(out: Path) -> str | None:
    return _check(out, (1, 2, 3))


def _check(out: Path, steps: tuple[int | None, ...]) -> str | None:
    """What is wrong with a run directory after a kill: it must open, hold a good state, and take a save."""
    try:
        run = Run(out, RECIPE)
        step = None if run.saved is None else run.saved["step"]
        good = step in steps and (run.saved is None or bool((run.saved["weights"] == step).all()))
        run.start(step or 0)
        run.save_state(_state(9))
        run.close()
        return None if good and not run.warnings else f"state of step {step}, {run.warnings}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _batch(number: int) -> Batch:
    generator = torch.Generator().manual_seed(number)
    images = torch.rand(2, 3, 16, 16, generator=generator)
    return Batch(images=images, targets=TASK.sample_targets(2, torch.device("cpu"), generator))


def _begin_set(out: Path) -> None:
    shards = Shards(out, RECIPE)
    shards.begin(["cat", "dog"])
    shards.write(0, TASK, _batch(0), {"weights": torch.ones(1000)})
    shards.close()


def _shard(out: Path) -> None:
    shards = Shards(out, RECIPE)
    shards.begin(["cat", "dog"])
    if shards.count == 1:
        shards.write(1, TASK, _batch(1), {"weights": torch.ones(1000)})
    shards.finish(TASK)
    shards.close()


def _check_set(out: Path) -> str | None:
    """What is wrong with a set after a kill: whole shards are sound, and going on gives two, none of them twice."""
    try:
        if damaged := list(made_set.damages(out)):
            return f"damaged before it is gone on with: {damaged}"
        _shard(out)
        images = sorted(file.name for file in (out / "data").rglob("*.png"))
        shards = Shards(out, RECIPE)
        if list(made_set.damages(out)) or (shards.count, shards.images, len(images)) != (2, 4, 4):
            return f"{shards.count} shards, {len(images)} images, damaged {list(made_set.damages(out))}"
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
