from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from datafree.config import paths
from datafree.config.diff import differences
from datafree.errors import RecipeError
from datafree.recipe.files import packaged_recipes
from datafree.recipe.recipe import dump, load_recipe
from datafree.sources import SOURCES
from datafree.sources.degan import Degan
from datafree.sources.folder import Folder
from datafree.sources.mixed import Mixed
from datafree.sources.noise import Noise
from datafree.tasks import TASKS
from recipes import VALID, changed, fault, load, sources, to_yaml, write

# What a recipe says.


def test_defaults_are_filled_in_and_the_student_sees_images_as_its_teacher_does(tmp_path: Path) -> None:
    recipe = load(tmp_path)
    assert recipe.name == "street"
    assert recipe.task.image_size == (32, 48)
    assert recipe.training.steps == 10
    assert recipe.training.batch_size == 16
    assert recipe.student.mean == (0.5, 0.4, 0.3)
    assert isinstance(recipe.source, Noise)
    assert recipe.data is None


def test_a_student_may_see_images_in_another_way(tmp_path: Path) -> None:
    recipe = load(tmp_path, VALID, "student.mean=[0, 0, 1]")
    assert recipe.student.mean == (0.0, 0.0, 1.0)
    assert recipe.teacher.mean == (0.5, 0.4, 0.3)


def test_sources_nest(tmp_path: Path) -> None:
    degan = {"method": "degan", "proxy": {"path": str(tmp_path)}}
    parts = [{"method": "folder", "path": str(tmp_path)}, degan]
    source = load(tmp_path, changed(source={"method": "mixed", "parts": parts, "ratio": [2, 1]})).source
    assert isinstance(source, Mixed)
    assert [type(part) for part in source.parts] == [Folder, Degan]
    assert source.ratio == (2.0, 1.0)


@pytest.mark.parametrize("method", SOURCES)
def test_a_dumped_recipe_loads_as_an_equal_recipe(tmp_path: Path, method: str) -> None:
    kind = next(name for name, task in TASKS.items() if issubclass(task, SOURCES[method].serves))
    task = {"kind": kind, "num_classes": 3, "image_size": [32, 48]}
    content = changed(task=task, source=sources(tmp_path)[method], data=str(tmp_path), name="1e-4")
    recipe = load(tmp_path, content, "training.lr=1e-5", "teacher.args={a: 'on', b: '1e3', c: [1, {d: null}]}")
    assert load_recipe(write(tmp_path, to_yaml(recipe), "again.yaml")) == recipe
    assert yaml.safe_load(to_yaml(recipe)) == dump(recipe)  # other readers see the same


def test_a_dump_starts_with_the_method_and_is_plain(tmp_path: Path) -> None:
    content = dump(load(tmp_path, changed(source=sources(tmp_path)["degan"])))
    assert next(iter(content["source"])) == "method"
    assert next(iter(content["task"])) == "kind"
    assert content["source"]["proxy"]["method"] == "folder"
    assert content["source"]["proxy"]["path"] == str(tmp_path)
    assert content["task"]["image_size"] == [32, 48]
    assert content["training"]["weight_decay"] == 5e-4


