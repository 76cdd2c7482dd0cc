"""What the page of a run says, section by section, in plain values that the template lays out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from datafree.engine.progress import place
from datafree.errors import DatafreeError
from datafree.evaluation.finished_run import load_student, mapping, number
from datafree.health.verdict import SIGNALS
from datafree.report import image_grid
from datafree.report.charts import Chart, line_chart
from datafree.report.image_grid import Picture
from datafree.report.run_reader import Seen
from datafree.text import readable

SIDE_BY_SIDE = 4  # images
UNITS = {
    "loss": "the task's loss",
    "class_balance": "share of full balance",
    "confidence": "probability",
    "pixel_diversity": "standard deviation of pixels in [0, 1]",
    "held_out_feature_diversity": "cosine distance",
    "statistics_distance": "standard deviations",
    "agreement": "fraction",
    "calibration_gap": "probability",
}


def status(seen: Seen) -> str:
    """Where the run is, in words."""
    if seen.finished:
        return "finished"
    if seen.step is None:
        return "not begun, or nothing logged"
    warmup = round(number(mapping(seen.recipe.get("source")).get("warmup")) or 0)
    if seen.step < 0 and warmup:
        return f"in progress or stopped {place(seen.step, -warmup, seen.steps or 0)}"
    return f"in progress or stopped at step {seen.step:,}" + (f" of {seen.steps:,}" if seen.steps else "")


def facts(seen: Seen) -> list[tuple[str, str]]:
    """What was asked for, in a few words."""
    task, source, training = (mapping(seen.recipe.get(part)) for part in ("task", "source", "training"))
    found = []
    if kind := _text(task.get("kind")):
        size = task.get("image_size")
        pixels = f", {size[0]} × {size[1]} pixels" if isinstance(size, list) and len(size) == 2 else ""
        found.append(("task", f"{kind}, {task.get('num_classes')} classes{pixels}"[:120]))
    if method := _text(source.get("method")):
        found.append(("images from", method))
    for what in ("teacher", "student"):
        if name := _text(mapping(seen.recipe.get(what)).get("network")):
            found.append((what, name))
    if training:
        found.append(("training", f"{training.get('steps')} steps of {training.get('batch_size')} images"[:80]))
        found.append(("seed", str(training.get("seed"))[:20]))
    return found


@dataclass(frozen=True, kw_only=True)
class Row:
    """A figure of both networks; a text is "–" where it is not known."""

    name: str
    teacher: str
    student: str
    share: str  # the student's of the teacher's


def networks(seen: Seen) -> list[Row]:
    """Cost of teacher and student, as far as it was measured."""
    both = mapping(seen.measured.get("networks"))
    theirs, ours = mapping(both.get("teacher")), mapping(both.get("student"))
    if not theirs and (count := number(mapping(seen.student.get("teacher")).get("parameters"))):
        theirs = {"parameters": count}
    kinds = (  # name, key, factor, form
        ("parameters", "parameters", 1, "{:,.0f}"),
        ("weights", "bytes", 1e-6, "{:,.2f} MB"),
        ("multiply-adds, one image", "multiply_adds", 1e-6, "{:,.1f} M"),
        ("time, one image", "seconds", 1e3, "{:,.2f} ms"),
    )
    rows = []
    for name, key, factor, form in kinds:
        one, other = number(theirs.get(key)), number(ours.get(key))
        if one is not None or other is not None:
            rows.append(
                Row(
                    name=name,
                    teacher="–" if one is None else form.format(factor * one),
                    student="–" if other is None else form.format(factor * other),
                    share=percent(other / one) if one and other is not None else "–",
                )
            )
    return rows


def read_scores(seen: Seen) -> dict[str, dict[str, float]]:
    """ "teacher" and "student" -> figure -> value, a fraction; empty without labelled data."""
    found = {}
    for who in ("teacher", "student"):
        values = mapping(mapping(mapping(seen.result.get("scores")).get(who)).get("values"))
        numbers = {str(k)[:60]: v for k, given in values.items() if (v := number(given)) is not None}
        if numbers:
            found[who] = numbers
    return found


def scores(seen: Seen) -> list[Row]:
    """The scores on labelled data."""
    found = read_scores(seen)
    theirs, ours = found.get("teacher", {}), found.get("student", {})
    return [
        Row(
            name=readable(name),
            teacher=percent(theirs.get(name)),
            student=percent(ours.get(name)),
            share=percent(ours[name] / theirs[name]) if theirs.get(name) and name in ours else "–",
        )
        for name in dict.fromkeys([*theirs, *ours])
    ]


def restarts(seen: Seen) -> list[str]:
    """Notes on collapses that the guard has mended."""
    return [note for note in notes(seen) if "collapsed" in note]


def pictures(seen: Seen) -> tuple[list[Picture], list[list[Picture]]]:
    """Strips from early to late; and for dense tasks images with both networks' answers, large."""
    room, found, pairs = image_grid.BUDGET, [], []
    size = _image_size(seen)
    files = image_grid.chosen(seen.samples)
    warmup = number(mapping(seen.recipe.get("source")).get("warmup")) or 0
    for file in files:
        image = image_grid.read_picture(file)
        if image is None:
            seen.missing.append(f"samples/{file.name}: cannot be shown")
            continue
        rows = image_grid.titles(image_grid.rows_in(image, size) if size else None, trained=int(file.stem) > warmup)
        below = ", ".join(image_grid.MEANING[title] for title in rows[1:])
        step = int(file.stem) - round(warmup)
        caption = f"step {step:,}" if step > 0 else f"update {int(file.stem):,} of the warm-up"
        picture = image_grid.inline(
            image, f"Made images at {caption}; below: {below}", caption, room=room // len(files)
        )
        if picture is not None:
            found.append(picture)
            room -= len(picture.uri) * 3 // 4 // len(files)
    last = image_grid.read_picture(files[-1]) if files else None
    if last is not None and size and seen.task.localizes:
        titles = image_grid.titles(image_grid.rows_in(last, size), trained=int(files[-1].stem) > warmup)
        for index, column in enumerate(image_grid.cells(last, size)[:SIDE_BY_SIDE]):
            large = [
                image_grid.inline(cell, f"{title} of example {index + 1}", title, room=20_000)
                for title, cell in zip(titles, column, strict=True)
            ]
            if "student" in titles and all(large):
                pairs.append([picture for picture in large if picture])
    return found, pairs


