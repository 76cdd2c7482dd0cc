"""The exceptions that users see, and their exit codes.

DatafreeError               every error a user can mend; its text is one line; exit code 2
├── RecipeError             a recipe that cannot be run: all its faults at once
├── DataError               folders, images and masks
├── NetworkError            a network that does not fit the task, the image size or the library's names
│   └── WeightsError        a weights file that is unsafe, damaged or of another architecture
├── RunError                a run directory that belongs to something else, or is damaged
├── TrainingError           training went wrong (a loss is not finite); exit code 3
└── Interrupted             stopped before the end, everything saved; exit code 75: the same command resumes it

A message says what is wrong, shows the value and names a way out. Our own invariants are `assert`.
"""

from __future__ import annotations

from datafree.text import shown


class DatafreeError(Exception):
    """An error a user can mend. `str(error)` is the line to show; `exit_code` is the process's answer."""

    exit_code = 2

    def __str__(self) -> str:
        """The line: names and values of others in it are shown safely, whoever raised it."""
        return shown(super().__str__())


class RecipeError(DatafreeError):
    """A recipe that cannot be run. `problems` holds one line for each fault."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = [shown(problem) for problem in problems]
        super().__init__("\n".join(self.problems))

    def __str__(self) -> str:
        return "\n".join(self.problems)


class DataError(DatafreeError):
    """A folder, image or mask that cannot be used."""


class NetworkError(DatafreeError):
    """A network that does not exist, or does not fit the task or the image size."""


class WeightsError(NetworkError):
    """A weights file that is unsafe, damaged, or made for another architecture."""


class RunError(DatafreeError):
    """A run directory that cannot be used as asked."""


class TrainingError(DatafreeError):
    """Training cannot go on."""

    exit_code = 3


class Interrupted(DatafreeError):
    """Stopped on request before the end; what there was to save is saved, and the same command goes on from there."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later
