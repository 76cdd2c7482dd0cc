"""Paths of COCO and YOLO data sets: where labels and their images are found in the usual folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datafree.errors import DataError
from datafree.text import show

_LAYOUT = (
    "images and a COCO file (annotations.json, instances_*.json, annotations/instances_*.json or "
    "_annotations.coco.json), or YOLO's images/NAME.png and labels/NAME.txt"
)


def find_annotations(path: Path) -> tuple[Path | None, Path | None]:
    """The COCO file at `path`, or YOLO's data.yaml (None: just folders)."""
    if path.is_file() and path.suffix.lower() == ".json":
        return path, None
    if path.is_file() and path.suffix.lower() in (".yaml", ".yml"):
        return None, path
    if not path.is_dir():
        raise DataError(f"{path} is no folder, .json or .yaml; labelled images are expected as {_LAYOUT}")
    names = ("_annotations.coco.json", "annotations.json", "instances_*.json", "annotations/instances_*.json")
    found = sorted(file for name in names for file in path.glob(name) if file.is_file())
    if len(found) > 1:
        listed = ", ".join(str(file.relative_to(path)) for file in found[:8]) + (", ..." if len(found) > 8 else "")
        raise DataError(f"{path} has several COCO files ({listed}); give the path of one, such as {found[-1]}")
    if found:
        return found[0], None
    if (path / "data.yaml").is_file():
        return None, path / "data.yaml"
    if not (path / "images").is_dir() or not (path / "labels").is_dir():
        raise DataError(f"{path} holds no labelled images; they are expected as {_LAYOUT}")
    return None, None


def image_folder(file: Path, names: Sequence[str]) -> Path:
    """Where the images of a COCO file are; raises DataError if some are nowhere."""
    if not names:
        raise DataError(f"{file} lists no images; give one that does")
    split = file.stem.removeprefix("instances_")
    near = [file.parent, file.parent.parent] if file.parent.name == "annotations" else [file.parent]
    folders = [folder for base in near for folder in (base / "images" / split, base / split, base / "images", base)]
    lacking: dict[Path, list[str]] = {}
    for folder in filter(Path.is_dir, folders):
        lacking[folder] = [name for name in names if not is_file(folder / name)]
        if not lacking[folder]:
            return folder
    folder = min(lacking, key=lambda folder: len(lacking[folder]))
    raise DataError(
        f"{file} names {len(lacking[folder])} images (of {len(names)}) that are not in {folder}: "
        f"{first_three(lacking[folder])}; put them there, or all images into {near[-1] / 'images'}"
    )


def split_folder(root: Path, given: list[str], file: Path) -> Path:
    """The first of the given folders that is there, and below the data.yaml's."""
    real = root.resolve()
    for path in map(Path, given):
        if path.is_absolute():
            path = path.relative_to(real) if path.is_relative_to(real) else Path("..")
        while path.parts[:1] == ("..",) and len(path.parts) > 1:
            path = Path(*path.parts[1:])  # exporters write ../valid/images for valid/images beside their data.yaml
        if ".." not in path.parts and (root / path).is_dir():
            return root / path
    raise DataError(f"{file}: {show(given[-1])} is no folder below {root}; give one, relative to it")


def label_folder(root: Path, folder: Path) -> Path:
    """Where the labels of a folder of images are: the last "images" of its path is "labels" there; or beside them."""
    parts = list(folder.relative_to(root).parts)
    if "images" not in parts:
        return folder
    parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return root.joinpath(*parts)


def label_files(labels: Path) -> set[Path]:
    """YOLO's label files below `labels`. Hidden names are left out, as of images: macOS puts ._NAME.txt beside NAME."""
    found = {label for label in labels.rglob("*.txt") if label.name != "classes.txt"}
    return {label for label in found if not any(part.startswith(".") for part in label.relative_to(labels).parts)}


def first_three(names: list[str]) -> str:
    """The names as an error shows them."""
    return ", ".join(map(show, names[:3])) + (", ..." if len(names) > 3 else "")


def is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file system takes
        return False
