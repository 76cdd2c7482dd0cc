"""datafree: distil a trained vision network into a small one without the data it was trained on."""

__version__ = "0.1.0"
