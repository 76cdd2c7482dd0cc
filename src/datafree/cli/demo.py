"""The built-in examples that `datafree demo` runs: a method, and the baseline that must lose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from datafree.text import percent, readable, table

if TYPE_CHECKING:
    from datafree.recipe.recipe import Recipe
    from datafree.run import Outcome

# task -> recipes, each with what makes it short: the method's, then the baseline that must lose
DEMOS = {
    "segmentation": {
        "garments-demo": ["training.steps=40"],
        "garments-noise": ["training.steps=40"],
    },
    "classification": {
        "fashion-demo": ["training.steps=40", "source.warmup=20"],
        "fashion-noise": ["training.steps=40"],
    },
    "detection": {
        "boxes-demo": ["training.steps=40", "source.warmup=10"],
        "boxes-noise": ["training.steps=40"],
    },
}
DEMO_TEXT = """\
A small student learns from a trained teacher without the teacher's training data: first from images that the
method makes or unlabelled photos, then from plain noise. Labelled images, seen by no student, score them at the end."""


def demo_table(recipes: Sequence[Recipe], outcomes: Sequence[Outcome]) -> str:
    """The teacher, then each recipe's student: parameters and scores."""
    rows: list[list[str]] = []
    for recipe, outcome in zip(recipes, outcomes, strict=True):
        teacher, student = outcome.scores["teacher"], outcome.scores["student"]
        if not rows:
            rows.append(["", "parameters", *map(readable, teacher.values)])
            rows.append(["teacher", f"{count(recipe, 'teacher'):,}", *map(percent, teacher.values.values())])
        name = f"student, {recipe.name}"
        rows.append([name, f"{count(recipe, 'student'):,}", *map(percent, student.values.values())])
    return table(rows)


def count(recipe: Recipe, which: str) -> int:
    """Parameters of a recipe's teacher or student."""
    from dataclasses import replace

    from datafree.networks.load import build_network

    network = build_network(replace(getattr(recipe, which), weights=None), num_classes=recipe.task.num_classes)
    return sum(parameter.numel() for parameter in network.parameters())
