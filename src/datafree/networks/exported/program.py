"""Programs of torch.export as networks: answers, and gradients to the images; no layers.

B images, H x W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datafree.errors import NetworkError
from datafree.networks.exported.pt2_file import ProgramFile, SameDevice, Step, Value, read_program
from datafree.text import one_line

SUFFIX = ".pt2"
_LARGEST = 2**48  # a size beyond is no size


class Program(nn.Module):
    """The network in a .pt2 file: images (B, channels, H, W) -> what it answered when it was exported.

    A table of steps is gone through, see `program_file`. Its BatchNorm layers are steps like any other: there are no
    modules whose statistics a method could match. Raises WeightsError for a file that cannot be used.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._file = read_program(path)
        self._held: dict[str, str] = {}  # a step's name of a tensor -> ours
        for index, (name, tensor) in enumerate(self._file.tensors.items()):
            self._held[name] = f"t{index}"
            if name in self._file.parameters and tensor.is_floating_point():
                self.register_parameter(f"t{index}", nn.Parameter(tensor))
            else:
                self.register_buffer(f"t{index}", tensor)
        # What is not used again is let go, as a network's own code would.
        self._last: list[list[str]] = [[] for _ in self._file.steps]
        seen = set(self._file.answers)
        for index in reversed(range(len(self._file.steps))):
            names = _names(self._file.steps[index])
            self._last[index] = [name for name in names if name not in seen]
            seen |= names

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the images it was exported for, None where it takes several."""
        height, width = self._file.size[2:]
        return None if height is None or width is None else (height, width)

    def forward(self, images: Tensor) -> Any:
        """Raises NetworkError for images of another size than it was exported for."""
        for side, wanted in zip(images.shape[1:], self._file.size[1:], strict=True):
            if wanted not in (None, side):
                _, *shape = self._file.size
                raise NetworkError(
                    f"{self.path} takes images of {' x '.join('any' if n is None else str(n) for n in shape)} "
                    f"(channels, height, width), not {' x '.join(map(str, images.shape[1:]))}"
                )
        values: dict[str, Any] = {name: getattr(self, own) for name, own in self._held.items()}
        values[self._file.image] = images
        for step, done in zip(self._file.steps, self._last, strict=True):
            self._run(step, values, images.device)
            for name in done:
                values.pop(name, None)
        answers = [values[name] for name in self._file.answers]
        return _in_form(answers, self._file)

    def _run(self, step: Step, values: dict[str, Any], device: torch.device) -> None:
        """Put what a step makes into `values`."""

        def filled(given: Any) -> Any:
            if isinstance(given, Value):
                return values[given.name]
            if isinstance(given, list):
                return [filled(one) for one in given]
            return device if isinstance(given, SameDevice) else given

        args, kwargs = filled(step.args), {name: filled(value) for name, value in step.kwargs.items()}
        try:
            made = (
                _view(*args, **kwargs) if step.target == "torch.ops.aten.view.default" else step.call(*args, **kwargs)
            )
        except (
            TypeError,
            ValueError,
            RuntimeError,
            IndexError,
            ArithmeticError,
        ) as error:  # of arguments that do not suit
            raise NetworkError(f"{self.path}: {step.target} cannot be computed ({one_line(error)})") from error
        several = made if isinstance(made, (tuple, list)) and len(step.makes) > 1 else [made]
        if len(several) != len(step.makes):
            raise NetworkError(f"{self.path}: {step.target} answers {len(several)} values, not {len(step.makes)}")
        for names, value in zip(step.makes, several, strict=True):
            if isinstance(value, int) and abs(value) > _LARGEST:
                raise NetworkError(f"{self.path}: {step.target} answers a size of {value:.1e}")
            if isinstance(names, list):
                if len(names) != len(value):
                    raise NetworkError(f"{self.path}: {step.target} answers {len(value)} tensors, not {len(names)}")
                values |= dict(zip(names, value, strict=True))
            else:
                values[names] = value


def _view(values: Tensor, size: list[int]) -> Tensor:
    """A view; a copy where memory lies otherwise than it did at the export (channels last)."""
    try:
        return values.view(size)
    except RuntimeError:
        return values.reshape(size)


def _names(step: Step) -> set[str]:
    """Of the values that a step uses."""
    found = set()
    left = [*step.args, *step.kwargs.values()]
    while left:
        given = left.pop()
        if isinstance(given, Value):
            found.add(given.name)
        elif isinstance(given, list):
            left += given
    return found


def _in_form(answers: list[Any], file: ProgramFile) -> Any:
    if file.form is None:
        return answers[0]
    return dict(zip(file.form, answers, strict=True)) if isinstance(file.form, list) else tuple(answers)
