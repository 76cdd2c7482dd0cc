"""Data sets of made images: shards, their index, locks, object stores."""
