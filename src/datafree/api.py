"""datafree from Python: `distill`, `evaluate`, `calibrate`, `export`.

    import datafree
    from my_nets import teacher, student            # two torch.nn.Modules

    result = datafree.distill(
        teacher={"network": teacher, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)},
        student=student,
        task={"kind": "classification", "num_classes": 10, "image_size": (32, 32)},
        source="cgdd",
        training={"steps": 2000, "batch_size": 64},
        out="runs/mine",
    )
    print(result.scores, result.student)

    datafree.distill("timm/resnet18", weights="x.safetensors", time="30m")  # student, task and source are chosen

What the command does is done here in the same way, by the same code: a call is a recipe whose sections may be objects.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datafree.config.paths import as_written
from datafree.config.schema import Invalid
from datafree.deploy.calibration.folder import IMAGES, TIME, Calibration
from datafree.deploy.calibration.folder import calibrate as make_calibration
from datafree.deploy.export_run import Exported, export_run
from datafree.deploy.written_names import require_calibration, require_count
from datafree.engine.artifacts import class_names
from datafree.engine.build_networks import Given, prepare
from datafree.engine.progress import Progress
from datafree.engine.stopping import Stop
from datafree.errors import NetworkError, RecipeError
from datafree.evaluation.scoring import evaluate as score
from datafree.evaluation.scoring import evaluate_run
from datafree.networks.load import NetworkSpec
from datafree.networks.normalized import Normalized, bare, device_of
from datafree.ops import modes
from datafree.ops.performance import as_it_came
from datafree.preflight.calibration_subject import calibration_subject
from datafree.preflight.call_sections import Network, fresh, network_section, plain, planned_time, seconds_said
from datafree.preflight.completion import Said, as_mapping, as_options, completed, get_size, wishes_of
from datafree.preflight.wishes import NEEDS_PHOTOS
from datafree.recipe.recipe import make_recipe, make_task_and_teacher
from datafree.recipe.training import TrainingOptions
from datafree.report.calibration_page import calibration_page
from datafree.run import run_recipe
from datafree.sources.base import ImageSource
from datafree.storage.places import require_for_run
from datafree.tasks.base import Scores, Task
from datafree.tasks.labelled import open_labelled
from datafree.text import show


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run came to."""

    run: Path  # the run directory
    student: nn.Module  # bare, in eval mode, where it was given or on the CPU: takes images as its mean and std have it
    network: Normalized  # the same, taking images (B, 3, H, W) in [0, 1]
    scores: dict[str, Scores]  # "teacher" and "student", fractions; empty without labelled data
    step: int  # whose student was kept
    agreement: float | None  # with the teacher on held-out images of the source, fraction; None: there were none
    notes: list[str]
    already_finished: bool  # the directory held this run's result: nothing was trained

    @property
    def paths(self) -> dict[str, Path]:
        """The files of the run directory by name."""
        return {file.name: file for file in sorted(self.run.iterdir()) if file.is_file()}


def distill(
    teacher: Network,
    student: Network | None = None,
    *,
    task: Task | Mapping[str, Any] | str | None = None,
    source: ImageSource | Mapping[str, Any] | str | None = None,
    out: str | Path | None = None,
    training: TrainingOptions | Mapping[str, Any] | None = None,
    data: str | Path | None = None,
    weights: str | Path | None = None,
    size: str | int | Sequence[int] | None = None,
    classes: int | None = None,
    compress: str | float | None = None,
    photos: str | Path | None = None,
    time: float | str | None = None,
    device: str | None = None,
    seed: int | None = None,
    max_time: float | str | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda line: None,
) -> Result:
    """Distil `teacher` into `student` without the teacher's data, into the run directory `out`.

    Where student, task or source are left out, they are chosen as `datafree distill TEACHER` chooses them, and `say` is
    told what and why; options then mean what they mean there: `weights` of the teacher, `size` of its images (224 or
    "224x320", height x width), `classes`, `compress`, `photos`, and `time` that the run is to take, as `max_time`.
    The teacher may be a weights file, too. `time`, `device` and `seed` are `training`'s. `out` is runs/NAME by default.

    `task`, `source` and `training` are objects, or mappings as a recipe's sections have them; a source may be its
    method's name. A network given as an object is called by its class; a student takes the teacher's mean, std,
    channels and order unless it says otherwise. A student given as an object is trained itself.
    `data`, a folder of labelled images, only scores both at the end. `max_time`, in seconds or as "9m", stops cleanly.
    `progress` is told where the run is, now and then, `say` what a user should know at once.

    The same call goes on with a run that was stopped; objects must then be of the same class, a teacher also of the
    same values. Random states of Python, NumPy and torch are those of before afterwards.

    Raises DatafreeError, nothing half-written: RecipeError for options, NetworkError, WeightsError, DataError, RunError
    for a directory that holds another run, TrainingError, and Interrupted when `max_time` is over.
    """
    networks = {"teacher": network_section(teacher, values=True)}
    if student is not None:
        networks["student"] = network_section(student, values=False)
    sections: dict[str, Any] = {
        "task": {"kind": task} if isinstance(task, str) else plain(task),
        **{what: section for what, (section, _) in networks.items()},
        "source": fresh({"method": source} if isinstance(source, str) else plain(source)),
        "training": plain(training),
        **({} if data is None else {"data": str(data)}),
    }
    said = Said(
        weights=weights,
        size=size,
        classes=classes,
        compress=compress,
        photos=photos,
        training={"time": planned_time(time), "device": device, "seed": seed},
    )
    place = None if out is None else as_written(out)
    if place is not None:
        require_for_run(place)
    given = Given(teacher=networks["teacher"][1], student=networks.get("student", ({}, None))[1])
    stop = Stop(None if max_time is None else seconds_said(max_time, "max_time"))
    with _as_before(*(network for _, network in networks.values() if network is not None)):
        sections, drafted = completed(sections, said, given.teacher, say)
        try:
            recipe = make_recipe(sections, "python")
        except Invalid as error:
            raise RecipeError([str(fault) for fault in error.faults]) from error
        run = Path("runs") / recipe.name if place is None else place
        outcome = run_recipe(recipe, run, given=given, stop=stop, log=progress, say=say, drafted=drafted)
        if given.student is None:
            as_it_came(outcome.student.to("cpu"))
    outcome.student.to(device_of(outcome.student)).eval()  # mean and std, too, where the network inside was put back
    outcome.student.dtype = torch.float32  # answers as those of its file, whatever it was trained in
    return Result(
        run=outcome.run,
        student=bare(outcome.student),
        network=outcome.student,
        scores=outcome.scores,
        step=outcome.chosen.step,
        agreement=outcome.chosen.agreement,
        notes=outcome.notes,
        already_finished=outcome.already_finished,
    )


