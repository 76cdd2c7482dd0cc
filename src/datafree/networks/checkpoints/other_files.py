"""Networks in formats that are not read here: what a file is, by its name's ending, and what to do instead.

Without torch, so that a word of the user's can be refused at once.
"""

from __future__ import annotations

import re
from pathlib import Path

_KERAS = "is Keras's; write the whole network as ONNX (tf2onnx: python -m tf2onnx.convert) and name that as the network"
_TENSORFLOW = (
    "is TensorFlow's; write it as ONNX (python -m tf2onnx.convert --saved-model DIR, or --graphdef FILE) and name that "
    "as the network"
)
CHECKPOINT = (
    "is a checkpoint of TensorFlow's, variables without a network; write the network as ONNX where its code is (python "
    "-m tf2onnx.convert --checkpoint FILE.meta --inputs NAME:0 --outputs NAME:0, or --saved-model DIR) and name that "
    "as the network"
)
_TENSORRT = "is compiled for one GPU by TensorRT and cannot be read back; name the ONNX file that it was made from"
_CORE_ML = "is Core ML's; name the network that it was made from, with its own weights"
_PADDLE = "is PaddlePaddle's; write the whole network as ONNX (paddle2onnx) and name that as the network"
_FLAX = "holds arrays of Flax; write them under the names of a PyTorch network by safetensors.torch.save_file"
_MADE_FROM = "and is not read here; name the ONNX file, or the network, that it was made from"

OTHER_FILES = {
    ".h5": _KERAS,
    ".hdf5": _KERAS,
    ".keras": _KERAS,
    ".pb": _TENSORFLOW,
    ".meta": CHECKPOINT,
    ".tflite": "is TFLite's; write it as ONNX (python -m tf2onnx.convert --tflite) and name that as the network",
    ".rknn": "is compiled for a Rockchip NPU and cannot be read back; name the ONNX file that it was made from",
    ".engine": _TENSORRT,
    ".plan": _TENSORRT,
    ".trt": _TENSORRT,
    ".hef": f"is compiled for a Hailo chip {_MADE_FROM}",
    ".dlc": f"is compiled by Qualcomm's tools {_MADE_FROM}",
    ".pte": f"is an ExecuTorch program {_MADE_FROM}",
    ".ort": f"is onnxruntime's own form of an ONNX file {_MADE_FROM}",
    ".mlmodel": _CORE_ML,
    ".mlpackage": _CORE_ML,
    ".param": f"is ncnn's {_MADE_FROM}",
    ".mnn": f"is MNN's {_MADE_FROM}",
    ".xml": f"is OpenVINO's, if a network at all, {_MADE_FROM}",
    ".caffemodel": f"is Caffe's {_MADE_FROM}",
    ".pdparams": _PADDLE,
    ".pdmodel": _PADDLE,
    ".msgpack": _FLAX,
    ".npz": "holds arrays of NumPy; write them under the network's names by safetensors.torch.save_file",
}
SAVED_MODEL = "saved_model.pb"  # of a folder of TensorFlow's
_PART = re.compile(r"\.data-\d+-of-\d+")  # the suffix of a checkpoint's values, beside its `.index`
_TABLE_ENDS = b"W\xfb\x80\x8b$uG\xdb"  # a table of TensorFlow's: such an index, or a whole checkpoint of before 2016


def other_file(path: Path) -> str | None:
    """What a file is whose format is not read here, as the rest of a sentence; None for any other. Raises OSError."""
    if path.suffix in OTHER_FILES:
        return OTHER_FILES[path.suffix]
    return CHECKPOINT if is_part(path.name) or _ends(path) == _TABLE_ENDS else None


def is_part(name: str) -> bool:
    """Whether it is the name of a file with the values of a TensorFlow checkpoint."""
    return _PART.fullmatch(Path(name).suffix) is not None


def _ends(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(_TABLE_ENDS)))
        return file.read(len(_TABLE_ENDS))
