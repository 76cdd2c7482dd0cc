"""The training loop, its saved state, the student's step, recovery from faults, building both networks."""
