"""Weights on disk: model directories and training checkpoints."""
