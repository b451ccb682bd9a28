"""Weights on disk: model directories, training checkpoints, and foreign formats."""
