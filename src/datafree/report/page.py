"""The page of a run, or of several side by side, as one HTML file that asks nothing of any other."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from datafree.errors import RunError
from datafree.health.verdict import SIGNALS, judge
from datafree.report import sections
from datafree.report.charts import SHOWN, line_chart
from datafree.report.formats import formats
from datafree.report.image_grid import Picture
from datafree.report.run_reader import Seen, Series, read_run
from datafree.storage.atomic import cannot_write, write_whole
from datafree.storage.environment import version
from datafree.storage.held_folders import held
from datafree.text import readable, shown

PAGE = "report.html"  # in a run directory


def write_page(run: Path, out: Path | None = None) -> Path:
    """Write the page of a run directory to `out`, or as RUN/report.html; returns its place. Raises RunError."""
    seen = read_run(run)
    with held(run) if out is None else nullcontext():
        return save(render(seen), out or run / PAGE)


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of one run, or (as comparison.html unless `out` names a file) that of several. Raises RunError."""
    if len(runs) == 1:
        return write_page(runs[0], out)
    return save(render_comparison([read_run(run) for run in runs]), out or Path("comparison.html"))


def refresh(run: Path) -> None:
    """Write a run's page again, where it has one. Raises RunError."""
    if (run / PAGE).is_file():
        write_page(run)


def save(text: str, place: Path) -> Path:
    """Write a page whole. Raises RunError, for what is no ordinary file, or a file of another kind, too."""
    if place.is_file() and place.stat().st_size and not _is_page(place):
        raise RunError(f"{place} is there, and no page: it would be lost; choose another --out")
    try:
        write_whole(place, text.encode())
    except OSError as error:
        raise RunError(cannot_write(place, error, "choose another --out")) from error
    return place


def _is_page(file: Path) -> bool:
    try:
        with file.open("rb") as content:
            return content.read(9).lower() == b"<!doctype"
    except OSError:  # whoever writes it says so
        return True


def render(seen: Seen, *, live: bool = False) -> str:
    """The page of a run. `live`: it loads itself again whenever `datafree watch` has something new."""
    latest = seen.latest()
    strips, pairs = sections.pictures(seen)
    table = formats(seen)
    return fill(
        "run.html",
        live,
        seen=seen,
        status=sections.status(seen),
        facts=sections.facts(seen),
        networks=sections.networks(seen),
        scores=sections.scores(seen),
        verdict=judge(latest, seen.steps),
        restarts=sections.restarts(seen),
        signals=[(name, signal, latest.get(name)) for name, signal in SIGNALS.items()],
        strips=strips,
        pairs=pairs,
        colours=sections.colours(seen),
        by_class=sections.by_class(seen),
        curves=sections.curves(seen),
        snippet=sections.snippet(seen),
        formats=table,
        notes=sections.notes(seen),
        versions=sections.versions(seen),
        hardware=sections.hardware(seen),
        cost=sections.cost(seen),
    )


def render_comparison(runs: Sequence[Seen]) -> str:
    """The page of several runs. Raises RunError for fewer than two."""
    if len(runs) < 2:
        raise RunError("there is one run to compare; name two or more")
    names = unique_names(runs)
    rows = [Compared.of(name, seen) for name, seen in zip(names, runs, strict=True)]
    figures = list(dict.fromkeys(figure for row in rows for figure in row.scores))
    common = [name for name in [*SIGNALS, "loss"] if any(name in seen.series for seen in runs)]
    charts = []
    for figure in common:
        lines = [
            Series(name=name, points=seen.series[figure].points)
            for name, seen in zip(names, runs, strict=True)
            if figure in seen.series
        ]
        if max(len(line.points) for line in lines) < 2:
            continue
        title = SIGNALS[figure].title if figure in SIGNALS else figure
        charts.append(line_chart(title, lines, unit=sections.unit_of(figure)))
    return fill(
        "compare.html",
        False,
        rows=rows,
        figures=figures,
        charts=charts,
        shown=SHOWN,
        signals=SIGNALS,
        readable=readable,
        differing=differing(names, runs),
    )


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A run in a comparison."""

    name: str
    seen: Seen
    status: str
    verdict: Any
    scores: Mapping[str, float]  # the student's
    teacher: Mapping[str, float]
    latest: Mapping[str, float]
    strip: Picture | None  # its last

    @classmethod
    def of(cls, name: str, seen: Seen) -> Compared:
        found = sections.read_scores(seen)
        return cls(
            name=name,
            seen=seen,
            status=sections.status(seen),
            verdict=judge(seen.latest(), seen.steps),
            scores=found.get("student", {}),
            teacher=found.get("teacher", {}),
            latest=seen.latest(),
            strip=sections.last_strip(seen),
        )


def unique_names(runs: Sequence[Seen]) -> list[str]:
    """The runs' names; with their folders where two are alike."""
    names = [seen.path.resolve().name for seen in runs]
    return [name if names.count(name) == 1 else f"{seen.path}" for name, seen in zip(names, runs, strict=True)]


def differing(names: Sequence[str], runs: Sequence[Seen]) -> list[tuple[str, list[str]]]:
    """The recipes' keys that are not the same in all runs, and what each has there."""
    flat = [dict(_flat(seen.recipe)) for seen in runs]
    keys = dict.fromkeys(key for each in flat for key in each)
    return [
        (key, [each.get(key, "–") for each in flat])
        for key in keys
        if key != "name" and len({each.get(key) for each in flat}) > 1
    ][:60]


def _flat(content: Mapping[str, Any], before: str = "", depth: int = 0) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in content.items():
        name = f"{before}{key}"[:120]
        if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, Mapping) and value and depth < 6:
            found += _flat(value, f"{name}.", depth + 1)
        else:
            found.append((name, (value if isinstance(value, str) else json.dumps(value, default=str))[:200]))
    return found


def fill(template: str, live: bool, **values: Any) -> str:
    """A page of ours from one of the templates, with what all of them have: style, script, policy, version."""
    script = Markup(_resource("live.js" if live else "") + _resource("page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = (
        _environment()
        .get_template(template)
        .render(
            **values,
            live=live,
            style=Markup(_resource("page.css")),
            script=script,
            digest=digest,
            version=version(),
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            percent=sections.percent,
        )
    )
    return shown(page, lines=True)


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("datafree.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _resource(name: str) -> str:
    """A file beside the templates; it must not end the element it is put into."""
    text = resources.files("datafree.report").joinpath("templates", name).read_text("utf-8") if name else ""
    assert "</" not in text
    return text
