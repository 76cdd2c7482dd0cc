"""Health of a run without labels: signals, a guard against collapse, a verdict in words."""
