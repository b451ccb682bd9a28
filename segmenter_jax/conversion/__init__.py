"""Weights of other projects, read and written."""
