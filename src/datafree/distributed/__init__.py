"""Several processes: replicas, collectives, launching."""
