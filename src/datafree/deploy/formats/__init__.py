"""The formats that an export can be written in, by name."""

from __future__ import annotations

from datafree.deploy.formats.base import Format
from datafree.deploy.formats.coreml import CoreMl
from datafree.deploy.formats.executorch import ExecuTorch
from datafree.deploy.formats.litert import LiteRt
from datafree.deploy.formats.onnx import Onnx
from datafree.deploy.formats.openvino import OpenVino

# In the order of `format_facts.FACTS`.
FORMATS: dict[str, Format] = {kind.name: kind for kind in (Onnx(), LiteRt(), OpenVino(), CoreMl(), ExecuTorch())}
