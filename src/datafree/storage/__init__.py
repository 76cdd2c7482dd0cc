"""Files of a run: its directory, checkpoints, lock, atomic writes and TensorBoard's event file."""
