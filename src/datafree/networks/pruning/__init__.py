"""Students that start from their teacher: structured pruning by channel groups, refitted by least squares."""
