"""Scores of networks on labelled data, and finished runs."""