def test_a_source_of_the_users_own_is_reached_by_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = """
from dataclasses import dataclass
from datafree.sources.base import ImageSource
@dataclass(kw_only=True)
class Mine(ImageSource):
    shade: float = 0.5
    def attach(self, context): pass
    def update(self, student, step): return {}
    def sample(self, n): raise AssertionError
    def validation_images(self, n): raise AssertionError
    def state_dict(self): return {}
    def load_state_dict(self, state): pass
    def artefacts(self): return {}
@dataclass(kw_only=True)
class Half(ImageSource):
    pass
class Other: pass
"""
    (tmp_path / "own_sources_for_test.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    recipe = load(tmp_path, VALID, "source={method: 'own_sources_for_test:Mine', shade: 1}")
    assert type(recipe.source).__name__ == "Mine"
    assert load_recipe(write(tmp_path, to_yaml(recipe), "again.yaml")) == recipe
    own = "source.method=own_sources_for_test:"
    assert "is not a subclass of datafree.sources.base.ImageSource" in fault(tmp_path, VALID, own + "Other")
    assert "is not a subclass" in fault(tmp_path, VALID, own + "Missing")
    assert "does not define attach" in fault(tmp_path, VALID, own + "Half")
    assert "cannot be imported (ModuleNotFoundError" in fault(tmp_path, VALID, "source.method=no_such_mod_x:A")
    assert "is not of the form" in fault(tmp_path, VALID, "source.method='a b:c'")


# Overrides.


def test_overrides_change_one_key_and_leave_its_neighbours(tmp_path: Path) -> None:
    recipe = load(tmp_path, VALID, "training.lr=1e-2", "teacher.args.depth=2", "task={num_classes: 5}")
    assert recipe.training.lr == 0.01
    assert recipe.training.steps == 10
    assert recipe.teacher.args == {"width": 4, "depth": 2}
    assert (recipe.task.num_classes, recipe.task.image_size) == (5, (32, 48))


def test_an_override_reaches_into_a_list(tmp_path: Path) -> None:
    content = changed(source=sources(tmp_path)["mixed"])
    (tmp_path / "other").mkdir()
    source = load(tmp_path, content, f"source.parts.1.path={tmp_path / 'other'}").source
    assert isinstance(source, Mixed)
    assert isinstance(source.parts[1], Folder)
    assert source.parts[1].path == tmp_path / "other"
    assert "is a list of 2 values" in fault(tmp_path, content, "source.parts.2.path=x")


def test_a_section_of_another_method_replaces_the_recipes(tmp_path: Path) -> None:
    content = changed(source={**sources(tmp_path)["degan"], "width": 8})
    source = load(tmp_path, content, "source={method: noise, kind: gaussian}").source
    assert source == Noise(kind="gaussian")


@pytest.mark.parametrize("override", ["training.steps", "=3", "training..lr=1", "training.lr=[", "training.steps.x=1"])
def test_an_override_that_says_nothing_is_named(tmp_path: Path, override: str) -> None:
    assert override.split("=")[0] in fault(tmp_path, VALID, override)


# Packaged recipes, and what differs.


def test_an_unknown_name_points_to_the_list() -> None:
    with pytest.raises(RecipeError, match="there is no file or packaged recipe 'nothing-like-it'; `datafree list`"):
        load_recipe("nothing-like-it")


def test_every_packaged_recipe_is_sound_and_says_what_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATAFREE_DATA", str(tmp_path))
    for name, about in packaged_recipes().items():
        assert about, f"{name} has no comment in its first line"
        try:
            assert load_recipe(name).name
        except RecipeError as error:  # data sets that are not on this machine are its only faults
            missing = [line for line in error.problems if f"(looked for {tmp_path}" in line]
            assert missing == error.problems


def test_differences_name_the_key_and_both_values(tmp_path: Path) -> None:
    mixed = changed(source=sources(tmp_path)["mixed"])
    here = dump(load(tmp_path, mixed, "training.lr=0.1"))
    there = dump(load(tmp_path, mixed, "training.lr=0.01", "source.parts.0.kind=uniform", "teacher.args={}"))
    assert differences(here, there) == [
        "teacher.args.width: 4 here, not set in the run",
        "source.parts.0.kind: 'gaussian' here, 'uniform' in the run",
        "training.lr: 0.1 here, 0.01 in the run",
        "teacher.args: not set here, {} in the run",
    ]
    assert differences(here, yaml.safe_load(yaml.safe_dump(here))) == []
    assert differences({"a": 1}, None) == ["a: 1 here, not set in the run"]


def test_builtin_paths_stay_free_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = tmp_path / "example"
    (example / "photos").mkdir(parents=True)
    monkeypatch.setattr(paths, "builtin_folder", lambda: example)
    recipe = load(tmp_path, VALID, "data=builtin:photos")
    assert recipe.data == example / "photos"
    assert dump(recipe)["data"] == "builtin:photos"


def test_a_source_that_does_not_serve_the_task_is_refused_with_those_that_do(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, changed(source={"method": "diode"}))
    line = str(caught.value)
    assert (
        "source.method: diode makes images for task.kind=detection, not for segmentation; for that: auto, cgdd" in line
    )
    inner = {"method": "mixed", "parts": [{"method": "diode"}, {"method": "noise"}]}
    deep = {"method": "mixed", "parts": [{"method": "noise"}, inner]}
    assert fault(tmp_path, changed(source=deep)) == line
    assert "diode" not in line.partition("for that: ")[2]
