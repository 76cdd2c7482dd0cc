"""Teachers in other tools' files: ONNX, TorchScript, Ultralytics."""
