"""Verdicts: a run that has collapsed is called so, on the page and in the terminal; a healthy one is not."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from datafree.health.verdict import SIGNALS, State, VerdictTracker, judge
from datafree.networks.generators import ResizeGenerator
from datafree.preflight.cost.short_time import too_few
from datafree.recipe.recipe import load_recipe
from datafree.run import run_recipe
from datafree.sources.dataset import Dataset
from recipes import changed, load, write_teacher

GOOD = {
    "held_out_class_balance": 0.95,
    "statistics_distance": 0.1,
    "held_out_feature_diversity": 0.3,
    "held_out_pixel_diversity": 0.28,
    "held_out_confidence": 0.7,
    "agreement": 0.7,
    "agreement_corrupted": 0.7,
    "agreement_noise": 0.2,
    "calibration_gap": 0.02,
}


def test_good_figures_are_healthy_without_a_reason() -> None:
    assert GOOD.keys() == SIGNALS.keys()
    verdict = judge(GOOD)
    assert (verdict.state, verdict.reasons, verdict.line) == (State.HEALTHY, [], "health: healthy")


@pytest.mark.parametrize(
    ("name", "value", "state", "words"),
    [
        ("held_out_pixel_diversity", 0.001, State.COLLAPSED, "all alike"),
        ("held_out_feature_diversity", 0.0, State.COLLAPSED, "all alike to the teacher"),
        ("held_out_class_balance", 0.0, State.COLLAPSED, "one class only"),
        ("held_out_class_balance", 0.2, State.WATCH, "few of its classes"),
        ("statistics_distance", 3.0, State.WATCH, "unlike what the teacher was trained on"),
        ("agreement", 0.44, State.WATCH, "another answer than the teacher in most cases (agreement 44.0 %)"),
        ("agreement", math.nan, State.COLLAPSED, "not finite"),
    ],
)
def test_a_figure_that_is_off_is_the_reason(name: str, value: float, state: State, words: str) -> None:
    verdict = judge({**GOOD, name: value})
    assert verdict.state == state
    assert words in verdict.reasons[0] and len(verdict.reasons) == 1


def test_few_steps_are_said_whatever_else_is_known() -> None:
    for values, state in ((GOOD, State.HEALTHY), ({}, None)):
        assert judge(values, 200).state == state
        verdict = judge(values, 56)
        assert verdict.state == State.WATCH
        assert verdict.reasons[0].startswith("the student is given 56 steps, which teach next to nothing: 1,000")
    assert "56 steps, which teach next to nothing: some 1,000" in too_few("30s", 56, 60.0)  # the command's words


def test_an_agreement_that_good_students_had_is_healthy() -> None:
    """0.546 is the lowest of a student in docs/results.md with four fifths of its teacher's score."""
    assert judge({**GOOD, "agreement": 0.546}).state == State.HEALTHY


def test_the_worst_state_counts_and_its_reason_comes_first() -> None:
    verdict = judge({**GOOD, "agreement": 0.1, "held_out_pixel_diversity": 0.0})
    assert verdict.state == State.COLLAPSED and len(verdict.reasons) == 2
    assert verdict.line.startswith("health: collapsed: the images are all alike")


def test_figures_that_are_not_there_say_nothing() -> None:
    assert judge({"held_out_class_balance": 0.9, "agreement": 0.9}).state == State.HEALTHY
    for values in ({"loss": 0.1}, {"agreement": 0.99, "calibration_gap": 0.0}):  # noise is all_agree on, too
        assert judge(values).word == "unknown" and judge(values).reasons


def test_the_terminal_is_told_when_the_verdict_turns_and_then_only() -> None:
    turns, bad = VerdictTracker(), {**GOOD, "held_out_pixel_diversity": 0.0}
    said = [turns.line(step, values) for step, values in enumerate([GOOD, bad, bad, {"loss": 1.0}, GOOD, GOOD])]
    assert said[0] is said[2] is said[3] is said[5] is None
    assert said[1] is not None and said[1].startswith("warning: step 1: health: collapsed: ")
    assert said[4] == "step 4: health: healthy"


def run(tmp_path: Path, source: dict[str, object]) -> tuple[list[str], str]:
    """What a short run of a generator says, and its page."""
    said: list[str] = []
    teacher = {"network": "datafree/unet", "args": {"width": 4}, "weights": str(write_teacher(tmp_path, width=4))}
    training = {"steps": 4, "save_every": 2, "log_every": 2, "batch_size": 4}
    recipe = load(tmp_path, changed(source=source, teacher=teacher, training=training))
    run_recipe(recipe, tmp_path / "run", say=said.append)
    return said, (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


SOURCE = {"method": "dafl", "width": 4, "latent": 8, "batch_size": 4, "update_every": 1, "on_collapse": "ignore"}


def test_a_generator_forced_to_one_image_is_called_collapsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = ResizeGenerator.forward

    def one_image(self: ResizeGenerator, latents: Tensor, *maps: Tensor) -> Tensor:
        return forward(self, latents, *maps)[:1].expand(len(latents), -1, -1, -1)

    monkeypatch.setattr(ResizeGenerator, "forward", one_image)
    said, page = run(tmp_path, SOURCE)
    assert any(line.startswith("warning: step 2: health: collapsed: the images are all alike") for line in said)
    assert "health: collapsed" in page and "the images are all alike" in page
    assert "health: healthy" not in page


@pytest.mark.thorough
def test_varied_images_that_the_teacher_knows_are_not_called_collapsed(tmp_path: Path) -> None:
    recipe = load_recipe(
        "fashion-demo",
        ["training.steps=2", "training.save_every=1", "training.batch_size=8"],
    )
    recipe = replace(recipe, data=None, source=Dataset(path=recipe.data or Path()))
    said: list[str] = []
    run_recipe(recipe, tmp_path / "run", say=said.append)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert not any("collapsed" in line for line in said) and "health: collapsed" not in page
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    last = [json.loads(line) for line in lines if "agreement" in line][-1]
    del last["agreement"], last["agreement_corrupted"]  # of a student that has learnt nothing
    assert judge(last).state == State.HEALTHY, judge(last).line
