"""What a run costs: calibration, time, memory, batch size."""
