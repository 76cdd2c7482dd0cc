"""What is known of formats without their packages and torch: names, files, extras; and which of them are asked for."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, final

from datafree.config.extras import require
from datafree.errors import DatafreeError, NetworkError
from datafree.text import did_you_mean, show


class Offered(Protocol):
    """A format as `choose` needs it."""

    @property
    def no_int8(self) -> str: ...

    def require(self) -> None: ...


Kind = TypeVar("Kind", bound=Offered)


@final
@dataclass(frozen=True, kw_only=True)
class Facts:
    """Of a format; `Format` has them as class variables."""

    name: str  # as `--to` has it
    runtime: str  # as its makers write it
    modules: tuple[str, ...]  # its packages, as they are imported; the extra of datafree that brings them has its name
    suffixes: tuple[str, ...]  # of its files; the first is the one that is opened
    no_int8: str = ""  # why it has no INT8; "": it has
    unverified: str = ""  # why a file cannot be computed here; "": it can

    @property
    def extra(self) -> str:
        """The extra of datafree that brings its packages."""
        return self.name

    def files(self, int8: bool) -> list[str]:
        """The names of its files in an export; the first is the one that is opened."""
        return [f"student{'.int8' if int8 else ''}{suffix}" for suffix in self.suffixes]

    def require(self) -> None:
        """Raise DatafreeError, with the command that installs it, if a package is missing."""
        require(f"exporting to {self.runtime}", *self.modules, extra=self.extra)


_ONNX = ("onnx", "onnxscript", "onnxruntime")
# In this order: what reads another's files comes after it.
FACTS = {
    facts.name: facts
    for facts in (
        Facts(name="onnx", runtime="ONNX", modules=_ONNX, suffixes=(".onnx",)),
        Facts(
            name="litert",
            runtime="LiteRT",
            modules=("litert_torch", "ai_edge_litert", "ai_edge_quantizer"),
            suffixes=(".tflite",),
        ),
        Facts(name="openvino", runtime="OpenVINO", modules=("openvino", *_ONNX), suffixes=(".xml", ".bin")),
        Facts(
            name="coreml",
            runtime="Core ML",
            modules=("coremltools",),
            suffixes=(".mlpackage.zip",),
            no_int8="Core ML finds the ranges of activations on macOS alone; coremltools.optimize makes it there",
            unverified="" if sys.platform == "darwin" else "Core ML computes on macOS alone",
        ),
        Facts(name="executorch", runtime="ExecuTorch", modules=("executorch", "torchao"), suffixes=(".pte",)),
    )
}


def choose(
    to: str | Sequence[str],
    known: Mapping[str, Kind],
    *,
    onnx: bool = True,
    opset: int | None = None,
    int8: bool = False,
) -> list[Kind]:
    """The formats of `known` that `to` names ("onnx,litert", or a list), their packages being there.

    Raises NetworkError for a name that is none or stands there twice and for options that do not go together,
    DatafreeError for a package that is missing.
    """
    names = [name.strip().lower() for name in (to.split(",") if isinstance(to, str) else to)]
    for name in names:
        if name not in known:
            listed = f"one or more of {', '.join(known)}, with commas between them"
            raise NetworkError(f"--to names no format: {show(name)}{did_you_mean(name, known)}; {listed}")
        if names.count(name) > 1:
            raise NetworkError(f"--to names {name} twice; once is enough")
    if "onnx" in names and not onnx:
        raise NetworkError("--to names onnx, and --no-onnx leaves it out; take one of them back")
    if "onnx" not in names and opset is not None:
        raise NetworkError("--opset is of ONNX, which --to does not name; add onnx, or leave --opset out")
    chosen = [kind for name, kind in known.items() if name in names]
    if int8 and all(kind.no_int8 for kind in chosen):
        raise NetworkError(f"no format of --to has INT8: {chosen[0].no_int8}; add onnx, or leave --int8 out")
    for kind in chosen:
        kind.require()
    return chosen


def wanted(
    to: str | Sequence[str] | None,
    known: Mapping[str, Kind],
    notes: list[str],
    *,
    onnx: bool = True,
    opset: int | None = None,
    int8: bool = False,
) -> list[Kind]:
    """The formats to write; `notes` is told of ONNX that nobody asked for and that cannot be. Raises as `choose`."""
    if to is not None:
        return choose(to, known, onnx=onnx, opset=opset, int8=int8)
    if not onnx:
        if int8:
            raise NetworkError("INT8 is made of the ONNX file: leave out --no-onnx, or --int8")
        return []
    try:
        return choose("onnx", known, opset=opset, int8=int8)
    except DatafreeError as error:
        if int8 or opset is not None:
            raise
        notes.append(f"student.onnx was not written: {error}, and export again; --no-onnx: not wanted")
        return []
