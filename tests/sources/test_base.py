"""What a source declares of itself, and that nobody reads its options instead."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest

import datafree
from datafree.sources import SOURCES, Cgdd, Degan, Folder, ImageSource, Inversion, Mixed, Noise
from datafree.sources.base import UpdateSize
from datafree.sources.diode.stages import Stage
from syntax import nodes_of

ROOT = Path(datafree.__file__).parent
OPTIONS = {field.name for source in SOURCES.values() for field in dataclasses.fields(source)}


def names_read(file: Path) -> set[str]:
    """The attributes that a module asks for by a name in quotes: `getattr(x, "name")`, `hasattr`, `setattr`."""
    return {
        str(node.args[1].value)
        for node in nodes_of(file)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("getattr", "hasattr", "setattr", "delattr")
        and isinstance(node.args[1], ast.Constant)
    }


def test_no_module_outside_the_sources_reads_an_option_of_theirs_by_name(tmp_path: Path) -> None:
    probe = tmp_path / "probe.py"
    probe.write_text("getattr(source, 'bank_size', 0)\nhasattr(part, 'batch_size')\ngetattr(norm, name)\n")
    assert names_read(probe) == {"bank_size", "batch_size"} <= OPTIONS | {"parts"}
    files = [file for file in ROOT.rglob("*.py") if file.relative_to(ROOT).parts[0] != "sources"]
    found = {str(file.relative_to(ROOT)): names for file in files if (names := names_read(file) & OPTIONS)}
    assert not found


def test_sources_in_a_mixture_in_a_mixture_are_found_and_a_proxy_is_no_source_of_updates() -> None:
    folder, noise, cgdd = Folder(path=Path("photos")), Noise(), Cgdd()
    degan = Degan(proxy=folder)
    inner = Mixed(parts=[noise, degan])
    outer = Mixed(parts=[cgdd, inner])
    expected: list[ImageSource] = [outer, cgdd, inner, noise, degan, folder]
    assert [id(source) for source in outer.all_sources()] == [id(source) for source in expected]
    assert [id(source) for source in outer.updated_sources()] == [id(cgdd), id(noise), id(degan)]
    assert [id(source) for source in degan.updated_sources()] == [id(degan)]


def test_what_is_declared_follows_the_options() -> None:
    assert Inversion(batch_size=3, iterations=7, bank_size=11).update_size() == UpdateSize(images=3, iterations=(7,))
    assert Inversion(bank_size=11).bank_images() == 11
    assert Cgdd(batch_size=5).update_size() == UpdateSize(images=5)
    assert (Noise().update_size(), Noise().bank_images(), Mixed(parts=[Cgdd(), Noise()]).update_size()) == (
        None,
        0,
        None,
    )
    diode = SOURCES["diode"](batch_size=2, stages=[Stage(iterations=4), Stage(iterations=9, lr=0.1)])  # type: ignore[call-arg]
    assert diode.update_size() == UpdateSize(images=2, iterations=(4, 9))
    diode.resize_updates(UpdateSize(images=1, iterations=(6, 1)))
    assert diode.update_size() == UpdateSize(images=1, iterations=(6, 1))
    assert diode.stages[1] == Stage(iterations=1, lr=0.1)  # type: ignore[attr-defined]


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("every", [0, 1, 4])
@pytest.mark.parametrize("steps", [range(-5, 9), range(9), range(-2, 0), range(3, 4), range(4, 4), range(6, 20)])
def test_due_updates_are_counted_as_one_asks_step_by_step(warmup: int, every: int, steps: range) -> None:
    source = Noise(warmup=warmup, update_every=every)
    assert source.count_due(steps) == sum(map(source.due, steps))
    mixed = Mixed(parts=[source, Noise(update_every=3)])
    assert mixed.count_due(steps) == sum(map(mixed.due, steps))


def test_updates_of_more_steps_than_a_life_has_are_counted_at_once() -> None:
    source = Noise(warmup=2**40, update_every=8)
    assert source.count_due(range(-(2**40), 2**40)) == 2**40 + 2**37
    assert Mixed(parts=[source, Noise()]).count_due(range(2**40)) == 2**37
