"""Networks from torch.export's .pt2 files."""
