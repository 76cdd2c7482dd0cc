"""What can be said before a run: inspect and plan."""
