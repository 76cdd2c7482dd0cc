"""Readers of calibration images for other tools: small scripts without datafree, and the files that need none.

Each is a text that stands beside the images. What a tool's own package is needed for is imported where it is used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

IMAGES = '''\
"""The calibration images of this folder as a network takes them, by NumPy alone."""

import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent.parent
# As the network itself takes them. False: RGB in [0, 1], as teacher.onnx of this folder takes them, which normalises
# them itself: so where the command names that file.
NORMALISED = FOLDER / "teacher.onnx" not in [Path(word).resolve() for word in sys.argv[1:]]


def inputs():
    """Arrays (1, channels, height, width) float32, an image each."""
    if NORMALISED:
        for file in sorted((FOLDER / "inputs").glob("*.npy")):
            for image in np.load(file):
                yield np.ascontiguousarray(image[None])
    else:
        for image in np.load(FOLDER / "images.npy", mmap_mode="r"):  # (height, width, 3) uint8
            yield np.ascontiguousarray(image.transpose(2, 0, 1)[None].astype(np.float32) / 255)
'''

OPENVINO = '''\
"""INT8 by NNCF for OpenVINO: python readers/openvino_nncf.py MODEL.onnx OUT.xml (pip install nncf openvino)"""

import sys

import calibration_images


def calibration_data():
    """A list, as nncf.Dataset takes it: one array for each image."""
    return list(calibration_images.inputs())


def main(model, out):
    import nncf
    import openvino

    read = openvino.Core().read_model(model)
    data = calibration_data()
    openvino.save_model(nncf.quantize(read, nncf.Dataset(data), subset_size=len(data)), out)


if __name__ == "__main__":
    main(*sys.argv[1:])
'''

LITERT = '''\
"""INT8 by LiteRT (TensorFlow Lite): python readers/litert_dataset.py SAVED_MODEL OUT.tflite (pip install tensorflow)"""

import sys

import calibration_images
import numpy as np

CHANNELS_LAST = True  # TensorFlow's order; False for a network that was converted from PyTorch with its own order


def representative_dataset():
    """What TFLiteConverter.representative_dataset is set to: a list of inputs for each image."""
    for image in calibration_images.inputs():
        yield [np.ascontiguousarray(image.transpose(0, 2, 3, 1)) if CHANNELS_LAST else image]


def main(model, out):
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = representative_dataset
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    with open(out, "wb") as file:
        file.write(converter.convert())


if __name__ == "__main__":
    main(*sys.argv[1:])
'''

TENSORRT = '''\
"""Input of TensorRT's calibrators.

polygraphy convert MODEL.onnx --int8 --data-loader-script readers/tensorrt_calibrator.py -o MODEL.engine

or `calibrator()` where your own code builds the engine (TensorRT up to 10: later versions take quantised graphs only).
"""

import os

import calibration_images
import numpy as np

INPUT = os.environ.get("CALIBRATION_INPUT", "images")  # the name of the graph's input
CACHE = "calibration.cache"


def load_data():
    """What polygraphy asks for: the inputs by their names, a batch of one image each."""
    for image in calibration_images.inputs():
        yield {INPUT: image}


class Batches:
    """The methods of an IInt8EntropyCalibrator2; `to_device` copies an array to the GPU and returns its address."""

    def __init__(self, to_device):
        self._left, self._to_device = load_data(), to_device

    def get_batch_size(self):
        return 1

    def get_batch(self, names):
        batch = next(self._left, None)
        return None if batch is None else [self._to_device(np.ascontiguousarray(batch[name])) for name in names]

    def read_calibration_cache(self):
        if os.path.exists(CACHE):
            with open(CACHE, "rb") as file:
                return file.read()
        return None

    def write_calibration_cache(self, cache):
        with open(CACHE, "wb") as file:
            file.write(cache)


def calibrator(to_device):
    """An object for config.int8_calibrator."""
    import tensorrt

    class Calibrator(Batches, tensorrt.IInt8EntropyCalibrator2):
        def __init__(self):
            tensorrt.IInt8EntropyCalibrator2.__init__(self)
            Batches.__init__(self, to_device)

    return Calibrator()
'''

HAILO = '''\
"""The calibration set of Hailo's Dataflow Compiler as one array: python readers/hailo_set.py hailo.npy

hailo optimize MODEL.har --hw-arch hailo8 --calib-set-path hailo.npy

Values are normalised as the network takes them, so that the model script adds no normalization(). Where yours does,
give images.npy of this folder instead: RGB, 0 to 255.
"""

import sys

import calibration_images
import numpy as np


def calibration_set():
    """(images, height, width, channels) float32."""
    return np.concatenate(list(calibration_images.inputs())).transpose(0, 2, 3, 1)


if __name__ == "__main__":
    np.save(sys.argv[1], calibration_set())
'''

READERS = {
    "calibration_images.py": IMAGES,
    "openvino_nncf.py": OPENVINO,
    "litert_dataset.py": LITERT,
    "tensorrt_calibrator.py": TENSORRT,
    "hailo_set.py": HAILO,
}


def data_yaml(class_names: Sequence[str]) -> str:
    """The data set's description that ultralytics' export takes: yolo export model=M.pt format=... int8 data=data.yaml.

    Without `path`, the folder of the file itself is meant. The images have no labels, which calibration does not need.
    """
    names = "".join(f"  {index}: {json.dumps(name)}\n" for index, name in enumerate(class_names))
    return f"# Calibration images without labels, for export alone.\ntrain: images\nval: images\nnames:\n{names}"


def list_text(files: Sequence[str]) -> str:
    """A path below the folder on each line."""
    return "".join(f"{file}\n" for file in files)
