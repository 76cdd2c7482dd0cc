"""Files of every kind with anything in them: what they hold, or one line that says what is wrong; nothing is written.

The default is a short run. DATAFREE_CASES=2000 makes as many of each kind (`benchmarks/reliability.py` does);
DATAFREE_CASES_COUNTED names a file for how many there were.
"""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from datafree.config import yaml
from datafree.data.coco_yolo import coco_text
from datafree.data.images import UnreadableImage, read_image, read_stored
from datafree.errors import DatafreeError, RunError
from datafree.recipe.recipe import load_recipe
from datafree.sources.base import Batch
from datafree.storage import checkpoint, made_set
from datafree.storage.run_directory import Run
from datafree.synthesis import shard_index
from datafree.synthesis.shards import Shards
from datafree.tasks.detection import Detection
from datafree.tasks.segmentation import Segmentation
from recipes import VALID

CASES = int(os.environ.get("DATAFREE_CASES", "12"))
many = settings(
    max_examples=CASES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
done: Counter[str] = Counter()

# Changes to the bytes of a good file: (place, how many go, what comes).
changes = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 40), st.binary(max_size=12)), min_size=1, max_size=5
)
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)


@pytest.fixture(scope="module", autouse=True)
def counted() -> Iterator[None]:
    yield
    if name := os.environ.get("DATAFREE_CASES_COUNTED"):
        Path(name).write_text(json.dumps(done))


def changed(content: bytes, how: list[tuple[float, int, bytes]]) -> bytes:
    for place, gone, come in how:
        at = int(place * len(content))
        content = content[:at] + come + content[at + gone :]
    return content


def listing(folder: Path) -> dict[str, int]:
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.rglob("*")}


def one_line(error: DatafreeError) -> None:
    lines = error.problems if hasattr(error, "problems") else [str(error)]
    assert lines and all(line and "\n" not in line for line in lines), error
    assert error.exit_code in (2, 3)


def replaced(content: Any, draw: st.DrawFn, value: Any) -> Any:
    """`content` with `value` in a place that is drawn."""
    if isinstance(content, dict) and content and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(content)))
        return {**content, key: replaced(content[key], draw, value)}
    if isinstance(content, list) and content and draw(st.integers(0, 4)):
        index = draw(st.integers(0, len(content) - 1))
        return [*content[:index], replaced(content[index], draw, value), *content[index + 1 :]]
    return value


@st.composite
def spoilt(draw: st.DrawFn, content: Any, times: int = 3) -> Any:
    """Nested values with something else in a few places."""
    for _ in range(draw(st.integers(1, times))):
        content = replaced(content, draw, draw(values))
    return content


# Recipes.


@many
@given(how=changes)
def test_recipes_of_any_bytes(tmp_path: Path, how: list[tuple[float, int, bytes]]) -> None:
    check_recipe(tmp_path, changed(yaml.render(VALID).encode(), how))


@many
@given(content=spoilt(VALID))
def test_recipes_of_any_values(tmp_path: Path, content: Any) -> None:
    check_recipe(tmp_path, json.dumps(content).encode())


def check_recipe(tmp_path: Path, content: bytes) -> None:
    done["recipe files"] += 1
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    before = listing(tmp_path)
    try:
        load_recipe(str(file))
    except DatafreeError as error:
        one_line(error)
    assert listing(tmp_path) == before


# Images and masks.


@cache
def image_files() -> dict[str, bytes]:
    """A good file of each kind, small."""
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    made = {
        "png": (colour, "PNG"),
        "palette": (colour.quantize(8), "PNG"),
        "alpha": (colour.convert("RGBA"), "PNG"),
        "16-bit": (Image.fromarray(rng.integers(0, 65536, (9, 13)).astype(np.uint16)), "PNG"),
        "jpeg": (colour, "JPEG"),
        "cmyk": (colour.convert("CMYK"), "JPEG"),
        "webp": (colour, "WEBP"),
        "gif": (colour.quantize(8), "GIF"),
        "bmp": (colour, "BMP"),
        "tiff": (colour, "TIFF"),
        "ppm": (colour, "PPM"),
        "one pixel": (colour.crop((0, 0, 1, 1)), "PNG"),
    }
    files = {}
    for name, (image, kind) in made.items():
        content = io.BytesIO()
        image.save(content, kind)
        files[name] = content.getvalue()
    return files


@many
@given(kind=st.sampled_from(sorted(image_files())), how=changes)
def test_images_of_any_bytes(tmp_path: Path, kind: str, how: list[tuple[float, int, bytes]]) -> None:
    done["image files"] += 1
    file = tmp_path / "image.png"
    file.write_bytes(changed(image_files()[kind], how))
    for read in (read_image, read_stored):
        try:
            found = read(file)
            image = found if isinstance(found, Image.Image) else found[0]
        except UnreadableImage as error:
            one_line(error)
        else:
            assert min(image.size) > 0
            assert read is read_stored or image.mode == "RGB"


def masked(folder: Path) -> Path:
    rng = np.random.default_rng(1)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(2):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
        Image.fromarray(pixels[..., 0] % 3).save(folder / "masks" / f"{index}.png")
    return folder