def last_strip(seen: Seen) -> Picture | None:
    """What the run made last, small."""
    image = image_grid.read_picture(seen.samples[-1]) if seen.samples else None
    return None if image is None else image_grid.inline(image, "Images made last, and the answers to them", room=80_000)


def class_names(seen: Seen) -> list[str]:
    """One for each class: the data's, else "class 0", ...; none where not even their number is known."""
    count = number(mapping(seen.recipe.get("task")).get("num_classes"))
    if count is None or not 1 <= count <= 2000:
        return []
    given = seen.student.get("class_names")
    if not isinstance(given, list):
        given = list(_per_class(seen, "teacher"))
    names = [str(name)[:60] for name in given]
    return names if len(names) == int(count) else [f"class {index}" for index in range(int(count))]


def colours(seen: Seen) -> list[tuple[int, str, str]]:
    """Id, name and colour of each class in pictures; none where there are too many to tell apart."""
    names = class_names(seen)
    if not 1 < len(names) <= 40 or not seen.samples:
        return []
    values = (255 * seen.task.colours(len(names))).round().int().tolist()
    return [(i, name, f"rgb({r} {g} {b})") for i, (name, (r, g, b)) in enumerate(zip(names, values, strict=True))]


@dataclass(frozen=True, kw_only=True)
class ByClass:
    """A class; None is not known."""

    name: str
    agreement: float | None
    teacher: float | None  # its score on labelled data
    student: float | None


