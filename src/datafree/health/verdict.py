"""The verdict on health metrics, in words, and which of them can be relied upon.

Limits are set by what finished benchmark runs showed (docs/health.md, benchmarks/health.py). No torch here: pages and
terminals judge figures that were logged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

# At least one of these is needed to judge by: a student of useless images agrees with its teacher on them all the same.
OF_IMAGES = (
    "held_out_class_balance",
    "held_out_feature_diversity",
    "held_out_pixel_diversity",
    "statistics_distance",
)
LEAST_PIXELS = 0.01  # pixel diversity; as `health.Guard`'s
LEAST_FEATURES = 0.001  # feature diversity
LEAST_BALANCE = 0.05  # class balance; as `health.Guard`'s
FEW_CLASSES = 0.5  # class balance; good runs had 0.9 or more
FAR = 0.25  # statistics distance; good runs had 0.13 or less, useless ones 0.3 or more
SELDOM = 0.5  # agreement: less, and most answers are others'; no run whose student was good had less than 0.54
SELDOM_SAID = "the student gives another answer than the teacher in most cases"
FEW_STEPS = 200  # of 1,000 the benchmark's good students reached 80 to 88 %, of 240 the same ones 56 to 79 %
ENOUGH_STEPS = 1000  # about where the students of docs/results.md are worth a look


class State(IntEnum):
    """Worse is higher."""

    HEALTHY = 0
    WATCH = 1
    COLLAPSED = 2

    @property
    def word(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, kw_only=True)
class Signal:
    """How people are told of a signal."""

    title: str
    meaning: str
    scale: tuple[str, str] = ("0", "1")  # what its ends are called
    percent: bool = False

    def show(self, value: float) -> str:
        return f"{100 * value:.1f} %" if self.percent else f"{value:.2f}"


SIGNALS = {  # the names under which they are logged, in the order of the page
    "held_out_class_balance": Signal(
        title="Class balance",
        meaning="how evenly the teacher's answers to the images spread over the classes: 1 all alike, 0 one class",
    ),
    "statistics_distance": Signal(
        title="Statistics distance",
        meaning="how far the images are, inside the teacher, from what its BatchNorm layers kept of its training "
        "data, in standard deviations: 0 the same",
    ),
    "held_out_feature_diversity": Signal(
        title="Feature diversity",
        meaning="how different the images are to the teacher (cosine distance in its deepest features): 0 all alike",
    ),
    "held_out_pixel_diversity": Signal(
        title="Pixel diversity",
        meaning="how different the images are, pixel by pixel (standard deviation): 0 all alike",
    ),
    "held_out_confidence": Signal(
        title="Teacher's confidence",
        meaning="probability that the teacher gives to the class it names, on average",
        percent=True,
    ),
    "agreement": Signal(
        title="Agreement",
        meaning="student and teacher answer alike on the source's held-out images",
        percent=True,
    ),
    "agreement_corrupted": Signal(
        title="Agreement, corrupted", meaning="the same on mild corruptions of those images", percent=True
    ),
    "agreement_noise": Signal(title="Agreement, noise", meaning="the same on plain noise", percent=True),
    "calibration_gap": Signal(
        title="Calibration gap",
        meaning="the student's confidence minus its agreement with the teacher: above 0 it is surer than right",
        percent=True,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A state (None: not enough was logged to judge by) and its reasons, none of them if nothing is wrong."""

    state: State | None
    reasons: list[str] = field(default_factory=list)

    @property
    def word(self) -> str:
        return "unknown" if self.state is None else self.state.word

    @property
    def line(self) -> str:
        """One line for a terminal."""
        return f"health: {self.word}" + (f": {'; '.join(self.reasons)}" if self.reasons else "")


def little(steps: int) -> str:
    """So few steps, and what they are worth: the words of a warning and of a verdict."""
    return f"{steps:,} step{'' if steps == 1 else 's'}, which teach{'es' if steps == 1 else ''} next to nothing"


def judge(values: Mapping[str, float], steps: int | None = None) -> Verdict:
    """The verdict on the signals of one look, as `health_metrics` names them; those that are missing say nothing.

    `steps`: of the whole training, where they are known.
    """
    found: list[tuple[State, str]] = []
    if steps is not None and steps < FEW_STEPS:
        found.append((State.WATCH, f"the student is given {little(steps)}: {ENOUGH_STEPS:,} are worth a look"))
    if not any(name in values for name in OF_IMAGES):
        reasons = [reason for _, reason in found]
        return Verdict(
            state=State.WATCH if found else None,
            reasons=[*reasons, "nothing was logged of the images to judge by"],
        )

    def below(name: str, least: float, state: State, reason: str) -> bool:
        value = values.get(name, math.nan)
        if value < least:
            found.append((state, f"{reason} ({SIGNALS[name].title.lower()} {SIGNALS[name].show(value)})"))
        return value < least

    if any(not math.isfinite(values[name]) for name in SIGNALS.keys() & values.keys()):
        found.append((State.COLLAPSED, "a signal is not finite"))
    below("held_out_pixel_diversity", LEAST_PIXELS, State.COLLAPSED, "the images are all alike")
    below(
        "held_out_feature_diversity",
        LEAST_FEATURES,
        State.COLLAPSED,
        "the images are all alike to the teacher",
    )
    if not below("held_out_class_balance", LEAST_BALANCE, State.COLLAPSED, "the teacher sees one class only"):
        below(
            "held_out_class_balance",
            FEW_CLASSES,
            State.WATCH,
            "the teacher sees few of its classes in the images",
        )
    distance = values.get("statistics_distance", math.nan)
    if distance > FAR:
        reason = "the images are unlike what the teacher was trained on"
        found.append((State.WATCH, f"{reason} (statistics distance {distance:.2f})"))
    below("agreement", SELDOM, State.WATCH, SELDOM_SAID)
    worst = max((state for state, _ in found), default=State.HEALTHY)
    return Verdict(state=worst, reasons=[reason for state, reason in sorted(found, key=lambda item: -item[0])])


@dataclass
class VerdictTracker:
    """Tells when the verdict turns, and then only."""

    state: State | None = State.HEALTHY

    def line(self, step: int, values: Mapping[str, float]) -> str | None:
        """A line for the terminal if the verdict on `values`, seen at `step`, is another than that before."""
        verdict = judge(values)
        if verdict.state is None or verdict.state == self.state:
            return None
        self.state = verdict.state
        return f"{'' if verdict.state is State.HEALTHY else 'warning: '}step {step}: {verdict.line}"

    def note(self) -> list[str]:
        """A line for the end of a run that had collapsed when it was last looked at; else none."""
        if self.state is not State.COLLAPSED:
            return []
        return ["health: collapsed at the last look, so the student cannot be relied upon; report.html says why"]

    def state_dict(self) -> int | None:
        """The verdict that was told last, as a plain number."""
        return None if self.state is None else int(self.state)

    def load_state_dict(self, state: int | None) -> None:
        """Put back what `state_dict` returned."""
        self.state = None if state is None else State(state)
