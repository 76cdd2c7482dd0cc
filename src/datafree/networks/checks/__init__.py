"""Checks of a network before it is used: its classes, its only output, the images it is given."""
