"""The formats that an export can be written in, by name, and those that a user asks for."""

from __future__ import annotations

from collections.abc import Sequence

from datafree.deploy.formats.base import Format
from datafree.deploy.formats.coreml import CoreMl
from datafree.deploy.formats.executorch import ExecuTorch
from datafree.deploy.formats.litert import LiteRt
from datafree.deploy.formats.onnx import Onnx
from datafree.deploy.formats.openvino import OpenVino
from datafree.errors import NetworkError
from datafree.text import did_you_mean, show

# In this order: what reads another's files comes after it.
FORMATS: dict[str, Format] = {kind.name: kind for kind in (Onnx(), LiteRt(), OpenVino(), CoreMl(), ExecuTorch())}


def choose(to: str | Sequence[str], *, onnx: bool = True, opset: int | None = None, int8: bool = False) -> list[Format]:
    """The formats named in `to` ("onnx,litert", or a list), their packages being there.

    Raises NetworkError for a name that is none or stands there twice and for options that do not go together,
    DatafreeError for a package that is missing.
    """
    names = [name.strip().lower() for name in (to.split(",") if isinstance(to, str) else to)]
    for name in names:
        if name not in FORMATS:
            raise NetworkError(f"--to names no format: {show(name)}{did_you_mean(name, FORMATS)}; {_known()}")
        if names.count(name) > 1:
            raise NetworkError(f"--to names {name} twice; once is enough")
    if "onnx" in names and not onnx:
        raise NetworkError("--to names onnx, and --no-onnx leaves it out; take one of them back")
    if "onnx" not in names and opset is not None:
        raise NetworkError("--opset is of ONNX, which --to does not name; add onnx, or leave --opset out")
    chosen = [kind for name, kind in FORMATS.items() if name in names]
    if int8 and all(kind.no_int8 for kind in chosen):
        raise NetworkError(f"no format of --to has INT8: {chosen[0].no_int8}; add onnx, or leave --int8 out")
    for kind in chosen:
        kind.require()
    return chosen


def _known() -> str:
    return f"one or more of {', '.join(FORMATS)}, with commas between them"
