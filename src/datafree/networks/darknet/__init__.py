"""Darknet's networks: .cfg and .weights files, YOLOv3."""
