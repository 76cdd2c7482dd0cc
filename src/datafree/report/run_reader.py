"""Reading a run directory that may be incomplete, damaged, of another version or hostile.

Nothing is imported or executed; files have limits on their size, and what cannot be read is named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datafree.config import yaml
from datafree.evaluation.finished_run import mapping, number
from datafree.storage import strict_json, written
from datafree.storage.places import require_run
from datafree.storage.run_files import EnvironmentForm, MeasuredForm, ResultForm, StudentForm
from datafree.tasks import TASKS, Task

MAX_BYTES = 10_000_000  # of a file that describes the run
MAX_LOG = 100_000_000  # letters of metrics.jsonl that are read
MAX_SERIES = 64  # figures that are drawn
MEASURED = "measured.json"  # `datafree.report.profile` writes it


@dataclass(frozen=True, kw_only=True)
class Series:
    """A figure over a run."""

    name: str
    points: list[tuple[float, float]]  # step of the student (negative: warm-up), value


@dataclass(kw_only=True)
class Seen:
    """A run directory as far as it could be read; sections that could not are empty."""

    path: Path
    recipe: Mapping[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    student: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)
    series: dict[str, Series] = field(default_factory=dict)
    step: int | None = None  # the last that was logged
    samples: list[Path] = field(default_factory=list)  # from early to late
    missing: list[str] = field(default_factory=list)  # what is not there or cannot be read, a line each

    @property
    def name(self) -> str:
        given = self.recipe.get("name")
        return str(given)[:80] if isinstance(given, str) and given else self.path.resolve().name

    @property
    def finished(self) -> bool:
        return bool(self.result)

    @property
    def steps(self) -> int | None:
        """Of the student, as the recipe says."""
        found = number(mapping(self.recipe.get("training")).get("steps"))
        return None if found is None else int(found)

    @property
    def task(self) -> type[Task]:
        """Its class, if it is one of ours; else what holds for all tasks: a user's own class is not imported."""
        return TASKS.get(str(mapping(self.recipe.get("task")).get("kind")), Task)

    def latest(self) -> dict[str, float]:
        """The last value of every figure."""
        return {name: series.points[-1][1] for name, series in self.series.items()}


def read_run(path: Path) -> Seen:
    """Read a run directory. Raises RunError if it is none: no directory, or one that holds none of a run's files."""
    require_run(path)
    seen = Seen(path=path)
    seen.recipe_text = _read_text(path / "recipe.yaml", seen.missing) or ""
    seen.recipe = _parsed_recipe(seen)
    seen.environment = _parsed(seen, "environment.json", EnvironmentForm)
    _read_log(seen)
    found = [file for file in path.glob("samples/*.png") if file.stem.isdigit() and len(file.stem) < 12]
    seen.samples = sorted(found, key=lambda file: int(file.stem))
    if not seen.samples:
        seen.missing.append("samples/: there are no pictures")
    if not (path / "result.json").exists():
        seen.missing.append("result.json: the run has not finished")
    else:
        seen.result = _parsed(seen, "result.json", ResultForm)
    if seen.finished:
        seen.student = _parsed(seen, "student.json", StudentForm)
        if not (path / "student.safetensors").is_file():
            seen.missing.append("student.safetensors: the student's weights are not there")
        if not (path / MEASURED).exists():
            seen.missing.append(f"{MEASURED}: sizes, speed and agreement by class were not measured")
    if (path / MEASURED).exists():
        seen.measured = _parsed(seen, MEASURED, MeasuredForm)
    if seen.finished:
        _name_changed(seen)
    return seen


def _read_text(file: Path, missing: list[str]) -> str | None:
    """The text of a file; None where there is none to be read, which `missing` is told."""
    try:
        if not file.is_file():
            missing.append(f"{file.name}: not there")
        elif (size := file.stat().st_size) > MAX_BYTES:
            missing.append(f"{file.name}: left out, it has {size:,} bytes")
        else:
            return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        missing.append(f"{file.name}: cannot be read ({type(error).__name__})")
    return None


def _parsed(seen: Seen, name: str, form: type[strict_json.Form]) -> Mapping[str, Any]:
    """The parts of a JSON file that are in their form; the others are named."""
    if (text := _read_text(seen.path / name, seen.missing)) is None:
        return {}
    try:
        found = strict_json.look(text, form)
    except strict_json.Damaged as error:
        seen.missing.append(f"{name}: damaged ({error})")
        return {}
    seen.missing += [f"{name}: of another form than this version writes: {fault}"[:300] for fault in found.faults]
    if found.changed:
        seen.missing.append(f"{name}: changed since it was written; what it says may not be what the run did")
    return found.content


def _parsed_recipe(seen: Seen) -> Mapping[str, Any]:
    try:
        content = yaml.parse(seen.recipe_text, "recipe.yaml") if seen.recipe_text else {}
    except (ValueError, RecursionError):
        seen.missing.append("recipe.yaml: damaged")
        return {}
    if not isinstance(content, Mapping):
        seen.missing.append("recipe.yaml: of another form than this version writes")
        return {}
    return content


def _name_changed(seen: Seen) -> None:
    """Name the files whose digests are not those that the run noted at its end."""
    for name in sorted({*mapping(seen.result.get("sha256")), *mapping(seen.student.get("sha256"))}):
        file = seen.path / Path(name).name
        try:
            problem = written.difference(file) if file.is_file() else ""
        except OSError as error:
            problem = str(error.strerror)
        if problem:
            seen.missing.append(f"{file.name}: changed since it was written: {problem}")


def _read_log(seen: Seen) -> None:
    """Fill `series` and `step` from metrics.jsonl; lines that are torn or of another form are counted, not used."""
    torn = 0
    try:
        with (seen.path / "metrics.jsonl").open(encoding="utf-8", errors="replace") as file:
            lines = file.read(MAX_LOG).split("\n")
            whole = not file.read(1)
    except OSError:
        seen.missing.append("metrics.jsonl: not there")
        return
    if not whole:
        seen.missing.append(f"metrics.jsonl: what comes after its first {MAX_LOG:,} letters is left out")
    for line in filter(None, lines if whole else lines[:-1]):
        try:
            content = mapping(strict_json.parse(line)) if len(line) < 100_000 else {}
        except strict_json.Damaged:
            content = {}
        step = number(content.get("step"))
        if step is None:
            torn += 1
            continue
        seen.step = int(step)
        for name, given in content.items():
            value = number(given)
            if name in ("index", "step") or value is None or not math.isfinite(value):
                continue
            if name in seen.series or len(seen.series) < MAX_SERIES:
                seen.series.setdefault(name, Series(name=name, points=[])).points.append((step, value))
    if torn:
        seen.missing.append(f"metrics.jsonl: {torn} line{'s' if torn > 1 else ''} could not be read")
    if not seen.series:
        seen.missing.append("metrics.jsonl: nothing is logged yet")
