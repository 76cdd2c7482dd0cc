"""Data sets in an object store: buckets, shards, leases."""
