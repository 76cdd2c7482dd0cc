"""Loading the student of a finished run: its record, and the network built again.

A run directory is not trusted: it can neither name code to import nor have anything downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datafree.config import schema, yaml
from datafree.errors import NetworkError, RunError
from datafree.networks.checkpoints.weights import load_weights
from datafree.networks.checks.one_output import settle_one_output
from datafree.networks.load import NetworkSpec, adapted, build_network, refuse_files
from datafree.networks.normalized import Normalized, bare
from datafree.networks.onnx import OnnxNetwork
from datafree.networks.pretrained import PRETRAINED
from datafree.recipe.recipe import FAMILIES, TASK
from datafree.storage import strict_json, written
from datafree.storage.places import require_student
from datafree.storage.run_files import EnvironmentForm, ResultForm, StudentForm
from datafree.tasks import TASKS
from datafree.tasks.base import Scores, Task, synthetic_batch
from datafree.text import one_line, show


@dataclass(frozen=True, kw_only=True)
class Student:
    """A finished run's student, on the CPU."""

    spec: NetworkSpec  # what it is called and what its images must be; `weights` is the run's file
    task: Task
    network: Normalized  # images in [0, 1] -> answers of the task
    class_names: list[str]  # one for each class, or empty: nobody has said
    taught_by: Mapping[str, Any]  # as `describe_teacher`; empty: not recorded


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a run directory says of how its student came to be. Empty or None: it does not say."""

    source: Mapping[str, Any]  # the recipe's sections
    training: Mapping[str, Any]
    scores: dict[str, Scores]  # "teacher" and "student", on the data the recipe names
    scored_on: str | None
    step: int | None  # whose student was kept
    agreement: float | None  # with the teacher on the source's held-out images, fraction of rows
    seconds: float | None  # the run took; since it was last resumed, if it was
    resumed: bool
    environment: Mapping[str, Any]  # "versions", "hardware", "began"
    faults: list[str]  # a line for each file that says nothing because it is not as it was written


def load_student(run: Path, *, student: str | nn.Module | None = None, task: str | None = None) -> Student:
    """The student of a run directory, built again with its weights, both as the run wrote them.

    Where its network or its task came from an import path, `student` ("mypkg.nets:make_net") or `task`
    ("mypkg.tasks:Mine") names it again; arguments after its "?" replace the recorded ones. Where its network was given
    as an object, or to spare the building, `student` is that object, which takes the run's weights. Raises RunError,
    NetworkError, WeightsError.
    """
    file = run / "student.json"
    described = _read_description(run)
    section, task_section = dict(described["network"]), dict(described["task"])
    section["weights"] = None  # its place is no text to be expanded
    name = None if isinstance(student, nn.Module) else student
    try:
        recorded: NetworkSpec = schema.build(NetworkSpec, {"network": name, **section})
    except schema.Invalid as error:
        raise RunError(f"{file} does not describe a student: {error.faults[0]}") from error
    args = {name: value for name, value in recorded.args.items() if name not in PRETRAINED}
    named = NetworkSpec(network=name or recorded.network)  # what the user names has the last word
    if ":" not in named.network:  # own code is told what the run says, and does with it what it likes
        refuse_files(named.network, {name: value for name, value in args.items() if name not in named.args})
    spec = replace(recorded, network=named.network, args={**args, **named.args})
    weights = run / "student.safetensors"
    made = read_task(task_section, task, str(file))
    if isinstance(student, nn.Module):
        network = adapted(student)
        load_weights(bare(network), weights)
    else:
        spec = replace(spec, weights=weights)
        network = build_network(spec, num_classes=made.num_classes, allow_import=student is not None)
    wrapped = spec.wrap(network)
    if made.num_classes == 2:
        settle_one_output(wrapped, synthetic_batch(made.image_size, torch.device("cpu")))
    return Student(
        spec=spec,
        task=made,
        network=wrapped,
        class_names=read_class_names(described.get("class_names"), made),
        taught_by=mapping(described.get("teacher")),
    )


def load_onnx(file: Path, *, task: str | None = None) -> tuple[Task, OnnxNetwork]:
    """The network in an ONNX file of `datafree export` and the task it says it is for; `task` as in `load_student`.

    Raises RunError, NetworkError, WeightsError; DatafreeError without onnxruntime.
    """
    network = OnnxNetwork(file)
    section = network.description.get("task")
    if not isinstance(section, Mapping):
        raise NetworkError(f"{file} does not say which task it is for; make it again with `datafree export RUN`")
    return read_task(section, task, str(file)), network


def read_record(run: Path) -> Record:
    """What the directory says; a file that is missing, damaged, changed or of another form says nothing."""
    faults: list[str] = []
    recipe = _read_recipe(run / "recipe.yaml", faults)
    result = _read(run / "result.json", ResultForm, faults)
    environment = _read(run / "environment.json", EnvironmentForm, faults)
    chosen = mapping(result.get("chosen"))
    cost = mapping(_read(run / "student.json", StudentForm, faults).get("cost"))
    return Record(
        source=mapping(recipe.get("source")),
        training=mapping(recipe.get("training")),
        scores={str(who): made for who, given in mapping(result.get("scores")).items() if (made := _scores(given))},
        scored_on=found if isinstance(found := result.get("scored_on"), str) else None,
        step=None if (step := number(chosen.get("step"))) is None else int(step),
        agreement=number(chosen.get("agreement")),
        seconds=number(cost.get("seconds")),
        resumed=cost.get("resumed") is True,
        environment=environment,
        faults=faults,
    )


def read_task(section: Mapping[str, Any], task: str | None, where: str) -> Task:
    """The task of a section found at `where`; `task` names its class if it is none of datafree's. Raises RunError."""
    section = {**section, "kind": task or section.get("kind")}
    if task is None and not (isinstance(section["kind"], str) and section["kind"] in TASKS):
        raise RunError(f"{where} names no task of datafree's ({show(section['kind'])}); give yours with --task")
    try:
        made: Task = schema.choose(TASK, section, FAMILIES)
    except schema.Invalid as error:
        raise RunError(f"{where} does not describe a task: {error.faults[0]}") from error
    return made