def by_class(seen: Seen) -> tuple[str, list[ByClass]]:
    """The name of the score by class (or nothing), and a row for each class, at most 200."""
    names = class_names(seen)
    given = seen.measured.get("class_agreement")
    all_agree = [number(value) for value in given] if isinstance(given, list) and len(given) == len(names) else []
    theirs, ours = _per_class(seen, "teacher"), _per_class(seen, "student")
    if not all_agree and not ours:
        return "", []
    figures = mapping(mapping(mapping(seen.result.get("scores")).get("student")).get("per_class"))
    figure = readable(str(next(iter(figures), "score")))[:40] if ours else ""
    rows = [
        ByClass(
            name=name, agreement=all_agree[i] if all_agree else None, teacher=theirs.get(name), student=ours.get(name)
        )
        for i, name in enumerate(names)
    ]
    return figure, rows[:200]


def _per_class(seen: Seen, who: str) -> dict[str, float]:
    figures = mapping(mapping(mapping(seen.result.get("scores")).get(who)).get("per_class"))
    first = mapping(next(iter(figures.values()), None))
    return {str(name)[:60]: value for name, given in first.items() if (value := number(given)) is not None}


def curves(seen: Seen) -> tuple[list[Chart], list[Chart]]:
    """Charts of the signals of health, and of everything else that was logged more than once, the loss first."""
    drawn = [name for name, series in seen.series.items() if len(series.points) > 1]
    health = [
        line_chart(signal.title, [seen.series[name]], unit=unit_of(name))
        for name, signal in SIGNALS.items()
        if name in drawn
    ]
    others = sorted((name for name in drawn if name not in SIGNALS), key=lambda name: name != "loss")
    return health, [line_chart(readable(name), [seen.series[name]], unit=unit_of(name)) for name in others]


def unit_of(name: str) -> str:
    """What a figure is measured in."""
    known = UNITS.get(name) or UNITS.get(name.removeprefix("held_out_"))
    return known or ("fraction" if name.startswith("agreement") else "as logged")


def snippet(seen: Seen) -> str:
    """Code that loads the student."""
    from datafree.deploy.snippets import load_snippet

    if not seen.finished:
        return ""
    try:
        return load_snippet(load_student(seen.path))
    except DatafreeError as error:
        seen.missing.append(f"how to load the student: {str(error)[:300]}")
        return ""


def notes(seen: Seen) -> list[str]:
    given = seen.result.get("notes")
    return [str(note)[:1000] for note in given[:50]] if isinstance(given, list) else []


def versions(seen: Seen) -> list[tuple[str, str]]:
    found = mapping(seen.environment.get("versions"))
    return [(str(name)[:60], str(value)[:60]) for name, value in list(found.items())[:40]]


def hardware(seen: Seen) -> list[tuple[str, str]]:
    found = mapping(seen.environment.get("hardware"))
    known = [
        (str(name)[:60], "none" if value is None else str(value)[:120]) for name, value in list(found.items())[:20]
    ]
    began = _text(seen.environment.get("began"))
    return [*known, ("began", began)] if began else known


def cost(seen: Seen) -> list[tuple[str, str]]:
    given = mapping(seen.student.get("cost"))
    seconds = number(given.get("seconds"))
    if seconds is None:
        return []
    minutes = f"{int(seconds // 60)} min {seconds % 60:.0f} s"
    return [("wall time", minutes + (" since it was last resumed" if given.get("resumed") is True else ""))]


def percent(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def _image_size(seen: Seen) -> tuple[int, int] | None:
    size = mapping(seen.recipe.get("task")).get("image_size")
    if not isinstance(size, list) or len(size) != 2:
        return None
    height, width = (number(side) for side in size)
    if height is None or width is None or not (1 <= height <= 4096 and 1 <= width <= 4096):
        return None
    return int(height), int(width)


def _text(value: object) -> str:
    return value[:120] if isinstance(value, str) else ""
