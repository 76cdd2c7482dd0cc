"""What several image sources share: generator training, image pools, prefetching, pixel optimisation."""
