"""Which numbers, files and folders an option takes, by its name: it means the same wherever it appears."""

from __future__ import annotations

from pathlib import Path

from datafree.text import show

_AT_LEAST: dict[str, int] = {"num_classes": 1, "warmup": 0, "update_every": 0, "weight_decay": 0, "seed": 0}
_AT_LEAST |= dict.fromkeys(("steps", "batch_size", "log_every", "save_every", "picture_every"), 1)
_AT_LEAST |= dict.fromkeys(("latent", "width", "image_size", "iterations", "bank_size", "memory"), 1)
_AT_LEAST |= dict.fromkeys(("jitter", "shift", "negatives", "restarts", "max_rollbacks", "clip"), 0)
_AT_LEAST |= dict.fromkeys(
    ("lr_end", "bn_clip", "bn_layers", "brightness", "contrast", "fp_sampling_every", "fp_sampling_from"), 0
)
_ABOVE_ZERO = ("lr", "temperature", "std")
_FRACTIONS = ("momentum", "bn_momentum", "beta1", "beta2")  # 0 <= x < 1
_SHARES: tuple[str, ...] = (
    "replay",
    "mixup",
    "decay_at",
    "reset_at",
    "mosaic_share",
    "flip_probability",
    "erase_probability",
    "cutout",
    "box_sides",
)
_SHARES += ("fp_sampling_area", "fp_sampling_score", "fp_sampling_iou")
_FOLDERS = ("path",)
_PLACES = ("data",)  # a file or a folder: the task knows
_FILES = ("weights", "generator")


def out_of_range(name: str, value: object) -> str | None:
    """What is wrong with the value of the option `name`, whose type is right; None if nothing is."""
    if isinstance(value, Path):
        return _not_there(name, value)
    items = value if isinstance(value, (tuple, list)) else (value,)
    numbers = [item for item in items if isinstance(item, (int, float)) and not isinstance(item, bool)]
    least = 0 if name.endswith("_weight") else _AT_LEAST.get(name)
    if least is not None and any(number < least for number in numbers):
        return f"is too small; it must be {least} or more"
    if (name in _ABOVE_ZERO or name.endswith("_lr")) and any(number <= 0 for number in numbers):
        return "is too small; it must be above 0"
    if name in _FRACTIONS and any(not 0 <= number < 1 for number in numbers):
        return "is out of range; it must be 0 or more, and below 1"
    if name in _SHARES and any(not 0 <= number <= 1 for number in numbers):
        return "is out of range; it is a share, from 0 to 1"
    if any(abs(number) >= 2**63 for number in numbers if isinstance(number, int)):
        return "is too large"
    return None


def _not_there(name: str, path: Path) -> str | None:
    looked = f"(looked for {path if str(path).isprintable() else show(str(path))})"
    if name in _PLACES and not path.exists():
        return f"is not here {looked}"
    if name in _FOLDERS and not path.is_dir():
        return f"is {'a file, not a folder' if path.exists() else 'no folder here'} {looked}"
    if name in _FILES and not path.is_file():
        return f"is {'a folder, not a file' if path.exists() else 'no file here'} {looked}"
    return None
