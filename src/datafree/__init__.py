"""datafree: distil a trained vision network into a small one without the data it was trained on.

What is listed in `__all__` is imported when it is first used: `import datafree` alone does not import torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from datafree.api import Result, distill, evaluate, export
    from datafree.errors import DatafreeError
    from datafree.networks.load import NetworkSpec
    from datafree.tasks import Classification, Detection, Segmentation
    from datafree.tasks.base import Scores
    from datafree.training import Training

_HOMES = {
    **dict.fromkeys(("Result", "distill", "evaluate", "export"), "datafree.api"),
    **dict.fromkeys(("Classification", "Detection", "Segmentation"), "datafree.tasks"),
    "DatafreeError": "datafree.errors",
    "NetworkSpec": "datafree.networks.load",
    "Scores": "datafree.tasks.base",
    "Training": "datafree.training",
}
__all__ = [
    "Classification",
    "DatafreeError",
    "Detection",
    "NetworkSpec",
    "Result",
    "Scores",
    "Segmentation",
    "Training",
    "distill",
    "evaluate",
    "export",
]


class _Package(ModuleType):
    """The package. Three of its functions are called as modules of it are, and keep these names.

    Python binds a module to its package as it imports it: without this, `datafree.distill` would be the function or the
    module, depending on who had imported what before.
    """

    def __getattr__(self, name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found: object = getattr(import_module(_HOMES[name]), name)
        setattr(self, name, found)
        return found

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_HOMES})


sys.modules[__name__].__class__ = _Package
