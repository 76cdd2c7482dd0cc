"""A written file opened again and compared with torch.

B images, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datafree.deploy.formats.base import Format, Given, convert
from datafree.errors import DatafreeError, NetworkError
from datafree.networks.comparison import WORST, relative_error, undecided
from datafree.ops import modes
from datafree.storage.atomic import sha256_of
from datafree.text import percent

AGREES = 0.98  # of the float network's answers; an INT8 file that gives fewer is warned of
AT_ONCE = 8  # images


@dataclass(frozen=True, kw_only=True)
class Made:
    """A file of an export, and what was found when it was opened again."""

    file: str  # the one that is opened
    format: str
    int8: bool
    bytes: int  # of all files that belong to it
    sha256: str
    error: float | None = None  # relative, against torch, of a float file; None: not measured
    agreement: float | None = None  # with torch, as the task counts it; None: not measured, or nothing is seen
    compared: int = 0  # images; 0: the file was not opened
    unverified: str = ""  # why it was not

    @property
    def warning(self) -> str:
        """A line about an INT8 file that does not answer as the float network does; "" about one that does."""
        if not self.int8 or not self.compared:
            return ""
        if self.agreement is None:
            return f"{self.file}: neither it nor the float network finds anything in the images: not compared"
        if self.agreement >= AGREES:
            return ""
        return (
            f"warning: {self.file} gives the float network's answer in only {percent(self.agreement)} of cases; ship a "
            "float file, or calibrate with more and other images (--images)"
        )


def make_all(
    kinds: Sequence[Format], given: Given, images: Tensor, tell: Callable[[str], None]
) -> tuple[list[Made], list[str]]:
    """`make` of each format, in 8-bit integers too where there are images to calibrate with.

    Returns what was made, and a line for each file that could not be written. `tell` is called with the name of each
    before it is written. Raises NetworkError where there is one format alone, and it cannot be written.
    """
    made, failed = list[Made](), list[str]()
    for kind in kinds:
        for int8 in (False, True) if given.calibration is not None and not kind.no_int8 else (False,):
            name = kind.files(int8)[0]
            tell(name)
            try:
                made.append(make(kind, given, images, int8=int8))
            except DatafreeError as error:
                if len(kinds) == 1:
                    raise
                failed.append(f"{name} was not written: {error}")
                break
    others = " and ".join(one.file for one in made if not one.int8)
    return made, [f"{line}; {others} could be written" if others else line for line in failed]


def make(kind: Format, given: Given, images: Tensor, *, int8: bool = False) -> Made:
    """Write a format's files and compare them with torch on `images` (B, 3, H, W) uint8.

    A file that was not kept is gone. Raises NetworkError for what cannot be written, or answers otherwise.
    """
    files = [given.folder / name for name in kind.files(int8)]
    try:
        convert(kind, given, int8=int8)
        error, agreement = (None, None) if kind.unverified else _compare(kind, given, images, int8)
    except BaseException:
        for file in files:
            file.unlink(missing_ok=True)
        raise
    return Made(
        file=files[0].name,
        format=kind.name,
        int8=int8,
        bytes=sum(file.stat().st_size for file in files),
        sha256=sha256_of(files[0]),
        error=error,
        agreement=agreement,
        compared=0 if kind.unverified else len(images),
        unverified=kind.unverified,
    )


def _compare(kind: Format, given: Given, images: Tensor, int8: bool) -> tuple[float | None, float | None]:
    """Relative error (of a float file alone) and agreement. Raises NetworkError for an error above WORST."""
    network, task = given.network, given.task
    opened = kind.open(given.folder / kind.files(int8)[0])
    with torch.no_grad(), modes.frozen(network):
        batches = [part.float() / 255 for part in torch.split(images, AT_ONCE)]
        pairs = [(opened(batch), network(batch)) for batch in batches]
    agreement = task.agreement(task.join([ours for ours, _ in pairs]), task.join([theirs for _, theirs in pairs]))
    if int8:
        return None, agreement
    error = max(relative_error(theirs, ours) for ours, theirs in pairs)
    if not error <= WORST:
        why = undecided(network, batches[0])
        raise NetworkError(
            f"{kind.runtime}'s file does not answer as the network: a relative error of {error:.1e}, more than "
            f"{WORST:.0e}; it was not kept" + (f": {why}" if why else "")
        )
    return error, agreement
