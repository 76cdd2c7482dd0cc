"""The tables of docs/results.md that rows and seeds make: how many seeds each row is to have, and what it may cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import budget
import camvid_rows
import classification_rows
import detection_rows
from claims import CLAIMS
from evidence import SEEDS
from pairs import Size, rows_of, teacher_of


@final
@dataclass(frozen=True, kw_only=True)
class Table:
    """One size of a benchmark."""

    rows: dict[str, int]  # row -> seeds
    needs: Callable[[str], list[str]]  # row -> rows of the same seed whose networks it uses
    guess: Callable[[str], float]  # processor minutes of a row that was never measured
    asks: tuple[tuple[str, ...], ...] = ()  # questions that are no claim's: rows of the first seed


def camvid(name: str) -> Table:
    """Main rows and those of claims with all seeds, the others with one."""
    size = camvid_rows.SIZES[name]
    many = {*camvid_rows.MAIN, *claimed(f"camvid-{name}")}
    rows = [*camvid_rows.MAIN, *camvid_rows.extra_rows(size)]
    return Table(
        rows={row: len(SEEDS) if row in many else 1 for row in rows},
        needs=camvid_rows.needs,
        guess=lambda row: street_minutes(row, size),
        asks=(("kd_proxy", *schedules(size)),) if size.schedules else (),
    )


def schedules(size: camvid_rows.Size) -> list[str]:
    """Weighted diversity alone and mixed, by GAN updates: does their difference from proxy photos grow?"""
    both = ("degan_weighted", "degan_weighted_mixed")
    updates = sorted({*size.schedules, size.gan_updates})
    return [camvid_rows.schedule_row(row, number, size) for number in updates for row in both]


def street_minutes(row: str, size: camvid_rows.Size) -> float:
    """From the rows of 64 x 64 pixels: 2 minutes for 1,000 steps of the student, 5 for 1,000 steps of the teacher or
    1,000 updates of a GAN.
    """
    if row == "teacher":
        return 5 * size.teacher_steps / 1000
    schedule = row.rpartition("_")[2] if row.startswith("schedule/") else ""
    updates = int(schedule or size.gan_updates)
    trains = row in ("dcgan", "degan", "degan_weighted") or row.startswith(("table2/", "schedule/"))
    return 2 * size.student_steps / 1000 + (5 * updates / 1000 if trains and row not in camvid_rows.GANS else 0)


def of_pairs(size: Size[Any], guess: float) -> Table:
    """All rows with all seeds; students use the teacher of their pair."""
    rows = rows_of(size)
    own = ("teacher", "labels")
    return Table(
        rows=dict.fromkeys(rows, len(SEEDS)),
        needs=lambda row: [] if rows[row].method in own else [teacher_of(row)],
        guess=lambda row: guess,
    )


def claimed(table: str) -> set[str]:
    """The rows of claims in a table."""
    return {name for claim in CLAIMS if table in claim.tables for name in (claim.row, claim.than) if name}


def nothing(row: str) -> list[str]:
    return []


CLASSIFICATION, DETECTION = classification_rows.SIZES, detection_rows.SIZES
TABLES = {
    "camvid-cpu": camvid("cpu"),
    "camvid-long": camvid("long"),
    "classification-cpu": of_pairs(CLASSIFICATION["cpu"], 5),
    "classification-long": of_pairs(CLASSIFICATION["long"], 20),
    "classification-cifar": of_pairs(CLASSIFICATION["cifar"], 35),
    "detection-cpu": of_pairs(DETECTION["cpu"], 13),
    "budget-cpu": Table(
        rows=dict.fromkeys(budget.ROWS, len(SEEDS)),
        needs=nothing,  # its teachers are its own
        guess=lambda row: float(row.rpartition("/")[2]),  # the time that it is given
    ),
}
SMOKE = {  # for the tests
    "classification-smoke": Table(
        rows={"example/teacher": 1, "example/noise": 1, "example/kd_real": 1},
        needs=of_pairs(CLASSIFICATION["smoke"], 0).needs,
        guess=lambda row: 0.2,
    ),
}
