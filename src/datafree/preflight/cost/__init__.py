"""What a run costs, measured by a small run: time, memory, batch size."""
