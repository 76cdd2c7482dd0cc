"""The end of a run and of a data set, to be killed at each call: from the last step, or the last shard, to the end."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import set_recipes  # type: ignore[import-not-found]  # of the tests
from datafree.errors import Interrupted
from datafree.recipe.recipe import Recipe
from datafree.run import run_recipe
from datafree.storage import made_set
from datafree.synthesis.synthesize import synthesize, verify
from small_runs import (  # type: ignore[import-not-found]
    assert_same,
    everything,
    labelled,
    recipe_for,
    stop_after,
)

IMAGES = 10  # two shards
Work = Callable[[Path], object]
Check = Callable[[Path], str | None]


def end_of_a_run(inputs: Path) -> tuple[Work, Work, Check]:
    """What is done before, what is killed, and what is wrong with its run directory then, if anything."""
    inputs.mkdir(parents=True)
    recipe: Recipe = recipe_for(inputs, {"method": "noise"}, steps=3, save_every=1, picture_every=3)
    recipe = dataclasses.replace(recipe, data=labelled(inputs / "labelled"))
    whole = _unbroken(inputs, lambda out: run_recipe(recipe, out), everything)

    def check(out: Path) -> str | None:
        return _fault(out, lambda: run_recipe(recipe, out), lambda: everything(out), whole)

    def before(out: Path) -> None:
        _until(lambda: run_recipe(recipe, out, stop=stop_after(2)))

    return before, lambda out: run_recipe(recipe, out), check


def end_of_a_set(inputs: Path) -> tuple[Work, Work, Check]:
    """The same of a data set."""
    inputs.mkdir(parents=True)
    recipe: Recipe = set_recipes.recipe_for(inputs, set_recipes.INVERSION, "detection")
    whole = _unbroken(inputs, lambda out: synthesize(recipe, out, IMAGES), set_recipes.everything)

    def check(out: Path) -> str | None:
        if damaged := list(made_set.damages(out)):
            return f"damaged before it is resumed: {damaged}"

        def again() -> None:
            synthesize(recipe, out, IMAGES)
            verify(recipe, out)

        return _fault(out, again, lambda: set_recipes.everything(out), whole)

    def before(out: Path) -> None:
        _until(lambda: synthesize(recipe, out, IMAGES, stop=set_recipes.stop_after(1)))

    return before, lambda out: synthesize(recipe, out, IMAGES), check


def _until(work: Callable[[], object]) -> None:
    """Do `work` until it is stopped."""
    try:
        work()
    except Interrupted:
        return
    raise AssertionError("it was not stopped")


def _unbroken(inputs: Path, work: Work, look: Callable[[Path], Any]) -> Any:
    work(inputs / "unbroken")
    found = look(inputs / "unbroken")
    shutil.rmtree(inputs / "unbroken")
    return found


def _fault(out: Path, again: Callable[[], object], look: Callable[[], Any], whole: Any) -> str | None:
    """What the same command does not put right."""
    try:
        if (out / "result.json").exists():  # written last: then all is there
            assert_same(whole, look())
        again()
        assert_same(whole, look())
        left = {entry.name for entry in out.rglob(".*")} - {".lock", ".claims"}
        return f"left behind: {sorted(left)}" if left else None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
