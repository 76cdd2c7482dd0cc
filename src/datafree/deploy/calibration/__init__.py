"""Calibration images for INT8, made from a trained network: the images, what they are worth, files for other tools."""
