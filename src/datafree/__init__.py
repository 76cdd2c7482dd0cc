"""datafree: distil a trained vision network into a small one without the data it was trained on.

What is listed in `__all__` is imported when it is first used: `import datafree` alone does not import torch.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datafree.api import Result, calibrate, distill, evaluate, export
    from datafree.deploy.calibration.folder import Calibration
    from datafree.errors import DatafreeError
    from datafree.networks.load import NetworkSpec
    from datafree.recipe.training import Training
    from datafree.tasks import Classification, Detection, MultiLabel, Segmentation
    from datafree.tasks.base import Scores

_HOMES = {
    **dict.fromkeys(("Result", "calibrate", "distill", "evaluate", "export"), "datafree.api"),
    **dict.fromkeys(("Classification", "Detection", "MultiLabel", "Segmentation"), "datafree.tasks"),
    "Calibration": "datafree.deploy.calibration.folder",
    "DatafreeError": "datafree.errors",
    "NetworkSpec": "datafree.networks.load",
    "Scores": "datafree.tasks.base",
    "Training": "datafree.recipe.training",
}
__all__ = [
    "Calibration",
    "Classification",
    "DatafreeError",
    "Detection",
    "MultiLabel",
    "NetworkSpec",
    "Result",
    "Scores",
    "Segmentation",
    "Training",
    "calibrate",
    "distill",
    "evaluate",
    "export",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        return metadata.version("datafree")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
