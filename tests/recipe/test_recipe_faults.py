from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datafree.errors import RecipeError
from datafree.recipe.recipe import Recipe, load_recipe
from datafree.sources.degan import Degan
from recipes import VALID, changed, fault, faults, load, write


def test_every_fault_is_found_at_once(tmp_path: Path) -> None:
    content = {
        "task": {"kind": "segmentation", "num_classes": 3, "image_size": [32], "temprature": 2},
        "teacher": {"network": "datafree/unett", "weights": str(tmp_path / "none.safetensors")},
        "source": {
            "method": "degan",
            "proxy": {"path": str(tmp_path / "none"), "flp": True},
            "diversity": "plan",
        },
        "training": {"steps": "10", "lr": "fast", "device": "gpu", "batch_size": 0},
        "colour": "red",
    }
    found = faults(tmp_path, content, "training.momentum=1")
    keys = sorted(line.split(":")[0] for line in found)
    assert keys == sorted(
        [
            "'colour'",
            "source.diversity",
            "source.proxy.flp",
            "source.proxy.path",
            "student",
            "task.image_size",
            "task.temprature",
            "teacher.network",
            "teacher.weights",
            "training.batch_size",
            "training.device",
            "training.lr",
            "training.momentum",
            "training.steps",
        ]
    )
    hints = dict(re.findall(r"^([\w.]+):.*\(did you mean ([^?]*)\?\)", "\n".join(found), re.MULTILINE))
    assert hints == {
        "task.temprature": "temperature",
        "teacher.network": "datafree/unet",
        "source.diversity": "plain",
        "source.proxy.flp": "flip",
    }


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.steps=10.5", "training.steps: 10.5 is not a whole number"),
        ("training.steps=true", "training.steps: True is not a whole number"),
        ("training.lr=true", "training.lr: True is not a number"),
        ("training.lr=0", "training.lr: 0 is too small; it must be above 0"),
        ("training.lr=.nan", "training.lr: '.nan' is not a number"),
        ("training.seed=99999999999999999999", "training.seed: 99999999999999999999 is too large"),
        ("training.optimizer=adm", "is not one of: sgd or adam (did you mean adam?)"),
        ("training.device=7", "training.device: 7 is not a text"),
        ("task.image_size=[1, 2, 3]", "task.image_size: [1, 2, 3] has too many values, it needs 2"),
        ("task.image_size=[1, x]", "task.image_size.1: 'x' is not a whole number"),
        ("task.image_size=128", "task.image_size: 128 is not a list"),
        ("task.num_classes=", "task.num_classes: None is not a whole number"),
        ("task.num_classes=0", "task.num_classes: 0 is too small; it must be 1 or more"),
        ("task.num_classes=1", "task: num_classes is 1; it must be 2 or more"),
        ("task={kind: classification, num_classes: 1, image_size: [8, 8]}", "num_classes is 1; it must be 2 or more"),
        (
            "task.kind=detecton",
            "task.kind: 'detecton' is not one of: classification, detection, multilabel, segmentation",
        ),
        ("source.method=nois", "(did you mean noise?)"),
        ("source=noise", "source: 'noise' is not a section"),
        ("source={}", "source.method: is missing; one of: auto, cgdd"),
        ("teacher.std=[1, 1, 0]", "teacher.std.2: 0 is too small; it must be above 0"),
        ("teacher.args=[1]", "teacher.args: [1] is not a section"),
        ("name=a/b", "name: 'a/b' cannot name a run directory"),
        ("data=", None),
    ],
)
def test_a_fault_names_key_value_and_what_is_allowed(tmp_path: Path, override: str, words: str | None) -> None:
    if words is None:
        assert load(tmp_path, VALID, override)
    else:
        assert words in fault(tmp_path, VALID, override)


def test_a_nested_source_of_a_fixed_method_may_not_name_another(tmp_path: Path) -> None:
    content = changed(source={"method": "degan", "proxy": {"method": "noise"}})
    assert fault(tmp_path, content) == "source.proxy.method: 'noise' does not fit here; only folder does"


def test_checks_that_a_method_makes_on_itself_are_faults_too(tmp_path: Path) -> None:
    content = changed(source={"method": "mixed", "parts": [{"method": "noise"}]})
    assert fault(tmp_path, content).startswith("source: mixed has 1 parts but a ratio of 2 shares")


def test_a_file_is_no_folder_and_a_folder_no_file(tmp_path: Path) -> None:
    assert "is a folder, not a file" in fault(tmp_path, VALID, f"teacher.weights={tmp_path}")
    file = write(tmp_path, VALID)
    assert "is a file, not a folder" in fault(tmp_path, VALID, f"data={file}")
    assert "is a file, not a folder" in fault(tmp_path, VALID, f"source={{method: folder, path: {file}}}")


