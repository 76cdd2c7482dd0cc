"""Weights files that are not trusted, read as tensors only."""
