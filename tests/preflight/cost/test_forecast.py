"""What a run says of its time and memory before it works: worth saying, harmless, and with a way out."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from datafree.engine.build_networks import Networks, build_networks
from datafree.preflight.cost import forecast
from datafree.preflight.cost.calibration import STUDENT, Calibration
from datafree.preflight.cost.forecast import foretold, forgotten, keyed, too_large, too_long
from datafree.preflight.rehearsal import rehearse
from datafree.recipe.recipe import Recipe, dump
from datafree.run import run_recipe
from datafree.sources.fast import Fast
from datafree.sources.inversion import Inversion
from datafree.sources.noise import Noise
from recipes import load
from small_runs import recipe_for
from thorough import some

CPU = torch.device("cpu")
PINNED = {"device": "cpu", "precision": "fp32"}


def said_of(recipe: Recipe, networks: Networks | None = None) -> list[str]:
    networks = networks or build_networks(recipe, CPU, torch.float32)
    return foretold(recipe, recipe.training, networks, CPU, torch.float32, None)  # type: ignore[arg-type]


def large(tmp_path: Path, source: dict[str, Any], **training: Any) -> Recipe:
    """Nothing made small: as a user's recipe has it, for images of 352 pixels."""
    content = {
        "task": {"kind": "segmentation", "num_classes": 3, "image_size": [352, 352]},
        "teacher": {"network": "datafree/unet", "args": {"width": 2, "depth": 2}},
        "student": {"network": "datafree/unet", "args": {"width": 2, "depth": 2}},
        "source": source,
        "training": {"steps": 10, "batch_size": 4, **PINNED, **training},
    }
    return load(tmp_path, content)


@pytest.mark.thorough
def test_a_run_of_some_length_says_its_time_and_memory_once_and_a_short_one_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    recipe = recipe_for(tmp_path, {"method": "noise"}, **{**PINNED, "steps": forecast.MANY})
    assert run_recipe(recipe, tmp_path / "run", say=said.append)
    (line,) = [line for line in said if line.startswith("about ")]
    assert " on this CPU, " in line and line.endswith(" beside Python and torch")
    assert not said_of(recipe_for(tmp_path, {"method": "noise"}, **{**PINNED, "steps": forecast.MANY - 1}))


@pytest.mark.parametrize("method", some(["fast", "cgdd"], "fast"))
def test_a_forecast_changes_no_bit_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    recipe = recipe_for(tmp_path, {"method": method}, **PINNED, steps=6)
    weights = []
    for many in (math.inf, 0):  # without, with
        monkeypatch.setattr(forecast, "MANY", many)
        said: list[str] = []
        run = run_recipe(load(tmp_path, dump(recipe)), tmp_path / f"run{many}", say=said.append)
        assert any(line.startswith("about ") for line in said) == (many == 0)
        weights.append(run.student.state_dict())
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())


def test_a_forecast_that_fails_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "MANY", 0)
    monkeypatch.setattr(forecast, "run_cost", lambda calibrated: 1 / 0)
    state = torch.get_rng_state()
    recipe = recipe_for(tmp_path, {"method": "noise"}, **PINNED)
    networks = build_networks(recipe, CPU, torch.float32)
    state = torch.get_rng_state()
    assert said_of(recipe, networks) == [
        "note: what the run will take is not known: ZeroDivisionError: division by zero"
    ]
    assert torch.equal(torch.get_rng_state(), state)


def test_more_than_a_day_names_the_option_that_ends_with_a_time() -> None:
    assert too_long(86_400) == []
    (line,) = too_long(86_401)
    assert "more than a day" in line and "training.time=8h" in line


