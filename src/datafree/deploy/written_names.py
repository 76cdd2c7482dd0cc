"""Names of what an export and a calibration write, and what may lie where they do."""

from __future__ import annotations

from pathlib import Path

from datafree.config.extras import require
from datafree.deploy.format_facts import FACTS
from datafree.errors import DataError, NetworkError
from datafree.storage import strict_json
from datafree.storage.atomic import sha256_of
from datafree.storage.places import require_replaceable
from datafree.storage.run_files import ConfigForm
from datafree.text import show

WEIGHTS, CONFIG, CARD = "student.safetensors", "config.json", "README.md"
EXPORTED = (
    WEIGHTS,
    *(name for facts in FACTS.values() for int8 in (False, True) for name in facts.files(int8)),
    CONFIG,
    CARD,
)

JSON, PAGE = "calibration.json", "calibration.html"
FOLDERS = ("images", "inputs", "readers")
CALIBRATED = ("images.txt", "images.npy", "data.yaml", "teacher.onnx", "teacher.int8.onnx", JSON, PAGE)
LEAST, MOST = 8, 10_000  # images: below the first nothing is calibrated
MOST_STEPS = 1_000_000  # of training for INT8


def require_export(out: Path) -> None:
    """Raise RunError if `out` holds anything that an export would not replace."""
    require_replaceable(out, EXPORTED, what="export")


def require_calibration(out: Path) -> None:
    """Raise RunError if `out` holds anything that a calibration would not replace."""
    require_replaceable(out, CALIBRATED, FOLDERS, what="calibration")


def require_count(images: int) -> None:
    """Raise DataError for a number of images that calibrates nothing, or is no longer a sample."""
    if type(images) is not int or not LEAST <= images <= MOST:
        raise DataError(f"--images is {show(images)}: give {LEAST} to {MOST:,}, 256 where nothing else is known")


def require_int8_options(steps: int, images: Path | None, int8: bool) -> None:
    """Raise NetworkError for a number of steps of training for INT8 that is none, or options of INT8 without it."""
    if not 0 <= steps <= MOST_STEPS:
        raise NetworkError(f"--qat-steps is {steps}: give 1 to {MOST_STEPS:,}, or 0 to quantise without training")
    if steps and not int8:
        raise NetworkError(f"--qat-steps {steps} trains for INT8, which is not wanted: add --int8, or leave it out")
    if images is not None and not int8:
        raise NetworkError(
            f"--images {images} is what INT8 is calibrated with, which is not wanted: add --int8, or leave it out"
        )


def is_export_of(run: Path, folder: Path) -> bool:
    """Whether the export in `folder` is of the student that `run` holds now; of a damaged one it is not."""
    try:
        made_of = ConfigForm.model_validate(strict_json.read(folder / CONFIG, ConfigForm)).sha256.get(WEIGHTS)
        return made_of == sha256_of(run / WEIGHTS)
    except (OSError, strict_json.Damaged):
        return False


def require_int8() -> None:
    """Raise DatafreeError where the packages are missing that INT8 needs."""
    require("INT8 (--no-int8 writes the images alone)", *FACTS["onnx"].modules)
