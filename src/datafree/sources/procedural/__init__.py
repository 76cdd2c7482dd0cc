"""Images drawn by formulas, without data, networks or gradients; a batch at a time, from torch's global generators."""