def test_a_bank_of_no_stated_size_is_bounded_for_large_images_and_what_it_forgets_is_said(tmp_path: Path) -> None:
    """2 GB hold 5,380 images of 352 x 352; 60,000 of 32 x 32 take 184 MB."""
    recipe = large(tmp_path, {"method": "inversion", "warmup": 100, "batch_size": 60})
    assert recipe.source.bank_images() == 2_000_000_000 // (3 * 352 * 352) == 5380
    (line,) = forgotten(recipe)
    assert line == (
        "note: the bank holds 5,380 of the 6,000 images that the warm-up makes; source.bank_size=6000 would take 2.2 GB"
    )
    small = Inversion()
    small.size_bank((32, 32))
    assert small.bank_size == 60_000
    stated = Inversion(bank_size=70_000)
    stated.size_bank((352, 352))
    assert stated.bank_size == 70_000
    assert not forgotten(large(tmp_path, {"method": "inversion", "warmup": 100, "batch_size": 50}))


def calibrated(recipe: Recipe, **peaks: int) -> Calibration:
    networks = build_networks(recipe, CPU, torch.float32)
    made = Calibration(
        task=recipe.task,
        teacher=networks.teacher,
        student=networks.student,
        source=recipe.source,
        training=recipe.training,  # type: ignore[arg-type]
        dtype=torch.float32,
        most=2,
        budget=0.0,
    )
    made.peaks.update({STUDENT if name == "student" else name: value for name, value in peaks.items()})
    return made


def test_what_needs_more_memory_than_is_free_names_what_would_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = {
        "method": "mixed",
        "parts": [{"method": "noise"}, {"method": "inversion", "warmup": 90, "batch_size": 64}],
    }
    recipe = large(tmp_path, source, batch_size=32)
    free = 500e6
    monkeypatch.setattr(forecast, "free_memory", lambda device: free)
    image, networks = 3 * 352 * 352, 5 * sum(p.nbytes for p in _student(recipe).parameters())

    # The bank of 5,380 images needs 2 GB: nine tenths of what is free, less a peak of 10 MB, hold so many.
    (line,) = too_large(calibrated(recipe, student=int(10e6)), recipe)
    fits = int(line.partition("source.parts.1.bank_size=")[2].partition(" ")[0])
    exact = (0.9 * free - 10e6 - networks) / image
    assert 0.9 * exact < fits <= exact
    assert line.startswith("warning: 2.0 GB of memory are needed and 500 MB are free; source.parts.1.bank_size=")

    # A student's step of 8 GB at a batch of 32: an eighth of it fits in what the bank (of 5 images) leaves.
    few = large(tmp_path, {"method": "inversion", "warmup": 1, "batch_size": 5}, batch_size=32)
    free = 2e9
    (line,) = too_large(calibrated(few, student=int(8e9)), few)
    assert "training.batch_size=4 might fit" in line
    (line,) = too_large(calibrated(few, Inversion=int(8e9)), few)
    assert "source.batch_size=2 might fit" in line
    free = 20e9
    assert too_large(calibrated(few, student=int(8e9)), few) == []


def _student(recipe: Recipe) -> nn.Module:
    return build_networks(recipe, CPU, torch.float32).student


def test_sources_have_the_keys_of_their_sections(tmp_path: Path) -> None:
    parts = [{"method": "noise"}, {"method": "fast", "warmup": 3}]
    recipe = large(tmp_path, {"method": "mixed", "parts": parts})
    found = [(type(source), key) for source, key in keyed(recipe)]
    assert found[1:] == [(Noise, "source.parts.0"), (Fast, "source.parts.1")]
    assert found[0][1] == "source"


@pytest.mark.thorough
def test_a_forecast_says_that_it_is_without_the_students_start_and_a_rehearsal_times_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datafree.preflight.cost.start_cost.seconds_of_start", lambda calibrated: 1200.0)
    recipe = recipe_for(tmp_path, {"method": "noise"}, device="cpu", precision="fp32")
    recipe = replace(recipe, student=replace(recipe.student, init="teacher"))
    monkeypatch.setattr("datafree.preflight.cost.forecast._is_worth_it", lambda *given: True)
    said: list[str] = []
    run_recipe(recipe, tmp_path / "run", say=said.append)
    (line,) = (line for line in said if line.startswith("about "))
    assert line.endswith(", and the student's start from its teacher")
    assert "min" not in line
    (line,) = (line for line in rehearse(recipe, tmp_path / "other") if line.startswith("about "))
    assert line.startswith("about 20 min on this CPU, ")
    assert "start" not in line
