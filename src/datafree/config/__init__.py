"""Recipes as text: schema of options, YAML 1.2, overrides, paths, differences of two recipes."""
