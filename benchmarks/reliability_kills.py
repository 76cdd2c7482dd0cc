"""Small runs of every source killed at random moments (`kill -9`), gone on with, and compared with unbroken ones."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datafree.recipe.recipe import Recipe
from datafree.run import run_recipe
from datafree.sources import SOURCES
from datafree.synthesis.synthesize import synthesize, verify
from datafree.tasks.detection import Detection
from recipes import sources  # type: ignore[import-not-found]  # of the tests
from small_runs import (  # type: ignore[import-not-found]
    assert_same,
    everything,
    labelled,
    recipe_for,
)

SETS = {"inversion": 12, "cgdd": 600}  # sources that data sets are made with, too, and how many images


def in_child(work: Callable[[], object], errors: Path) -> int:
    """Begin `work` in a forked process, whose trace goes to `errors` if it fails; its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        errors.write_text(traceback.format_exc())
    finally:
        os._exit(status)


def wait(child: int) -> int:
    """The exit code of a child; minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_after(seconds: float, work: Callable[[], object], errors: Path) -> bool:
    """Begin `work` and kill it after so long; whether it was still at it."""
    child = in_child(work, errors)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return wait(child) == -signal.SIGKILL


def kills(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Kill `count` runs at moments drawn evenly over their length; go on with each and compare every bit."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    draw, errors = random.Random(seed), folder / "error.txt"
    runs = [f"distill {method}" for method in SOURCES] + [f"synthesize {method}" for method in SETS]
    works = {name: _work(name, folder) for name in runs}
    lengths, wanted = {}, {}
    for name, (work, look) in works.items():
        began = time.monotonic()
        assert wait(in_child(partial(work, folder / "unbroken" / name), errors)) == 0, errors
        lengths[name] = time.monotonic() - began
        wanted[name] = look(folder / "unbroken" / name)
    broken: list[str] = []
    phases: Counter[str] = Counter()
    by_run: Counter[str] = Counter()
    for number in range(count):
        name = runs[number % len(runs)]
        work, look = works[name]
        out = folder / "killed" / f"{number:03} {name}"
        while not killed_after(draw.uniform(0, lengths[name]), partial(work, out), errors):
            shutil.rmtree(out)  # it had ended before
        phase = _phase(out)
        phases[phase] += 1
        by_run[name] += 1
        if wait(in_child(partial(work, out), errors)) != 0:
            last = errors.read_text().strip().splitlines()[-1]
            broken.append(f"{name}, killed in phase {phase}: does not go on: {last}")
        else:
            try:
                assert_same(wanted[name], look(out))
            except AssertionError as error:
                broken.append(f"{name}, killed in phase {phase}: not the same bits: {error}")
        shutil.rmtree(out, ignore_errors=True)
        print(f"kills: {number + 1} of {count}, {name}, {phase}, broken {len(broken)}", flush=True)
    good = count - len(broken)
    return {"kills": count, "went_on_to_the_same_bits": good, "phases": phases, "runs": by_run, "broken": broken}


def _work(name: str, folder: Path) -> tuple[Callable[[Path], object], Callable[[Path], Any]]:
    """What is run into a directory, and what of the directory is compared."""
    verb, method = name.split()
    inputs = folder / "inputs" / name
    inputs.mkdir(parents=True)
    section = sources(labelled(inputs / "made") if method == "dataset" else _photos(inputs / "photos"))[method]
    recipe_for(inputs, section)  # writes the teacher's weights, in this process

    def recipe() -> Recipe:
        made = recipe_for(inputs, section)
        detects = SOURCES[method].serves is Detection
        data = None if detects else inputs / "labelled"
        if data is not None and not data.exists():
            labelled(data)
        return Recipe(**{**made.__dict__, "data": data})

    recipe()
    if verb == "distill":
        return lambda out: run_recipe(recipe(), out), everything

    def look(out: Path) -> Any:
        verify(recipe(), out)
        files = {file.relative_to(out).as_posix(): file.read_bytes() for file in (out / "data").rglob("*.png")}
        records = [json.loads(file.read_text()) for file in sorted((out / "shards").glob("*.json"))]
        return {"files": files, "records": records}

    return lambda out: synthesize(recipe(), out, SETS[method]), look


def _photos(folder: Path, count: int = 10) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        pixels = rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03}.png")
    return folder


def _phase(out: Path) -> str:
    """Where a run was when it was killed, by what lies there."""
    if (out / "shards").is_dir():
        return f"data set, {len(list((out / 'shards').glob('*.json')))} shards"
    if not (out / "recipe.yaml").exists():
        return "before the first file"
    if (out / "student.safetensors").exists():
        return "final files and scores"
    lines = (out / "metrics.jsonl").read_text().splitlines() if (out / "metrics.jsonl").exists() else []
    steps = [json.loads(line)["step"] for line in lines if line.endswith("}")]
    return "training" if steps and steps[-1] >= 0 else "beginning or warm-up"
