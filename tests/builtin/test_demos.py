"""The recipes of `datafree demo`: what a method is compared with."""

import dataclasses

import pytest

from datafree.cli.demo import DEMOS
from datafree.recipe.recipe import Recipe, load_recipe
from datafree.sources.noise import Noise


@pytest.mark.parametrize("names", list(DEMOS.values()), ids=list(DEMOS))
def test_a_demo_and_its_baseline_differ_in_where_images_come_from_alone(names: dict[str, list[str]]) -> None:
    method, baseline = (load_recipe(name) for name in names)
    assert isinstance(baseline.source, Noise) and not isinstance(method.source, Noise)
    differ = {
        field.name
        for field in dataclasses.fields(Recipe)
        if getattr(method, field.name) != getattr(baseline, field.name)
    }
    assert differ == {"name", "source"}


@pytest.mark.parametrize("names", list(DEMOS.values()), ids=list(DEMOS))
def test_a_quick_demo_is_the_demo_with_less_work(names: dict[str, list[str]]) -> None:
    for name, shorter in names.items():
        whole, quick = load_recipe(name), load_recipe(name, shorter)
        assert quick.training.steps < whole.training.steps and quick.source.warmup <= whole.source.warmup
        assert dataclasses.replace(quick.training, steps=whole.training.steps) == whole.training
