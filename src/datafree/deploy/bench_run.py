"""How long a run's teacher and student take for one image on this machine, in torch and in each runtime of the export.

Networks take turns in rounds, so that whatever else the machine does falls on all of them. Only the processor is timed.

B images, H x W pixels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from datafree.config import schema, yaml
from datafree.deploy.bench_file import Bench, Timed, write_bench
from datafree.deploy.export_config import read_export
from datafree.deploy.export_record import Export
from datafree.deploy.formats import FORMATS
from datafree.deploy.made_images import images_to_compare
from datafree.deploy.model_card import model_card
from datafree.deploy.written_names import is_export_of
from datafree.engine.build_networks import prepare
from datafree.engine.progress import Progress, Work
from datafree.errors import DatafreeError, RunError
from datafree.evaluation.finished_run import load_student, mapping, read_record
from datafree.networks.load import NetworkSpec, build_network, refuse_files
from datafree.networks.normalized import bare, size_of
from datafree.networks.pretrained import PRETRAINED
from datafree.ops import modes
from datafree.recipe.recipe import Recipe
from datafree.storage import strict_json
from datafree.storage.atomic import cannot_write, sha256_of, write_whole
from datafree.storage.environment import hardware
from datafree.tasks.base import Task
from datafree.text import size

ROUNDS = 5
PASSES = 3  # of a network in a round, at least
SECONDS = 0.2  # that its passes of a round take together, at least


@dataclass(frozen=True, kw_only=True)
class _Timer:
    """A network to time."""

    network: nn.Module
    about: Timed  # all but its times


@torch.no_grad()
def bench_run(
    run: Path,
    *,
    threads: int | None = None,
    rounds: int = ROUNDS,
    teacher: Recipe | None = None,
    student: str | nn.Module | None = None,
    task: str | None = None,
    say: Callable[[str], None] = lambda line: None,
    log: Callable[[Progress], None] = lambda progress: None,
) -> tuple[Bench, Export]:
    """Time a run's networks, write RUN/bench.json, and RUN/export/README.md again. Returns both.

    `threads`: of each runtime, torch's number by default. The teacher is built from the run's recipe, without its
    weights, on which no time depends; where it is of the user's own code, the recipe `teacher` builds it. `student` and
    `task` as in `load_student`. Raises DatafreeError.
    """
    loaded, record, folder = load_student(run, student=student, task=task), read_record(run), run / "export"
    try:
        export = read_export(folder) or Export()
    except strict_json.Damaged as error:
        raise RunError(f"{folder}/config.json is damaged ({error}); run `datafree export` again") from error
    notes = [] if export.made else [f"{run} holds no export in another format; `datafree export --to ...` makes one"]
    if export.made and not is_export_of(run, folder):
        export = Export()
        notes = [f"{folder} is of another student than {run} holds now, and left out; `datafree export` makes it again"]
    images = images_to_compare(run, loaded.task)[0][:1].float() / 255
    with _threads(threads) as used:
        timers: dict[str, _Timer] = {}
        try:
            timers["teacher"] = _in_torch(_teacher(run, loaded.task, teacher))
        except DatafreeError as error:
            notes.append(f"the teacher was not timed: {error}")
        timers["student"] = _in_torch(loaded.network)
        for made in export.made:
            try:
                timers[made.file] = _in_runtime(folder, made.file, export)
            except DatafreeError as error:
                notes.append(f"{made.file} was not timed: {error}")
        say(f"timing {', '.join(timers)}; {used} thread{'s' if used > 1 else ''}")
        with modes.frozen(*(timer.network for timer in timers.values())):
            passes = _rounds(timers, images, rounds, Work("bench", rounds, log))
    rows = {name: _timed(timer.about, passes[name]) for name, timer in timers.items()}
    bench = Bench(threads=used, rounds=rounds, hardware=hardware(), rows=rows, notes=notes)
    write_bench(run, bench)
    if export.made:
        try:
            write_whole(folder / "README.md", model_card(loaded, record, export, bench).encode())
        except OSError as error:
            raise RunError(cannot_write(folder / "README.md", error)) from error
    return bench, export


def _in_torch(network: nn.Module) -> _Timer:
    about = Timed(runtime=f"torch {torch.__version__}", seconds=0, low=0, high=0, bytes=size_of(bare(network)))
    return _Timer(network=network, about=about)


def _in_runtime(folder: Path, file: str, export: Export) -> _Timer:
    """Raises DatafreeError for a file that is gone, is another one or cannot be opened here."""
    made = next(each for each in export.made if each.file == file)
    place, kind = folder / file, FORMATS.get(made.format)
    if kind is None or file not in [kind.files(int8)[0] for int8 in (False, True)]:
        raise RunError(f"{made.format!r} is no format of this version")
    if kind.unverified:
        raise RunError(kind.unverified)
    kind.require()
    if not place.is_file() or sha256_of(place) != made.sha256:
        raise RunError("it is not the file that was exported; run `datafree export` again")
    try:
        network = kind.open(place)
    except DatafreeError:
        raise
    except Exception as error:  # of classes that runtimes do not export
        raise RunError(f"{kind.runtime} cannot open it ({type(error).__name__})") from error
    return _Timer(
        network=network,
        about=Timed(runtime=kind.runtime, seconds=0, low=0, high=0, bytes=made.bytes, sha256=made.sha256),
    )


def _teacher(run: Path, task: Task, recipe: Recipe | None) -> nn.Module:
    """The teacher's network on the CPU. Raises DatafreeError."""
    if recipe is not None:
        return prepare(recipe.teacher, task, "teacher", torch.device("cpu"), torch.float32)
    file, way = run / "recipe.yaml", "name its recipe with --teacher"
    try:
        if file.stat().st_size > strict_json.MAX_BYTES:
            raise RunError(f"{file} has {size(file.stat().st_size)}; {way}")
        section = mapping(mapping(yaml.parse(file.read_text(encoding="utf-8"), file.name)).get("teacher"))
        spec: NetworkSpec = schema.build(NetworkSpec, {**section, "weights": None})
    except (OSError, ValueError, RecursionError, schema.Invalid) as error:
        raise RunError(f"{file} does not say which it is; {way}") from error
    if spec.is_own_code or spec.is_program or spec.is_directory:
        raise RunError(f"it is of code or a file of its own; {way}")
    args = {name: value for name, value in spec.args.items() if name not in PRETRAINED}
    refuse_files(spec.network, args)
    spec = replace(spec, args=args)
    return spec.wrap(build_network(spec, num_classes=task.num_classes))


@contextmanager
def _threads(wanted: int | None) -> Iterator[int]:
    """torch's number of threads, which all runtimes take."""
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def _rounds(timers: dict[str, _Timer], images: Tensor, rounds: int, work: Work) -> dict[str, list[float]]:
    """Seconds of each pass of each network."""
    passes: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(rounds):
        work.next("a round of each network")
        for name, timer in timers.items():
            timer.network(images)  # what was not used for a while is slow once
            passes[name] += _passes(timer.network, images)
    work.at(rounds)
    return passes


def _passes(network: nn.Module, images: Tensor) -> list[float]:
    taken: list[float] = []
    while len(taken) < PASSES or sum(taken) < SECONDS:
        began = time.perf_counter()
        network(images)
        taken.append(time.perf_counter() - began)
    return taken


def _timed(about: Timed, taken: list[float]) -> Timed:
    low, median, high = statistics.quantiles(taken, n=4)
    return replace(about, seconds=median, low=low, high=high)
