"""scripts/make_validation.py: labelled sets on which the demos' settings are chosen."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
NAMES = ("make_validation", "make_example", "make_fashion_example", "supervised")

pytestmark = pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="dataset-fashion-mnist is not installed")


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script as a module; the search path and module table are put back."""
    if not SCRIPTS.is_dir():
        pytest.skip("the script is only in the repository, not in the installed package")
    search_path, modules = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("make_validation")
    sys.path[:] = search_path
    for name in set(NAMES) - modules:
        sys.modules.pop(name, None)


def test_no_validation_scene_is_one_that_anything_learns_from_or_is_scored_on(script: ModuleType) -> None:
    make = sys.modules["make_example"]
    styles = (script.VALIDATION, script.TRUE, make.TRAINING, make.EVALUATION, make.PROXY)
    assert len({style.stream for style in styles}) == len(styles)  # each draws other random numbers
    assert script.VALIDATION.labels == make.EVALUATION.labels and script.VALIDATION.sizes == make.EVALUATION.sizes


def test_boxes_and_masks_of_validation_scenes_are_of_the_same_garments(script: ModuleType, tmp_path: Path) -> None:
    garments = sys.modules["make_example"].read_garments(FASHION_MNIST, "train")
    script.write_labelled(garments, script.VALIDATION, 4, tmp_path)
    found = json.loads((tmp_path / "annotations.json").read_text())
    names = (tmp_path / "classes.txt").read_text().split("\n")[:-1]
    categories = {category["id"]: category["name"] for category in found["categories"]}
    for image in found["images"]:
        assert (tmp_path / "images" / image["file_name"]).is_file()
        mask = np.asarray(Image.open(tmp_path / "masks" / image["file_name"]))
        boxes = [box for box in found["annotations"] if box["image_id"] == image["id"]]
        assert {names[value] for value in np.unique(mask) if value} == {categories[b["category_id"]] for b in boxes}
        for box in boxes:
            left, top, width, height = (int(value) for value in box["bbox"])
            part = mask[top : top + height, left : left + width]
            assert (part == names.index(categories[box["category_id"]])).any()


def test_validation_pictures_are_the_first_of_each_class_of_the_training_part(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "EACH", 2)
    train = script.load_fashion(FASHION_MNIST, "train")
    script.write_pictures(train, tmp_path)
    for label, name in enumerate(train.class_names):
        expected = [place for place in range(200) if int(train.labels[place]) == label][:2]
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == [f"{place:05d}.png" for place in expected]
        with Image.open(tmp_path / name / f"{expected[0]:05d}.png") as picture:
            assert np.array_equal(np.asarray(picture), train.images[expected[0], 0].numpy())