@many
@given(
    how=changes,
    names=st.none() | st.text(max_size=30),
    values=st.none() | st.lists(st.integers(0, 65535), min_size=64, max_size=64),
    place=st.sampled_from(["images/0.png", "masks/0.png", "masks/1.png"]),
)
def test_masks_of_any_bytes_and_values(
    tmp_path: Path, how: list[tuple[float, int, bytes]], names: str | None, values: list[int] | None, place: str
) -> None:
    done["mask files"] += 1
    folder = masked(tmp_path / "data")
    (folder / "classes.txt").unlink(missing_ok=True)
    if names is not None:
        (folder / "classes.txt").write_text(names, encoding="utf-8", errors="replace")
    if values is None:
        (folder / place).write_bytes(changed((folder / place).read_bytes(), how))
    else:
        Image.fromarray(np.array(values, np.uint16).reshape(8, 8)).save(folder / "masks" / "0.png")
    read_all(Segmentation(num_classes=3, image_size=(8, 8)), folder)


def read_all(task: Any, folder: Path) -> None:
    before = listing(folder)
    try:
        for images, _ in task.open_dataset(folder).batches(2):
            assert images.isfinite().all()
    except DatafreeError as error:
        one_line(error)
    assert listing(folder) == before


# Annotations.

COCO: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "0.png", "width": 8, "height": 8}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1.0, 1.0, 4.0, 5.0], "area": 20, "iscrowd": 0}],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
}


def boxed(folder: Path) -> Path:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(folder / "images" / "0.png")
    return folder


@many
@given(content=spoilt(COCO) | st.binary(max_size=200))
def test_coco_files_of_any_values(tmp_path: Path, content: Any) -> None:
    done["annotation files"] += 1
    folder = boxed(tmp_path / "coco")
    (folder / "annotations.json").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    read_all(Detection(num_classes=2, image_size=(8, 8)), folder)


@many
@given(
    lines=st.lists(st.lists(scalars.map(str) | st.floats(-0.5, 1.5).map(str), max_size=7).map(" ".join), max_size=4),
    listing=spoilt({"train": "images", "val": "images", "names": {"0": "cat", "1": "dog"}}) | st.none(),
)
def test_yolo_files_of_any_values(tmp_path: Path, lines: list[str], listing: Any) -> None:
    done["annotation files"] += 1
    folder = boxed(tmp_path / "yolo")
    (folder / "labels").mkdir(exist_ok=True)
    (folder / "labels" / "0.txt").write_text("\n".join(lines), encoding="utf-8", errors="replace")
    good = {"train": "images", "val": "images", "names": {0: "cat", 1: "dog"}}
    (folder / "data.yaml").write_text(json.dumps(good if listing is None else listing))
    read_all(Detection(num_classes=2, image_size=(8, 8)), folder)


# Manifests and states.

TASK = Detection(num_classes=2, image_size=(8, 8))
RECIPE: dict[str, Any] = {"name": "cases", "training": {"select": "last"}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made data set of one shard."""
    task, out = TASK, tmp_path_factory.mktemp("made") / "out"
    shards = Shards(out, RECIPE)
    shards.begin(["cat", "dog"])
    targets = task.sample_targets(2, torch.device("cpu"), torch.Generator().manual_seed(0))
    shards.write(0, task, Batch(images=torch.zeros(2, 3, 8, 8), targets=targets))
    shards.finish(task)
    shards.close()
    return out


@many
@given(data=st.data(), which=st.sampled_from(["shards/00000.json", "index.json", "recipe.yaml"]), how=changes)
def test_manifests_of_any_values(
    made: Path, data: st.DataObject, which: str, how: list[tuple[float, int, bytes]]
) -> None:
    done["manifests"] += 1
    whole = (made / which).read_bytes()
    by_value = which != "recipe.yaml" and data.draw(st.booleans())
    content = json.dumps(data.draw(spoilt(json.loads(whole)))).encode() if by_value else changed(whole, how)
    (made / which).write_bytes(content)
    before = listing(made)
    try:
        shards = Shards(made, RECIPE)
        assert shards.count <= 1
        list(made_set.damages(made))
        list(coco_text(partial(shard_index.listings, made, TASK), ["cat", "dog"]))
    except DatafreeError as error:
        one_line(error)
    finally:
        assert listing(made) == before
        (made / which).write_bytes(whole)


@many
@given(how=changes, newest=st.booleans())
def test_states_of_any_bytes(tmp_path: Path, how: list[tuple[float, int, bytes]], newest: bool) -> None:
    done["states"] += 1
    run = Run(tmp_path / "run", RECIPE)
    if run.saved is None:
        run.start(0)
        for step in (1, 2):
            run.save_state({"step": step, "weights": torch.arange(9.0), "recovery": {}})
    run.close()
    file = tmp_path / "run" / "state" / ("state.pt" if newest else "previous.pt")
    whole = file.read_bytes()
    file.write_bytes(changed(whole, how))
    try:
        again = Run(tmp_path / "run", RECIPE)
        assert again.saved is not None
        again.close()
        same = changed(whole, how) == whole
        assert again.saved["step"] == (2 if not newest or same else 1)
    finally:
        file.write_bytes(whole)
    with pytest.raises(checkpoint.Damaged):
        file.write_bytes(whole[:-1])
        checkpoint.read(file)
    file.write_bytes(whole)


def test_a_state_that_no_copy_can_serve_for_is_one_line(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", RECIPE)
    run.start(0)
    run.save_state({"step": 1, "recovery": {}})
    run.close()
    (tmp_path / "run" / "state" / "state.pt").write_bytes(b"")
    with pytest.raises(RunError, match=r"state\.pt is damaged .* cannot be resumed; choose another --out"):
        Run(tmp_path / "run", RECIPE)