def read_class_names(given: object, task: Task) -> list[str]:
    """A file's names of the task's classes, or none if they are not one for each class."""
    names = [name for name in given if isinstance(name, str)] if isinstance(given, list) else []
    return names if len(names) == task.num_classes else []


def mapping(value: object) -> Mapping[str, Any]:
    """`value` if it is a mapping, else an empty one: for parts of a file that may be missing or of another form."""
    return value if isinstance(value, Mapping) else {}


def number(value: object) -> float | None:
    """`value` if it is a number of a sensible size, else None: for parts of a file that may be of another form."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15
    return float(value) if good and isinstance(value, (int, float)) else None


def _read_description(run: Path) -> dict[str, Any]:
    """A run's student.json, its sections being sections. Raises RunError."""
    file = run / "student.json"
    require_student(run)
    written.check(file)
    try:
        return strict_json.read(file, StudentForm)
    except strict_json.Damaged as error:
        raise RunError(f"{file} is damaged ({error}); take the run from its original place") from error


def _scores(given: object) -> Scores | None:
    values = {str(name): value for name, value in mapping(mapping(given).get("values")).items()}
    numbers = {name: found for name, value in values.items() if (found := number(value)) is not None}
    return Scores(values=numbers) if numbers else None


def _read(file: Path, form: type[strict_json.Form], faults: list[str]) -> Mapping[str, Any]:
    """The parts of a JSON file that are as it was written and in their form; `faults` is told of the others."""
    if not file.is_file():
        return {}
    try:
        if _changed(file, faults):
            return {}
        found = strict_json.look_at(file, form)
    except (OSError, strict_json.Damaged) as error:
        faults.append(f"{file.name} is left out: {error.strerror if isinstance(error, OSError) else error}")
        return {}
    faults += [f"{file.name}: {fault}" for fault in found.faults]
    if found.changed:
        faults.append(f"{file.name} is left out, it has changed since it was written: its checksum does not match")
    return {} if found.changed else found.content


def _read_recipe(file: Path, faults: list[str]) -> Mapping[str, Any]:
    try:
        if not file.is_file() or file.stat().st_size > strict_json.MAX_BYTES or _changed(file, faults):
            return {}
        return mapping(yaml.parse(file.read_text(encoding="utf-8"), file.name))
    except (OSError, ValueError, RecursionError) as error:
        faults.append(f"{file.name} is left out: {one_line(error)}")
        return {}


def _changed(file: Path, faults: list[str]) -> bool:
    """Whether the run notes another digest of a file; `faults` is told."""
    if problem := written.difference(file):
        faults.append(f"{file.name} is left out, it has changed since it was written: {problem}")
    return bool(problem)