# Files.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("task: {}\nname: a\nname: b\n", "street.yaml, line 3: 'name' is given twice (first in line 2)"),
        ("name: !!python/object/apply:os.getcwd []\n", "street.yaml, line 1: tags (!) are not allowed"),
        ("- a\n", "street.yaml holds ['a'], not sections such as"),
        ("just words\n", "not sections such as"),
    ],
)
def test_bad_yaml_is_one_line_that_says_where(tmp_path: Path, text: str, words: str) -> None:
    assert words in fault(tmp_path, text)


def test_two_repeated_keys_are_two_faults(tmp_path: Path) -> None:
    assert len(faults(tmp_path, "a: 1\na: 2\nb: 1\nb: 2\n")) == 2


def test_yaml_on_is_no_boolean(tmp_path: Path) -> None:
    content = changed(source={"method": "folder", "path": str(tmp_path)})
    assert fault(tmp_path, content, "source.flip=on") == "source.flip: 'on' is not true or false"


def test_an_empty_recipe_misses_its_four_sections(tmp_path: Path) -> None:
    assert [line.split(":")[0] for line in faults(tmp_path, "")] == ["task", "teacher", "student", "source"]


def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.yaml").write_bytes(b"\x80\x02\xff")
    (tmp_path / "large.yaml").write_bytes(b" " * 1_000_001)
    (tmp_path / "folder.yaml").mkdir()
    for name, words in (
        ("weights", "is not text in UTF-8"),
        ("large", "is larger than 1,000,000 bytes"),
        ("folder", "is a folder"),
        ("none", "there is no file"),
    ):
        with pytest.raises(RecipeError, match=words):
            load_recipe(str(tmp_path / f"{name}.yaml"))


def test_a_path_is_expanded_wherever_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE_FOR_TEST", str(tmp_path))
    source = load(tmp_path, changed(source={"method": "degan", "proxy": {"path": "$PLACE_FOR_TEST"}})).source
    assert isinstance(source, Degan)
    assert source.proxy.path == tmp_path
    monkeypatch.delenv("PLACE_FOR_TEST")
    assert "the variable PLACE_FOR_TEST is not set" in fault(tmp_path, VALID, "data=$PLACE_FOR_TEST/x")


# Anything at all.

_KEYS = (
    "kind",
    "method",
    "network",
    "args",
    "mean",
    "std",
    "steps",
    "lr",
    "data",
    "proxy",
    "path",
    "parts",
    "ratio",
)
_OTHERS = (
    "noise",
    "degan",
    "mixed",
    "folder",
    "segmentation",
    "datafree/unet",
    "builtin:x",
    "$X",
    "~x",
    "a:b",
    "",
)
WORDS = st.sampled_from([*VALID, *_KEYS, *_OTHERS, "weights", "image_size", "name", "device", "warmup", "decay_at"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | WORDS
VALUES: st.SearchStrategy[object] = st.deferred(
    lambda: SCALARS | st.lists(VALUES, max_size=3) | st.dictionaries(WORDS | st.text(max_size=4), VALUES, max_size=3)
)
PLACES = st.sampled_from([()] + [(s,) for s in VALID] + [(s, k) for s, section in VALID.items() for k in section])
ANYTHING = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FEW_AND_MANY = pytest.mark.parametrize("examples", [40, pytest.param(300, marks=pytest.mark.thorough)])


def load_or_refuse(file: Path, *overrides: str) -> None:
    try:
        assert isinstance(load_recipe(str(file), overrides), Recipe)
    except RecipeError as error:
        assert error.problems
        assert all("\n" not in problem and problem.isprintable() for problem in error.problems)


@FEW_AND_MANY
def test_any_structure_is_a_recipe_or_a_recipe_error(tmp_path: Path, examples: int) -> None:
    @settings(ANYTHING, max_examples=examples)
    @given(place=PLACES, key=WORDS, value=VALUES)
    def check(place: tuple[str, ...], key: str, value: Any) -> None:
        content = copy.deepcopy(VALID)
        at = content
        for part in place[:-1]:
            at = at[part]
        if place:
            at[place[-1]] = value
        else:
            at[key] = value
        file = tmp_path / "any.yaml"
        file.write_text(yaml.safe_dump(content, allow_unicode=False), encoding="utf-8")
        load_or_refuse(file)

    check()


@ANYTHING
@given(content=st.binary(max_size=80) | st.text(max_size=80).map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes_are_a_recipe_or_a_recipe_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "any.yaml").write_bytes(content)
    load_or_refuse(tmp_path / "any.yaml")


@FEW_AND_MANY
def test_any_override_is_taken_or_a_recipe_error(tmp_path: Path, examples: int) -> None:
    file = Path(write(tmp_path, VALID))

    @settings(ANYTHING, max_examples=examples)
    @given(key=st.lists(WORDS | st.text(max_size=3), max_size=4).map(".".join), text=st.text(max_size=20))
    def check(key: str, text: str) -> None:
        load_or_refuse(file, f"{key}={text}", text)

    check()