def evaluate(
    what: str | Path | NetworkSpec | Mapping[str, Any] | nn.Module,
    data: str | Path,
    *,
    task: Task | Mapping[str, Any] | None = None,
    device: str = "auto",
    student: str | nn.Module | None = None,
) -> Scores:
    """Score on a folder of labelled images: a run directory's student, an exported .onnx file, or any network.

    A text or path is a directory or a file; a network by name is NetworkSpec(network=...), or a mapping. `task` is
    needed for networks alone. `student` is a run's network, or names its code, where the run cannot build it itself.
    Raises DatafreeError.
    """
    if isinstance(what, (str, Path)):
        if task is not None:
            raise NetworkError(f"{show(str(what))} says itself which task it is for: leave task out")
        return evaluate_run(as_written(what), as_written(data), device=device, student=student)["student"]
    if task is None:
        raise NetworkError("a network alone says nothing of its task: give task={'kind': ..., ...}")
    section, network = network_section(what, values=False)
    try:
        made, spec = make_task_and_teacher({"task": plain(task), "teacher": section})
    except Invalid as error:
        raise RecipeError([str(fault) for fault in error.faults]) from error
    where = modes.choose_device(device)
    known = [] if network is not None else class_names(spec, made) or []
    labelled = open_labelled(made, as_written(data), known)
    with _as_before(*([] if network is None else [network])):
        prepared = prepare(spec, made, "network", where, torch.float32, network)
        return score(prepared, made, labelled, device=where)


def calibrate(
    teacher: Network,
    out: str | Path = "calib",
    *,
    images: int = IMAGES,
    task: Task | Mapping[str, Any] | str | None = None,
    source: str | None = None,
    photos: str | Path | None = None,
    data: str | Path | None = None,
    int8: bool = True,
    weights: str | Path | None = None,
    size: str | int | Sequence[int] | None = None,
    classes: int | None = None,
    time: float | str = TIME,
    device: str | None = None,
    student: str | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
    progress: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda line: None,
) -> Calibration:
    """Make calibration images for INT8 from `teacher` itself, and its INT8 form, as `datafree calibrate` does.

    `teacher` as for `distill`, or a finished run's directory: its student. `source` is a method's name, `data` a folder
    of real images to compare with, `photos` one of a related kind that half of the images are taken from; the other
    options are the command's. Whether the images are any good is in the result's `within`, `agreement` and `warnings`.
    Raises DatafreeError, and then has written nothing.
    """
    require_count(images)
    seconds = seconds_said(time, "time")
    place = as_written(out)
    require_calibration(place)
    section, network = network_section(teacher, values=True)
    named, changes = as_options(as_mapping(section, weights))
    said = Said(weights=weights, size=size, classes=classes, compress=None, photos=photos)
    sections = {"task": {"kind": task} if isinstance(task, str) else plain(task)}
    wishes = dataclasses.replace(
        wishes_of(named, sections, said, get_size(sections["task"])),
        source=source,
        device=device,
        seed=seed,
        student=student,
    )
    where = modes.choose_device(device or "auto")
    with _as_before(*([] if network is None else [network])):
        wanted = calibration_subject(str(named["network"]), wishes, [*changes, *overrides], network)
        for line in wanted.lines:
            say(line)
        return make_calibration(
            wanted,
            place,
            page=calibration_page,
            images=images,
            seconds=seconds,
            photos_of=None if photos is None or source in NEEDS_PHOTOS else as_written(photos),
            data=None if data is None else as_written(data),
            int8=int8,
            device=where,
            seed=seed,
            log=progress,
            say=say,
        )


def export(run: str | Path, out: str | Path | None = None, **options: Any) -> Exported:
    """Write the student of a finished run as files to ship, into `out` or RUN/export.

    `options` are those of `export_run`: to, onnx, opset, int8, qat_steps, images, data, student, task, say. `student`
    may be the network itself, where it was given as an object. Raises DatafreeError.
    """
    paths = {name: as_written(options[name]) for name in ("images", "data") if options.get(name) is not None}
    return export_run(as_written(run), None if out is None else as_written(out), **{**options, **paths})


@contextmanager
def _as_before(*networks: nn.Module) -> Iterator[None]:
    """Put networks back to their devices, memory format and hooks afterwards, and every random state."""
    places = [next(network.parameters()).device for network in networks]
    random = modes.random_state()
    try:
        yield
    finally:
        modes.set_random_state(random)
        for network, place in zip(networks, places, strict=True):
            as_it_came(network.to(place))
